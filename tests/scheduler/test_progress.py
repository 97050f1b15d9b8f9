"""High-water marks of requests and the service of tenants."""

from scheduler.progress import ProgressTracker, Standing


def at(
    computed: int, output: int = 0, *, prompt: int = 10, priority: int = 0, is_running: bool = True
) -> Standing:
    return Standing(prompt, computed, output, priority, is_running)


def arrive(progress: ProgressTracker, request_id: str, tenant: str = "t") -> None:
    progress.arrive(
        request_id,
        tenant=tenant,
        conversation=None,
        arrival_s=1.5,
        standing=at(0, is_running=False),
    )


def test_computing_again_is_not_service() -> None:
    """After its KV is thrown away, a request's prompt counts on only past its old mark."""
    progress = ProgressTracker()
    arrive(progress, "a")
    progress.advance("a", at(8))
    progress.advance("a", at(0, is_running=False))
    progress.advance("a", at(4))

    [live] = progress.take(is_full=True).live
    assert (live.prompt_done, progress.tenant_service) == (8, {"t": (8, 0)})

    progress.advance("a", at(12, 3))
    assert progress.tenant_service == {"t": (10, 3)}


def test_only_those_that_moved_are_reported() -> None:
    """A request that stands where it stood is left out, unless everything is asked for."""
    progress = ProgressTracker()
    arrive(progress, "a")
    arrive(progress, "b")
    assert len(progress.take(is_full=False).live) == 2

    progress.advance("a", at(4))
    progress.advance("b", at(0, is_running=False))

    assert [live.request_id for live in progress.take(is_full=False).live] == ["a"]
    assert progress.take(is_full=False).live == []
    assert len(progress.take(is_full=True).live) == 2


def test_losing_ones_place_is_a_movement() -> None:
    """A request that is preempted appears in the next report, no longer running."""
    progress = ProgressTracker()
    arrive(progress, "a")
    progress.advance("a", at(4))
    progress.take(is_full=False)

    progress.fall_back("a", 4)
    progress.advance("a", at(0, is_running=False))

    [live] = progress.take(is_full=False).live
    assert (live.is_running, live.prompt_done) == (False, 4)


def test_a_finished_request_is_reported_once_and_its_service_stays() -> None:
    """What a request has been served outlives it, in its tenant's sum."""
    progress = ProgressTracker()
    arrive(progress, "a", tenant="x")
    progress.advance("a", at(12, 3))
    progress.finish("a", "stop")

    movement = progress.take(is_full=False)
    [finished] = movement.finished
    assert movement.live == []
    assert (finished.prompt_done, finished.output_done, finished.reason) == (10, 3, "stop")
    assert progress.take(is_full=True).finished == []
    assert progress.tenant_service == {"x": (10, 3)}


def test_only_what_is_computed_twice_counts_as_recomputed() -> None:
    """A request that fell back at token 20 and goes on from 12 recomputes eight tokens."""
    progress = ProgressTracker()
    arrive(progress, "a")
    progress.fall_back("a", 20)

    progress.catch_up("a", 12, 16)
    assert (progress.recomputed_tokens, list(progress.fallen_back)) == (4, ["a"])

    progress.catch_up("a", 16, 25)
    assert (progress.recomputed_tokens, list(progress.fallen_back)) == (8, [])


def test_falling_back_twice_keeps_the_higher_mark() -> None:
    """A second preemption before the request has caught up loses nothing of the first."""
    progress = ProgressTracker()
    arrive(progress, "a")
    progress.fall_back("a", 20)
    progress.catch_up("a", 0, 4)
    progress.fall_back("a", 4)

    progress.catch_up("a", 0, 20)

    assert progress.recomputed_tokens == 24


def test_what_another_engine_has_done_is_no_news() -> None:
    """A request that comes in the middle of its answer counts from there."""
    progress = ProgressTracker()
    progress.arrive(
        "a", tenant="t", conversation=None, arrival_s=1.5, standing=at(0, 4), output_done=4
    )
    progress.advance("a", at(10, 4))
    assert progress.tenant_service == {"t": (0, 0)}

    progress.advance("a", at(15, 6))
    [live] = progress.take(is_full=True).live
    assert (live.prompt_done, live.output_done, progress.tenant_service) == (10, 6, {"t": (0, 2)})


def test_what_is_put_out_again_is_no_news() -> None:
    """A request that is run again from its prompt counts once it says something new."""
    progress = ProgressTracker()
    progress.arrive(
        "a", tenant="t", conversation=None, arrival_s=1.5, standing=at(0), output_done=4
    )
    progress.advance("a", at(12, 3))
    assert progress.tenant_service == {"t": (0, 0)}

    progress.advance("a", at(15, 6))
    progress.finish("a", "length")
    [finished] = progress.take(is_full=False).finished
    assert (finished.output_done, progress.tenant_service) == (6, {"t": (0, 2)})
