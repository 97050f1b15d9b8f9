"""What two prompts begin with in common, told without their tokens.

Owns the fingerprints by which the router knows where the KV of a prompt's beginning is. The
tenant's salt is mixed in: what two tenants have in common nobody learns, nor could share it.
"""

from array import array
from collections.abc import Sequence
from hashlib import blake2b

# Doubling lengths find at least half of what two prompts share, with few fingerprints.
SHORTEST_TOKENS, LONGEST_TOKENS = 64, 16_384


def fingerprints(salt: str, token_ids: Sequence[int]) -> list[int]:
    """64-bit fingerprints of the prompt's first 64, 128, 256 ... tokens, shortest first."""
    digest = blake2b(salt.encode(), digest_size=8)
    found = []
    begin, end = 0, SHORTEST_TOKENS
    while end <= min(len(token_ids), LONGEST_TOKENS):
        digest.update(array("q", token_ids[begin:end]).tobytes())
        found.append(int.from_bytes(digest.digest(), "little"))
        begin, end = end, 2 * end
    return found
