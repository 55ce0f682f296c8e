"""engine/shaping and the router: files that change, URLs that fail, DNS that cannot say."""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import trio

import policy
from engine.app import _tuned_collector, hosts_of
from engine.egress.resolve import Resolver
from engine.shaping import ShapingService, State, open_shaping, remote, service, urls
from policy.shaping import Shaper
from tests.support.certificates import Authority
from tests.support.fakedns import SERVFAIL, StaticDns, Zones
from tests.support.loop import watched_loop
from tests.support.peer import open_peer


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOOK", "QUIET", "ASK_AGAIN"):
        monkeypatch.setattr(service, name, 0.05)
    for name in ("FETCH", "SOON"):
        monkeypatch.setattr(urls, name, 0.05)


@asynccontextmanager
async def watched(shaper: Shaper, zones: Zones | None = None) -> AsyncIterator[ShapingService]:
    resolver = Resolver(StaticDns(zones or {}))
    async with open_shaping([shaper], hosts_of(resolver)) as running:
        yield running


async def until(condition: Any, seconds: float = 5.0) -> None:
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.01)


def write(path: Path, text: str) -> None:
    """As an editor does: a new file takes the old one's place."""
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)


BLOCK = '["x.example"]\nmx_rollup = false\nmax_ready = {}\n'


def max_ready(shaper: Shaper, domain: str = "x.example") -> int:
    return shaper(domain, "ip-1", "mx.example").max_ready


# -- files ---------------------------------------------------------------------------------------


async def test_a_changed_file_is_in_force_soon_and_a_wrong_one_is_refused_as_a_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "a.toml"
    file.write_text(BLOCK.format(1))
    shaper = policy.shaping.load([file])
    told: list[int] = []
    async with watched(shaper) as running:
        running.tell(lambda: told.append(max_ready(shaper)))
        write(file, BLOCK.format(2))
        await until(lambda: told == [2])
        with caplog.at_level(logging.ERROR, "posthorn.shaping"):
            write(file, BLOCK.format(3) + 'enable_tsl = "Required"\n')
            await until(lambda: caplog.records)
            await trio.sleep(0.3)
        assert max_ready(shaper) == 2 and told == [2]
        said = [record.getMessage() for record in caplog.records]
        assert len(said) == 2, "a mistake is told once"
        assert f'{file}:4: ["x.example"] unknown option "enable_tsl"; did you mean "enable_tls"?' in said[1]
        os.unlink(file)
        await until(lambda: any("cannot be read" in record.getMessage() for record in caplog.records))
        assert max_ready(shaper) == 2
        write(file, BLOCK.format(4))
        await until(lambda: told == [2, 4])


async def test_a_file_that_is_being_written_is_not_read_before_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its place, as some programs do: the first half is a sound file, and lacks what the rest demands."""
    monkeypatch.setattr(service, "QUIET", 1.5)
    file = tmp_path / "a.toml"
    demand = '["y.example"]\nmx_rollup = false\nenable_tls = "Required"\n'
    file.write_text(BLOCK.format(1) + demand)
    shaper = policy.shaping.load([file])
    async with watched(shaper):
        with file.open("w") as half:
            for piece in (BLOCK.format(2), *demand.splitlines(keepends=True)):
                half.write(piece)
                half.flush()
                for _ in range(10):
                    await trio.sleep(0.02)
                    assert shaper("y.example", "ip-1", "mx.example").enable_tls == "Required"
        await until(lambda: max_ready(shaper) == 2)
        assert shaper("y.example", "ip-1", "mx.example").enable_tls == "Required"


async def test_a_url_that_changes_meanwhile_takes_no_half_a_file_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "QUIET", 1.5)
    file = tmp_path / "a.toml"
    demand = '["y.example"]\nmx_rollup = false\nenable_tls = "Required"\n'
    file.write_text(demand)

    class Changing:
        fetched = 0

        async def fetch(self, url: str) -> bytes:
            self.fetched += 1
            return BLOCK.format(self.fetched).encode()

        def forget(self, url: str) -> None:
            pass

    client = Changing()
    shaper = policy.shaping.load([file, "http://127.0.0.1:9/more.toml"])
    async with open_shaping([shaper], hosts_of(Resolver(StaticDns({}))), client=client):
        await until(lambda: max_ready(shaper) > 3)
        with file.open("w") as half:
            before = client.fetched
            while client.fetched < before + 5:
                await trio.sleep(0.01)
                assert shaper("y.example", "ip-1", "mx.example").enable_tls == "Required"
            half.write(demand)
        now = client.fetched
        await until(lambda: max_ready(shaper) > now)
        assert shaper("y.example", "ip-1", "mx.example").enable_tls == "Required"


async def test_what_is_written_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text(BLOCK.format(1))
    shaper = policy.shaping.load([file])
    build, told = shaper.build, list[int]()

    def building(content: Any) -> Any:
        if len(told) < 2:
            told.append(0)
            table = build(content)
            file.write_text(BLOCK.format(3 + len(told)))  # and the reader saw the one before
            return table
        return build(content)

    async with watched(shaper) as running:
        running.tell(lambda: told.append(max_ready(shaper)))
        shaper.build = building  # type: ignore[method-assign]
        write(file, BLOCK.format(2))
        await until(lambda: max_ready(shaper) == 5)
    assert [number for number in told if number] == [5], "nothing of what was on the way"


async def test_a_file_that_is_touched_but_not_changed_is_no_change(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text(BLOCK.format(1))
    shaper = policy.shaping.load([file])
    told: list[None] = []
    async with watched(shaper) as running:
        running.tell(lambda: told.append(None))
        os.utime(file, (1, 1))
        await trio.sleep(0.3)
        assert told == []


async def test_what_was_changed_between_load_and_start_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text(BLOCK.format(1))
    shaper = policy.shaping.load([file])
    file.write_text(BLOCK.format(2))
    async with watched(shaper):
        assert max_ready(shaper) == 2


async def test_a_large_change_does_not_hold_the_loop(tmp_path: Path) -> None:
    def text(number: int) -> str:
        return "".join(
            f'["d{n}.example"]\nmx_rollup = false\nenable_tls = "Required"\nmax_ready = {number}\n'
            for n in range(5000)
        )

    file = tmp_path / "a.toml"
    file.write_text(text(1))
    shaper = policy.shaping.load([file])
    with _tuned_collector():  # as the relay runs
        async with watched(shaper), watched_loop() as loop:
            write(file, text(2))
            await until(lambda: max_ready(shaper, "d7.example") == 2, 20)
    assert loop.longest < 0.25  # 12 ms on the machine of bench/results, 50 ms are allowed


# -- live queues ---------------------------------------------------------------------------------


async def test_queued_mail_meets_a_change_at_once(bench: Any, tmp_path: Path) -> None:
    """Mail is held because the file asks for TLS that the peer does not offer; the file is mended."""
    file = tmp_path / "a.toml"
    async with open_peer() as peer:
        block = f'["127.0.0.1:{peer.port}"]\nhold_interval = "1h"\n'
        file.write_text(block + 'enable_tls = "Required"\n')
        shaper = policy.shaping.load([file])
        config = policy.make_queue_config(protocol={"smtp": {"mx_list": [f"127.0.0.1:{peer.port}"]}})
        hooks = {
            "get_queue_config": lambda domain, tenant, campaign, routing_domain: config,
            "get_egress_path_config": shaper,
        }
        async with bench(hooks) as b, watched(shaper) as running:
            running.tell(b.router.reconsider)
            await b.submit()
            await b.records("TransientFailure")
            assert b.router.statistics().held
            write(file, block + 'enable_tls = "Disabled"\n')
            await b.records("Delivery", seconds=20)
            assert len(peer.arrived) == 1


async def test_a_change_while_routes_are_worked_out_is_not_lost(bench: Any, tmp_path: Path) -> None:
    async with open_peer() as peer:
        port = peer.port
        go = trio.Event()
        answers = [1, 2]
        asked: list[int] = []

        async def path(domain: str, egress_source: str, site_name: str) -> policy.EgressPath:
            number = answers[0]
            asked.append(number)
            if number == 1:
                await go.wait()
            return policy.make_egress_path(enable_tls="Disabled", max_ready=number)

        config = policy.make_queue_config(protocol={"smtp": {"mx_list": [f"127.0.0.1:{port}"]}})
        hooks = {
            "get_queue_config": lambda domain, tenant, campaign, routing_domain: config,
            "get_egress_path_config": path,
        }
        async with bench(hooks) as b:
            await b.submit()
            await until(lambda: asked == [1])
            answers.pop(0)
            b.router.reconsider()
            go.set()
            await b.records("Delivery")
            assert asked == [1, 2]


async def test_mail_for_two_domains_behind_the_same_hosts_meets_a_rolled_up_block(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('["a.example"]\nenable_tls = "Required"\n')
    mx = {"MX": ["10 mx1.example.net.", "20 mx2.example.net."]}
    zones = {"a.example": mx, "b.example": {"MX": ["5 mx2.example.net.", "5 mx1.example.net."]}}
    shaper = policy.shaping.load([file])
    async with watched(shaper, zones):
        from engine.egress.site import asked_for

        resolver = Resolver(StaticDns(zones))
        site = await resolver.site_for("b.example")
        with policy.shaping.asking(asked_for(site)):  # type: ignore[arg-type]
            assert shaper("b.example", "ip-1", site.name).enable_tls == "Required"  # type: ignore[union-attr]


async def test_dns_that_cannot_say_drops_no_demand_and_is_asked_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "a.toml"
    file.write_text('["a.example"]\nenable_tls = "Required"\n["none.example"]\nmax_ready = 1\n')
    zones: dict[str, dict[str, Any]] = {"a.example": {"MX": SERVFAIL}}

    async def ask(domain: str) -> frozenset[str]:
        return await hosts_of(Resolver(StaticDns(zones)))(domain)  # a new one remembers no failure

    shaper = policy.shaping.load([file])
    told: list[None] = []
    async with open_shaping([shaper], ask) as running:
        running.tell(lambda: told.append(None))
        said = [record.getMessage() for record in caplog.records]
        assert len([text for text in said if f'{file}:1: block "a.example" has no hosts' in text]) == 1
        assert any(f'{file}:3: block "none.example"' in text and "does not exist" in text for text in said)
        assert shaper("a.example", "ip-1", "mx.example.net").enable_tls == "Required"
        assert shaper("b.example", "ip-1", "mx.example.net").enable_tls == "Opportunistic"
        zones["a.example"] = {"MX": ["10 mx.example.net."]}
        await until(lambda: told)
        assert shaper("b.example", "ip-1", "mx.example.net").enable_tls == "Required"


async def test_a_name_server_that_is_out_does_not_bury_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "a.toml"
    file.write_text("".join(f'["d{number}.example"]\n' for number in range(40)))
    zones = {f"d{number}.example": {"MX": SERVFAIL} for number in range(40)}
    async with watched(policy.shaping.load([file]), zones):
        said = [record.getMessage() for record in caplog.records]
    assert len([text for text in said if "has no hosts to roll up" in text]) == 10
    assert "and 30 more blocks have no hosts to roll up" in said


# -- URLs ----------------------------------------------------------------------------------------


class Web:
    """A web server on loopback that answers what the test says."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/more.toml"
        self.status, self.content, self.tag, self.headers = 200, b"", "", {}
        self.asked: list[str | None] = []


@contextmanager
def web(tls: ssl.SSLContext | None = None) -> Iterator[Web]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.headers.get("If-None-Match")
            here.asked.append(known)
            status = 304 if known and known == here.tag and here.status == 200 else here.status
            body = b"" if status == 304 else here.content
            self.send_response(status)
            for name, value in {**({"ETag": here.tag} if here.tag else {}), **here.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    here = Web(server.server_address[1])
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        here.url = here.url.replace("http:", "https:")
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield here
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def test_a_url_is_read_and_what_it_said_last_stays_when_it_fails(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with web() as here:
        here.content, here.tag = BLOCK.format(1).encode(), '"one"'
        shaper = policy.shaping.load([here.url])
        async with watched(shaper):
            assert max_ready(shaper) == 1
            await until(lambda: '"one"' in here.asked)
            for status, content, headers in (
                (500, b"", {}),
                (200, b'["x.example"]\nmax_redy = 1', {}),
                (302, b"", {"Location": here.url}),
            ):
                here.status, here.content, here.headers, here.tag = status, content, headers, ""
                caplog.clear()
                await until(lambda: any("stays in use" in r.getMessage() for r in caplog.records))
                assert max_ready(shaper) == 1
            here.status, here.content, here.headers = 200, BLOCK.format(2).encode(), {}
            await until(lambda: max_ready(shaper) == 2)


async def test_before_a_url_was_read_mail_waits_and_then_it_goes_out(bench: Any) -> None:
    with web() as here:
        here.status = 503
        shaper = policy.shaping.load([here.url])
        async with watched(shaper):
            with pytest.raises(policy.PolicyError, match="has not been read yet: the answer is 503"):
                max_ready(shaper)
            here.status, here.content = 200, BLOCK.format(3).encode()
            await until(lambda: not shaper.unread)
            assert max_ready(shaper) == 3


async def test_what_a_url_said_last_survives_a_restart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = State(tmp_path / "spool")
    resolver = Resolver(StaticDns({}))
    with web() as here:
        here.content = BLOCK.format(3).encode()
        shaper = policy.shaping.load([here.url])
        async with open_shaping([shaper], hosts_of(resolver), state):
            assert max_ready(shaper) == 3
        here.status = 503
        shaper = policy.shaping.load([here.url])
        async with open_shaping([shaper], hosts_of(resolver), state):
            assert max_ready(shaper) == 3
        assert any("before the restart, is in use" in r.getMessage() for r in caplog.records)
        (kept,) = (tmp_path / "spool.shaping").iterdir()
        assert kept.stat().st_mode & 0o077 == 0
        kept.write_bytes(kept.read_bytes().replace(b"= 3", b"= 4"))
        shaper = policy.shaping.load([here.url])
        async with open_shaping([shaper], hosts_of(resolver), state):
            assert shaper.unread, "damaged: as if there were nothing"
        here.status, here.content = 200, BLOCK.format(5).encode()
        shaper = policy.shaping.load([here.url])
        async with open_shaping([shaper], hosts_of(resolver), state):
            assert max_ready(shaper) == 5


async def test_two_lists_with_one_url_have_one_owner(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is asked and written down once. Were each to ask for itself, the second would hear from a server
    with tags that nothing is new, and never learn what there is."""
    state = State(tmp_path / "spool")
    with web() as here:
        here.content, here.tag = BLOCK.format(1).encode(), '"one"'
        both = [policy.shaping.load([here.url]), policy.shaping.load([here.url])]
        async with open_shaping(both, hosts_of(Resolver(StaticDns({}))), state) as running:
            assert [max_ready(one) for one in both] == [1, 1]
            assert here.asked == [None]
            told: list[None] = []
            running.tell(lambda: told.append(None))
            here.content, here.tag = BLOCK.format(2).encode(), '"two"'
            await until(lambda: [max_ready(one) for one in both] == [2, 2])
            await until(lambda: len(told) == 2)
            here.status = 503
            await until(lambda: "stays in use" in caplog.text)
        assert len(list((tmp_path / "spool.shaping").iterdir())) == 1
    assert caplog.text.count("cannot be") == 1


class Tagged:
    """As `Client`: what was given out is not sent again unless it is forgotten. `late`: seconds that the
    first fetch takes, whoever gives up meanwhile."""

    def __init__(self, content: bytes, late: float = 0.0) -> None:
        self.content = content
        self.late = late
        self.sent = False

    async def fetch(self, url: str) -> bytes | None:
        with trio.CancelScope(shield=True):
            await trio.sleep(self.late)
        self.late = 0.0
        if self.sent:
            return None
        self.sent = True
        return self.content

    def forget(self, url: str) -> None:
        self.sent = False


async def test_lists_with_the_same_place_and_another_query_do_not_mix(tmp_path: Path) -> None:
    resolver, state = Resolver(StaticDns({})), State(tmp_path / "spool")

    class Queries(Tagged):
        async def fetch(self, url: str) -> bytes | None:
            if self.sent:
                raise remote.FetchFailed("gone")
            return BLOCK.format(url[-1]).encode()

    client = Queries(b"")
    for _ in range(2):
        both = [policy.shaping.load([f"https://x.example/a.toml?list={number}"]) for number in (1, 2)]
        async with open_shaping(both, hosts_of(resolver), state, client=client):
            assert [max_ready(one) for one in both] == [1, 2]
        client.sent = True  # then from what was written down


async def test_content_that_came_in_the_moment_of_giving_up_is_fetched_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(urls, "START", 0.05)
    shaper = policy.shaping.load(["https://x.example/a.toml"])
    client = Tagged(BLOCK.format(7).encode(), late=0.1)
    async with open_shaping([shaper], hosts_of(Resolver(StaticDns({}))), client=client):
        await until(lambda: not shaper.unread)
        assert max_ready(shaper) == 7


async def test_a_tag_is_known_when_the_content_is_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time was over while the connection was being given back, with all of the content there."""
    with web() as here:
        here.content, here.tag = BLOCK.format(1).encode(), '"1"'
        async with remote.open_client() as client:
            whole = client._fetch

            async def slow(url: str) -> Any:
                found = await whole(url)
                await trio.sleep(60)
                return found

            with monkeypatch.context() as patch:
                patch.setattr(remote, "TIMEOUT", 0.3)
                patch.setattr(client, "_fetch", slow)
                with pytest.raises(remote.FetchFailed, match="no answer"):
                    await client.fetch(here.url)
            assert await client.fetch(here.url) == here.content


@pytest.mark.parametrize("content", [b"x = " + b"9" * 5000, b"defect"])
async def test_whatever_a_url_says_ends_nothing(
    content: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def defect(name: str, content: bytes) -> Any:
        if content == b"defect":
            raise RuntimeError("defect")
        return read(name, content)

    read = urls.read
    monkeypatch.setattr(urls, "read", defect)
    client = Tagged(content)
    shaper = policy.shaping.load(["https://x.example/a.toml"])
    async with open_shaping([shaper], hosts_of(Resolver(StaticDns({}))), client=client):
        with pytest.raises(policy.PolicyError, match=r"thousands of digits|internal error"):
            max_ready(shaper)
        client.content = BLOCK.format(3).encode()
        await until(lambda: not shaper.unread)
        assert max_ready(shaper) == 3
    assert ("Traceback" in caplog.text) == (content == b"defect")


async def test_a_defect_in_reading_files_leaves_what_was_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "a.toml"
    file.write_text(BLOCK.format(1))
    shaper = policy.shaping.load([file])
    async with watched(shaper):
        with monkeypatch.context() as patch:
            patch.setattr(shaper, "build", lambda remote: 1 // 0)
            write(file, BLOCK.format(2))
            await until(lambda: "ZeroDivisionError" in caplog.text)
        assert max_ready(shaper) == 1
        write(file, BLOCK.format(30))
        await until(lambda: max_ready(shaper) == 30)


async def test_a_url_may_be_taken_for_empty() -> None:
    with web() as here:
        here.status = 503
        shaper = policy.shaping.load([here.url], require_remote=False)
        async with watched(shaper):
            assert max_ready(shaper) == 1024


async def test_what_is_too_large_or_too_slow_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "LARGEST", 100)
    with web() as here:
        here.content = b"#" * 200
        async with remote.open_client() as client:
            with pytest.raises(remote.FetchFailed, match="more than 100 octets"):
                await client.fetch(here.url)
    monkeypatch.setattr(remote, "TIMEOUT", 0.1)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with remote.open_client() as client, listeners[0]:
        port = listeners[0].socket.getsockname()[1]
        with pytest.raises(remote.FetchFailed, match=r"no answer in 0\.1 s"):
            await client.fetch(f"http://127.0.0.1:{port}/")


async def test_the_certificate_of_a_url_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority()
    with web(authority.server_context()) as here:
        here.content = BLOCK.format(1).encode()
        async with remote.open_client() as client:
            with pytest.raises(remote.FetchFailed, match="certificate"):
                await client.fetch(here.url)
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.write(tmp_path / "ca.pem")))
        async with remote.open_client() as client:
            assert await client.fetch(here.url) == here.content
