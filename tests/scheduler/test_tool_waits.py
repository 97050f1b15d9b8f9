"""How long a turn's KV is kept for a tool: learned from the tool's waits, weighed against cost."""

import random

from hypothesis import given
from hypothesis import strategies as st

from scheduler.tool_waits import (
    FEW_WAITS,
    NEVER_S,
    TYPICAL_WAIT_S,
    WINDOW_WAITS,
    DeviceMemory,
    ToolWaits,
)

MOST_S = 30.0
DEAR = DeviceMemory(refill_s=5.0, demand=1.0)
PLENTY = DeviceMemory(refill_s=10.0, demand=0.0)


def learned(*waits_s: float, tool: str = "search") -> ToolWaits:
    waits = ToolWaits()
    for wait_s in waits_s:
        waits.observe(tool, wait_s)
    return waits


def ttl_s(waits: ToolWaits, memory: DeviceMemory = DEAR, *, tool: str = "search") -> float:
    return waits.ttl_s(tool, memory, at_most_s=MOST_S)


def mean_gain_s(waits_s: list[float], ttl_s: float, memory: DeviceMemory) -> float:
    """What pins of this time would have saved less what they would have cost; none without one."""
    saved_s = sum(wait_s <= ttl_s for wait_s in waits_s) * memory.refill_s if ttl_s else 0.0
    held_s = sum(min(wait_s, ttl_s) for wait_s in waits_s) * memory.demand
    return (saved_s - held_s) / len(waits_s)


def test_a_tool_that_always_takes_as_long_is_waited_for_so_long() -> None:
    """Where the wait costs less than the memory's refill, all of it is kept; no longer."""
    assert ttl_s(learned(*[2.0] * FEW_WAITS)) == 2.0


def test_a_tool_that_takes_too_long_is_not_waited_for() -> None:
    """A wait that costs more than coming back from host memory is not begun."""
    assert ttl_s(learned(*[12.0] * FEW_WAITS)) == 0.0


def test_a_rare_long_wait_is_not_waited_for() -> None:
    """Of nine short waits and a long one, the short are worth it, the long costs more."""
    waits = learned(*([0.5] * 9 + [9.0]) * FEW_WAITS)

    assert ttl_s(waits) == 0.5


def test_while_memory_is_plenty_the_longest_wait_is_covered() -> None:
    """A pin that nobody misses costs nothing, up to the bound."""
    waits = learned(*([0.5] * 9 + [9.0]) * FEW_WAITS, 100.0)

    assert ttl_s(waits, PLENTY) == 9.0


def test_conversations_that_never_come_back_are_not_waited_for() -> None:
    """Where most leave for ever, the few that come back do not pay for a long pin."""
    waits = learned(*([NEVER_S] * 9 + [2.0]) * FEW_WAITS)

    assert ttl_s(waits) == 0.0


def test_the_window_forgets() -> None:
    """A tool that has become faster is not waited for as it was."""
    waits = learned(*[8.0] * WINDOW_WAITS, *[0.1] * WINDOW_WAITS)

    assert ttl_s(waits, PLENTY) == 0.1


def test_a_tool_seen_too_seldom_takes_as_long_as_the_others() -> None:
    """Few waits say less than those of all tools together."""
    waits = learned(*[0.25] * 10 * FEW_WAITS, tool="read")
    waits.observe("search", 8.0)

    assert ttl_s(waits, tool="search") == 0.25


def test_with_nothing_seen_a_wait_of_typical_length_is_assumed() -> None:
    """It is waited for, unless the memory is worth more; within the bound all the same."""
    waits = ToolWaits()

    assert TYPICAL_WAIT_S < ttl_s(waits) < MOST_S
    assert ttl_s(waits, DeviceMemory(TYPICAL_WAIT_S / 2, 1.0)) == 0.0
    assert waits.ttl_s("search", PLENTY, at_most_s=0.1) == 0.1


def test_invented_tools_are_forgotten() -> None:
    """However many names clients make up, so many are remembered: the newest."""
    waits = ToolWaits(max_tools=10)
    for index in range(1000):
        waits.observe(f"tool {index}", 1.0)

    assert len(waits) == 10


@given(
    seen_s=st.lists(st.floats(0.001, 100) | st.just(NEVER_S), min_size=FEW_WAITS, max_size=60),
    refill_s=st.floats(0, 100),
    demand=st.floats(0, 1),
    tried_s=st.floats(0, MOST_S),
)
def test_no_other_time_gains_more(
    seen_s: list[float], refill_s: float, demand: float, tried_s: float
) -> None:
    """No time within the bound has a better balance of what it saves and what it costs."""
    chosen_s = ttl_s(learned(*seen_s), DeviceMemory(refill_s, demand))

    assert 0 <= chosen_s <= MOST_S
    memory = DeviceMemory(refill_s, demand)
    assert mean_gain_s(seen_s, chosen_s, memory) >= mean_gain_s(seen_s, tried_s, memory) - 1e-9


def test_what_is_learned_of_a_wide_spread_is_nearly_the_best(seed: int) -> None:
    """On waits spread as those of coding agents' tools are, no fixed time saves much more."""
    choose = random.Random(seed)
    past, to_come = ([choose.lognormvariate(-1.5, 1.5) for _ in range(WINDOW_WAITS)] for _ in "ab")
    memory = DeviceMemory(refill_s=2.0, demand=1.0)
    fixed_s = [tenths / 10 for tenths in range(301)]

    gain_s = mean_gain_s(to_come, ttl_s(learned(*past), memory), memory)

    assert gain_s > 0.8 * max(mean_gain_s(to_come, time_s, memory) for time_s in fixed_s) > 0
