"""How much KV memory a set of requests will need at its peak.

Owns the prediction alone, on plain numbers. After the future peak of Past-Future scheduling
(arXiv:2507.10150): admitting by what requests hold now fills an engine and then thrashes it,
admitting by the most they may put out leaves half of it empty.
"""

from collections.abc import Iterable


def peak_tokens(requests: Iterable[tuple[float, float]]) -> float:
    """The most KV that these requests hold together until all are done, in tokens.

    Each is ``(tokens still to come, tokens it holds by now)``; all grow by one a step and give
    back all they hold when they end. The peak is right before one of them ends: those that end
    no sooner hold what they have now and have all grown as far as that one had to.
    """
    peak = held = 0.0
    for num_longer, (left, used) in enumerate(sorted(requests, reverse=True), start=1):
        held += used
        peak = max(peak, held + num_longer * left)
    return peak
