"""One look at a service: what is read of its answer, and what is said where there is none."""

import pytest

from app.errors import AppError, ServiceAwayError, ServiceRefusesError, UsageError
from app.fairness_client import FairnessClient, TenantNow
from app.ports import free_port
from tests.app.stand_in_service import Answer, fairness, serving


def test_a_look_is_the_answer_and_the_time_at_which_it_came() -> None:
    """Asked with the key as clients send it; fields that are new here change nothing."""
    answer = fairness(
        tenants={"alice": {"weight": 2.0, "class": "batch", "rank": None, "unheard_of": {}}},
        engines={"engine-1": {"running": 3, "switches": {"swaps_out": 5}}},
    )
    with serving(lambda _: answer) as service:
        look = FairnessClient(f"{service.url}/", "fs-1-2", clock=lambda: 42.0).look()

    assert service.paths == ["/v1/fairness"]
    assert service.keys == ["Bearer fs-1-2"]
    assert (look.at_s, look.fairness.policy) == (42.0, "vtc")
    assert look.fairness.tenants == {"alice": TenantNow(weight=2.0, service_class="batch")}
    assert look.fairness.engines["engine-1"].switches.swaps_out == 5


def test_without_a_key_none_is_sent() -> None:
    """Where keys are off there is nothing to say."""
    with serving(lambda _: fairness()) as service:
        FairnessClient(service.url).look()
    assert service.keys == [None]


@pytest.mark.parametrize(
    ("answer", "error", "sentence"),
    [
        ((200, b"{}"), ServiceAwayError, "is away: its router has not answered yet"),
        ((503, b""), ServiceAwayError, "is away: it answers 503 Service Unavailable"),
        ((401, b""), ServiceRefusesError, "asks for a tenant's API key: --key KEY"),
        ((404, b""), ServiceRefusesError, "no FastSwitch service: it answers 404 Not Found"),
        ((200, b"<html>"), ServiceRefusesError, "cannot be watched: this is no FastSwitch service"),
        ((200, b'{"policy": 3}'), ServiceRefusesError, "this is no FastSwitch service"),
    ],
)
def test_an_answer_that_is_none_is_one_sentence(
    answer: Answer, error: type[AppError], sentence: str
) -> None:
    """It says whether the next look may fare better, with the address."""
    with serving(lambda _: answer) as service, pytest.raises(error) as raised:
        FairnessClient(service.url).look()

    assert str(raised.value).startswith(service.url)
    assert sentence in str(raised.value)


def test_nobody_there_is_one_sentence() -> None:
    """The reason is the system's own, without its number."""
    url = f"http://127.0.0.1:{free_port('127.0.0.1')}"
    with pytest.raises(ServiceAwayError) as raised:
        FairnessClient(url).look()
    assert str(raised.value) == f"{url} is away: Connection refused"


def test_an_address_that_is_none_is_wrong_usage() -> None:
    """Files and other schemes are not services."""
    with pytest.raises(UsageError, match="http://HOST:PORT is wanted"):
        FairnessClient("file:///etc/hosts")
