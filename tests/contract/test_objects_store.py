"""`ObjectStore` against the real embedded server."""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from socket import SHUT_RDWR, create_connection, create_server, socket

import httpx
import pytest

from broker.errors import (
    ConfigurationError,
    Conflict,
    Denied,
    IntegrityError,
    InvalidRequest,
    NotFound,
    TransferInterrupted,
    Unreachable,
)
from broker.objects import EmbeddedObjectStore, Manifest, ObjectStore, S3Config, StoredFile
from broker.objects.manifest import manifest_key, object_key

MIB = 1 << 20
PART = 5 * MIB
HTTP = httpx.Client(trust_env=False, timeout=30)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[EmbeddedObjectStore]:
    embedded = EmbeddedObjectStore(tmp_path_factory.mktemp("objects"))
    embedded.start()
    yield embedded
    embedded.stop()


@pytest.fixture(scope="module")
def config(server) -> S3Config:
    return replace(server.start().config("models"), part_size=PART, max_attempts=2)


@pytest.fixture(scope="module")
def store(config) -> ObjectStore:
    made = ObjectStore(config)
    made.ensure_bucket()
    return made


@pytest.fixture
def key(request) -> str:
    return f"{request.node.originalname}/{os.urandom(4).hex()}"


def content(size: int, seed: int = 0) -> bytes:
    block = hashlib.shake_256(str(seed).encode()).digest(MIB)
    return (block * (size // MIB + 1))[:size]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def pieces(data: bytes, size: int = 700_001) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


@contextmanager
def parts_sent(store: ObjectStore) -> Iterator[list[int]]:
    """Numbers of the parts that are really sent."""
    numbers: list[int] = []

    def note(params, **_kwargs):
        numbers.append(params["PartNumber"])

    event = "provide-client-params.s3.UploadPart"
    store.client.meta.events.register(event, note)
    try:
        yield numbers
    finally:
        store.client.meta.events.unregister(event, note)


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


# ── reading ───────────────────────────────────────────────────────────────────────────────────────────


def test_missing_object_is_none_and_reading_it_is_not_found(store, key):
    assert store.head(key) is None
    for read in (
        lambda: store.get_bytes(key, 10),
        lambda: store.open_stream(key),
        lambda: store.verify(key, ""),
    ):
        with pytest.raises(NotFound):
            read()


def test_missing_bucket_is_not_taken_for_a_missing_object(config, key):
    with pytest.raises(NotFound):
        ObjectStore(replace(config, bucket="nobodys")).head(key)


def test_object_larger_than_the_caller_will_hold_is_refused(store, key):
    store.put_bytes(key, b"12345")
    assert store.get_bytes(key, 5) == b"12345"
    with pytest.raises(InvalidRequest, match="stream it"):
        store.get_bytes(key, 4)


@pytest.mark.parametrize("start", [0, 1, PART - 1, PART, PART + 10, PART + 11])
def test_stream_begins_where_it_is_asked_to(store, start):
    data = content(PART + 11)
    if store.head("ranges") is None:
        store.upload_stream("ranges", pieces(data))
    assert b"".join(store.open_stream("ranges", start)) == data[start:]


def test_stream_that_begins_behind_the_end_is_refused(store, key):
    store.put_bytes(key, b"12345")
    with pytest.raises(InvalidRequest):
        store.open_stream(key, 6)


def test_changed_content_is_noticed_by_verify(store, key):
    store.put_bytes(key, b"as it was")
    with pytest.raises(IntegrityError, match="store it again"):
        store.verify(key, sha256(b"as it should be"))


def test_listing_is_ordered_and_goes_over_many_pages(store, key):
    names = sorted(f"{key}/{number:03d}" for number in range(30))
    for name in reversed(names):
        store.put_bytes(name, b"")
    store.client.meta.events.register_first("provide-client-params.s3.ListObjectsV2", small_pages)
    try:
        assert [found.key for found in store.list(f"{key}/")] == names
    finally:
        store.client.meta.events.unregister("provide-client-params.s3.ListObjectsV2", small_pages)


def small_pages(params, **_kwargs):
    return params | {"MaxKeys": 7}


def test_odd_names_are_stored_listed_and_deleted(store, key):
    names = ["모델 최종.pt", "a\nb", "q\"u'ote", "$(id)", "<&>", "100%", "a+b=c", "é" * 100]
    keys = [object_key(key, name) for name in names]
    for one in keys:
        store.put_bytes(one, one.encode())
    assert sorted(found.key for found in store.list(key + "/")) == sorted(keys)
    assert all(store.get_bytes(one, 2000) == one.encode() for one in keys)
    assert store.delete_prefix(key + "/") == len(keys)


def test_manifest_written_last_names_what_lies_there(store, key):
    stored = store.put_bytes(object_key(key, "best_model.pt"), b"weights")
    manifest = Manifest.build(
        run="r1",
        component="trainer",
        attempt=1,
        created_at=datetime.now(UTC),
        files=[StoredFile(path="best_model.pt", size=stored.size, sha256=stored.sha256, key=stored.key)],
    )
    store.put_bytes(manifest_key(key), manifest.canonical(), content_type="application/json")
    read = Manifest.parse(store.get_bytes(manifest_key(key), MIB), manifest.sha256)
    assert read == manifest
    assert store.verify(read.files[0].key, read.files[0].sha256) == 7


# ── deleting ──────────────────────────────────────────────────────────────────────────────────────────


def test_deleting_a_folder_spares_its_neighbours(store, key):
    for name in ("run-1/a", "run-1/b/c", "run-10/a"):
        store.put_bytes(f"{key}/{name}", b"x")
    store.upload_stream(f"{key}/run-1/large", pieces(content(PART + 1)))
    assert store.delete_prefix(f"{key}/run-1/") == 3
    assert [found.key for found in store.list(key)] == [f"{key}/run-10/a"]
    assert store.delete_prefix(f"{key}/run-1/") == 0


@pytest.mark.parametrize("prefix", ["", "/", "run-1"])
def test_deleting_what_is_no_folder_is_refused(store, prefix):
    with pytest.raises(InvalidRequest, match="folder"):
        store.delete_prefix(prefix)


def test_abandoned_uploads_are_reaped_and_young_ones_spared(store, key):
    upload_id = store.create_upload(key)
    [url] = store.presign_parts(key, upload_id, [1], 60).values()
    assert HTTP.put(url, content=b"part").status_code == 200
    assert store.abort_stale_uploads(timedelta(hours=1), prefix=key) == 0
    assert store.parts_of(key, upload_id) == {1: (hashlib.md5(b"part").hexdigest(), 4)}
    assert store.abort_stale_uploads(timedelta(seconds=-5), prefix=key) == 1
    with pytest.raises(NotFound):
        store.parts_of(key, upload_id)


# ── presigned URLs ────────────────────────────────────────────────────────────────────────────────────


def test_presigned_download_needs_no_keys_and_keeps_the_name(store, key):
    store.put_bytes(key, b"0123456789")
    url = store.presign_get(key, 60, "모델 1.pt")
    whole, piece = HTTP.get(url), HTTP.get(url, headers={"Range": "bytes=2-4"})
    assert (whole.status_code, whole.content) == (200, b"0123456789")
    assert (piece.status_code, piece.content) == (206, b"234")
    assert "filename*=UTF-8''%EB%AA%A8%EB%8D%B8%201.pt" in whole.headers["content-disposition"]


@pytest.mark.parametrize(
    "tamper",
    [
        lambda url, key: url[:-1] + ("0" if url[-1] != "0" else "1"),
        lambda url, key: url.replace(key, key + "2"),
        lambda url, key: url.replace("X-Amz-Expires=60", "X-Amz-Expires=600"),
        lambda url, key: url.split("?")[0],
    ],
)
def test_presigned_url_that_was_changed_is_refused(store, key, tamper):
    for name in (key, key + "2"):
        store.put_bytes(name, b"secret")
    url = store.presign_get(key, 60)
    answer = HTTP.get(tamper(url, key))
    assert answer.status_code == 403
    assert b"secret" not in answer.content


def test_presigned_url_of_a_download_does_not_upload(store, key):
    store.put_bytes(key, b"kept")
    assert HTTP.put(store.presign_get(key, 60), content=b"replaced").status_code == 403
    assert store.get_bytes(key, 10) == b"kept"


def test_presigned_url_expires(store, key):
    store.put_bytes(key, b"x")
    url = store.presign_get(key, 1)
    deadline = time.monotonic() + 20
    while (answer := HTTP.get(url)).status_code == 200 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert answer.status_code == 403


@pytest.mark.parametrize("expires", [0, -1, 604801])
def test_presigned_url_with_an_impossible_life_is_refused(store, key, expires):
    with pytest.raises(InvalidRequest, match="lives"):
        store.presign_get(key, expires)


def test_presigned_urls_are_made_for_the_public_name(config, store, key):
    store.put_bytes(key, b"x")
    public = config.endpoint_url.replace("127.0.0.1", "localhost")
    url = ObjectStore(replace(config, public_url=public)).presign_get(key, 60)
    assert url.startswith(public)
    assert HTTP.get(url).content == b"x"


def test_client_uploads_parts_in_any_order_by_presigned_urls(store, key):
    parts = {1: content(PART, 1), 2: content(PART, 2), 3: b"end"}
    upload_id = store.create_upload(key, "application/zip", {"owner": "someone"})
    urls = store.presign_parts(key, upload_id, parts, 60)
    etags = {n: HTTP.put(urls[n], content=parts[n]).headers["etag"].strip('"') for n in (3, 1)}
    assert set(store.parts_of(key, upload_id)) == {1, 3}
    etags[2] = HTTP.put(urls[2], content=parts[2]).headers["etag"].strip('"')
    stored = store.complete_upload(key, upload_id, etags)
    assert (stored.size, stored.content_type) == (2 * PART + 3, "application/zip")
    assert store.verify(key, sha256(parts[1] + parts[2] + parts[3]))


def test_upload_with_a_wrong_part_is_not_completed(store, key):
    upload_id = store.create_upload(key)
    [url] = store.presign_parts(key, upload_id, [1], 60).values()
    HTTP.put(url, content=b"part")
    with pytest.raises(IntegrityError):
        store.complete_upload(key, upload_id, {1: "0" * 32})
    store.abort_upload(key, upload_id)
    assert store.head(key) is None


def test_presigned_single_upload(store, key):
    assert HTTP.put(store.presign_put(key, 60), content=b"body").status_code == 200
    assert store.get_bytes(key, 10) == b"body"


@pytest.mark.parametrize("number", [0, 10_001])
def test_part_number_that_s3_has_not_is_refused(store, key, number):
    with pytest.raises(InvalidRequest, match="numbered"):
        store.presign_parts(key, "x", [number], 60)


# ── the bucket, the keys ──────────────────────────────────────────────────────────────────────────────


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


# ── what goes wrong on the way ────────────────────────────────────────────────────────────────────────


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
