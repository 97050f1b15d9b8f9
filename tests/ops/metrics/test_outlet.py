"""A process that is no gateway can be scraped at a port of its own."""

import logging
from contextlib import ExitStack, closing
from typing import Any

import httpx
import pytest

from app.ports import free_port
from ops.metrics import outlet as outlet_module
from ops.metrics.outlet import Outlet, Outlets, process_registry
from ops.metrics.push import Group
from ops.metrics.router_metrics import RouterMetrics

HOST = "127.0.0.1"


def opened(first_port: int) -> Any:
    """An outlet for scraping, open until its ``with`` ends."""
    outlet = Outlet(
        process_registry(RouterMetrics()),
        Outlets(scrape_port=first_port),
        Group("router", "router-1", "fastswitch"),
        HOST,
    )
    outlet.open()
    return closing(outlet)


def test_a_process_is_scraped_at_its_port() -> None:
    """Its own numbers and its memory and processor time."""
    with opened(free_port(HOST)) as outlet:
        text = httpx.get(f"http://{HOST}:{outlet.port}/metrics").text

    assert "fastswitch_router_engines 0.0" in text
    assert "process_cpu_seconds_total" in text


def test_processes_of_one_node_take_the_next_free_port() -> None:
    """They are told the same first port, and do not know of each other."""
    first = free_port(HOST)
    with ExitStack() as stack:
        ports = [stack.enter_context(opened(first)).port for _ in range(3)]

    assert len(set(ports)) == 3
    assert all(first <= port < first + outlet_module.NUM_PORTS for port in ports)


def test_a_process_without_a_port_serves_all_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It says that it cannot be scraped, and goes on."""
    monkeypatch.setattr(outlet_module, "NUM_PORTS", 1)
    first = free_port(HOST)
    with (
        caplog.at_level(logging.WARNING),
        opened(first),
        opened(first) as second,
    ):
        assert second.port is None

    [warning] = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert "cannot be scraped" in warning
