"""Literal, file and environment."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from engine.keys import environment
from engine.keys.local import CredentialSource, EnvSource, FileSource, LiteralSource
from engine.keys.source import MAX_SECRET, SourceFailure, Told
from policy.keysource import CredentialKey, EnvKey, FileKey, LiteralKey
from policy.secret import Secret
from tests.contract.key_source import (
    CANARY,
    ChangingKeySourceContract,
    KeySourceContract,
    Subject,
    everything,
)

NOBODY = 65534


class TestLiteral(KeySourceContract):
    @pytest.fixture
    def subject(self) -> Subject:
        return Subject(LiteralSource(), LiteralKey(Secret(CANARY)))


class TestEnv(ChangingKeySourceContract):
    @pytest.fixture
    def subject(self, monkeypatch: pytest.MonkeyPatch) -> Subject:
        async def put(value: str | None) -> None:
            if value is None:  # as in a process that never had it: it is read, and taken out, once
                monkeypatch.delenv("POSTHORN_TEST_KEY", raising=False)
                environment._taken.clear()
            else:
                monkeypatch.setenv("POSTHORN_TEST_KEY", value)

        monkeypatch.setenv("POSTHORN_TEST_KEY", CANARY)
        return Subject(EnvSource(), EnvKey("POSTHORN_TEST_KEY"), put)


@pytest.mark.plants("password")
class TestFile(ChangingKeySourceContract):
    @pytest.fixture
    def subject(self, tmp_path: Path) -> Subject:
        path = tmp_path / "password"

        async def put(value: str | None) -> None:
            if value is None:
                path.unlink()
            else:
                path.write_text(value)

        path.write_text(CANARY)
        path.chmod(0o600)
        return Subject(FileSource(), FileKey(str(path)), put)


@pytest.mark.plants("relay")
class TestCredential(ChangingKeySourceContract):
    @pytest.fixture
    def subject(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
        path = tmp_path / "relay"

        async def put(value: str | None) -> None:
            if value is None:
                path.unlink()
            else:
                path.write_text(value)

        path.write_text(CANARY)
        path.chmod(0o600)
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
        return Subject(CredentialSource(FileSource()), CredentialKey("relay"), put)


async def test_no_directory_of_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(SourceFailure, match="CREDENTIALS_DIRECTORY is not set") as caught:
        await CredentialSource(FileSource()).read(CredentialKey("relay"))
    assert not caught.value.definite


@contextmanager
def _no_superuser() -> Iterator[None]:
    """The superuser may read every file: be somebody else meanwhile, in all threads."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.mark.plants("x")
async def test_a_file_one_may_not_read_is_denied(tmp_path: Path) -> None:
    (tmp_path / "x").write_text(CANARY)
    (tmp_path / "x").chmod(0)
    with _no_superuser(), pytest.raises(SourceFailure) as caught:
        await FileSource().read(FileKey(str(tmp_path / "x")))
    assert caught.value.denied and not caught.value.definite


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b"tiger\n", b"tiger"),
        (b"tiger\r\n", b"tiger"),
        (b"tiger\n\n", b"tiger\n"),
        (b" tiger ", b" tiger "),
        (b"\xff\x00\x80", b"\xff\x00\x80"),
        (b"tiger\r", b"tiger\r"),
    ],
)
async def test_one_line_end_is_taken_off(content: bytes, value: bytes, tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_bytes(content)
    path.chmod(0o600)
    assert (await FileSource().read(FileKey(str(path)))).reveal() == value


async def test_when_a_file_was_changed_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_bytes(b"tiger")
    os.utime(tmp_path / "key", (1e9, 1.5e9))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    source, file, credential = FileSource(), FileKey(str(tmp_path / "key")), CredentialKey("key")
    assert source.told(file) is None
    await CredentialSource(source).read(credential)
    assert source.told(file) == CredentialSource(source).told(credential) == Told(since=1.5e9)


async def test_an_unchanged_file_is_not_read_again(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("tiger")
    path.chmod(0o600)
    source = FileSource()
    first = await source.read(FileKey(str(path)))
    assert await source.read(FileKey(str(path))) is first


async def test_an_atomic_replacement_is_seen_even_with_the_old_time_and_size(tmp_path: Path) -> None:
    path, new = tmp_path / "password", tmp_path / "new"
    path.write_text("tiger")
    new.write_text("puma!")
    for each in (path, new):
        each.chmod(0o600)
        os.utime(each, (1_700_000_000, 1_700_000_000))
    source = FileSource()
    assert (await source.read(FileKey(str(path)))).reveal() == b"tiger"
    new.rename(path)
    assert (await source.read(FileKey(str(path)))).reveal() == b"puma!"


async def test_an_edit_that_puts_the_time_back_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("tiger")
    path.chmod(0o600)
    os.utime(path, (1_700_000_000, 1_700_000_000))
    source = FileSource()
    await source.read(FileKey(str(path)))
    path.write_text("puma!")
    os.utime(path, (1_700_000_000, 1_700_000_000))
    assert (await source.read(FileKey(str(path)))).reveal() == b"puma!"


async def test_file_systems_that_hang_hold_up_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, answered, asked = tmp_path / "password", threading.Event(), []
    path.write_text("tiger")
    path.chmod(0o600)
    opened = os.open

    def hang(path: str, *args: int) -> int:
        if path.startswith("/hangs/"):
            asked.append(path)
            answered.wait(10)
        return opened(path, *args)

    monkeypatch.setattr(os, "open", hang)
    source = FileSource()
    try:
        for name in "abcdefgh" * 2:
            with trio.move_on_after(0.02):
                await source.read(FileKey(f"/hangs/{name}"))
        with trio.fail_after(8):
            assert (await source.read(FileKey(str(path)))).reveal() == b"tiger"
        assert len(asked) == 8  # a path that hangs is not asked by a second thread
    finally:
        answered.set()


async def test_a_file_that_is_being_written_is_left_to_settle(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("tiger")
    path.chmod(0o600)
    source = FileSource()
    await source.read(FileKey(str(path)))
    with path.open("w", buffering=1) as file:
        file.write("half\n")
        rest = threading.Timer(0.1, file.write, ("whole\n",))
        rest.start()
        assert (await source.read(FileKey(str(path)))).reveal() == b"half\nwhole"
        rest.join()


@pytest.mark.plants("password")
@pytest.mark.parametrize(("mode", "warned"), [(0o644, True), (0o640, False), (0o600, False)])
async def test_a_world_readable_file_is_named_once(
    mode: int, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "password"
    path.write_text(CANARY)
    path.chmod(mode)
    source = FileSource()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            await source.read(FileKey(str(path)))
    assert len(caplog.records) == int(warned)
    assert CANARY not in caplog.text
    assert str(path) in caplog.text or not warned


async def test_a_readable_certificate_is_no_news(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----\n")
    path.chmod(0o644)
    await FileSource().read(FileKey(str(path)))
    assert not caplog.records
    path.write_text("-----BEGIN CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\n")
    await FileSource().read(FileKey(str(path)))
    assert len(caplog.records) == 1


@pytest.mark.plants("big")
async def test_what_is_no_readable_file(tmp_path: Path) -> None:
    fifo, big = tmp_path / "fifo", tmp_path / "big"
    os.mkfifo(fifo)
    big.write_bytes(CANARY.encode() * (MAX_SECRET // len(CANARY) + 1))
    cases = {
        str(fifo): ("not a regular file", False),
        str(tmp_path): ("Is a directory", False),
        str(big): ("larger", False),
        str(tmp_path / "none"): ("No such file", True),
        str(big / "below"): ("Not a directory", True),
    }
    for path, (says, definite) in cases.items():
        with pytest.raises(SourceFailure, match=says) as caught:
            await FileSource().read(FileKey(path))
        assert caught.value.definite is definite
        assert path not in caught.value.reason  # it is in the reference's name
        assert CANARY not in everything(caught.value)
