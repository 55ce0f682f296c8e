"""Who hands out the credentials of `smtp_auth`, and to whom: nobody else here can open their envelopes.

An `Identity` says who we are and which version of the secret shows it; the secret itself is sealed in it.
The AUTH step gets it from `Broker.release`, which is given the live session and looks at that alone: the
address and port that the socket is connected to, the TLS that was spoken, the name that the peer's
certificate was verified for, the key in it. What a policy, a name server or a peer said earlier about
where this connection should lead plays no part, so none of them can have a credential sent elsewhere.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from engine.errors import ReleaseRefused, TlsRequired
from policy.keysource import CallbackKey, CommandKey, OAuth2Key
from policy.release import Release, name_fits
from policy.secret import Secret

from .rotation import AGAIN, Rotation

if TYPE_CHECKING:
    from engine.errors import LoginRefused
    from engine.keys import Credential, KeyRing
    from engine.net import Stream
    from policy.egress import EgressPath
    from policy.keysource import KeyRef
    from policy.login import Login

    from .circuits import Endpoint
    from .connection import Connection

__all__ = ["CERTIFICATE", "Broker", "Identity", "refusal"]

logger = logging.getLogger("posthorn.egress")

_NEW_TOKEN = 60.0
"""Seconds in which a token is not fetched anew because of a refusal: it is the account that is refused."""

_MAKERS = (OAuth2Key, CommandKey, CallbackKey)
"""What may make a new token each time it is asked."""

CERTIFICATE = "certificate"
"""The version of an identity without a secret, where that of the client certificate is not known."""

_TLS_AGE = ("TLSv1.2", "TLSv1.3")
"""The versions there are, the oldest first."""


class Identity:
    """Who we are in one session. `version`: of the secret; without one, of the client certificate. `source`:
    a fingerprint of where its versions come from, "" when there is but one. `trial`: a new version is tried
    with this session; how that went is said by `worked`, `refused` or `left`."""

    __slots__ = ("_rotation", "_sealed", "login", "source", "trial", "version")

    def __init__(
        self,
        login: Login,
        credential: Credential | None,
        certificate: str = CERTIFICATE,
        rotation: Rotation | None = None,
        *,
        source: str = "",
        trial: bool = False,
    ) -> None:
        self.login = login
        self.source = source
        self.version = credential.version if credential is not None else certificate
        self.trial = trial
        self._sealed = credential
        self._rotation = rotation

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

    def accepted(self) -> None:
        """The peer took the login."""
        if self._rotation is not None:
            self._rotation.accepted(self.version)

    def worked(self) -> None:
        """A message came to its end in the session."""
        if self.trial and self._rotation is not None:
            self.trial = False
            before = self._rotation.promote(self.version)
            if before is not None:
                self._say("version %s was tried and is in use now, instead of %s", self.version, before)

    def refused(self, error: LoginRefused, until: float) -> None:
        """The peer refused the trial, now or before; `until`: not to be repeated before that moment."""
        if self.trial and self._rotation is not None:
            self.trial = False
            self._rotation.undecided(self.version, max(trio.current_time() + AGAIN, until))
            if not error.remark:
                active = self._rotation.active
                kept = active.version if active is not None else ""
                text = "version %s is not taken into use: %s; version %s stays in use"
                self._say(text, self.version, error, kept, level=logging.WARNING)

    def left(self) -> None:
        """The session is over, or never came to be."""
        if self.trial and self._rotation is not None:
            self.trial = False
            self._rotation.undecided(self.version, trio.current_time() + AGAIN)

    def current(self, newest: Credential | None) -> bool:
        """Whether the session may go on, now that the source has `newest`; None: the secret was withdrawn
        (reliability C45)."""
        if newest is None:
            return False
        if self._rotation is None:
            return newest.version == self.version
        return self._rotation.current(self.version, newest.version, trio.current_time())

    def _say(self, text: str, *values: object, level: int = logging.INFO) -> None:
        name = self.reference.name if self.reference is not None else ""
        logger.log(level, "the credential of %s (%s): " + text, self.shown, name, *values)


class Broker:
    """See the module. One for the engine."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = keys

    async def identity(
        self,
        path: EgressPath,
        endpoint: Endpoint,
        *,
        certificate: str = CERTIFICATE,
        may_try: bool = True,
    ) -> Identity | None:
        """Who a path says we are, by `smtp_auth` or `smtp_auth_plain_password`; None when there is no AUTH.
        `certificate`: the version of the client certificate, for a login without another secret.

        With `may_try` a new version of a password may be given for a trial. Whose trial came to nothing asks
        again without it, or the next version, come meanwhile, would stop what the one in use can do.
        Raises: SecretUnavailable.
        """
        login = path.login
        if login is None:
            return None
        reference = login.reference
        if reference is None:
            source = self._keys.source(path.tls_certificate) if path.tls_certificate is not None else ""
            return Identity(login, None, certificate, source=source)
        newest = await self._keys.fetch(reference)
        source = self._keys.source(reference)
        if login.password is None:  # a token is another one each time, and the old one does not last
            return Identity(login, newest, source=source)
        rotation = _rotation(login, endpoint)
        chosen, trial = rotation.choose(newest, trio.current_time(), may_try=may_try)
        if chosen is not newest:
            self._keys.still_used(reference, chosen)
        return Identity(login, chosen, rotation=rotation, source=source, trial=trial)

    async def newer(self, identity: Identity, endpoint: Endpoint) -> Identity | None:
        """After a refusal: who we are by what the source says now; None when that is the same, or when it is
        too early to ask. Raises: SecretUnavailable."""
        reference = identity.reference
        if reference is None or identity.trial:
            return None
        made = identity.login.password is None and isinstance(reference, _MAKERS)
        if made and trio.current_time() - identity.fetched < _NEW_TOKEN:
            return None
        newest = await self._keys.fetch(reference, fresh=True)
        if newest.version == identity.version:
            return None
        return Identity(identity.login, newest, source=identity.source)

    def replaced(self, newer: Identity, endpoint: Endpoint) -> Identity:
        """The peer took a `newer` identity when it had refused the one before: that is in use from now on."""
        if newer.login.password is None or newer._sealed is None:
            return newer
        rotation = _rotation(newer.login, endpoint)
        before = rotation.replace(newer._sealed)
        if before is not None and before != newer.version:
            newer._say("version %s is in use now, and %s is refused", newer.version, before)
        return Identity(newer.login, newer._sealed, rotation=rotation, source=newer.source)

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


def _rotation(login: Login, endpoint: Endpoint) -> Rotation:
    return endpoint.rotation(login.reference, login.username)


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
