"""Nobody waits for ever."""

from scheduler.starvation import RUN_SHARE, StarvationGuard
from scheduler.tracking import TrackedRequest

MAX_WAIT_S = 16.0
RUN_S = MAX_WAIT_S * RUN_SHARE


def make_request(request_id: str, tenant: str = "acme") -> TrackedRequest:
    return TrackedRequest(
        request_id=request_id,
        tenant=tenant,
        conversation=None,
        engine_id=None,
        arrival_s=0.0,
        prompt_tokens=10,
        max_output_tokens=10,
    )


def test_a_request_that_has_waited_too_long_runs_first() -> None:
    """Not a moment sooner, and until it has run for a while."""
    guard, request = StarvationGuard(MAX_WAIT_S), make_request("r1")
    guard.wait(request, 0.0)

    guard.update(MAX_WAIT_S - 0.1)
    assert "r1" not in guard
    guard.update(MAX_WAIT_S)
    assert "r1" in guard

    guard.run(request, 20.0)
    guard.update(20.0 + RUN_S - 0.1)
    assert "r1" in guard
    guard.update(20.0 + RUN_S)
    assert "r1" not in guard


def test_a_flood_gets_one_request_at_a_time_through() -> None:
    """Of a tenant's many requests that all wait too long only the longest waiting runs first."""
    guard = StarvationGuard(MAX_WAIT_S)
    flood = [make_request(f"r{number}") for number in range(100)]
    for request in flood:
        guard.wait(request, 0.0)
    other = make_request("other", "quiet")
    guard.wait(other, 0.0)

    guard.update(100.0)

    assert [request.request_id for request in flood if request.request_id in guard] == ["r0"]
    assert "other" in guard
    guard.forget(flood[0])
    guard.update(100.0)
    assert "r1" in guard
    assert guard.num_first == 2


def test_a_request_displaced_again_and_again_starves_no_more_than_one_that_never_ran() -> None:
    """Waiting counts from when it last ran; its run as the first goes on when it is displaced."""
    guard, request = StarvationGuard(MAX_WAIT_S), make_request("r1")
    guard.wait(request, 0.0)
    guard.run(request, 10.0)
    guard.wait(request, 11.0)
    guard.update(20.0)
    assert "r1" not in guard
    guard.update(27.0)
    assert "r1" in guard

    guard.run(request, 28.0)
    guard.wait(request, 28.1)
    guard.update(28.0 + RUN_S)
    assert "r1" in guard


def test_nothing_is_kept_of_who_is_gone() -> None:
    """A tenant without waiting requests costs no memory, whether its requests ran or not."""
    guard = StarvationGuard(MAX_WAIT_S)
    for number in range(1000):
        request = make_request(f"r{number}", f"tenant{number}")
        guard.wait(request, 0.0)
        guard.update(MAX_WAIT_S)
        if number % 2:
            guard.run(request, MAX_WAIT_S)
        guard.forget(request)

    assert (guard.num_first, guard._tenants) == (0, {})
