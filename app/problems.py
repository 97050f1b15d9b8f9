"""What is wrong with settings, as one sentence for whoever wrote them.

Owns turning the first error of a check into where it is, what it was and what is allowed. The
settings themselves are ``app.settings``'.
"""

from typing import Any, get_args, get_origin

from pydantic import ValidationError

from app.settings import AppArgs


def describe(error: ValidationError, root: str) -> str:
    """The first problem as one sentence: where it is, what it was, what is allowed.

    ``root`` is what the settings are called where they stand.
    """
    sentence = _first_problem(error, root)
    # Names and values come from the file: a line break in one must not break the sentence.
    return "".join(sign if sign.isprintable() else "?" for sign in sentence)


def _first_problem(error: ValidationError, root: str) -> str:
    problem = error.errors(include_url=False)[0]
    where = ".".join([root, *(str(part) for part in problem["loc"])])
    if problem["type"] == "extra_forbidden":
        return (
            f"{where}: there is no such setting; allowed are {', '.join(_fields(problem['loc']))}"
        )
    message = problem["msg"].removeprefix("Value error, ")
    value = "" if isinstance(problem["input"], dict) else f" (given: {problem['input']!r})"
    return f"{where}: {message[:1].lower()}{message[1:]}{value}"


def _fields(location: tuple[int | str, ...]) -> list[str]:
    """The settings there are where an unknown one was found."""
    model: Any = AppArgs
    for part in location[:-1]:
        if get_origin(model) is dict:
            _, model = get_args(model)  # the part is a tenant's name
        else:
            model = model.model_fields[part].annotation
    return sorted(field.alias or name for name, field in model.model_fields.items())
