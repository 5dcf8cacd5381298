"""What goes wrong between us and a real S3 server: keys, names, damage, outages."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from socket import SHUT_RDWR, create_connection, create_server, socket

import pytest

from broker.errors import (
    ConfigurationError,
    Conflict,
    Denied,
    IntegrityError,
    Unreachable,
)
from broker.objects import EmbeddedObjectStore, ObjectStore
from tests.object_store import HTTP, PART, content, parts_sent, pieces, sha256


def test_ensuring_the_bucket_twice_is_the_same_as_once(config):
    other = ObjectStore(replace(config, bucket="another"))
    other.ensure_bucket()
    other.ensure_bucket(["http://127.0.0.1:8080"])
    assert list(other.list("")) == []


def test_wrong_keys_are_denied(config, store, key):
    store.put_bytes(key, b"x")
    for wrong in ({"secret_key": "wrong"}, {"access_key": "NOBODY"}):
        stranger = ObjectStore(replace(config, **wrong))
        for ask in (
            stranger.ensure_bucket,
            lambda s=stranger: s.get_bytes(key, 10),
            lambda s=stranger: s.put_bytes(key, b"y"),
            lambda s=stranger: list(s.list("")),
        ):
            with pytest.raises(Denied):
                ask()
        assert HTTP.get(stranger.presign_get(key, 60)).status_code == 403
    assert store.get_bytes(key, 10) == b"x"


def test_bucket_name_that_s3_has_not_is_a_configuration_error(config):
    with pytest.raises(ConfigurationError, match=r"s3\.bucket"):
        replace(config, bucket="Models_1")


@contextmanager
def way_there(
    to: str, upward: Callable[[bytes], bytes], downward: Callable[[bytes, socket], bytes]
) -> Iterator[str]:
    """A TCP relay to the endpoint `to` that hands what passes through the two functions."""
    host, port = to.removeprefix("http://").split(":")
    listener = create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []
    open_sockets: list[socket] = [listener]

    def pump(source: socket, sink: socket, change: Callable[[bytes], bytes]) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(change(data))
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(SHUT_RDWR)

    def accept() -> None:
        while True:
            try:
                near = listener.accept()[0]
            except OSError:
                return
            far = create_connection((host, int(port)))
            open_sockets.extend((near, far))
            for source, sink, change in (
                (near, far, upward),
                (far, near, lambda data, near=near: downward(data, near)),
            ):
                threads.append(threading.Thread(target=pump, args=(source, sink, change), daemon=True))
                threads[-1].start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        for one in open_sockets:
            with suppress(OSError):
                one.shutdown(SHUT_RDWR)
            one.close()
        for thread in (acceptor, *threads):
            thread.join(10)


def unchanged(data: bytes, _near: socket | None = None) -> bytes:
    return data


@pytest.mark.parametrize("size", [2000, PART + 2000])
def test_bytes_damaged_on_the_way_are_never_stored(config, store, key, size):
    data = b"GOOD" * (size // 4)
    with (
        way_there(config.endpoint_url, lambda sent: sent.replace(b"GOODGOOD", b"GOODBAD!"), unchanged) as url,
        pytest.raises(IntegrityError),
    ):
        ObjectStore(replace(config, endpoint_url=url)).upload_stream(key, [data])
    assert store.head(key) is None


def test_download_that_breaks_off_goes_on_where_it_was(config, store, key):
    data = content(3 * PART)
    store.upload_stream(key, pieces(data))
    cuts: list[int] = []
    passed = 0

    def cut_twice(received: bytes, near: socket) -> bytes:
        nonlocal passed
        passed += len(received)
        if len(cuts) < 2 and passed > (len(cuts) + 1) * PART:
            cuts.append(passed)
            near.shutdown(SHUT_RDWR)
        return received

    with way_there(config.endpoint_url, unchanged, cut_twice) as url:
        assert b"".join(ObjectStore(replace(config, endpoint_url=url)).open_stream(key)) == data
    assert len(cuts) == 2


def test_object_replaced_during_a_broken_download_is_not_mixed(config, store, key):
    store.upload_stream(key, pieces(content(3 * PART, 1)))
    cut = threading.Event()
    passed = 0

    def cut_once(received: bytes, near: socket) -> bytes:
        nonlocal passed
        passed += len(received)
        if passed > PART and not cut.is_set():
            cut.set()
            store.upload_stream(key, pieces(content(3 * PART, 2)))
            near.shutdown(SHUT_RDWR)
        return received

    with way_there(config.endpoint_url, unchanged, cut_once) as url, pytest.raises(Conflict):
        b"".join(ObjectStore(replace(config, endpoint_url=url)).open_stream(key))
    assert cut.is_set()


def test_store_that_is_away_is_unreachable_whatever_is_asked(config, key):
    with create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    away = ObjectStore(replace(config, endpoint_url=f"http://127.0.0.1:{port}", max_attempts=2))
    for ask in (
        away.ensure_bucket,
        lambda: away.head(key),
        lambda: away.get_bytes(key, 1),
        lambda: away.open_stream(key),
        lambda: list(away.list("")),
        lambda: away.put_bytes(key, b"x"),
        lambda: away.upload_stream(key, pieces(content(2 * PART)), expected_sha256="0" * 64, resume=True),
        lambda: away.delete_prefix("a/"),
        lambda: away.abort_stale_uploads(timedelta(hours=1)),
        lambda: away.create_upload(key),
    ):
        with pytest.raises(Unreachable):
            ask()


def test_server_killed_during_an_upload_and_started_again_loses_no_part(tmp_path):
    embedded = EmbeddedObjectStore(tmp_path / "objects")
    endpoint = embedded.start()
    supervisor = threading.Thread(target=embedded.supervise)
    supervisor.start()
    try:
        store = ObjectStore(replace(endpoint.config("models"), part_size=PART, max_attempts=1))
        store.ensure_bucket()
        data = content(4 * PART + 1)

        def killing() -> Iterator[bytes]:
            yield data[: 3 * PART]
            server = os.pidfd_open(embedded.pid)
            signal.pidfd_send_signal(server, signal.SIGKILL)
            select.select([server], [], [])
            os.close(server)
            yield data[3 * PART :]

        with pytest.raises(Unreachable):
            store.upload_stream("k", killing(), expected_sha256=sha256(data), resume=True)
        patient = ObjectStore(replace(store.config, max_attempts=8))  # comes back by itself
        with parts_sent(patient) as numbers:
            patient.upload_stream("k", pieces(data), expected_sha256=sha256(data), resume=True)
        assert 1 not in numbers
        assert patient.verify("k", sha256(data)) == len(data)
    finally:
        embedded.stop()
        supervisor.join(10)
    assert not supervisor.is_alive()
