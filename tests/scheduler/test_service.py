"""What a token costs."""

from scheduler.service import ServiceWeights


def test_an_output_token_costs_two_input_tokens_unless_told_otherwise() -> None:
    """Service is prompt tokens plus twice the output tokens by default, as in VTC."""
    assert ServiceWeights().units(10, 3) == 16.0
    assert ServiceWeights(input=0.5, output=4.0).units(10, 3) == 17.0
