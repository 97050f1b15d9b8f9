"""How `fastswitch top` looks at the widths people have."""

from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from app.top_rates import EngineRates, Rates, Standing, TenantRates, TotalRates
from app.top_view import Bar, render, rows_that_fit

URL = "http://127.0.0.1:8000"
TOTALS = TotalRates(
    running=64, waiting=1234, service_per_s=5000.0, prompt_tok_s=2100.0, output_tok_s=1443.0
)
ALICE = TenantRates(
    tenant="alice",
    weight=2.0,
    service_class="interactive",
    share=0.5,
    entitled_share=0.25,
    standing=Standing.ABOVE,
    rank=1,
    running=60,
    waiting=1200,
    service=3.4e6,
    service_per_s=2500.0,
    output_tok_s=700.0,
    rejected_per_s=0.0,
)
ENGINE = EngineRates(
    engine="engine-3f2a90c4",
    load=86_000.0,
    running=64,
    waiting=36,
    max_num_seqs=64,
    device_blocks_used=1100,
    device_blocks_total=1115,
    host_blocks_used=0,
    host_blocks_total=0,
    swaps_out_per_s=3.3,
    swaps_in_per_s=2.0,
    blocks_out_per_s=900.0,
    blocks_in_per_s=80.0,
    recomputed_tok_s=0.0,
    stall_share=0.004,
)


def crowd(num_tenants: int, num_engines: int = 1) -> Rates:
    """A service with so many of each; the shares are those of the tenants' numbers."""
    even = replace(ALICE, share=1 / num_tenants, entitled_share=1 / num_tenants)
    tenants = [replace(even, tenant=f"tenant-{number:03d}") for number in range(num_tenants)]
    engines = [replace(ENGINE, engine=f"engine-{number:08x}") for number in range(num_engines)]
    return Rates("vtc", 10.0, TOTALS, tenants, engines)


def lines(
    rates: Rates, width: int, *, max_tenants: int = 20, max_engines: int = 10, trouble: str = ""
) -> list[str]:
    """What a terminal of this width shows."""
    console = Console(record=True, width=width, file=StringIO())
    console.print(
        render(
            rates,
            url=URL,
            width=width,
            max_tenants=max_tenants,
            max_engines=max_engines,
            trouble=trouble,
        )
    )
    return console.export_text().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal_and_no_row_takes_two(width: int) -> None:
    """A narrow terminal has fewer columns, not broken ones."""
    shown = lines(Rates("vtc", 10.0, TOTALS, [ALICE], [ENGINE]), width)

    assert max(map(len, shown)) <= width
    assert len(shown) == 10  # a header of two, and two tables of head, rule and row, set apart
    assert sum("alice" in line for line in shown) == 1


@pytest.mark.parametrize("width", [80, 120])
def test_the_numbers_of_a_tenant_and_an_engine_are_all_there(width: int) -> None:
    """Nothing is cut off at the widths of a terminal and of a wide one."""
    text = "\n".join(lines(Rates("vtc", 10.0, TOTALS, [ALICE], [ENGINE]), width))

    for number in ("50.0%", "25.0%", "1,200", "64/64", "3.3", "2.0", "0.4%", "1,443", "2,100"):
        assert number in text
    assert "engine-3f2a90c4" in text
    assert "policy vtc" in text
    assert "…" not in text


def test_a_wide_terminal_shows_more() -> None:
    """Service and class of a tenant, load and blocks of an engine."""
    rates = Rates("vtc", 10.0, TOTALS, [ALICE], [ENGINE])
    wide, narrow = ("\n".join(lines(rates, width)) for width in (120, 80))
    for extra in ("3.4M", "interactive", "86k", "900/80"):
        assert extra in wide
        assert extra not in narrow


def test_of_many_tenants_the_largest_are_shown_and_the_others_as_one() -> None:
    """Their sums stand in the last row, without a bar that would dwarf everybody's."""
    shown = lines(crowd(300), 100, max_tenants=5)

    assert sum("tenant-" in line for line in shown) == 4
    [row] = [line for line in shown if "others" in line]
    assert row.startswith("296 others")
    assert "98.7%" in row
    assert "█" not in row


def test_of_many_engines_it_is_said_how_many_are_not_shown() -> None:
    """The busiest are."""
    shown = lines(crowd(1, num_engines=100), 100, max_engines=3)
    assert sum("engine-" in line for line in shown) == 3
    assert shown[-1].strip() == "and 97 engines with less to do"


@pytest.mark.parametrize("height", [5, 12, 24, 50])
@pytest.mark.parametrize("num_engines", [1, 2, 100])
def test_rows_fit_the_terminal_as_far_as_it_has_lines(height: int, num_engines: int) -> None:
    """At least a tenant and an engine; otherwise no more lines than there are."""
    tenants, engines = rows_that_fit(height, num_engines)
    assert min(tenants, engines) >= 1
    shown = lines(crowd(300, num_engines), 80, max_tenants=tenants, max_engines=engines)
    assert len(shown) <= max(height, 11)


def test_before_any_tenant_and_engine_there_is_a_view_too() -> None:
    """An empty service is no error."""
    assert any("tenant" in line for line in lines(Rates("vtc", 2.0, TOTALS, [], []), 80))


def test_trouble_stands_on_top() -> None:
    """What is below it is not the latest."""
    [first, *_] = lines(crowd(1), 80, trouble="the service does not answer; trying again")
    assert first == "the service does not answer; trying again"


def test_a_bar_is_marked_where_it_should_end() -> None:
    """Its length is the value's part of the scale; the mark takes one place of it."""
    console = Console(width=10, record=True, file=StringIO())
    console.print(Bar(0.5, 1.0, "green", mark=0.8))
    console.print(Bar(1.0, 1.0, "green", mark=1.0))
    console.print(Bar(0.0, 0.0, "green", mark=0.0))
    assert console.export_text().splitlines() == ["█████···│·", "█████████│", "··········"]


def test_a_terminal_without_unicode_gets_plain_bars() -> None:
    """Rather than question marks."""

    class AsciiFile(StringIO):
        encoding = "ascii"

    file = AsciiFile()
    Console(width=10, file=file).print(Bar(0.5, 1.0, "green", mark=0.8))
    assert file.getvalue() == "#####...|.\n"


def test_tenants_above_and_below_their_due_have_their_colours() -> None:
    """So that they are found without reading numbers."""
    for standing, colour in ((Standing.ABOVE, "33"), (Standing.BELOW, "1;31")):
        console = Console(
            record=True, width=80, file=StringIO(), force_terminal=True, color_system="standard"
        )
        tenant = replace(ALICE, standing=standing)
        rates = Rates("vtc", 10.0, TOTALS, [tenant], [])
        console.print(render(rates, url=URL, width=80, max_tenants=5, max_engines=5))
        assert f"\x1b[{colour}m50.0%" in console.export_text(styles=True)


def test_refusals_have_a_column_only_while_there_are_any() -> None:
    """They are rare, and the column is missed where they are not."""
    calm = Rates("vtc", 10.0, TOTALS, [ALICE], [])
    refused = replace(calm, tenants=[replace(ALICE, rejected_per_s=1.5)])
    assert not any("429/s" in line for line in lines(calm, 120))
    assert any("429/s" in line for line in lines(refused, 120))


@pytest.mark.parametrize("width", [40, 80, 120])
def test_an_engine_that_drains_is_marked(width: int) -> None:
    """It takes nothing new, which explains a batch that is not full; others have no mark."""
    leaving = replace(ENGINE, engine="engine-leaving", is_draining=True)
    shown = lines(Rates("vtc", 10.0, TOTALS, [ALICE], [ENGINE, leaving]), width)

    assert [line.split()[0] for line in shown if "drains" in line] == ["engine-leaving"]
    assert max(map(len, shown)) <= width
    calm = lines(Rates("vtc", 10.0, TOTALS, [ALICE], [ENGINE]), width)
    assert not any("drains" in line for line in calm)


def test_those_in_line_are_told_from_those_on_engines() -> None:
    """With so many there is an engine too few; where nobody is in line nothing is said of it."""
    crowded = Rates("vtc", 10.0, replace(TOTALS, in_line=200), [ALICE], [ENGINE])
    assert lines(crowded, 80)[1].endswith("1,234 waiting, 200 in line")
    calm = Rates("vtc", 10.0, TOTALS, [ALICE], [ENGINE])
    assert lines(calm, 80)[1].rstrip().endswith("1,234 waiting")


def test_settings_that_were_refused_are_shown() -> None:
    """Whoever changed them looks here; the numbers stay where they are, a line lower."""
    refused = "user_config.fairness.quantum: input should be greater than 0 (given: -1)"
    shown = lines(Rates("vtc", 10.0, TOTALS, [ALICE], [ENGINE], refused), 100)

    assert shown[0] == refused
    assert len(shown) == 11
