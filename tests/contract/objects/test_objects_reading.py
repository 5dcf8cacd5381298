"""Reading, listing, verifying and deleting in a real S3 server."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from broker.errors import (
    IntegrityError,
    InvalidRequest,
    NotFound,
)
from broker.objects import Manifest, ObjectStore, StoredFile
from broker.objects.manifest import manifest_key, object_key
from tests.object_store import HTTP, MIB, PART, content, pieces, sha256


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
