"""An HTTP server of the standard library, in threads of this process while a test wants it."""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler], is_open: Event) -> Iterator[str]:
    """Its address without a path. On leaving, ``is_open`` is set, so that no answer is held up."""
    is_open.set()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        is_open.set()
        server.shutdown()
        server.server_close()
        thread.join()
