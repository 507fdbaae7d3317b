"""A local HTTP server that fails as asked, for tests of reading over the network."""

from __future__ import annotations

import re
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ByteServer:
    """Serves `files`; `faults[name]` lists what happens to the next requests of a file, one each.

    A fault is an HTTP status, `cut` (the connection ends in the middle), `short` (half of the bytes, as if all),
    `slow` (nothing comes until `go_on` is set); None is a request that goes well.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[int | str | None]] = defaultdict(list)
        self.asked: list[tuple[str, str]] = []
        """(method, file) of every request."""
        self.sent: dict[str, int] = defaultdict(int)
        self.ranges = True
        self.go_on = threading.Event()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign] # clients here hang up and die
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/set"

    def times(self, name: str, method: str = "GET") -> int:
        return self.asked.count((method, name))

    def close(self) -> None:
        self.go_on.set()
        self._server.shutdown()
        self._server.server_close()

    def _next_fault(self, method: str, name: str) -> int | str | None:
        with self._lock:
            self.asked.append((method, name))
            return self.faults[name].pop(0) if self.faults[name] else None

    def _handler(outer) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else the body waits until the head has been acknowledged

            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self._answer(with_body=False)

            def do_GET(self) -> None:
                self._answer(with_body=True)

            def _answer(self, with_body: bool) -> None:
                name = self.path.split("?")[0].removeprefix("/set/")
                fault = outer._next_fault(self.command, name)
                if fault == "slow":
                    outer.go_on.wait()
                data = outer.files.get(name)
                status, whole = (200, data) if data is not None else (404, b"")
                if isinstance(fault, int):
                    status, whole = fault, b""
                part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                body = whole or b""
                if part and outer.ranges and status == 200:
                    start, stop = int(part[1]), int(part[2]) + 1
                    status, body = (206, body[start:stop]) if start < len(body) else (416, b"")
                if fault == "short":
                    body = body[: len(body) // 2]
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if fault == "cut":
                    body = body[: len(body) // 2]
                    self.close_connection = True
                if with_body:
                    outer.sent[name] += len(body)
                    self.wfile.write(body)

        return Handler
