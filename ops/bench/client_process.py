"""A measuring client in a process of its own: its load goes in, what it saw comes out.

Owns starting that process, so that neither parsing nor the benchmark's own work takes its turns
in between. What goes in and out lies in files: what a client has seen is more than a pipe holds,
and nothing has to read along while it measures.
"""

import subprocess
import sys
import tempfile
from typing import Any, TypeVar

import msgspec

from ops.bench.errors import RequestFailedError

Result = TypeVar("Result")


def run_client(module: str, load: Any, result_type: type[Result]) -> Result:
    """Run ``python -m module`` on ``load``, wait for its end and return what it writes.

    Raises:
        RequestFailedError: a request broke off, or the client could not go on.
    """
    with (
        tempfile.TemporaryFile() as order,
        tempfile.TemporaryFile() as seen,
        tempfile.TemporaryFile() as words,
    ):
        order.write(msgspec.msgpack.encode(load))
        order.seek(0)
        command = [sys.executable, "-m", module]
        status = subprocess.run(command, stdin=order, stdout=seen, stderr=words, check=False)
        seen.seek(0)
        words.seek(0)
        if status.returncode:
            said = words.read().decode(errors="replace").strip()
            raise RequestFailedError(said.splitlines()[-1] if said else "the client process ended")
        try:
            return msgspec.msgpack.decode(seen.read(), type=result_type)
        except msgspec.DecodeError as error:
            size = seen.tell()
            raise RequestFailedError(f"the client's result of {size} bytes: {error}") from None
