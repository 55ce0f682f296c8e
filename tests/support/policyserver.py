"""Servers of MTA-STS policies: HTTPS on this machine with a throw-away CA, by the name that SNI asks for."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

__all__ = ["PolicyServer", "serve_policies", "text"]


def text(mode: str, *mx: str, max_age: int = 604800) -> bytes:
    """A policy file."""
    lines = ["version: STSv1", f"mode: {mode}", *(f"mx: {name}" for name in mx), f"max_age: {max_age}"]
    return "\r\n".join(lines).encode() + b"\r\n"


class PolicyServer:
    """`answers`: content by domain, for 200 and ``text/plain``; a tuple is (status, headers, content).
    `asked`: (Host, path) of each request."""

    def __init__(self) -> None:
        self.answers: dict[str, bytes | tuple[int, dict[str, str], bytes]] = {}
        self.asked: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.port = 0


@contextmanager
def serve_policies(context: ssl.SSLContext, port: int = 0) -> Iterator[PolicyServer]:
    """Running until the block is left. `context`: its certificate."""
    server = PolicyServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = self.headers.get("Host", "")
            server.asked.append((host, self.path))
            server.headers.append(dict(self.headers.items()))
            answer = server.answers.get(host.removeprefix("mta-sts."), (404, {}, b""))
            status, headers, content = (
                (200, {"Content-Type": "text/plain"}, answer) if isinstance(answer, bytes) else answer
            )
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that does not like the certificate goes away

    with Server(("127.0.0.1", port), Handler) as listening:
        listening.socket = context.wrap_socket(
            listening.socket, server_side=True, do_handshake_on_connect=False
        )
        server.port = listening.server_address[1]
        thread = Thread(target=lambda: listening.serve_forever(0.02))
        thread.start()
        try:
            yield server
        finally:
            listening.shutdown()
            thread.join()
