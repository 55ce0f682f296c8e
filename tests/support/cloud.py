"""The HTTP APIs of three clouds' secret managers, as far as reading a secret goes, on loopback.

Each checks what it is asked as the real one would (the login, the operation, the name) and answers alike.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import http.server
import json
import os
import socket
import ssl
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.support.certificates import Authority

__all__ = ["Aws", "Azure", "Cloud", "Google", "need_sdk"]

Headers = dict[str, str]
Answer = tuple[int, Any, Headers]


def need_sdk(module: str, extra: str) -> None:
    """Skip, naming the extra, where the SDK is missing; with ``CI=true`` fail."""
    try:
        __import__(module)
    except ImportError:
        text = f'needs {module}: pip install "posthorn[{extra}]"'
        if os.environ.get("CI") == "true":
            pytest.fail(text, pytrace=False)
        pytest.skip(text)


class Cloud:
    """A server. `value`: of the one secret; None: there is none. `answer`: instead of all that."""

    module = ""
    extra = ""
    tls = False

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.monkeypatch = monkeypatch
        self.value: str | None = None
        self.answer: Answer | None = None
        self.hang = threading.Event()
        self.asked: list[str] = []
        self.wrong: list[str] = []
        """What no client may ever send."""
        self.port = 0

    def form(self, **more: Any) -> dict[str, Any]:
        """The key source that names the secret."""
        raise NotImplementedError

    def prepare(self) -> None:
        """The machine's own login."""

    def handle(self, method: str, path: str, headers: Headers, body: bytes) -> Answer:
        raise NotImplementedError

    @contextmanager
    def run(self) -> Iterator[None]:
        cloud = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                body = self.rfile.read(int(headers.get("content-length", 0)))
                cloud.asked.append(f"{self.command} {self.path}")
                status, content, extra = cloud.handle(self.command, self.path, headers, body)
                octets = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **extra}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(octets)))
                self.end_headers()
                self.wfile.write(octets)

            do_POST = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        self.port = server.server_address[1]
        if self.tls:
            authority = Authority()
            context = authority.server_context("posthorn.vault.test")
            self.monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.write(self.directory / "ca.pem")))
            server.socket = _accepting(context, server.socket)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        self.prepare()
        try:
            yield
        finally:
            self.hang.set()
            server.shutdown()
            thread.join()
            server.server_close()
        assert not self.wrong

    def must(self, right: bool, what: str) -> None:
        if not right:
            self.wrong.append(what)


def _accepting(context: ssl.SSLContext, listener: socket.socket) -> socket.socket:
    return context.wrap_socket(listener, server_side=True, do_handshake_on_connect=False)


class Aws(Cloud):
    """Secrets Manager, JSON 1.1 with a signature of version 4, which is checked."""

    module, extra = "boto3", "aws"
    key_id, key = "AKIDEXAMPLE", "c4n4ry-aws-key"

    def form(self, **more: Any) -> dict[str, Any]:
        endpoint = f"http://127.0.0.1:{self.port}"
        return {"aws_secret": "mail/relay", "aws_region": "eu-west-1", "aws_endpoint": endpoint, **more}

    def prepare(self) -> None:
        for name in list(os.environ):
            if name.startswith("AWS_"):
                self.monkeypatch.delenv(name)
        self.monkeypatch.setenv("AWS_ACCESS_KEY_ID", self.key_id)
        self.monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", self.key)
        self.monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        self.monkeypatch.setenv("AWS_CONFIG_FILE", "/none")
        self.monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/none")

    def handle(self, method: str, path: str, headers: Headers, body: bytes) -> Answer:
        if self.answer is not None:
            return self.answer
        if not self._signed(method, path, headers, body):
            return 400, {"__type": "InvalidSignatureException", "message": "c4n4ry"}, {}
        self.must(headers.get("x-amz-target") == "secretsmanager.GetSecretValue", "operation")
        asked = json.loads(body)
        self.asked[-1] = json.dumps(asked, sort_keys=True)
        if self.value is None or asked["SecretId"] != "mail/relay":
            return 400, {"__type": "ResourceNotFoundException", "message": "c4n4ry"}, {}
        return 200, {"Name": "mail/relay", "SecretString": self.value, "VersionId": "x" * 32}, {}

    def _signed(self, method: str, path: str, headers: Headers, body: bytes) -> bool:
        given = headers.get("authorization", "")
        parts = dict(part.split("=", 1) for part in given.partition(" ")[2].split(", ") if "=" in part)
        try:
            scope = parts["Credential"].partition("/")[2]
            names = parts["SignedHeaders"].split(";")
        except KeyError:
            return False
        lines = [f"{name}:{' '.join(headers.get(name, '').split())}\n" for name in names]
        canonical = "\n".join(
            [method, path, "", "".join(lines), ";".join(names), hashlib.sha256(body).hexdigest()]
        )
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{headers.get('x-amz-date')}\n{scope}\n{digest}"
        key = f"AWS4{self.key}".encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        right = hmac.digest(key, text.encode(), "sha256").hex()
        region_and_service = scope.split("/")[1:3] == ["eu-west-1", "secretsmanager"]
        return region_and_service and hmac.compare_digest(right, parts.get("Signature", ""))


class Google(Cloud):
    """Secret Manager; a service account signs its own tokens (AIP-4111), and the signature is checked."""

    module, extra = "google.cloud.secretmanager", "google"

    def form(self, **more: Any) -> dict[str, Any]:
        endpoint = f"http://127.0.0.1:{self.port}"
        return {"google_secret": "projects/p1/secrets/relay", "google_endpoint": endpoint, **more}

    def prepare(self) -> None:
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._public = key.public_key()
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        account = {
            "type": "service_account",
            "project_id": "p1",
            "private_key_id": "1",
            "private_key": pem,
            "client_email": "posthorn@p1.iam.example",
            "token_uri": f"http://127.0.0.1:{self.port}/token",
        }
        file = self.directory / "account.json"
        file.write_text(json.dumps(account))
        self.monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))

    def handle(self, method: str, path: str, headers: Headers, body: bytes) -> Answer:
        if self.answer is not None:
            return self.answer
        path = urllib.parse.urlsplit(path).path
        if not self._signed(headers.get("authorization", "")):
            return 401, {"error": {"code": 401, "message": "c4n4ry", "status": "UNAUTHENTICATED"}}, {}
        if self.value is None or path != "/v1/projects/p1/secrets/relay/versions/latest:access":
            return 404, {"error": {"code": 404, "message": "c4n4ry", "status": "NOT_FOUND"}}, {}
        data = base64.b64encode(self.value.encode()).decode()
        return 200, {"name": "projects/1/secrets/relay/versions/7", "payload": {"data": data}}, {}

    def _signed(self, authorization: str) -> bool:
        text, _, signature = authorization.removeprefix("Bearer ").rpartition(".")
        try:
            self._public.verify(_octets(signature), text.encode(), PKCS1v15(), SHA256())
            claims = json.loads(_octets(text.partition(".")[2]))
        except (InvalidSignature, ValueError):
            return False
        names = "secretmanager" in claims.get("aud", "") or "cloud-platform" in claims.get("scope", "")
        return claims["iss"] == "posthorn@p1.iam.example" and names


def _octets(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Azure(Cloud):
    """A vault, and the managed identity of the machine."""

    module, extra = "azure.keyvault.secrets", "azure"
    token = "c4n4ry-azure-token"
    token_answer: Answer | None = None
    """What the machine's identity says instead of a token."""
    tls = True

    def form(self, **more: Any) -> dict[str, Any]:
        return {"azure_vault": f"https://posthorn.vault.test:{self.port}", "azure_secret": "relay", **more}

    def prepare(self) -> None:
        for name in list(os.environ):
            if name.startswith(("AZURE_", "IDENTITY_", "MSI_")):
                self.monkeypatch.delenv(name)
        resolve = socket.getaddrinfo

        def here(host: Any, *args: Any, **options: Any) -> Any:
            return resolve("127.0.0.1" if host == "posthorn.vault.test" else host, *args, **options)

        self.monkeypatch.setattr(socket, "getaddrinfo", here)
        self.monkeypatch.setenv("IDENTITY_ENDPOINT", f"https://posthorn.vault.test:{self.port}/msi/token")
        self.monkeypatch.setenv("IDENTITY_HEADER", "c4n4ry-identity-header")

    def handle(self, method: str, path: str, headers: Headers, body: bytes) -> Answer:
        parts = urllib.parse.urlsplit(path)
        if parts.path == "/msi/token":
            self.must(headers.get("x-identity-header") == "c4n4ry-identity-header", "identity header")
            if self.token_answer is not None:
                return self.token_answer
            ends = int(datetime.datetime.now().timestamp()) + 86400
            resource = urllib.parse.parse_qs(parts.query)["resource"][0]
            answer = {"access_token": self.token, "expires_on": str(ends), "token_type": "Bearer"}
            return 200, {**answer, "resource": resource}, {}
        if headers.get("authorization") != f"Bearer {self.token}":
            where = f'authorization="https://login.test/t", resource="https://vault.test:{self.port}"'
            said = {"error": {"code": "Unauthorized", "message": "c4n4ry"}}
            return 401, said, {"WWW-Authenticate": f"Bearer {where}"}
        if self.answer is not None:
            return self.answer
        if self.value is None or parts.path.rstrip("/") != "/secrets/relay":
            return 404, {"error": {"code": "SecretNotFound", "message": "c4n4ry"}}, {}
        url = f"https://posthorn.vault.test:{self.port}/secrets/relay/0123"
        return 200, {"value": self.value, "id": url, "attributes": {"enabled": True}}, {}
