"""A folder served over HTTP on this machine, with parts of files, and with what goes wrong on the way."""

import re
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

QUICK = {"max_retries": 1, "initial_delay": "10ms", "max_delay": "10ms"}
"""Of what fails a test does not wait long."""


@contextmanager
def served(folder):
    """The context in which a folder is served.

    It has the server's ``url``, the ``requests`` that came (path, range), a ``status`` that is answered in place of
    what is asked for, whether it is ``gone`` in the middle of every answer, and whether it gives ``parts``.
    """
    told = SimpleNamespace(requests=[], status=None, gone=False, parts=True, url="")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            told.requests.append((self.path, asked := self.headers.get("Range")))
            file = folder / self.path.lstrip("/")
            if told.status is not None or not file.is_file():
                self._answer(told.status or 404, b"")
                return
            payload = file.read_bytes()
            if asked is None or not told.parts:
                self._answer(200, payload)
                return
            first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", asked).groups())
            part = payload[first : last + 1]
            if not part:
                self._answer(416, b"")
                return
            self._answer(206, part, f"bytes {first}-{first + len(part) - 1}/{len(payload)}")

        def _answer(self, status, payload, of=None):
            self.send_response(status)
            self.send_header("Content-Length", str(len(payload)))
            if of is not None:
                self.send_header("Content-Range", of)
            self.end_headers()
            if told.gone:
                self.wfile.write(payload[: len(payload) // 2])
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
                return
            self.wfile.write(payload)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    told.url = f"http://127.0.0.1:{server.server_port}"
    told.server = server
    try:
        yield told
    finally:
        told.gone = True  # connections that are open outlive the server
        server.shutdown()
        server.server_close()
