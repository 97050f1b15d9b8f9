"""What a crashed process left at the Pushgateway goes; what lives stays."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, push_to_gateway

from ops.metrics.push import Group, PushTarget
from ops.metrics.stale_groups import (
    MIN_STALE_S,
    SWEEP_EVERY_PUSHES,
    PushedGroup,
    StaleGroups,
    groups_of,
    pushed_groups,
    remove_application,
    stale,
)
from tests.ops.metrics.stand_in_pushgateway import stand_in_pushgateway
from tests.ops.prometheus import needs_prometheus, pushgateway


def exposition(*groups: tuple[str, str, float]) -> str:
    """A Pushgateway's own words for groups of (application, instance, time of the push)."""
    lines = [
        f'push_time_seconds{{application="{application}",instance="{instance}",job="engine"}} '
        f"{pushed_s!r}\n"
        for application, instance, pushed_s in groups
    ]
    return "".join(["# TYPE push_time_seconds gauge\n", *lines, 'made_total{job="engine"} 3\n'])


def test_only_our_applications_stale_groups_are_removed() -> None:
    """Groups of other applications are left alone, and so are ours that were pushed of late."""
    new_s, old_s = 1.7e9, 1.7e9 - MIN_STALE_S - 1
    with stand_in_pushgateway() as gateway:
        gateway.exposition = exposition(
            ("ours", "alive", new_s), ("ours", "crashed", old_s), ("theirs", "crashed", old_s)
        )
        groups = StaleGroups(PushTarget(gateway.url), "ours")
        for _ in range(SWEEP_EVERY_PUSHES):
            groups.sweep()
        calls = [gateway.next_call() for _ in range(gateway.calls.qsize())]

    assert [(call.method, call.path) for call in calls] == [
        ("GET", "/metrics"),
        ("DELETE", "/metrics/job/engine/application/ours/instance/crashed"),
    ]


@given(st.lists(st.floats(0, 2e9), min_size=1), st.floats(1, 1e6))
def test_clocks_that_disagree_remove_nothing(times_s: list[float], stale_s: float) -> None:
    """Only differences between the groups' times count: one of them is always the newest, new."""
    groups = [
        PushedGroup(Group("engine", str(number), "ours"), pushed_s)
        for number, pushed_s in enumerate(times_s)
    ]

    gone = {int(group.instance) for group in stale(groups, stale_s)}

    kept_s = [times_s[number] for number in range(len(times_s)) if number not in gone]
    assert max(times_s) in kept_s
    assert all(max(times_s) - time_s <= stale_s for time_s in kept_s)
    assert all(max(times_s) - times_s[number] > stale_s for number in gone)


def test_groups_of_others_kinds_are_not_ours() -> None:
    """A Pushgateway is shared: batch jobs push under a job alone."""
    lines = [b'push_time_seconds{instance="",job="backup"} 1.7e+09\n', b"made_total 3\n"]
    assert list(pushed_groups(lines)) == []


@needs_prometheus
def test_an_application_that_ended_is_removed_from_a_real_pushgateway() -> None:
    """All of its groups, and no other's."""
    ours = [Group("engine", "e1", "ours"), Group("router", "r1", "ours")]
    theirs = Group("engine", "e1", "theirs")
    with pushgateway() as url:
        for group in (*ours, theirs):
            push_to_gateway(url, group.job, CollectorRegistry(), group.key)
        assert {pushed.group for pushed in groups_of(url, "ours")} == {*ours}

        remove_application(url, "ours")

        assert groups_of(url, "ours") == []
        assert [pushed.group for pushed in groups_of(url, "theirs")] == [theirs]
