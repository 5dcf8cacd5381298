"""Storing in a real S3 server: whole, checked, resumed, in bounded memory."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from broker.errors import (
    IntegrityError,
    InvalidRequest,
    TransferInterrupted,
)
from broker.objects import ObjectStore
from tests.object_store import MIB, PART, content, parts_sent, pieces, sha256


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 2 * PART, 3 * PART + 17])
def test_stream_of_any_length_arrives_whole(store, key, size):
    data = content(size)
    progress: list[int] = []
    stored = store.upload_stream(
        key,
        pieces(data),
        size_hint=size,
        expected_sha256=sha256(data),
        content_type="application/x-model",
        metadata={"component": "trainer"},
        on_progress=progress.append,
    )
    head = store.head(key)
    assert (stored.size, stored.sha256) == (size, sha256(data))
    assert (head.size, head.sha256, head.etag) == (size, sha256(data), stored.etag)
    assert (head.content_type, head.metadata["component"]) == ("application/x-model", "trainer")
    assert b"".join(store.open_stream(key)) == data
    assert store.verify(key, sha256(data)) == size
    assert progress == sorted(progress)
    assert progress[-1] == size


def test_file_object_is_a_stream_too(store, key, tmp_path):
    path = tmp_path / "model"
    path.write_bytes(content(PART + 5))
    with path.open("rb") as file:
        stored = store.upload_stream(key, file)
    assert store.verify(key, stored.sha256) == PART + 5


@pytest.mark.parametrize("size", [100, 2 * PART + 1])
def test_stream_with_another_checksum_is_not_stored_and_leaves_nothing(store, key, size):
    with pytest.raises(IntegrityError, match="was expected"):
        store.upload_stream(key, pieces(content(size)), expected_sha256="0" * 64, resume=size > PART)
    assert store.head(key) is None
    assert store.abort_stale_uploads(timedelta(hours=-1), prefix=key) == 0


def test_stream_with_another_checksum_does_not_replace_what_was_stored(store, key):
    store.put_bytes(key, b"good")
    with pytest.raises(IntegrityError):
        store.put_bytes(key, b"bad", expected_sha256=sha256(b"other"))
    assert store.get_bytes(key, 10) == b"good"


def test_source_that_breaks_off_leaves_nothing_stored_and_nothing_behind(store, key):
    def broken() -> Iterator[bytes]:
        yield content(2 * PART + 3)
        raise TransferInterrupted("the login node went away")

    with pytest.raises(TransferInterrupted):
        store.upload_stream(key, broken())
    assert store.head(key) is None
    assert store.abort_stale_uploads(timedelta(hours=-1), prefix=key) == 0


def test_upload_resumes_with_the_parts_that_are_missing(store, key):
    data = content(4 * PART + 9)

    def broken() -> Iterator[bytes]:
        yield data[: 3 * PART]
        raise TransferInterrupted("gone")

    with pytest.raises(TransferInterrupted):
        store.upload_stream(key, broken(), expected_sha256=sha256(data), resume=True)
    with parts_sent(store) as numbers:
        stored = store.upload_stream(key, pieces(data), expected_sha256=sha256(data), resume=True)
    assert numbers[-2:] == [4, 5]
    assert 1 not in numbers
    assert store.verify(key, sha256(data)) == stored.size == len(data)
    assert store.head(key).sha256 == sha256(data)


def test_resuming_with_changed_bytes_sends_the_changed_parts_again(store, key):
    old, new = content(3 * PART), bytearray(content(3 * PART))
    new[PART + 100] ^= 1

    def broken() -> Iterator[bytes]:
        yield old
        raise TransferInterrupted("gone")

    with pytest.raises(TransferInterrupted):
        store.upload_stream(key, broken(), expected_sha256=sha256(old), resume=True)
    changed = bytes(new)
    # What lies there now has the metadata of the old content: the store says so instead of keeping it quiet …
    with parts_sent(store) as numbers, pytest.raises(TransferInterrupted, match="another content"):
        store.upload_stream(key, pieces(changed), expected_sha256=sha256(changed), resume=True)
    assert 1 not in numbers
    assert 2 in numbers
    # … and the next try is right.
    store.upload_stream(key, pieces(changed), expected_sha256=sha256(changed), resume=True)
    assert store.already_stored(key, len(changed), sha256(changed))
    assert store.verify(key, sha256(changed))


def test_resuming_without_an_expected_checksum_is_refused(store, key):
    with pytest.raises(InvalidRequest, match="expected_sha256"):
        store.upload_stream(key, [b"x"], resume=True)


UPLOADER = """
import json, sys
from broker.objects import ObjectStore, S3Config
config, key, digest = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
def told(size):
    print(size, flush=True)
ObjectStore(S3Config(**config)).upload_stream(
    key, sys.stdin.buffer, expected_sha256=digest, resume=True, on_progress=told)
"""


def test_uploader_killed_midway_is_resumed_by_the_next_one(store, config, key):
    data = content(5 * PART + 3)
    settings = {
        n: getattr(config, n) for n in ("endpoint_url", "bucket", "access_key", "secret_key", "part_size")
    }
    process = subprocess.Popen(
        [sys.executable, "-c", UPLOADER, json.dumps(settings), key, sha256(data)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        process.stdin.write(data[: 3 * PART + MIB])  # it waits for the rest of part 4
        process.stdin.flush()
        assert int(process.stdout.readline()) == PART
        assert int(process.stdout.readline()) == 2 * PART
        process.send_signal(signal.SIGKILL)
    assert store.head(key) is None
    with parts_sent(store) as numbers:
        store.upload_stream(key, pieces(data), expected_sha256=sha256(data), resume=True)
    assert not {1, 2} & set(numbers)
    assert store.verify(key, sha256(data)) == len(data)


def test_content_already_stored_is_known_by_size_and_checksum(store, key):
    data = content(1000)
    assert not store.already_stored(key, 1000, sha256(data))
    store.put_bytes(key, data)
    assert store.already_stored(key, 1000, sha256(data))
    assert not store.already_stored(key, 999, sha256(data))
    assert not store.already_stored(key, 1000, sha256(b""))


def test_many_threads_share_one_store(store, key):
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            data = content(PART + number * 1000, seed=number)
            store.upload_stream(f"{key}/{number}", pieces(data), expected_sha256=sha256(data))
            store.verify(f"{key}/{number}", sha256(data))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(list(store.list(f"{key}/"))) == 8


def rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def grown_by_upload(store: ObjectStore, key: str, size: int) -> int:
    """Bytes by which this process grew, at most, while it stored a stream of `size` bytes."""
    block = content(MIB)
    hasher = hashlib.sha256()
    for _ in range(size // MIB):
        hasher.update(block)
    before, most = rss(), 0

    def watch(_stored: int) -> None:
        nonlocal most
        most = max(most, rss())

    began = time.monotonic()
    stored = store.upload_stream(
        key,
        (bytes(block) for _ in range(size // MIB)),
        size_hint=size,
        expected_sha256=hasher.hexdigest(),
        on_progress=watch,
    )
    print(f"{size / MIB / (time.monotonic() - began):.0f} MiB/s, grew by {(most - before) / MIB:.0f} MiB")
    assert store.head(key).size == stored.size == size
    return most - before


def test_memory_stays_bounded_while_128_mib_are_stored(config, store, key):
    assert grown_by_upload(ObjectStore(replace(config, part_size=16 * MIB)), key, 128 * MIB) < 100 * MIB


@pytest.mark.slow
def test_memory_stays_bounded_while_1_gib_is_stored(config, store, key):
    assert grown_by_upload(ObjectStore(replace(config, part_size=16 * MIB)), key, 1024 * MIB) < 100 * MIB
