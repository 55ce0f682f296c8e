"""policy/files.py: what is no file is not read, and nobody waits for it."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from policy.files import must_be_regular, open_regular
from policy.shaping import ShapingError
from policy.shaping.shaper import Shaper, parse_files


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    fifo, unix, text = tmp_path / "fifo", tmp_path / "unix", tmp_path / "text"
    os.mkfifo(fifo)
    text.write_bytes(b"content")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(unix))
        for path, kind in (
            (fifo, "FIFO"),
            (tmp_path, "directory"),
            (unix, "socket"),
            ("/dev/zero", "device"),
        ):
            for use in (open_regular, must_be_regular):
                with pytest.raises(OSError, match=f"it is a {kind}; right would be a regular file"):
                    use(path)
    with open_regular(text) as file:
        assert file.read() == b"content"
    must_be_regular(text)
    must_be_regular(tmp_path, directory=True)
    for use in (open_regular, must_be_regular):
        with pytest.raises(FileNotFoundError):
            use(tmp_path / "none")


def test_a_shaping_file_that_is_a_fifo_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "shaping.toml")
    said: list[str] = []

    def load() -> None:
        files = parse_files(["shaping.toml"], tmp_path)
        with pytest.raises(ShapingError) as caught:
            Shaper(files, allow_auth_in_default=False, require_remote=True, where="here:1")
        said.append(str(caught.value))

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    thread.join(5)
    assert said == ["shaping.toml: cannot be read: it is a FIFO; right would be a regular file"]
