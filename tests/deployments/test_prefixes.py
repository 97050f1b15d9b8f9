"""Fingerprints of prompts' beginnings."""

from hypothesis import given
from hypothesis import strategies as st

from deployments.prefixes import LONGEST_TOKENS, SHORTEST_TOKENS, fingerprints


def test_prompts_have_the_fingerprints_of_what_they_share() -> None:
    """Two prompts that part at token 200 agree on their first 64 and 128 tokens, not on 256."""
    one = fingerprints("salt", [*range(200), *[7] * 200])
    other = fingerprints("salt", [*range(200), *[8] * 200])

    assert (len(one), len(other)) == (3, 3)
    assert one[:2] == other[:2]
    assert one[2] != other[2]


def test_tenants_never_share_fingerprints() -> None:
    """The same tokens of two tenants have nothing in common."""
    tokens = list(range(500))

    assert not {*fingerprints("one", tokens)} & {*fingerprints("other", tokens)}


@given(st.integers(0, 3 * LONGEST_TOKENS))
def test_there_are_few_fingerprints_however_long_a_prompt(num_tokens: int) -> None:
    """One for each doubling, from the shortest length worth it to the longest looked at."""
    found = fingerprints("salt", range(num_tokens))

    lengths = [SHORTEST_TOKENS << n for n in range(20)]
    assert len(found) == sum(length <= min(num_tokens, LONGEST_TOKENS) for length in lengths)
    assert all(0 <= each < 2**64 for each in found)
