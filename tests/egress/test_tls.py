"""TLS on the way out: who is believed, in which mode, and what never happens without it.

Every row of the tables is a real handshake with a server that shows the certificate of that row.
"""

from __future__ import annotations

import logging
import ssl
import warnings
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio
from trio.testing import MockClock

from engine.egress import secure, tls
from engine.egress.dial import NoHostReached
from engine.egress.resolve import Candidate
from engine.egress.tls import TlsContexts, TlsSetting
from engine.egress.tlsneed import TlsNeed
from engine.errors import ConnectionLost, TlsError, TlsRequired
from policy.egress import EgressPath, make_egress_path
from tests.egress.dialing import NAME, Dial, candidate, inside, open_dial
from tests.support.peer import FakePeer, Wire, hello, open_peer
from tests.support.pki import CLIENT_AUTH, Pki, rsa_key

VERIFIED = ("Required", "Opportunistic")
UNVERIFIED = ("RequiredInsecure", "OpportunisticInsecure")


class Authorities:
    """Authorities good and bad, each made when a row asks for it."""

    @cached_property
    def root(self) -> Pki:
        return Pki()

    @cached_property
    def stranger(self) -> Pki:
        return Pki()

    @cached_property
    def middle(self) -> Pki:
        return Pki(issuer=self.root)

    @cached_property
    def impostor(self) -> Pki:
        """Has a certificate of the root, but none that lets it issue others."""
        return Pki(issuer=self.root, is_ca=False)

    @cached_property
    def no_authority(self) -> Pki:
        return Pki(is_ca=False)

    @cached_property
    def with_rsa(self) -> Pki:
        return Pki(key=rsa_key(2048))

    @cached_property
    def weak(self) -> Pki:
        return Pki(key=rsa_key(1024))


@pytest.fixture(scope="module")
def authorities() -> Authorities:
    return Authorities()


class Row(NamedTuple):
    """A server, the name it is dialled by, and (if it is refused) words of the reason.

    `trusted`: which authority the path's `tls_ca` holds.
    """

    server: Callable[[Authorities], ssl.SSLContext]
    name: str = NAME
    reason: str = ""
    trusted: str = "root"


SOUND = {
    "its name": Row(lambda a: a.root.server(NAME)),
    "its name among others": Row(lambda a: a.root.server("www.peer.example", NAME)),
    "its name in capitals": Row(lambda a: a.root.server("MX.Peer.Example")),
    "a wildcard for the first label": Row(lambda a: a.root.server("*.peer.example")),
    "an address": Row(lambda a: a.root.server("127.0.0.1"), "127.0.0.1"),
    "through an intermediate authority": Row(lambda a: a.middle.server(NAME)),
    "no word on its usage": Row(lambda a: a.root.server(NAME, usage=None)),
    "an RSA key of 2048 bits": Row(lambda a: a.with_rsa.server(NAME, key=rsa_key(2048)), trusted="with_rsa"),
}

MISMATCH = "mismatch"
REFUSED = {
    "expired": Row(lambda a: a.root.server(NAME, days=(-9, -1)), reason="expired"),
    "not yet valid": Row(lambda a: a.root.server(NAME, days=(1, 9)), reason="not yet valid"),
    "self-signed": Row(lambda a: a.root.server(NAME, self_signed=True), reason="self-signed"),
    "unknown authority": Row(lambda a: a.stranger.server(NAME), reason="issuer certificate"),
    "wrong name": Row(lambda a: a.root.server("mx.other.example"), reason=MISMATCH),
    "common name alone": Row(lambda a: a.root.server(common_name=NAME), reason=MISMATCH),
    "common name beside another name": Row(
        lambda a: a.root.server("mx.other.example", common_name=NAME), reason=MISMATCH
    ),
    "partial wildcard": Row(lambda a: a.root.server("m*.peer.example"), reason=MISMATCH),
    "wildcard in the middle": Row(lambda a: a.root.server("mx.*.example"), reason=MISMATCH),
    "wildcard over two labels": Row(
        lambda a: a.root.server("*.peer.example"), "a.mx.peer.example", reason=MISMATCH
    ),
    "wildcard over no label": Row(lambda a: a.root.server("*.peer.example"), "peer.example", reason=MISMATCH),
    "wildcard for everything": Row(lambda a: a.root.server("*"), reason=MISMATCH),
    "another address": Row(lambda a: a.root.server("127.0.0.2"), "127.0.0.1", reason=MISMATCH),
    "an address without an address entry": Row(
        lambda a: a.root.server(NAME, common_name="127.0.0.1"), "127.0.0.1", reason=MISMATCH
    ),
    "a root without the CA flag": Row(
        lambda a: a.no_authority.server(NAME), reason="CA certificate", trusted="no_authority"
    ),
    "an intermediate without the CA flag": Row(
        lambda a: a.impostor.server(NAME), reason="invalid CA certificate"
    ),
    "for clients only": Row(lambda a: a.root.server(NAME, usage=[CLIENT_AUTH]), reason="purpose"),
    "a SHA-1 signature": Row(
        lambda a: a.with_rsa.server(NAME, sha1=True), reason="digest algorithm too weak", trusted="with_rsa"
    ),
    "an RSA key of 1024 bits": Row(lambda a: a.root.server(NAME, key=rsa_key(1024)), reason="key too weak"),
    "an authority with an RSA key of 1024 bits": Row(
        lambda a: a.weak.server(NAME), reason="CA certificate key too weak", trusted="weak"
    ),
}


def path(mode: str, ca: Pki | None = None, **options: Any) -> EgressPath:
    """A path with this `enable_tls`. `ca`: whom it trusts, if the mode trusts anybody at all."""
    if ca is not None and mode in VERIFIED:
        options["tls_ca"] = {"key_data": ca.pem.decode()}
    return make_egress_path(enable_tls=mode, **options)  # type: ignore[arg-type]


async def dial_row(
    row: Row, mode: str, authorities: Authorities, peer: FakePeer, dial: Dial, **options: Any
) -> Any:
    trusted = getattr(authorities, row.trusted)
    return await dial(path(mode, trusted, **options), candidate(peer, row.name))


@pytest.mark.parametrize("mode", VERIFIED)
@pytest.mark.parametrize("row", SOUND.values(), ids=SOUND)
async def test_a_sound_certificate_is_verified(row: Row, mode: str, authorities: Authorities) -> None:
    async with open_peer(tls=row.server(authorities)) as peer, open_dial() as dial:
        connection = await dial_row(row, mode, authorities, peer, dial)
        assert connection.stream.tls is not None and connection.stream.tls.verified
        assert connection.tls_why == f"chain and name verified for {row.name}"


@pytest.mark.parametrize("least", ["TLSv1.2", "TLSv1.0"])
@pytest.mark.parametrize("row", REFUSED.values(), ids=REFUSED)
async def test_required_holds_before_anything_is_said(row: Row, least: str, authorities: Authorities) -> None:
    """Old versions, where they are allowed, make no weak certificate good (C24)."""
    async with open_peer(tls=row.server(authorities)) as peer, open_dial() as dial:
        with pytest.raises(TlsRequired, match=row.reason):
            await dial_row(row, "Required", authorities, peer, dial, tls_minimum_version=least)
        assert peer.words() == ["EHLO", "STARTTLS"] and peer.connections == 1


@pytest.mark.parametrize("row", REFUSED.values(), ids=REFUSED)
async def test_opportunistic_does_not_fall_back_by_itself(row: Row, authorities: Authorities) -> None:
    async with open_peer(tls=row.server(authorities)) as peer, open_dial() as dial:
        with pytest.raises(NoHostReached, match=row.reason):
            await dial_row(row, "Opportunistic", authorities, peer, dial)
        assert peer.words() == ["EHLO", "STARTTLS"] and peer.connections == 1


@pytest.mark.parametrize("mode", UNVERIFIED)
@pytest.mark.parametrize("row", REFUSED.values(), ids=REFUSED)
async def test_insecure_modes_encrypt_and_say_that_nothing_was_checked(
    row: Row, mode: str, authorities: Authorities
) -> None:
    async with open_peer(tls=row.server(authorities)) as peer, open_dial() as dial:
        connection = await dial_row(row, mode, authorities, peer, dial)
        assert inside(peer) == ["EHLO relay.example"]
        assert connection.stream.tls is not None and not connection.stream.tls.verified
        assert connection.tls_why == f"enable_tls is {mode}: the certificate is not checked"


# -- the five modes --------------------------------------------------------------------------------

OFFERS: dict[str, dict[str, Any]] = {
    "offered": {},
    "not offered": {"capabilities": []},
    "refused": {"replies": {"STARTTLS": "454 4.7.0 not now"}},
    "unknown": {"replies": {"STARTTLS": "502 5.5.1 what?"}},
    "only HELO": {"replies": {"EHLO": "502 5.5.1 what?"}},
}
MODES = {
    "Required": {"offered": "tls"},
    "RequiredInsecure": {"offered": "tls"},
    "Opportunistic": {"offered": "tls"} | dict.fromkeys(OFFERS.keys() - {"offered"}, "clear"),
    "OpportunisticInsecure": {"offered": "tls"} | dict.fromkeys(OFFERS.keys() - {"offered"}, "clear"),
    "Disabled": dict.fromkeys(OFFERS, "clear"),
}
"""What becomes of a session; what is not listed is held."""


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("mode", MODES)
async def test_each_mode_with_each_kind_of_peer(mode: str, offer: str, authorities: Authorities) -> None:
    options = {"tls": authorities.root.server(NAME), **OFFERS[offer]}
    if offer == "not offered":
        del options["tls"]
    async with open_peer(**options) as peer, open_dial() as dial:
        expected = MODES[mode].get(offer, "held")
        if expected == "held":
            with pytest.raises(TlsRequired, match=f"enable_tls is {mode}"):
                await dial(path(mode, authorities.root), peer)
            assert set(peer.words()) <= {"EHLO", "HELO", "STARTTLS"}
            return
        connection = await dial(path(mode, authorities.root), peer)
        assert (connection.stream.tls is not None) == (expected == "tls")
        assert connection.tls_why
        if mode == "Disabled":
            assert "STARTTLS" not in peer.words()


# -- whom we trust ---------------------------------------------------------------------------------


async def test_a_private_authority_replaces_the_systems(
    authorities: Authorities, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    system = tmp_path / "system.pem"
    system.write_bytes(authorities.stranger.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(system))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    async with open_peer(tls=authorities.stranger.server(NAME)) as peer, open_dial() as dial:
        connection = await dial(path("Required"), peer)
        assert connection.stream.tls is not None and connection.stream.tls.verified
        with pytest.raises(TlsRequired, match="issuer certificate"):
            await dial(path("Required", authorities.root), peer)
    async with open_peer(tls=authorities.root.server(NAME)) as peer, open_dial() as dial:
        with pytest.raises(TlsRequired, match="issuer certificate"):
            await dial(path("Required"), peer)


async def test_a_bundle_may_hold_several_authorities(authorities: Authorities) -> None:
    bundle = (authorities.stranger.pem + authorities.root.pem).decode()
    for authority in (authorities.root, authorities.stranger):
        async with open_peer(tls=authority.server(NAME)) as peer, open_dial() as dial:
            await dial(make_egress_path(enable_tls="Required", tls_ca={"key_data": bundle}), peer)


@pytest.mark.parametrize("bundle", ["not a certificate", "\N{POSTAL HORN}"])
async def test_an_unusable_bundle_holds_the_mail(bundle: str, authorities: Authorities) -> None:
    async with open_peer(tls=authorities.root.server(NAME)) as peer, open_dial() as dial:
        with pytest.raises(TlsRequired, match="tls_ca"):
            await dial(make_egress_path(enable_tls="Required", tls_ca={"key_data": bundle}), peer)
        assert inside(peer) == []


async def test_another_name_may_be_demanded_and_then_only_that_one_counts(authorities: Authorities) -> None:
    named = path("Required", authorities.root, tls_server_name="mail.operator.example")
    async with open_peer(tls=authorities.root.server("mail.operator.example")) as peer, open_dial() as dial:
        connection = await dial(named, peer)
        assert connection.tls_why == "chain and name verified for mail.operator.example"
        await dial(named, candidate(peer, "127.0.0.1"))
        with pytest.raises(TlsRequired, match=MISMATCH):
            await dial(path("Required", authorities.root), peer)
    async with open_peer(tls=authorities.root.server(NAME)) as peer, open_dial() as dial:
        with pytest.raises(TlsRequired, match=MISMATCH):
            await dial(named, peer)


@pytest.mark.parametrize("mode", ["Required", "RequiredInsecure"])
@pytest.mark.parametrize(("least", "spoken"), [("1.3", None), ("1.2", "TLSv1.2")])
async def test_an_older_version_than_the_least_is_not_spoken(
    least: str, spoken: str | None, mode: str, authorities: Authorities
) -> None:
    server = authorities.root.server(NAME)
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    demanding = path(mode, authorities.root if mode == "Required" else None, tls_minimum_version=least)
    async with open_peer(tls=server) as peer, open_dial() as dial:
        if spoken is None:
            with pytest.raises(TlsRequired, match="TLS handshake failed"):
                await dial(demanding, peer)
            assert inside(peer) == []
        else:
            facts = (await dial(demanding, peer)).stream.tls
            assert facts is not None and facts.version == spoken


@pytest.mark.parametrize(("ours", "agreed"), [("ECDHE+AESGCM", True), ("ECDHE+CHACHA20", False)])
async def test_only_the_ciphers_of_the_list_are_agreed_to(
    ours: str, agreed: bool, authorities: Authorities
) -> None:
    server = authorities.root.server(NAME)
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    server.set_ciphers("ECDHE+AESGCM")
    picky = path("Required", authorities.root, openssl_cipher_list=ours)
    async with open_peer(tls=server) as peer, open_dial() as dial:
        if agreed:
            facts = (await dial(picky, peer)).stream.tls
            assert facts is not None and "GCM" in facts.cipher
        else:
            with pytest.raises(TlsRequired, match="TLS handshake failed"):
                await dial(picky, peer)
            assert inside(peer) == []


async def test_contexts_are_shared_within_one_trust_only(authorities: Authorities) -> None:
    contexts = TlsContexts()
    root, stranger = authorities.root.pem, authorities.stranger.pem
    trusting_root = await contexts.get(TlsSetting(True, root))
    assert await contexts.get(TlsSetting(True, bytes(bytearray(root)))) is trusting_root
    others = [
        await contexts.get(TlsSetting(True, stranger)),
        await contexts.get(TlsSetting(True)),
        await contexts.get(TlsSetting(False)),
        await contexts.get(TlsSetting(True, root, "TLSv1.3")),
        await contexts.get(TlsSetting(True, root, ciphers="ECDHE")),
    ]
    assert trusting_root not in others and len(set(map(id, others))) == 5


async def test_contexts_that_were_not_used_for_long_are_made_anew(
    authorities: Authorities, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "_CERTIFICATES", 64 * (tls._OWN_WEIGHT + 1))
    gone: list[int] = []
    contexts = TlsContexts(lambda context: gone.append(id(context)))
    root = authorities.root.pem
    first, second = [id(await contexts.get(TlsSetting(True, root + b"\n" * i))) for i in (0, 1)]
    for i in range(2, 65):
        assert id(await contexts.get(TlsSetting(True, root))) == first
        await contexts.get(TlsSetting(True, root + b"\n" * i))
    assert gone == [second]
    assert id(await contexts.get(TlsSetting(True, root))) == first
    assert len(contexts._living) == len(contexts._kept) == 64


async def test_as_many_settings_as_are_in_use_share_their_contexts(
    authorities: Authorities, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a bound of 64, 65 tenants with TLS settings of their own made every connection load its roots."""
    contexts = TlsContexts()
    settings = [TlsSetting(True, authorities.root.pem + b"\n" * i) for i in range(300)]
    made = [await contexts.get(setting) for setting in settings]
    assert [await contexts.get(setting) for setting in settings] == made
    # What connections hold is found whatever the bound is.
    monkeypatch.setattr(tls, "_CERTIFICATES", 1)
    settings = [TlsSetting(True, authorities.stranger.pem + b"\n" * i) for i in range(10)]
    made = [await contexts.get(setting) for setting in settings]
    assert len(contexts._kept) == 1
    assert [await contexts.get(setting) for setting in settings] == made


async def test_the_system_s_authorities_of_today_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: MockClock
) -> None:
    store = tmp_path / "roots.pem"
    monkeypatch.setenv("SSL_CERT_FILE", str(store))
    store.write_bytes(Pki().pem)
    contexts = TlsContexts()
    system, private = TlsSetting(True), TlsSetting(True, Pki().pem)
    before = await contexts.get(system), await contexts.get(private)
    store.write_bytes(Pki().pem + Pki().pem)
    await trio.sleep(890)
    assert await contexts.get(system) is before[0]
    await trio.sleep(20)
    after = await contexts.get(system)
    assert after is not before[0] and len(after.get_ca_certs()) == 2
    assert await contexts.get(private) is before[1]
    await trio.sleep(1000)
    assert await contexts.get(system) is after, "nothing changed"


async def test_an_empty_bundle_trusts_nobody_and_says_so() -> None:
    with pytest.raises(TlsError, match="tls_ca"):
        await TlsContexts().get(TlsSetting(True, b""))


# -- the protocol ----------------------------------------------------------------------------------


def only(context: ssl.SSLContext, version: ssl.TLSVersion) -> ssl.SSLContext:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = version
    return context


@pytest.mark.parametrize("mode", [*VERIFIED, *UNVERIFIED])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
async def test_versions_before_1_2_are_not_spoken(
    mode: str, version: ssl.TLSVersion, authorities: Authorities
) -> None:
    context = only(authorities.root.server(NAME), version)
    async with open_peer(tls=context) as peer, open_dial() as dial:
        with pytest.raises((TlsRequired, NoHostReached), match="TLS handshake failed"):
            await dial(path(mode, authorities.root), peer)
        assert inside(peer) == []


@pytest.mark.parametrize("mode", [*VERIFIED, *UNVERIFIED])
@pytest.mark.parametrize("least", ["TLSv1.0", "TLSv1.1"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_3])
async def test_older_versions_are_spoken_where_a_path_names_them(
    mode: str, least: str, version: ssl.TLSVersion, authorities: Authorities
) -> None:
    context = authorities.root.server(NAME)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    async with open_peer(tls=only(context, version)) as peer, open_dial() as dial:
        naming = path(mode, authorities.root, tls_minimum_version=least)
        if version == ssl.TLSVersion.TLSv1 and least == "TLSv1.1":
            with pytest.raises(
                (TlsRequired, NoHostReached), match="the peer speaks TLSv1, and tls_minimum_ver"
            ):
                await dial(naming, peer)
            assert inside(peer) == []
            return
        connection = await dial(naming, peer)
        assert connection.stream.tls is not None
        assert connection.stream.tls.version == version.name.replace("_", ".")
        assert connection.stream.tls.verified == (mode in VERIFIED)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_versions_from_1_2_on_are(version: ssl.TLSVersion, authorities: Authorities) -> None:
    context = only(authorities.root.server(NAME), version)
    async with open_peer(tls=context) as peer, open_dial() as dial:
        connection = await dial(path("Required", authorities.root), peer)
        assert connection.stream.tls is not None
        assert connection.stream.tls.version == version.name.replace("_", ".")


@pytest.mark.parametrize("mode", UNVERIFIED)
async def test_a_server_without_a_certificate_is_not_spoken_to(mode: str) -> None:
    context = only(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.TLSVersion.TLSv1_2)
    context.set_ciphers("aNULL:@SECLEVEL=0")
    async with open_peer(tls=context) as peer, open_dial() as dial:
        with pytest.raises((TlsRequired, NoHostReached), match="TLS handshake failed"):
            await dial(path(mode), peer)
        assert inside(peer) == []


@pytest.mark.parametrize(
    ("name", "demanded", "sent"),
    [
        (NAME, None, NAME),
        (NAME, "mail.operator.example", "mail.operator.example"),
        ("127.0.0.1", "mail.operator.example", "mail.operator.example"),
        ("127.0.0.1", None, None),
        ("::1", None, None),
    ],
)
@pytest.mark.parametrize("mode", ["Required", "OpportunisticInsecure"])
async def test_sni_is_the_name_that_is_checked_and_never_an_address(
    mode: str, name: str, demanded: str | None, sent: str | None, authorities: Authorities
) -> None:
    heard: list[str | None] = []
    context = authorities.root.server(NAME, "mail.operator.example", "127.0.0.1", "::1")
    context.sni_callback = lambda sock, sni, context: heard.append(sni)  # type: ignore[assignment,func-returns-value,misc]
    options = {} if demanded is None else {"tls_server_name": demanded}
    async with open_peer(tls=context) as peer, open_dial() as dial:
        await dial(path(mode, authorities.root, **options), candidate(peer, name))
        assert heard == [sent]


@pytest.mark.parametrize("last", ["", "221", "221 2.0.0 bye"])
async def test_a_reply_cut_off_by_the_end_is_no_reply(last: str, authorities: Authorities) -> None:
    """The peer closes without TLS's own goodbye: whatever was not a whole line is nothing."""

    async def script(wire: Wire) -> None:
        await wire.greet("STARTTLS")
        await wire.line()
        await wire.say("220 go")
        await wire.start_tls(authorities.root.server(NAME))
        await wire.line()
        await wire.say(hello(()))
        await wire.line()
        if last:
            await wire.raw(last)

    async with open_peer(script) as peer:
        async with open_dial() as dial:
            connection = await dial(path("Required", authorities.root), peer)
            connection.client.quit()
            with pytest.raises(ConnectionLost):
                await connection.event("QUIT", 5)


# -- back to clear text, where a path allows it ----------------------------------------------------


async def test_the_one_way_back_to_clear_text_is_a_new_connection(
    authorities: Authorities, caplog: pytest.LogCaptureFixture
) -> None:
    allowing = path("Opportunistic", opportunistic_tls_reconnect_on_failed_handshake=True)
    async with open_peer(tls=authorities.stranger.server(NAME)) as peer, open_dial() as dial:
        with caplog.at_level(logging.INFO, "posthorn.egress"):
            connection = await dial(allowing, peer)
        assert connection.stream.tls is None and "handshake" in connection.tls_why
        assert peer.connections == 2 and peer.words() == ["EHLO", "STARTTLS", "EHLO"]
        assert "clear text" in caplog.text


async def test_remembering_alone_helps_from_the_next_session_on(
    authorities: Authorities, clock: MockClock
) -> None:
    remembering = path("Opportunistic", remember_broken_tls="1m")
    async with open_peer(tls=authorities.stranger.server(NAME)) as peer, open_dial() as dial:
        with pytest.raises(NoHostReached):
            await dial(remembering, peer)
        await dial(remembering, peer)
        assert peer.words() == ["EHLO", "STARTTLS", "EHLO"]
        await trio.sleep(61)
        with pytest.raises(NoHostReached):
            await dial(remembering, peer)


async def test_a_handshake_that_takes_too_long_is_no_broken_tls(clock: MockClock) -> None:
    """Whoever can delay packets must not be able to have the mail sent in the clear, now or later."""
    said: list[str] = []

    async def script(wire: Wire) -> None:
        await wire.greet("STARTTLS")
        said.append(await wire.line())
        await wire.say("220 go ahead")
        await wire.until_closed()

    lax = path(
        "Opportunistic",
        remember_broken_tls="1h",
        opportunistic_tls_reconnect_on_failed_handshake=True,
        starttls_timeout="21s",
    )
    async with open_peer(script) as peer, open_dial() as dial:
        for _ in range(2):
            with pytest.raises(NoHostReached, match="handshake not done within 21 s"):
                await dial(lax, peer)
        assert said == ["STARTTLS", "STARTTLS"] and peer.connections == 2


@pytest.mark.parametrize("mode", ["Required", "RequiredInsecure"])
async def test_whose_certificate_it_was_is_known_checked_or_not(mode: str, authorities: Authorities) -> None:
    server = authorities.root.server(NAME, common_name="a, server")
    async with open_peer(tls=server) as peer, open_dial() as dial:
        connection = await dial(path(mode, authorities.root), candidate(peer, NAME))
        assert connection.stream.tls is not None
        assert connection.stream.tls.subject == ("CN=a\\, server",)


async def test_hosts_whose_handshake_failed_are_bounded(
    clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(secure, "_BROKEN_KEPT", 10)
    remembering = path("Opportunistic", remember_broken_tls="1m")
    terms = secure.Terms(remembering, TlsNeed.of(remembering), None, None, None, "", clear_allowed=True)
    safety = secure.Safety()
    lasting = Candidate("mx.example", "192.0.2.255", 25, "mx.example")
    for i in range(200):
        safety.remember_broken(Candidate("mx.example", f"192.0.2.{i}", 25, "mx.example"), terms)
        safety.remember_broken(lasting, terms)
        assert len(safety._broken) <= 10
    assert safety._is_broken(lasting, terms)
