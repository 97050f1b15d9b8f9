"""`fastswitch top` against a service that answers, goes away and comes back."""

import json
import os
import signal
from collections.abc import Iterator

import pytest

from app.cli.main import main
from app.ports import free_port
from tests.app.stand_in_service import Answer, fairness, serving

FAST = ("--interval", "0.02")


def growing(number: int) -> Answer:
    """Service that alice has had three quarters of, a little more at each look."""
    return fairness(
        tenants={
            "alice": {"service": 75.0 * number, "entitled_share": 0.5, "running": 2, "rank": 1},
            "bob": {"service": 25.0 * number, "entitled_share": 0.5, "waiting": 3, "rank": 0},
        },
        engines={"engine-1": {"running": 2, "max_num_seqs": 8, "switches": {"swaps_out": number}}},
        totals={"service": 100.0 * number, "output_tokens": 10 * number},
    )


def then_interrupt(after: int) -> None:
    """Press Ctrl-C in this process."""
    if after == 0:
        os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(autouse=True)
def _is_interruptible() -> Iterator[None]:
    """Ctrl-C counts here also where whoever started the tests has it ignored, as ``nohup`` does."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_once_shows_one_interval_and_ends(capsys: pytest.CaptureFixture[str]) -> None:
    """Two looks, one view."""
    with serving(growing) as service:
        assert main(["top", "--url", service.url, "--once", *FAST]) == 0

    assert len(service.paths) == 2
    shown = capsys.readouterr().out
    assert shown.index("alice") < shown.index("bob")
    assert "75.0%" in shown


def test_once_as_json_has_the_rates_of_the_view(capsys: pytest.CaptureFixture[str]) -> None:
    """One object on one line, for programs."""
    with serving(growing) as service:
        assert main(["top", "--url", service.url, "--once", "--json", *FAST]) == 0

    [line] = capsys.readouterr().out.splitlines()
    rates = json.loads(line)
    assert [(one["tenant"], one["share"]) for one in rates["tenants"]] == [
        ("alice", 0.75),
        ("bob", 0.25),
    ]
    assert [one["standing"] for one in rates["tenants"]] == ["above", "below"]
    assert rates["engines"][0]["swaps_out_per_s"] == pytest.approx(1 / rates["window_s"])
    assert rates["totals"]["output_tok_s"] == pytest.approx(10 / rates["window_s"])


def test_once_fails_with_one_sentence_where_nobody_answers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Status 1, on stderr."""
    url = f"http://127.0.0.1:{free_port('127.0.0.1')}"
    assert main(["top", "--url", url, "--once"]) == 1
    assert capsys.readouterr() == ("", f"fastswitch: {url} is away: Connection refused\n")


def test_a_key_that_is_missing_ends_the_view_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    """Asking again would not help; the sentence says what does."""
    with serving(lambda _: (401, b"")) as service:
        assert main(["top", "--url", service.url, *FAST]) == 1
    assert "--key KEY" in capsys.readouterr().err


def test_a_service_that_goes_away_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence while it is away, rates again when it is back, and Ctrl-C is no failure."""

    def answer(number: int) -> Answer:
        then_interrupt(4 - number)
        return (503, b"") if number == 2 else growing(number)

    with serving(answer) as service:
        assert main(["top", "--url", service.url, "--json", *FAST]) == 0

    told = capsys.readouterr()
    assert told.err == (
        f"fastswitch: {service.url} is away: it answers 503 Service Unavailable; trying again\n"
    )
    windows_s = [json.loads(line)["window_s"] for line in told.out.splitlines()]
    assert len(windows_s) >= 2
    assert windows_s == sorted(windows_s)


def test_the_live_view_says_that_the_service_is_away_and_keeps_the_last_rates(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal, whose own screen it gives back at the end."""
    for name, value in (("FORCE_COLOR", "1"), ("COLUMNS", "100"), ("LINES", "24")):
        monkeypatch.setenv(name, value)

    def answer(number: int) -> Answer:
        then_interrupt(4 - number)
        return growing(number) if number < 3 else (503, b"")

    with serving(answer) as service:
        assert main(["top", "--url", service.url, *FAST]) == 0

    screen = capsys.readouterr().out
    assert "looking at" in screen
    _, _, after = screen.partition("503 Service Unavailable; trying again")
    assert "alice" in after
    assert screen.endswith("\x1b[?1049l")


@pytest.mark.parametrize(
    "arguments",
    [("--interval", "0"), ("--interval", "soon"), ("--tenants", "0"), ("--url", "ftp://here")],
)
def test_wrong_usage_ends_with_status_2(
    arguments: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anybody is asked."""
    try:
        status = main(["top", "--once", *arguments])
    except SystemExit as ended:
        status = int(ended.code or 0)
    assert status == 2
    assert arguments[0] in capsys.readouterr().err
