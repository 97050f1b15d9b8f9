"""Service: what fairness is measured in.

Owns the price of a token and nothing else. Prices are those of VTC (arXiv:2401.00588):
an output token costs twice an input token, since it takes a whole step of its own.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServiceWeights:
    """Service units per token."""

    input: float = 1.0
    output: float = 2.0

    def units(self, prompt_tokens: float, output_tokens: float) -> float:
        """Service units of so many prompt and output tokens, or of an expected number of them."""
        return self.input * prompt_tokens + self.output * output_tokens
