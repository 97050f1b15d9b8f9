"""TCP ports of this machine: whether one is free, one that is, and who holds one."""

import errno
import socket

import psutil

from app.errors import AddressError


def free_port(host: str) -> int:
    """A port nothing listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def is_port_free(host: str, port: int) -> bool:
    """Whether a server could listen on ``port`` of ``host`` now.

    Raises:
        AddressError: there is no such port, or this machine has no such address.
    """
    if not 0 < port < 2**16:
        raise AddressError(host, port, "ports are from 1 to 65535")
    with socket.socket() as probe:
        # As servers do: connections of a server that has just ended do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except socket.gaierror as error:
            raise AddressError(host, port, error.strerror or "unknown host") from None
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise AddressError(host, port, error.strerror or str(error)) from None
        return True


def holder_of_port(port: int) -> str | None:
    """Name and number of the process that listens on ``port``, where this user may see it."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return None
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,):
            try:
                return f"{psutil.Process(connection.pid).name()} (process {connection.pid})"
            except (psutil.NoSuchProcess, psutil.AccessDenied, TypeError, ValueError):
                return None
    return None
