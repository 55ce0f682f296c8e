"""Addresses that the grammar refuses although Python or RFC 6531 would take them (reliability S40 to S44)."""

from __future__ import annotations

import pytest

from engine.smtp import AddressError, parse_path_full


def refusal(path: str, *, null: bool = False) -> tuple[int, str]:
    with pytest.raises(AddressError) as caught:
        parse_path_full(path.encode(), allow_null=null, smtputf8=True)
    return caught.value.reply.code, caught.value.reply.enhanced


@pytest.mark.parametrize("zone", ["%eth0", "%25eth0", "%x@mine.example", "%><b@c", "%", "%<script>"])
def test_an_address_literal_has_no_zone(zone: str) -> None:
    assert refusal(f"<a@[IPv6:fe80::1{zone}]>") == (501, "5.1.3")


@pytest.mark.parametrize(
    "letter",
    ["\x80", "\x85", "\x9b", "\x9f", "\xa0", "\xad", "\u200b", "\u2028", "\u2029", "\u202e", "\u3000",
     "\ufeff", "\ue000", "\U000e0001", "\U0010ffff"],
)  # fmt: skip
@pytest.mark.parametrize("form", ["<a{}b@c.example>", '<"a{}b"@c.example>', "<a@b{}c.example>"])
def test_what_cannot_be_seen_is_no_part_of_an_address(form: str, letter: str) -> None:
    assert refusal(form.format(letter)) == (553, "5.1.3")
    assert refusal(form.format(letter), null=True) == (553, "5.1.7")


def test_a_joiner_that_a_word_needs_may_stand_in_a_domain() -> None:
    address, _ = parse_path_full("<a@نامه\u200cای.example>".encode(), allow_null=False, smtputf8=True)  # noqa: RUF001
    assert address.route_domain.startswith("xn--")
    assert refusal("<a@b\u200cc.example>") == (501, "5.1.3")
    assert refusal("<نامه\u200cای@b.example>") == (553, "5.1.3")  # noqa: RUF001
