"""A token endpoint (RFC 6749) on a loopback port, over https with a throw-away certificate, or http."""

from __future__ import annotations

import http.server
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

__all__ = ["Asked", "TokenEndpoint", "run_endpoint"]


@dataclass
class Asked:
    """One request: its form (one value per key), and its Authorization header."""

    form: dict[str, str]
    authorization: str


@dataclass
class TokenEndpoint:
    """`answer`: from a request and its number to (status, body, headers); the default gives `token-N`."""

    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    answer: Callable[[Asked, int], tuple[int, Any, dict[str, str]]] = lambda asked, number: (
        200,
        {"access_token": f"c4n4ry-token-{number}", "token_type": "Bearer", "expires_in": 3600},
        {},
    )


@contextmanager
def run_endpoint(context: ssl.SSLContext | None) -> Iterator[TokenEndpoint]:
    """`context` None: plain http."""
    endpoint = TokenEndpoint()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            octets = self.rfile.read(int(self.headers["Content-Length"]))
            form = {key: values[0] for key, values in parse_qs(octets.decode()).items()}
            endpoint.asked.append(Asked(form, self.headers.get("Authorization", "")))
            status, body, headers = endpoint.answer(endpoint.asked[-1], len(endpoint.asked))
            text = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(text)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass  # a client that does not trust the certificate

    server = Server(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    endpoint.url = f"{'http' if context is None else 'https'}://127.0.0.1:{server.server_address[1]}/token"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
