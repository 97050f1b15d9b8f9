"""Wishes: what a request's headers ask of its scheduling.

Owns the headers' names, ours and those that users of llm-d's gateway send, and what each may say.
What a wish does is the policy's in force. vLLM's own `priority` stands in the body or in the header
`X-Vllm-Priority`: vLLM reads both, and only the header's form is checked here, as vLLM would pass
over a wrong one in silence.
"""

import re
from collections.abc import Mapping

from scheduler.admission import PRIORITY_BOUND, Wishes
from scheduler.shares import ServiceClass

CLASS_HEADER = "x-service-class"
# In llm-d the name of an object that holds a priority. One that is called as a class of ours asks
# for that class; any other name is left unused, as llm-d treats an objective that it does not find.
OBJECTIVE_HEADER = "x-llm-d-inference-objective"
# Of each pair, the first that is present counts.
TTFT_HEADERS = ("x-slo-ttft-ms", "x-llm-d-slo-ttft-ms")
TBT_HEADERS = ("x-slo-tbt-ms", "x-llm-d-slo-tpot-ms")
PROGRAM_HEADER = "x-program-id"
PRIORITY_HEADER = "x-vllm-priority"

_CLASSES = tuple(each.value for each in ServiceClass)
_PROGRAM = re.compile(r"[\x21-\x7e]{1,256}")
_PRIORITY = re.compile(r"[+-]?[0-9]{1,10}")
_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{1,12})?")


class WishError(Exception):
    """A header asks for something that there is not."""

    def __init__(self, header: str, allowed: str) -> None:
        super().__init__(header, allowed)
        self.header, self.allowed = header, allowed

    def __str__(self) -> str:
        return f"{self.header} is not allowed: {self.allowed}"


def read_wishes(headers: Mapping[str, str], tenants_class: ServiceClass) -> Wishes:
    """What these headers, named in lower case, ask for a request of a tenant of this class.

    Raises:
        WishError: one of them says what it may not.
    """
    _check_priority(headers)
    return Wishes(
        service_class=_service_class(headers, tenants_class),
        ttft_s=_seconds(headers, TTFT_HEADERS),
        tbt_s=_seconds(headers, TBT_HEADERS),
        program=_program(headers),
    )


def _service_class(headers: Mapping[str, str], tenants_class: ServiceClass) -> str | None:
    wanted = headers.get(CLASS_HEADER)
    if wanted is None:
        objective = headers.get(OBJECTIVE_HEADER)
        wanted = objective if objective in _CLASSES else None
    elif wanted not in _CLASSES:
        raise WishError(CLASS_HEADER, f"{' or '.join(_CLASSES)}")
    # Anybody may step back. That a tenant is batch is its operator's word.
    return None if tenants_class is ServiceClass.BATCH else wanted


def _seconds(headers: Mapping[str, str], names: tuple[str, ...]) -> float | None:
    for name in names:
        if name in headers:
            milliseconds = float(headers[name]) if _NUMBER.fullmatch(headers[name]) else 0.0
            if milliseconds <= 0:
                raise WishError(name, "a number of milliseconds above 0")
            return milliseconds / 1000
    return None


def _program(headers: Mapping[str, str]) -> str | None:
    program = headers.get(PROGRAM_HEADER)
    if program is not None and _PROGRAM.fullmatch(program) is None:
        raise WishError(PROGRAM_HEADER, "1 to 256 visible ASCII characters, without spaces")
    return program


def _check_priority(headers: Mapping[str, str]) -> None:
    priority = headers.get(PRIORITY_HEADER)
    if priority is None:
        return
    if not (_PRIORITY.fullmatch(priority) and abs(int(priority)) <= PRIORITY_BOUND):
        raise WishError(
            PRIORITY_HEADER, f"a whole number from -{PRIORITY_BOUND} to {PRIORITY_BOUND}"
        )
