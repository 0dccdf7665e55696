"""A web server on this machine that misbehaves on request."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote, urlsplit


@dataclass
class Answer:
    """How one request is answered; as it should be, unless something is set.

    ``cut_after`` closes the connection after so many bytes, ``stall_after`` sends no more after
    them until the server ends, ``claim`` is a false Content-Length, ``become`` is what the file
    holds from this request on.
    """

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    stall_after: int | None = None
    ignore_range: bool = False
    claim: int | None = None
    become: bytes | None = None


@dataclass
class WebServer:
    """Files by their path, and how the next requests for a path are answered."""

    address: str
    files: dict[str, bytes] = field(default_factory=dict)
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    always: Answer = field(default_factory=Answer)
    with_etag: bool = True
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    end: threading.Event = field(default_factory=threading.Event)

    def asked(self, method: str, path: str) -> list[dict[str, str]]:
        """Headers of the requests so far for a path."""
        return [headers for m, p, headers in self.requests if (m, p) == (method, path)]


@contextmanager
def serve() -> Iterator[WebServer]:
    """A server that runs until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            server.requests.append((self.command, path, dict(self.headers)))
            planned = server.answers.get(path)
            how = planned.pop(0) if planned else server.always
            if how.become is not None:
                server.files[path] = how.become
            if how.status is not None:
                self.send(how.status, b"no", how, dict(how.headers))
            elif path in server.files:
                self.send_file(server.files[path], how)
            elif children := {
                name[len(path) :].partition("/") for name in server.files if name.startswith(path)
            }:
                if not path.endswith("/"):
                    self.send(301, b"", how, {"Location": f"{path}/"})
                    return
                links = [f'<a href="{quote(n)}{s}">x</a>' for n, s, _ in sorted(children)]
                page = "<html><a href='/'>up</a> <a href='?C=N'>sort</a>" + " ".join(links)
                self.send(200, page.encode(), how, {"Content-Type": "text/html"})
            else:
                self.send(404, b"no", how, {})

        def send_file(self, content: bytes, how: Answer) -> None:
            headers = {"Content-Type": "application/octet-stream", **how.headers}
            etag = f'"{hashlib.md5(content).hexdigest()}"'
            if server.with_etag:
                headers.setdefault("ETag", etag)
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            same = self.headers.get("If-Range", etag) == headers.get("ETag", etag)
            if wanted is None or how.ignore_range or not same:
                self.send(200, content, how, headers)
                return
            first, last = int(wanted[1]), min(int(wanted[2] or len(content)) + 1, len(content))
            if first >= len(content):
                headers["Content-Range"] = f"bytes */{len(content)}"
                self.send(416, b"", how, headers)
                return
            headers["Content-Range"] = f"bytes {first}-{last - 1}/{len(content)}"
            self.send(206, content[first:last], how, headers)

        def send(self, status: int, body: bytes, how: Answer, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            length = len(body) if how.claim is None else how.claim
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if self.command == "HEAD":
                return
            limits = (how.cut_after, how.stall_after)
            stops = [limit for limit in limits if limit is not None]
            self.wfile.write(body[: min(stops, default=len(body))])
            self.wfile.flush()
            if how.stall_after is not None:
                server.end.wait(30)
            self.close_connection = bool(stops) or length != len(body)

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """Clients that hang up are what is tested."""

    with Quiet(("127.0.0.1", 0), Handler) as listening:
        server = WebServer(f"http://127.0.0.1:{listening.server_address[1]}")
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.end.set()
            listening.shutdown()
            thread.join()
