"""The table of live requests."""

import weakref

from scheduler.tracking import RequestTable, TrackedRequest


def make_request(request_id: str, engine_id: str | None = "e") -> TrackedRequest:
    return TrackedRequest(
        request_id=request_id,
        tenant="acme",
        conversation=None,
        engine_id=engine_id,
        arrival_s=0.0,
        prompt_tokens=10,
        max_output_tokens=10,
    )


def test_an_engines_load_is_the_sum_of_its_requests() -> None:
    """Loads come and go with requests and leave nothing behind."""
    table = RequestTable()
    one, two = make_request("r1"), make_request("r2")
    for request, load_units in ((one, 0.1), (two, 0.2)):
        table.add(request)
        table.set_outlook(request, load_units=load_units, output_left=5.0)

    assert (table.load("e"), table.most_tokens("e"), table.num_on("e")) == (0.1 + 0.2, 30.0, 2)
    table.remove(one)
    table.remove(two)
    assert (table.load("e"), table.most_tokens("e"), table.num_on("e")) == (0.0, 0.0, 0)
    assert list(table.on_engine("e")) == []


class Name(str):
    """A string that tells when it is freed; as plain ones, equal to others with its letters."""

    __slots__ = ("__weakref__",)


def test_a_tenants_requests_share_its_name_which_goes_with_the_last() -> None:
    """Tenants' names may be made up by clients: none is kept for longer than it is in use."""
    table = RequestTable()
    first, second = make_request("r1"), make_request("r2")
    first.tenant = Name("invented")
    second.tenant = Name("invented")
    name = weakref.ref(first.tenant)
    for request in (first, second):
        table.add(request)
    assert second.tenant is first.tenant

    table.remove(first)
    table.add(first)
    table.remove(first)
    assert second.tenant is name()
    table.remove(second)
    del first, second, request
    assert name() is None


def test_requests_of_which_no_sign_came_in_time_are_overdue() -> None:
    """Signs are due in turn; a request that gave one, or has gone, is not overdue."""
    table = RequestTable()
    requests = [make_request(f"r{number}") for number in range(4)]
    for number, request in enumerate(requests):
        table.add(request)
        table.await_sign(request, until_s=float(number))
    table.note_sign(requests[0])
    table.remove(requests[1])

    assert table.overdue(now_s=2.5) == [requests[2]]


def test_a_request_that_is_placed_takes_its_load_along() -> None:
    """What waits for an engine weighs on none, and weighs on its engine from its place on."""
    table = RequestTable()
    waiting = make_request("r1", engine_id=None)
    table.add(waiting)
    table.set_outlook(waiting, load_units=7.0, output_left=5.0)
    assert table.load("e") == 0.0

    table.place(waiting, "e")

    assert (table.load("e"), table.most_tokens("e"), waiting.engine_id) == (7.0, 15.0, "e")
