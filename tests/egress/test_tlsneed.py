"""The need for TLS: what a path says, and that whatever is learned later only ever adds to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.egress.tlsneed import TlsNeed, Verdict
from engine.errors import TlsRequired
from policy.egress import make_egress_path
from tests.egress.dialing import NAME, inside, open_dial
from tests.support.peer import open_peer
from tests.support.pki import Pki

MODES = ("Opportunistic", "OpportunisticInsecure", "Required", "RequiredInsecure", "Disabled")


class Sees:
    """A check that remembers what it was shown."""

    def __init__(self, ok: bool = True) -> None:
        self.ok = ok
        self.chains: list[Sequence[bytes]] = []

    def __call__(self, chain: Sequence[bytes]) -> Verdict:
        self.chains.append(chain)
        return Verdict(self.ok, "the key is known" if self.ok else "the key is not known")


demands = st.fixed_dictionaries(
    {},
    optional={
        "required": st.booleans(),
        "verify": st.booleans(),
        "check": st.builds(Sees),
        "sni": st.just("mx.example"),
    },
)


@given(mode=st.sampled_from(MODES), ca=st.booleans(), steps=st.lists(demands, max_size=4))
def test_whatever_comes_it_is_never_less(mode: str, ca: bool, steps: list[dict[str, Any]]) -> None:
    options: dict[str, Any] = {"enable_tls": mode}
    if ca and mode in ("Required", "Opportunistic"):
        options["tls_ca"] = {"key_data": "x"}
    need = TlsNeed.of(make_egress_path(**options))
    for step in steps:
        before = need
        if before.check is not None:
            step.pop("check", None)
        need = before.tightened("an owner", **step)
        asked = any(step.get(word) for word in ("required", "verify", "check"))
        assert need.required >= (before.required or asked) and need.use >= (before.use or asked)
        assert need.authenticates >= (before.authenticates or bool(step.get("verify") or step.get("check")))
        assert need.own_ca == before.own_ca and need.name == before.name
        if before.own_ca:
            assert need.verify or not before.verify
        if before.check is not None:
            assert need.check is before.check


def test_two_checks_are_a_mistake_of_the_caller() -> None:
    need = TlsNeed.of(make_egress_path()).tightened("DANE", check=Sees())
    with pytest.raises(ValueError, match="two checks"):
        need.tightened("DANE", check=Sees())


def test_who_asked_first_is_named() -> None:
    assert TlsNeed.of(make_egress_path()).tightened("DANE", required=True).demand == "DANE"
    required = TlsNeed.of(make_egress_path(enable_tls="Required"))
    assert required.tightened("DANE", required=True).demand == "enable_tls is Required"
    assert required.tightened("MTA-STS", verify=True).demand == "enable_tls is Required"
    loose = TlsNeed.of(make_egress_path(enable_tls="RequiredInsecure"))
    assert loose.tightened("MTA-STS", verify=True).demand == "MTA-STS", "it adds the certificate"


@pytest.mark.parametrize("mode", MODES)
async def test_the_dialer_obeys_a_check(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every mode the peer is authenticated by it, by the whole chain it showed."""
    of = TlsNeed.of
    middle = Pki(issuer=Pki())
    for ok in (True, False):
        check = Sees(ok)
        monkeypatch.setattr(TlsNeed, "of", lambda path, check=check: of(path).tightened("DANE", check=check))
        async with open_peer(tls=middle.server("mx.other.example")) as peer, open_dial() as dial:
            path = make_egress_path(enable_tls=mode)  # type: ignore[arg-type]
            if not ok:
                with pytest.raises(TlsRequired, match="the key is not known"):
                    await dial(path, peer)
                assert inside(peer) == []
                continue
            connection = await dial(path, peer)
            assert connection.stream.tls is not None and connection.stream.tls.verified
            assert connection.tls_why == "the key is known"
            (chain,) = check.chains
            assert len(chain) >= 2 and all(isinstance(one, bytes) for one in chain)


@pytest.mark.parametrize("mode", ["Opportunistic", "Disabled"])
async def test_the_dialer_obeys_a_requirement(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of = TlsNeed.of
    monkeypatch.setattr(TlsNeed, "of", lambda path: of(path).tightened("MTA-STS", verify=True))
    path = make_egress_path(enable_tls=mode)  # type: ignore[arg-type]
    async with open_peer(capabilities=[]) as peer, open_dial() as dial:
        with pytest.raises(TlsRequired, match="MTA-STS and the peer does not offer STARTTLS"):
            await dial(path, peer)
    async with open_peer(tls=Pki().server(NAME)) as peer, open_dial() as dial:
        with pytest.raises(TlsRequired, match="not trusted"):
            await dial(path, peer)
