"""policy/shaping: rules on replies, their tests, thresholds and orders."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.egress.outcome import INTERNAL
from policy.errors import Wrong
from policy.shaping import Asked, Failure, Host
from policy.shaping.orders import Order, Orders
from policy.shaping.patterns import LONGEST, Pattern
from policy.shaping.read import read
from policy.shaping.table import ShapingError, Table, build

RULE = '[["{block}".automation]]\n{conditions}\naction = {action}\nduration = "10 minutes"\n'


def rule(conditions: str, action: str = '"Suspend"', block: str = "default") -> str:
    return RULE.format(block=block, conditions=conditions, action=action)


def table(*texts: str) -> Table:
    return build([read(f"{n}.toml", text.encode()) for n, text in enumerate(texts)])


def problems(text: str) -> list[str]:
    document = read("a.toml", text.encode())
    if document.problems:
        return [str(problem) for problem in document.problems]
    try:
        build([document])
    except ShapingError as error:
        return [str(problem) for problem in error.problems]
    return []


def site(*hosts: str, smart: bool = False) -> Asked:
    return Asked(hosts[0], tuple(Host((host,)) for host in hosts), smart, "|".join(hosts))


def reply(line: str = "421 4.7.0 Too many connections", domain: str = "a.example", **more: Any) -> Failure:
    more.setdefault("source", "ip-1")
    more.setdefault("asked", site("mx.a.example"))
    code, enhanced = line.split()[:2]
    return Failure(domain, code=int(code), enhanced=enhanced if "." in enhanced else "", line=line, **more)


def kinds(orders: Orders, merged: Table) -> list[str]:
    return [merged.rules[one.rule].actions[one.action].shown for one in orders]


# -- what may be written -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            rule('regex = "(?=x)y"'),
            'a.toml:2: ["default"] regex: "(?=x)y": look-ahead "(?=" cannot be searched for in linear time; '
            "right would be an expression without it, or two rules",
        ),
        (rule('regex = "(?<!x)y"'), "look-behind"),
        (rule("regex = '(a)\\1'"), "a back-reference (\\1) cannot be searched for in linear time"),
        (rule('regex = "(a"'), 'a.toml:2: ["default"] regex: "(a" is no regular expression: missing )'),
        (rule('regex = ["ok", "a**"]'), '"a**" is no regular expression'),
        (rule('regex = "x*"'), '"x*" fits every text'),
        (rule("regex = 3"), "is no regular expression but an int"),
        (rule("code = 99"), "code: 99 is no reply code; right would be 421"),
        (rule("code = 250.0"), "is no reply code"),
        (rule('enhanced_code = "4.7"'), "'4.7' is no enhanced status code"),
        (rule('code = 421\ncommand = "RCTP"'), "'RCTP' is no command whose reply is looked at; did you mean"),
        (
            rule('code = 421\nclass = "SpamBlock"'),
            'a.toml:1: ["default"] class: the policy has no bounce classes',
        ),
        (rule('class = ["SpamBlock", 7]'), "class: 7 is no bounce class"),
        (
            rule("code = 421\nmach_internal = true"),
            'unknown key "mach_internal"; did you mean "match_internal"',
        ),
        (rule('command = "MAIL"'), 'a.toml:1: ["default"] automation: the rule has no condition'),
        (rule("code = 421", '"Suspnd"'), 'unknown action "Suspnd"; did you mean "Suspend"?'),
        (rule("code = 421", '"SetConfig"'), "SetConfig needs an option; right would be { SetConfig = {"),
        (
            rule("code = 421", '{ SetConfig = { name = "conection_limit", value = 1 } }'),
            'a.toml:3: ["default"] action: SetConfig: unknown option "conection_limit"; did you mean',
        ),
        (
            rule("code = 421", '{ SetConfig = { name = "connection_limit", value = 0 } }'),
            "SetConfig: connection_limit=0: a limit is at least 1",
        ),
        (
            rule("code = 421", '{ SetConfig = { name = "enable_tls", value = "Disabled" } }'),
            "what a peer answers must not weaken TLS or change the login",
        ),
        (
            rule("code = 421", '{ SetDomainConfig = { name = "smtp_auth_plain_password", value = "x" } }'),
            "must not weaken TLS or change the login",
        ),
        (
            rule("code = 421", '{ SetConfig = { name = "remember_broken_tls", value = "1h" } }'),
            "SetConfig: remember_broken_tls: what a peer answers must not weaken TLS",
        ),
        (
            rule(
                "code = 421",
                '{ SetConfig = { name = "opportunistic_tls_reconnect_on_failed_handshake", value = true } }',
            ),
            "must not weaken TLS or change the login",
        ),
        *(
            (
                rule("code = 421", f'{{ SetConfig = {{ name = "{option}", value = {value} }} }}'),
                f"{option}: what a peer answers must not weaken TLS",
            )
            for option, value in {
                "tls_pins": f'["{"ab" * 32}"]',
                "tls_minimum_version": '"1.2"',
                "openssl_cipher_list": '"ECDHE"',
                "tls_implicit": "false",
                "enable_dane": "false",
                "enable_mta_sts": "{ unset = true }",
                "tls_certificate": '"/c.pem"',
                "tls_private_key": '"/k.pem"',
            }.items()
        ),
        (rule('code = 421\ntrigger = "10/hr"'), 'right would be "Immediate" or { Threshold = "10/hr" }'),
        (rule('code = 421\ntrigger = { Threshold = "10/h,max_burst=2" }'), "has no burst"),
        (rule('code = 421\ntrigger = { Threshold = "10001/h" }'), "counts to 10000 at most"),
        (rule("code = 421").replace("10 minutes", "a while"), "duration='a while': is no duration: "),
        (rule('code = 421\nmode = "dry"'), "mode='dry': is none of its values"),
        ('[["default".automation]]\ncode = 421\naction = "Suspend"', "has no duration"),
        ('[["default".automation]]\ncode = 421\nduration = "1h"', "the rule has no action"),
        ('["default"]\nautomation = { code = 421 }', "automation: is no list of tables but a dict"),
        ('["default".sources."x"]\nautomation = []', "has no meaning here"),
    ],
)
def test_a_mistake_is_said_with_file_line_and_key(text: str, said: str) -> None:
    found = problems(text)
    assert any(said in one for one in found), found


def test_a_rule_with_several_mistakes_says_them_all() -> None:
    found = problems(
        '["default"]\n[["default".automation]]\nregex = ["(", "x*"]\ncode = [999, 1]\ncommand = "HELP"\n'
        'match_internal = 1\nmode = "dry"\ntrigger = "often"\naction = ["Stop", "Halt"]\n'
        'duration = 0\nclas = "x"'
    )
    keys = [one.partition('["default"] ')[2].split()[0].partition("=")[0].rstrip(":") for one in found]
    wanted = "automation regex regex code code command match_internal mode trigger action action duration"
    assert sorted(keys) == sorted(wanted.split()), found


@pytest.mark.parametrize(
    ("misspelt", "count"),
    [("durations = 1\naction = 'Suspend'", 1), ("actoin = 'Suspend'\nduration = 1", 1), ("x = 1", 3)],
)
def test_a_misspelt_key_is_not_missing_as_well(misspelt: str, count: int) -> None:
    found = problems(f'[["default".automation]]\ncode = 421\n{misspelt}')
    assert len(found) == count, found


def test_a_test_with_several_mistakes_says_them_all() -> None:
    found = problems(
        '[["a.example".test]]\nreply = "no"\ncommand = "HELP"\nexpect = ["Stop", "Halt"]\nhosts = 1'
    )
    assert len(found) == 5, found
    found = problems(
        '[["a.example".test]]\naddress = 1\nsource = 2\nexpect = { x = 1, enable_tls = "Maybe" }'
    )
    assert len(found) == 4, found


def test_the_marks_of_our_own_replies_are_the_same_everywhere() -> None:
    merged = table(rule('regex = "connect"'))
    ours = reply(f"451 4.4.1 {INTERNAL}failed to connect", internal=True)
    assert Orders().judge(merged, ours, 0.0) == []
    merged = table(rule('regex = "connect"\nmatch_internal = true'))
    assert len(Orders().judge(merged, ours, 0.0)) == 1


@pytest.mark.parametrize(
    ("conditions", "line", "command", "met"),
    [
        ('regex = "(?i)too MANY"', "421 4.7.0 Too many connections", "", True),
        ('regex = ["nothing", "^421 4"]', "421 4.7.0 Too many connections", "", True),
        ('regex = "^4.7.0"', "421 4.7.0 Too many connections", "", False),
        ("code = 421", "421 Busy", "", True),
        ('code = ["45x", "5xx"]', "452 Full", "", True),
        ('code = ["45x", "5xx"]', "421 Busy", "", False),
        ('enhanced_code = "4.7.*"', "421 4.7.28 x", "", True),
        ('enhanced_code = "4.7.2"', "421 4.7.28 x", "", False),
        ('enhanced_code = "4.7.2"', "421 x", "", False),
        ('code = 450\ncommand = ["RCPT", "."]', "450 x", "RCPT TO:<a@b>", True),
        ('code = 450\ncommand = "."', "450 x", ".", True),
        ('code = 450\ncommand = "DATA"', "450 x", ".", False),
        ('code = 450\nregex = "grey"', "450 black", "", False),
    ],
)
def test_all_conditions_must_be_met(conditions: str, line: str, command: str, met: bool) -> None:
    found = Orders().judge(table(rule(conditions)), reply(line, command=command), 0.0)
    assert bool(found) is met


@given(st.text(max_size=300))
def test_whatever_a_peer_says_is_looked_at(text: str) -> None:
    assert Pattern("(?i)busy").found(text.encode("utf-8", "replace")) is ("busy" in text.lower())


def test_an_expression_takes_time_in_proportion_to_the_text() -> None:
    """The classic trap of engines that go back and forth: 2048 characters would take for ever."""
    pattern = Pattern("(a+)+b")
    begun = time.thread_time()
    assert not pattern.found(b"a" * LONGEST)
    assert time.thread_time() - begun < 0.5
    with pytest.raises(Wrong):
        Pattern("(?P<x>a)(?P=x)")


def test_more_of_a_reply_than_this_is_not_looked_at() -> None:
    merged = table(rule('regex = "needle"'))
    assert Orders().judge(merged, reply("421 4.0.0 " + "x" * LONGEST + "needle"), 0.0) == []


# -- which rules ---------------------------------------------------------------------------------

PLACES = (
    rule("code = 421", '"Suspend"')
    + '["a.example"]\nmx_rollup = false\n'
    + rule("code = 421", '"Bounce"', "a.example")
    + '[provider."big"]\nmatch = [{MXSuffix = ".big.example"}]\n[[provider."big".automation]]\n'
    + 'code = 421\nduration = "1h"\naction = "SuspendTenant"\n'
)


def test_the_rules_of_every_block_that_holds_are_looked_at() -> None:
    merged = table(PLACES)

    def found(domain: str, *hosts: str) -> list[str]:
        return [one.actions[0].kind for one in merged.rules_for(domain, site(*hosts))]

    assert found("a.example", "mx.big.example") == ["Suspend", "SuspendTenant", "Bounce"]
    assert found("b.example", "mx.big.example") == ["Suspend", "SuspendTenant"]
    assert found("b.example", "mx.other.example") == ["Suspend"]
    assert found("b.example", "mx.big.example", "mx.other.example") == ["Suspend"]


def test_replace_base_takes_rules_back_and_later_files_add_some() -> None:
    first = rule("code = 421", '"Suspend"') + rule("code = 450", '"Suspend"', "a.example")
    added = table(first, rule("code = 451", '"Bounce"', "a.example"))
    at = site("mx.a.example")
    assert [one.codes[0] for one in added.rules_for("a.example", at)] == ["421", "450", "451"]
    again = table(first, '["a.example"]\nreplace_base = true\n' + rule("code = 451", '"Bounce"', "a.example"))
    assert [one.codes[0] for one in again.rules_for("a.example", at)] == ["451"]


# -- thresholds ----------------------------------------------------------------------------------


def test_a_threshold_counts_its_own_period_which_slides() -> None:
    merged = table(rule('code = 421\ntrigger = { Threshold = "3/min" }'))
    orders = Orders()

    def at(now: float) -> bool:
        (match,) = orders.judge(merged, reply(), now)
        return bool(match.orders)

    # 3 within 600 s, the rule's duration, but never within 60 s
    assert [at(now) for now in (0, 40, 80, 120, 160)] == [False] * 5
    # and then, across the edge of any fixed minute
    assert [at(now) for now in (170, 179)] == [True, True]
    assert not at(1000)


@given(st.lists(st.floats(0, 50), min_size=1, max_size=60), st.integers(1, 6), st.integers(1, 10))
def test_a_threshold_is_a_true_sliding_window(pauses: list[float], number: int, period: int) -> None:
    merged = table(rule(f'code = 421\ntrigger = {{ Threshold = "{number}/{period}s" }}'))
    orders, now, times = Orders(), 1e9, []
    for pause in pauses:
        now += pause
        times.append(now)
        (match,) = orders.judge(merged, reply(), now)
        assert bool(match.orders) == (len([at for at in times if at > now - period]) >= number)


def test_a_provider_s_threshold_counts_all_its_destinations_and_others_do_not() -> None:
    text = '[provider."big"]\nmatch = [{MXSuffix = ".big.example"}]\n[[provider."big".automation]]\n'
    text += 'code = 421\ntrigger = { Threshold = "3/h" }\nduration = "1h"\naction = "Suspend"\n'
    merged, orders = table(text), Orders()
    found = []
    for n in range(3):
        at = site(f"c{n}.mx.big.example")
        found += orders.judge(merged, reply(domain=f"c{n}.example", asked=at), float(n))
    assert [bool(one.orders) for one in found] == [False, False, True]
    stops = orders.stops(merged)
    assert stops.of_ready("ip-1", "another", {"big"}) and not stops.of_ready("ip-2", "another", {"big"})
    merged, orders = table(rule('code = 421\ntrigger = { Threshold = "2/h" }')), Orders()
    for n in range(3):
        (match,) = orders.judge(merged, reply(asked=site(f"c{n}.mx.big.example")), float(n))
        assert not match.orders


def test_a_rule_about_tenants_counts_each_tenant_by_itself_from_all_sources() -> None:
    merged = table(rule('code = 421\ntrigger = { Threshold = "2/h" }', '"SuspendTenant"'))
    orders = Orders()
    given = [("t1", "ip-1"), ("t2", "ip-1"), ("t1", "ip-2")]
    found = [orders.judge(merged, reply(tenant=t, source=s), 0.0)[0] for t, s in given]
    assert [bool(one.orders) for one in found] == [False, False, True]


def test_memory_is_bounded_whatever_peers_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("policy.shaping.orders._MOST_ORDERS", 10)
    monkeypatch.setattr("policy.shaping.orders._MOST_COUNTED", 50)
    monkeypatch.setattr("policy.shaping.orders._MOST_ANSWERS", 8)
    merged = table(rule("code = 421") + rule('code = 450\ntrigger = { Threshold = "30/h" }'))
    orders = Orders()
    for n in range(200):
        orders.judge(merged, reply(f"421 4.0.0 {n}", asked=site(f"mx{n}.example")), 0.0)
        orders.judge(merged, reply(f"450 4.0.0 {n}", asked=site(f"mx{n % 20}.example")), 0.0)
    assert len(orders) == 10 and orders.refused == 190
    assert orders._counted == sum(map(len, orders._counters.values())) <= 50
    assert len(orders._rules) <= 8 and len(orders._met) <= 8


# -- orders --------------------------------------------------------------------------------------


def test_a_repeated_match_extends() -> None:
    merged, orders = table(rule("code = 421")), Orders()
    ((first,),) = ([m.orders[0] for m in orders.judge(merged, reply(), 0.0)],)
    ((again,),) = ([m.orders[0] for m in orders.judge(merged, reply(), 100.0)],)
    assert first[2] and not again[2]
    (order,) = orders
    assert order.until == 700.0 and order.matches == 2
    assert orders.expire(699.9) == [] and orders.expire(700.0) == [order] and len(orders) == 0


def test_each_action_has_its_own_place() -> None:
    actions = '["Suspend", "SuspendTenant", "SuspendCampaign", "Bounce", "BounceTenant", "BounceCampaign"]'
    merged, orders = table(rule("code = 421", actions)), Orders()
    orders.judge(merged, reply(domain="route.example", tenant="t", campaign="c"), 0.0)
    assert [(one.place, one.source, one.tenant, one.campaign) for one in orders] == [
        ("site:mx.a.example", "ip-1", None, None),
        ("domain:route.example", "", "t", None),
        ("domain:route.example", "", "t", "c"),
        ("domain:route.example", "", None, None),
        ("domain:route.example", "", "t", None),
        ("domain:route.example", "", "t", "c"),
    ]


@pytest.mark.parametrize(
    ("action", "stopped"),
    [
        ("SuspendTenant", {("t", None), ("t", "c"), ("t", "d")}),
        ("SuspendCampaign", {("t", "c")}),
        ("Bounce", {("t", None), ("t", "c"), ("t", "d"), ("u", "c"), (None, None)}),
        ("BounceTenant", {("t", None), ("t", "c"), ("t", "d")}),
        ("BounceCampaign", {("t", "c")}),
    ],
)
def test_whose_mail_is_stopped(action: str, stopped: set[tuple[str | None, str | None]]) -> None:
    merged, orders = table(rule("code = 421", f'"{action}"')), Orders()
    orders.judge(merged, reply(tenant="t", campaign="c"), 0.0)
    stops = orders.stops(merged)
    everyone = {("t", None), ("t", "c"), ("t", "d"), ("u", "c"), (None, None)}
    assert {who for who in everyone if stops.of_queue("A.example", *who, ())} == stopped
    assert not any(stops.of_queue("b.example", *who, ()) for who in everyone)
    found = stops.of_queue("a.example", "t", "c", ())
    assert found is not None and found.bounce is action.startswith("Bounce")
    assert f'0.toml:1 ["default"] {action}' in found.text and "1970-01-01 00:10:00 UTC" in found.text


def test_without_a_tenant_nothing_is_stopped_and_without_a_campaign_the_tenant_is() -> None:
    merged, orders = table(rule("code = 421", '["SuspendTenant", "SuspendCampaign"]')), Orders()
    (match,) = orders.judge(merged, reply(), 0.0)
    assert len(orders) == 0 and match.idle[0].startswith("SuspendTenant has no effect")
    orders.judge(merged, reply(tenant="t"), 0.0)
    assert orders.stops(merged).of_queue("a.example", "t", "any", ())


def test_bouncing_goes_before_and_the_longest_holds() -> None:
    merged = table(
        rule("code = 421", '"Bounce"')
        + rule("code = 421", '"SuspendTenant"').replace("10 minutes", "1 day")
        + rule("code = 450", '"Bounce"').replace("10 minutes", "1 hour")
    )
    orders = Orders()
    orders.judge(merged, reply(tenant="t"), 0.0)
    orders.judge(merged, reply("450 4.0.0 x", tenant="t"), 0.0)
    found = orders.stops(merged).of_queue("a.example", "t", None, ())
    assert found is not None and found.bounce and found.until == 3600.0


SET = '{{ {} = {{ name = "connection_limit", value = {} }} }}'


def limit(merged: Table, orders: Orders, domain: str, *hosts: str, source: str = "ip-1") -> int:
    return merged.find(domain, source, site(*hosts), orders.overrides(merged)).path.connection_limit


def test_set_config_is_as_wide_as_its_rule() -> None:
    merged = table(rule("code = 421", SET.format("SetConfig", 1))), Orders()
    orders = merged[1]
    orders.judge(merged[0], reply(), 0.0)
    assert limit(*merged, "a.example", "mx.a.example") == 1
    assert limit(*merged, "same.example", "mx.a.example") == 1, "default: whoever has the same hosts"
    assert limit(*merged, "a.example", "mx.a.example", source="ip-2") == 32
    assert limit(*merged, "b.example", "mx.b.example") == 32

    merged = table(rule("code = 421", SET.format("SetDomainConfig", 2))), Orders()
    merged[1].judge(merged[0], reply(), 0.0)
    assert limit(*merged, "a.example", "mx.a.example") == 2
    assert limit(*merged, "same.example", "mx.a.example") == 32

    text = '[provider."big"]\nmatch = [{MXSuffix = ".big.example"}]\n[[provider."big".automation]]\n'
    text += f'code = 421\nduration = "1h"\naction = {SET.format("SetConfig", 3)}\n'
    merged = table(text), Orders()
    merged[1].judge(merged[0], reply(asked=site("c1.big.example")), 0.0)
    assert limit(*merged, "z.example", "c2.big.example") == 3, "a provider's rule: the whole provider"
    assert limit(*merged, "z.example", "c2.bigger.example") == 32


def test_a_smart_host_s_rule_holds_for_all_mail_to_it() -> None:
    text = '["relay.example"]\nmx_rollup = false\n' + rule(
        "code = 421", SET.format("SetConfig", 4), "relay.example"
    )
    merged, orders = table(text), Orders()
    orders.judge(merged, reply(domain="a.example", asked=site("relay.example", smart=True)), 0.0)
    found = merged.find("b.example", "ip-1", site("relay.example", smart=True), orders.overrides(merged))
    assert found.path.connection_limit == 4


def test_an_override_says_where_it_comes_from_and_what_it_overrode() -> None:
    text = '["a.example"]\nconnection_limit = 7\n' + rule("code = 421", SET.format("SetConfig", 1))
    merged, orders = table(text), Orders()
    orders.judge(merged, reply(), 0.0)
    found = merged.find("a.example", "ip-1", site("mx.a.example"), orders.overrides(merged))
    now, before = found.settings["connection_limit", ""].history()
    assert str(now.origin) == '0.toml:3 ["default"] automation, until 1970-01-01 00:10:00 UTC'
    assert before.value == 7


def test_shadow_changes_nothing() -> None:
    text = rule('code = 421\nmode = "shadow"', '["Suspend", "Bounce"]')
    for merged, orders in (
        (table(text), Orders()),
        (table(text.replace("shadow", "enforce")), Orders(shadow=True)),
    ):
        (match,) = orders.judge(merged, reply(), 0.0)
        assert all(order.shadow for order, _, _ in match.orders) and len(match.orders) == 2
        assert not orders.stops(merged) and not orders.overrides(merged)


def test_what_was_written_down_holds_where_the_rule_is_the_same() -> None:
    text = rule("code = 421")
    merged, orders = table(text), Orders()
    orders.judge(merged, reply(), 1000.0)
    kept: list[Order] = list(orders)

    def taken(other: Table, now: float, **options: Any) -> int:
        return Orders(**options).restore(kept, other, now)

    assert taken(table("# moved\n\n" + text), 1001.0) == 1
    assert taken(table(text.replace("421", "422")), 1001.0) == 0
    assert taken(merged, 2000.0) == 0
    assert taken(merged, 1001.0, shadow=True) == 0
    again = Orders()
    again.restore(kept, merged, -1e9)  # the clock was set back
    assert next(iter(again)).until == -1e9 + 600


def test_orders_end_with_their_rule() -> None:
    merged, orders = table(rule("code = 421") + rule("code = 422")), Orders()
    orders.judge(merged, reply(), 0.0)
    assert len(orders.keep_known(table(rule("code = 421")))) == 0
    assert len(orders.keep_known(table(rule("code = 423")))) == 1 and len(orders) == 0


# -- tests beside rules --------------------------------------------------------------------------

TESTED = (
    rule('regex = "too many"\ntrigger = { Threshold = "9/h" }', f'["Suspend", {SET.format("SetConfig", 1)}]')
    + '["a.example"]\nenable_tls = "Required"\n'
)


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ('[[test]]\naddress = "u@a.example"\nreply = "421 too many"\nexpect = ["SetConfig", "Suspend"]', ""),
        ('[["a.example".test]]\nreply = "421 too many"\nexpect = "Suspend"', "SetConfig connection_limit=1"),
        (
            '[["a.example".test]]\nreply = "421 too few"\nexpect = "Suspend"',
            'a.toml:8: this test fails: "421 too few" for a.example leads to no action, not to Suspend',
        ),
        ('[["a.example".test]]\nreply = "421 too few"\nexpect = "nothing"', ""),
        ('[["a.example".test]]\nreply = "421 Posthorn internal: too many"\nexpect = []', ""),
        ('[["a.example".test]]\nexpect = { enable_tls = "Required", connection_limit = 32 }', ""),
        (
            '[["a.example".test]]\nexpect = { enable_tls = "Disabled" }',
            "a.toml:8: this test fails: enable_tls for a.example is Required (a.toml:7), not Disabled",
        ),
        (
            '[["a.example".test]]\nexpect = { enable_tsl = "Required" }',
            "a.toml:9: test: expect: unknown option",
        ),
        ('[["a.example".test]]\nexpct = 1', 'test: unknown key "expct"; did you mean "expect"?'),
        ("[[test]]\nexpect = { max_ready = 1 }", "a.toml:8: test: no address"),
        ('[[test]]\naddress = "a.example"\nreply = "hello"\nexpect = []', 'reply="hello": is no reply'),
        ('[[test]]\naddress = "a.example"\nreply = "421 x"\nexpect = "Supend"', 'did you mean "Suspend"'),
        (
            '[provider."big"]\nmatch = [{MXSuffix = "big.example"}]\nmax_ready = 5\n[[test]]\n'
            'address = "x@c.example"\nhosts = ["mx.big.example"]\nexpect = { max_ready = 5 }',
            "",
        ),
        (
            '["r.example"]\nmx_rollup = false\nmax_ready = 5\n[[test]]\n'
            'address = "x@c.example"\nmx_list = ["r.example:587"]\nexpect = { max_ready = 5 }',
            "",
        ),
    ],
)
def test_tests_run_when_the_file_is_read(case: str, said: str) -> None:
    found = problems(TESTED + case)
    assert (not found) if not said else any(said in one for one in found), found


def test_tests_are_about_all_files_together() -> None:
    tested = TESTED + '[["a.example".test]]\nexpect = { enable_tls = "Required" }'
    with pytest.raises(ShapingError, match=r"0\.toml:8: this test fails: .* Disabled \(1\.toml:2\)"):
        table(tested, '["a.example"]\nenable_tls = "Disabled"\n')
