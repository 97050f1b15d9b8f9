"""TCP ports: free or not, and who has one."""

import os
import socket
from collections.abc import Iterator

import pytest

from app.errors import AddressError
from app.ports import free_port, holder_of_port, is_port_free

HOST = "127.0.0.1"


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which this process listens."""
    with socket.create_server((HOST, 0)) as server:
        yield server.getsockname()[1]


def test_a_port_that_is_given_out_is_free() -> None:
    """A server can listen there."""
    port = free_port(HOST)

    assert is_port_free(HOST, port)
    with socket.create_server((HOST, port)):
        assert not is_port_free(HOST, port)
    assert is_port_free(HOST, port)


def test_a_port_somebody_listens_on_is_not_free(taken: int) -> None:
    """And that somebody is named, so that it can be stopped."""
    assert not is_port_free(HOST, taken)
    holder = holder_of_port(taken)
    assert holder is not None
    assert f"(process {os.getpid()})" in holder


def test_a_port_of_a_server_that_has_just_ended_is_free() -> None:
    """Its old connections do not count, as they do not for servers."""
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection((HOST, port)):
            connection, _ = server.accept()
            connection.close()
    assert is_port_free(HOST, port)


def test_nobody_holds_a_free_port() -> None:
    """Then nobody is named."""
    assert holder_of_port(free_port(HOST)) is None


@pytest.mark.parametrize("port", [-1, 0, 65536, 10**9])
def test_a_number_that_is_no_port_is_refused(port: int) -> None:
    """With the numbers that are."""
    with pytest.raises(AddressError, match="ports are from 1 to 65535"):
        is_port_free(HOST, port)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1", "not an address"])
def test_an_address_of_others_is_refused(host: str) -> None:
    """This machine cannot listen there, which is not the same as a port in use."""
    with pytest.raises(AddressError, match=f"cannot listen on {host}, port 8000"):
        is_port_free(host, 8000)
