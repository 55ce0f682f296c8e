"""Throw-away certificates for next hops on 127.0.0.1."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme

__all__ = ["Authority"]


class Authority:
    """A CA. `pem`: what a path's `tls_ca` is to hold for its certificates to be trusted."""

    def __init__(self) -> None:
        self._ca = trustme.CA()
        self.pem = self._ca.cert_pem.bytes()
        self.last_certificate = b""
        """PEM; of the context that was made last."""

    def server_context(self, name: str = "127.0.0.1") -> ssl.SSLContext:
        """A server's context with a certificate for `name`."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # Python 3.11.2 sets it, 3.11.4 does not
        leaf = self._ca.issue_cert(name)
        leaf.configure_cert(context)
        self.last_certificate = leaf.cert_chain_pems[0].bytes()
        return context

    def write(self, path: Path) -> Path:
        """The CA certificate as a PEM file."""
        path.write_bytes(self.pem)
        return path

    def write_pair(self, directory: Path, name: str = "127.0.0.1") -> tuple[Path, Path]:
        """A certificate for `name` and its key, as PEM files."""
        leaf = self._ca.issue_cert(name)
        chain, key = directory / "chain.pem", directory / "key.pem"
        chain.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        key.write_bytes(leaf.private_key_pem.bytes())
        key.chmod(0o600)
        return chain, key
