"""What computing again would cost: learned from how long the engine's recent steps took.

Owns a window of steps and the line through it; whoever runs the engine says how long each step
took, and compares the answer with what a swap would cost.
"""

import math
from collections import deque
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

WINDOW_STEPS = 256  # old enough to have seen prefills of several sizes, young enough to follow load
STEPS_PER_FIT = 64  # a fit takes 0.2 ms: more than one step has to spare
MIN_PREFILL_STEPS = 8
FIT_ROUNDS = 8
# Residuals smaller than this part of a typical step are alike: clocks are no better.
FINEST_SHARE = 1e-3

Floats = NDArray[np.floating[Any]]


class StepCosts:
    """A step's time as a base, so much per prefilled token and so much per decoding request.

    Fitted by least absolute deviations, so that the few steps in which something else took its
    time (a collection of garbage, a swap) do not count for more than they are.
    """

    def __init__(self) -> None:
        self._steps: deque[tuple[int, int, float]] = deque(maxlen=WINDOW_STEPS)
        self._num_unfitted = 0
        self._token_s = math.inf
        self._typical_step_s = 0.0

    def record(self, *, prefill_tokens: int, decodes: int, step_s: float) -> None:
        """Take note of a step that did something."""
        self._steps.append((prefill_tokens, decodes, step_s))
        self._num_unfitted += 1
        if self._num_unfitted >= STEPS_PER_FIT:
            self._num_unfitted = 0
            self._typical_step_s = median(seconds for *_, seconds in self._steps)
            self._token_s = self._fitted_token_s()

    def recompute_s(self, num_tokens: int) -> float:
        """What the steps that prefill so many tokens again take longer; infinite while unknown."""
        return num_tokens * self._token_s

    def num_tokens_within(self, seconds: float) -> int:
        """How many tokens of prompts make a step longer by that; none while unknown."""
        return int(seconds / self._token_s)

    @property
    def typical_step_s(self) -> float:
        """The median; 0 while unknown."""
        return self._typical_step_s

    def _fitted_token_s(self) -> float:
        table = np.array(self._steps)
        factors, seconds = table[:, :2], table[:, 2]
        if np.count_nonzero(factors[:, 0]) < MIN_PREFILL_STEPS:
            return math.inf
        factors = factors[:, np.ptp(factors, axis=0) > 0]
        columns = np.column_stack([factors, np.ones(len(table))])
        # Where the tokens are always as many, or go with the decodes, nobody can tell their part.
        if np.ptp(table[:, 0]) == 0 or np.linalg.matrix_rank(columns) < columns.shape[1]:
            return math.inf
        token_s = _least_absolute_deviations(columns, seconds)[0]
        return float(token_s) if token_s > 0 else math.inf


def _least_absolute_deviations(columns: Floats, wanted: Floats) -> Floats:
    """The factors of the columns; least squares whose weights are fitted again and again."""
    finest = FINEST_SHARE * float(np.median(wanted)) or FINEST_SHARE
    scales = np.max(np.abs(columns), axis=0)
    scaled = columns / scales
    weighted: Floats = scaled
    for _ in range(FIT_ROUNDS):
        factors = np.linalg.solve(weighted.T @ scaled, weighted.T @ wanted)
        residuals = np.abs(wanted - scaled @ factors)
        weighted = scaled / np.maximum(residuals, finest)[:, None]
    return factors / scales
