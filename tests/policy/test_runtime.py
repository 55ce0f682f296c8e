"""What `init` declares."""

from __future__ import annotations

from typing import Any

import pytest

import policy
from policy.runtime import Declarations, recording
from policy.units import Floor


def declare(*calls: tuple[Any, dict[str, Any]]) -> Declarations:
    declarations = Declarations()
    with recording(declarations):
        for function, options in calls:
            assert function(**options) is None
    return declarations


def test_declarations() -> None:
    made = declare(
        (policy.define_spool, {"path": "var/spool", "min_free_space": "5%", "flush": True}),
        (policy.configure_local_logs, {"log_dir": "var/log", "meta": ["x_*"], "max_segment_duration": "10s"}),
        (policy.configure_local_logs, {"log_dir": "-"}),
        (policy.start_esmtp_listener, {"listen": "127.0.0.1:0"}),
        (policy.start_esmtp_listener, {"listen": "127.0.0.1:0"}),
    )
    assert made.spool is not None
    assert made.spool.path == "var/spool"
    assert made.spool.min_free_space == Floor(5.0)
    assert [log.log_dir for log in made.logs] == ["var/log", "-"]
    assert made.logs[0].meta == ("x_*",)
    assert made.logs[0].max_segment_duration == 10.0
    assert len(made.listeners) == 2


@pytest.mark.parametrize(
    ("calls", "says"),
    [
        ([(policy.define_spool, {})], 'option "path" is missing'),
        ([(policy.configure_memory, {"limit": "1GiB"}), (policy.configure_memory, {})], "call it once"),
        ([(policy.configure_memory, {"limit": "0%"})], "limit is below 1%"),
        ([(policy.configure_memory, {"limit": "60% or 63MiB"})], "limit is below 64MiB"),
        ([(policy.configure_memory, {"limit": "most"})], "configure_memory"),
        ([(policy.configure_mta_sts, {})] * 2, "call it once"),
        ([(policy.configure_mta_sts, {"enabled": False, "ca": "ca.pem"})], "one or the other"),
        ([(policy.configure_mta_sts, {"gateway": "gateway.example:443"})], '"ip:port"'),
        ([(policy.configure_mta_sts, {"gateway": "192.0.2.1:0"})], "has port 0"),
        ([(policy.configure_mta_sts, {"enabled": "no"})], "configure_mta_sts"),
        ([(policy.define_spool, {"path": "a"}), (policy.define_spool, {"path": "b"})], "call it once"),
        ([(policy.define_spool, {"path": "a", "kind": "RocksDB"})], 'right would be "LocalDisk"'),
        ([(policy.define_spool, {"path": "a", "flush": False})], "a 250 always means"),
        ([(policy.define_spool, {"path": "a", "segment_size": 1})], "segment_size"),
        ([(policy.configure_local_logs, {"log_dir": "a"})] * 2, "is used twice"),
        ([(policy.configure_local_logs, {"log_dir": "a", "compression_level": 22})], "at most 21"),
        ([(policy.configure_local_logs, {"log_dir": "a", "filter_event": "x"})], "not supported yet"),
        ([(policy.configure_local_logs, {"log_dir": "a", "meta": "x"})], "is no list of names"),
        ([(policy.start_esmtp_listener, {"listen": "127.0.0.1:25"})] * 2, "is used twice"),
    ],
)
def test_wrong_declarations(calls: Any, says: str) -> None:
    with pytest.raises(policy.PolicyError) as caught:
        declare(*calls)
    assert says in str(caught.value)
    assert __file__ in str(caught.value)


@pytest.mark.parametrize(
    "function", [policy.define_spool, policy.configure_local_logs, policy.start_esmtp_listener]
)
def test_declaring_is_for_init(function: Any) -> None:
    with pytest.raises(policy.PolicyError, match=r'only be called in the hook of @policy\.on\("init"\)'):
        function(path="x")


def test_two_recordings_do_not_share_anything() -> None:
    assert declare((policy.configure_local_logs, {"log_dir": "a"})).logs
    assert not declare().logs
