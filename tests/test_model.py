"""engine/model.py: ids that never repeat, names that people can read."""

from __future__ import annotations

import os
import time

import pytest

from engine.model import QueueName, new_message_id


def test_ids_differ_and_sort_by_time() -> None:
    ids = [new_message_id() for _ in range(1000)]
    assert len({each[6:] for each in ids}) == 1000
    assert all(len(each) == 16 for each in ids)
    assert abs(int.from_bytes(ids[0][:6], "big") - time.time() * 1000) < 5000
    assert [each[:6] for each in ids] == sorted(each[:6] for each in ids)


def test_a_forked_process_makes_ids_of_its_own() -> None:
    new_message_id()  # so that there is a stock to share
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, b"".join(new_message_id()[6:] for _ in range(200)))
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(read, 4000)
    os.close(read)
    os.close(write)
    mine = {new_message_id()[6:] for _ in range(200)}
    assert not mine & {theirs[at : at + 10] for at in range(0, len(theirs), 10)}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (QueueName("example.com"), "example.com"),
        (QueueName("example.com", "tenant"), "tenant@example.com"),
        (QueueName("example.com", "tenant", "campaign"), "campaign:tenant@example.com"),
        (QueueName("example.com", None, "campaign", "mx.example"), "campaign:@example.com!mx.example"),
    ],
)
def test_queue_names_read_as_the_specification_writes_them(name: QueueName, text: str) -> None:
    assert str(name) == text
    assert name.route == (name.routing_domain or name.domain)
