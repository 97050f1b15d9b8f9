"""Wishes: what a request's headers may ask of its scheduling, and what they may not."""

import pytest
from starlette.datastructures import Headers

from app.edge.wishes import WishError, read_wishes
from scheduler.admission import Wishes
from scheduler.shares import ServiceClass


def wishes(headers: dict[str, str] | None = None, **more: str) -> Wishes:
    """What these ask for, of a tenant that is interactive."""
    return wishes_of(ServiceClass.INTERACTIVE, **(headers or {}), **more)


def wishes_of(tenants_class: ServiceClass, /, **headers: str) -> Wishes:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return read_wishes(Headers(named), tenants_class)


def test_who_asks_for_nothing_wishes_nothing() -> None:
    """Without headers the tenant's own class holds, and no target."""
    assert wishes() == Wishes()


@pytest.mark.parametrize(
    ("headers", "wish"),
    [
        ({"X_Service_Class": "batch"}, Wishes(service_class="batch")),
        ({"x_llm_d_inference_objective": "batch"}, Wishes(service_class="batch")),
        ({"x_llm_d_inference_objective": "interactive"}, Wishes(service_class="interactive")),
        ({"X_SLO_TTFT_Ms": "250"}, Wishes(ttft_s=0.25)),
        ({"x_llm_d_slo_ttft_ms": "1500.5"}, Wishes(ttft_s=1.5005)),
        ({"X_SLO_TBT_Ms": "40"}, Wishes(tbt_s=0.04)),
        ({"x_llm_d_slo_tpot_ms": "50"}, Wishes(tbt_s=0.05)),
        ({"X_Program_Id": "agent-7/run-3"}, Wishes(program="agent-7/run-3")),
    ],
)
def test_headers_are_wishes(headers: dict[str, str], wish: Wishes) -> None:
    """Ours and those of llm-d's gateway."""
    assert wishes(headers) == wish


def test_our_own_headers_come_first() -> None:
    """Where both are sent, ours counts."""
    both = {"X_SLO_TTFT_Ms": "100", "x_llm_d_slo_ttft_ms": "900", "X_Service_Class": "interactive"}
    assert wishes(both, x_llm_d_inference_objective="batch") == Wishes(
        service_class="interactive", ttft_s=0.1
    )


def test_an_objective_of_another_name_changes_nothing() -> None:
    """As in llm-d, where an objective that is not found is none."""
    assert wishes(x_llm_d_inference_objective="premium-tier") == Wishes()


def test_a_batch_tenant_stays_batch() -> None:
    """Its requests may step back, never forward: the class is its operator's word."""
    assert wishes_of(ServiceClass.BATCH, X_Service_Class="interactive") == Wishes()
    assert wishes(X_Service_Class="batch").service_class == "batch"


@pytest.mark.parametrize("header", ["x_slo_ttft_ms", "x_llm_d_slo_ttft_ms", "x_slo_tbt_ms"])
@pytest.mark.parametrize("value", ["0", "-5", "fast", "nan", "inf", "", "1e3", "5ms", "9" * 40])
def test_a_target_is_a_positive_number(header: str, value: str) -> None:
    """Anything else is named, with what is allowed."""
    with pytest.raises(WishError, match=r"-ms is not allowed: a number of milliseconds above 0"):
        wishes({header: value})


@pytest.mark.parametrize("value", ["gold", "", "Batch"])
def test_a_class_is_one_there_is(value: str) -> None:
    """The message says which there are."""
    with pytest.raises(WishError, match="x-service-class is not allowed: interactive or batch"):
        wishes(X_Service_Class=value)


@pytest.mark.parametrize("value", ["", "two words", "x" * 257, "\t"])
def test_a_program_has_a_name(value: str) -> None:
    """Of the same form as a conversation's."""
    with pytest.raises(WishError, match="x-program-id is not allowed: 1 to 256 visible ASCII"):
        wishes(X_Program_Id=value)


@pytest.mark.parametrize("value", ["urgent", "1.5", "", "2147483648", "-2147483648", "9" * 30])
def test_a_priority_is_a_whole_number_within_bounds(value: str) -> None:
    """vLLM would pass over what it cannot read, and its sender would never know."""
    with pytest.raises(WishError, match="x-vllm-priority is not allowed: a whole number from -21"):
        wishes(X_Vllm_Priority=value)


@pytest.mark.parametrize("value", ["0", "-7", "+3", "2147483647", "-2147483647"])
def test_priorities_within_bounds_are_left_to_vllm(value: str) -> None:
    """It reads the header itself, before the body's field."""
    assert wishes(X_Vllm_Priority=value) == Wishes()
