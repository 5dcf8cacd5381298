"""Presigned URLs against a real S3 server: good for what they say, and for nothing else."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from broker.errors import (
    IntegrityError,
    InvalidRequest,
)
from broker.objects import ObjectStore
from tests.object_store import HTTP, PART, content, sha256


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
