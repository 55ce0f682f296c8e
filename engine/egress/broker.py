"""Who hands out the credentials of `smtp_auth`, and to whom: nobody else here can open their envelopes.

An `Identity` says who we are and which version of the secret shows it; the secret itself is sealed in it.
The AUTH step gets it from `Broker.release`, which is given the live session and looks at that alone: the
address and port that the socket is connected to, the TLS that was spoken, the name that the peer's
certificate was verified for, the key in it. What a policy, a name server or a peer said earlier about
where this connection should lead plays no part, so none of them can have a credential sent elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import ReleaseRefused, TlsRequired
from policy.release import Release, name_fits
from policy.secret import Secret

if TYPE_CHECKING:
    from engine.keys import Credential, KeyRing
    from engine.net import Stream
    from policy.egress import EgressPath
    from policy.keysource import KeyRef
    from policy.login import Login

    from .connection import Connection

__all__ = ["CERTIFICATE", "Broker", "Identity", "refusal"]

CERTIFICATE = "certificate"
"""The version of an identity without a secret, where that of the client certificate is not known."""

_TLS_AGE = ("TLSv1.2", "TLSv1.3")
"""The versions there are, the oldest first."""


class Identity:
    """Who we are in one session. `version`: of the secret; without one, of the client certificate."""

    __slots__ = ("_sealed", "login", "version")

    def __init__(self, login: Login, credential: Credential | None, certificate: str = CERTIFICATE) -> None:
        self.login = login
        self.version = credential.version if credential is not None else certificate
        self._sealed = credential

    @property
    def reference(self) -> KeyRef | None:
        """Where the secret comes from."""
        return self.login.reference

    @property
    def user(self) -> str:
        """The name we log in with; "" when the certificate says it."""
        return self.login.username or ""

    @property
    def shown(self) -> str:
        """For people."""
        return f"{self.user!r}" if self.user else "the certificate's owner"

    @property
    def fetched(self) -> float:
        """When the secret was read (`trio.current_time`)."""
        return self._sealed.fetched if self._sealed is not None else float("-inf")


class Broker:
    """See the module. One for the engine."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys

    async def identity(
        self, path: EgressPath, *, fresh: bool = False, certificate: str = CERTIFICATE
    ) -> Identity | None:
        """Who a path says we are, by `smtp_auth` or `smtp_auth_plain_password`; None when there is no AUTH.
        `fresh`: read the secret again first. `certificate`: the version of the client certificate, for a
        login without another secret.

        Raises: SecretUnavailable.
        """
        login = path.login
        if login is None:
            return None
        reference = login.reference
        if reference is None:
            return Identity(login, None, certificate)
        return Identity(login, await self._keys.fetch(reference, fresh=fresh))

    def release(self, identity: Identity, session: Connection, path: EgressPath) -> Secret:
        """The secret, for this session; empty for an identity without one.

        Raises: TlsRequired when the session is not protected as AUTH demands, ReleaseRefused when the peer is
        none of those that `release_to` lists; both name what stands in the way.
        """
        _protected(identity, session, path)
        release = identity.login.release_to
        if release is not None and (reason := refusal(release, session.stream)) is not None:
            raise ReleaseRefused(f"the credential of {identity.shown} is not released: {reason}")
        sealed = identity._sealed
        return sealed.secret if sealed is not None else Secret(b"")


def _protected(identity: Identity, session: Connection, path: EgressPath) -> None:
    tls = session.stream.tls
    who = identity.shown
    if tls is None and not path.allow_smtp_auth_plain_without_tls:
        raise TlsRequired(
            f"credentials for {who} are not sent without TLS ({session.tls_why}); "
            "allow_smtp_auth_plain_without_tls would permit it"
        )
    # By name, or by fingerprint (reliability C40).
    known = tls is not None and (tls.verified or tls.pin == "leaf")
    if tls is not None and not known and not path.allow_smtp_auth_plain_without_valid_certificate:
        raise TlsRequired(
            f"credentials for {who} are not sent over TLS whose certificate was not verified "
            f"({session.tls_why}); allow_smtp_auth_plain_without_valid_certificate would permit it"
        )


def refusal(release: Release, stream: Stream) -> str | None:
    """Which rule of `release_to` the peer at the other end of a connection breaks, in words; None: none."""
    address, port = stream.peer
    tls = stream.tls
    if release.addresses and address not in release.addresses:
        return f"release_to.addresses is {release.addresses}, and the peer's address is {address}"
    if release.ports and port not in release.ports:
        return f"release_to.ports is {_listed(release.ports)}, and the peer's port is {port}"
    if tls is None:
        if release.needs_tls:
            asked = "names" if release.names else "pins" if release.pins else "tls_minimum_version"
            return f"release_to.{asked} asks for what only TLS can show, and there is no TLS"
        return None
    least = release.tls_minimum_version
    if least and (tls.version not in _TLS_AGE or _TLS_AGE.index(tls.version) < _TLS_AGE.index(least)):
        return f"release_to.tls_minimum_version is {least}, and the session has {tls.version}"
    if release.pins:
        pin = stream.peer_pin()
        if pin is None or pin not in release.pins:
            return f"release_to.pins has not the peer's key, which is {pin or 'not known'}"
    if release.names:
        name = stream.asked_name() if tls.verified else None
        if name is None:
            return "release_to.names asks for a verified name, and the peer's certificate was not verified"
        if not any(name_fits(pattern, name) for pattern in release.names):
            return f"release_to.names is {_listed(release.names)}, and the peer was verified as {name}"
    return None


def _listed(values: tuple[object, ...]) -> str:
    return ", ".join(map(str, values))
