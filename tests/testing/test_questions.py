"""engine/testing/questions.py: a policy is asked as the engine asks it."""

from __future__ import annotations

from pathlib import Path

import pytest

import policy
from engine.errors import HookError, ResolveError
from policy.testing import SERVFAIL, Questions, load

POLICY = """
import policy

@policy.on("init")
def init():
    policy.define_spool(path="spool")
    policy.start_esmtp_listener(listen="127.0.0.1:2525", relay_hosts=["10.0.0.0/8"])

@policy.on("smtp_server_mail_from")
def mail_from(sender, conn_meta):
    if sender == "evil":
        raise policy.Reject(550, "5.7.1 not you")

@policy.on("get_queue_config")
async def queue_config(domain, tenant, campaign, routing_domain):
    if tenant == "bulk":
        return policy.make_queue_config(egress_pool="bulk")

@policy.on("get_egress_pool")
def pool(name):
    return policy.make_egress_pool(name=name, entries=[{"name": "ip-1", "weight": 2}, {"name": "ip-2"}])

@policy.on("get_egress_source")
def source(name):
    return policy.make_egress_source(name=name)

@policy.on("password", keysource=True)
def password(user):
    return "tiger for " + user

policy.shaping.setup(["shaping.toml", "https://shaping.example.com/more.toml"])
"""

SHAPING = """
["default"]
enable_tls = "Required"

["example.com"]
connection_limit = 5

["example.com".sources."ip-2"]
connection_limit = 1

[provider."big"]
match = [{ MXSuffix = ".big.example" }]

[[provider."big".automation]]
regex = "too many"
action = [{ SetConfig = { name = "connection_limit", value = 2 } }, "Suspend"]
trigger = { Threshold = "2/hour" }
duration = "30 minutes"
"""

DNS = {
    "example.com": {"MX": ["20 b.example.com.", "10 a.example.com."]},
    "other.example": {"MX": ["10 a.example.com.", "20 b.example.com."]},
    "customer.example": {"MX": ["10 in1.big.example."]},
    "nullmx.example": {"MX": ["0 ."]},
    "broken.example": {"MX": SERVFAIL},
}
URLS = {"https://shaping.example.com/more.toml": '["customer.example"]\nmax_message_rate = "7/s"\n'}


@pytest.fixture
def asked(tmp_path: Path) -> Questions:
    (tmp_path / "shaping.toml").write_text(SHAPING)
    (tmp_path / "mypolicy.py").write_text(POLICY)
    return load(tmp_path / "mypolicy.py", dns=DNS, urls=URLS)


def test_hooks_are_called_as_by_the_engine(asked: Questions) -> None:
    assert asked.call("get_queue_config", "example.com", None, None, None) is None
    assert asked.call("get_queue_config", "example.com", "bulk", None, None).egress_pool == "bulk"
    assert asked.call("password", "scott") == "tiger for scott"
    with pytest.raises(policy.Reject, match=r"550 5.7.1 not you"):
        asked.call("smtp_server_mail_from", "evil", None)
    (listener,) = asked.declared.listeners
    assert "10.1.2.3" in listener.relay_hosts


def test_what_cannot_be_asked_is_said(asked: Questions) -> None:
    with pytest.raises(ValueError, match=r"get_egress_pool takes \(pool_name\), not 2 arguments"):
        asked.call("get_egress_pool", "a", "b")
    with pytest.raises(ValueError, match=r"no event and no key source 'get_pool'"):
        asked.call("get_pool", "a")
    with pytest.raises(HookError, match=r"password raised TypeError"):
        asked.call("password")
    with pytest.raises(ValueError, match=r"'bob' has no domain; right would be user@example.com"):
        asked.route("bob")
    with pytest.raises(ValueError, match=r"'250 ok' is no refusal like '421 4.7.0"):
        asked.reply("bob@example.com", "250 ok")
    with pytest.raises(LookupError, match=r"leaves from ip-1, ip-2; name one of them with source="):
        asked.path("bob@example.com", tenant="bulk")
    with pytest.raises(LookupError, match=r"not from ip-3"):
        asked.reply("bob@example.com", "421 x", tenant="bulk", source="ip-3")


def test_routes_with_their_roads(asked: Questions) -> None:
    route = asked.route("bob@example.com", tenant="bulk")
    assert route.config.egress_pool == "bulk" and route.refused is None
    one, two = route.roads
    assert (one.source.name, one.weight, two.source.name, two.weight) == ("ip-1", 2, "ip-2", 1)
    assert one.site == "(a|b).example.com" and one.hosts == ("a.example.com", "b.example.com")
    assert (one.path.connection_limit, two.path.connection_limit) == (5, 1)


def test_shaping_by_block_roll_up_and_url(asked: Questions) -> None:
    assert asked.path("bob@other.example").connection_limit == 5  # the same hosts
    road = asked.road("bob@customer.example")
    assert str(road.path.max_message_rate) == "7/s" and road.providers == {"big"}
    assert road.origin("max_message_rate") == "https://shaping.example.com/more.toml:2"
    assert road.origin("enable_tls") == "shaping.toml:3"
    assert road.origin("connection_limit") is None


def test_where_there_is_no_way(asked: Questions) -> None:
    assert (asked.route("bob@nullmx.example").refused or "").startswith("556 5.1.10 ")
    with pytest.raises(LookupError, match=r"no way to bob@gone.example: 550 5.1.2"):
        asked.path("bob@gone.example")
    with pytest.raises(LookupError, match=r"no way to gone.example"):
        asked.reply("bob@gone.example", "421 x")
    with pytest.raises(ResolveError, match=r"SERVFAIL"):
        asked.route("bob@broken.example")


def test_rules_on_replies_and_the_clock(asked: Questions) -> None:
    limit = asked.path("bob@customer.example").connection_limit
    assert asked.reply("bob@customer.example", "421 4.7.0 too many connections") == ()
    asked.pass_time("61 minutes")
    assert asked.reply("bob@customer.example", "421 4.7.0 too many connections") == ()
    asked.pass_time("59 minutes")
    done = asked.reply("bob@customer.example", "421 4.7.0 too many connections")
    assert len(done) == 2 and done[1] == "Suspend"
    assert asked.path("bob@customer.example").connection_limit == 2
    asked.pass_time("29 minutes")
    assert asked.path("bob@customer.example").connection_limit == 2
    asked.pass_time("1 minute")
    assert asked.path("bob@customer.example").connection_limit == limit
    assert asked.reply("bob@example.com", "421 4.7.0 too many connections") == ()


def test_a_policy_that_cannot_start_cannot_be_asked(tmp_path: Path) -> None:
    (tmp_path / "shaping.toml").write_text('["example.com"]\nenable_tsl = "Required"\n')
    (tmp_path / "mypolicy.py").write_text('import policy\npolicy.shaping.setup(["shaping.toml"])\n')
    with pytest.raises(policy.PolicyError, match=r'enable_tsl"; did you mean "enable_tls"'):
        load(tmp_path / "mypolicy.py")


def test_hooks_without_a_file() -> None:
    path = policy.make_egress_path(enable_tls="Required")
    asked = load({"get_egress_path_config": lambda domain, site_name: path}, dns=DNS)
    assert asked.path("bob@example.com") == path


def test_rules_on_bounce_classes_and_on_replies_of_our_own(tmp_path: Path) -> None:
    (tmp_path / "shaping.toml").write_text(
        """
[[default.automation]]
class = "QuotaIssues"
action = "Suspend"
duration = "1 hour"

[[default.automation]]
regex = "is held"
match_internal = true
action = "SuspendTenant"
duration = "1 hour"
"""
    )
    (tmp_path / "mypolicy.py").write_text(
        "import policy\n"
        "policy.configure_bounce_classifier([policy.BOUNCES])\n"
        'policy.shaping.setup(["shaping.toml"])\n'
    )
    asked = load(tmp_path / "mypolicy.py", dns=DNS)
    assert asked.reply("bob@example.com", "452 4.2.2 mailbox full") == ("Suspend",)
    assert asked.reply("bob@example.com", "451 Posthorn internal: is held", tenant="news") == (
        "SuspendTenant",
    )
