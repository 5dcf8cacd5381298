"""Uploading code to the real object store."""

import hashlib
import io
import tarfile

import pytest

from broker.identity import Role
from broker.objects import EmbeddedObjectStore, ObjectStore
from broker.pipelines.tables import UploadRow
from tests.api_support import Api, codes, context


def archive(name="train.py", data=b"print('hi')\n"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as out:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        out.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with EmbeddedObjectStore(tmp_path_factory.mktemp("s3")) as endpoint:
        store = ObjectStore(endpoint.config("models"))
        store.ensure_bucket()
        yield store


@pytest.fixture
def api(tmp_path, store):
    with context(tmp_path, objects=store, api={"max_body_mib": 8}) as ctx:
        api = Api(ctx)
        api.add("root", Role.ADMIN)
        api.add("ann")
        api.add("vera", Role.VIEWER)
        api.add("otto", tenant="other")
        with api.http:
            yield api


def row(api, upload_id):
    with api.ctx.db.read() as session:
        return session.get_one(UploadRow, upload_id)


def test_what_is_stored_is_the_checked_archive(api, store):
    data = archive()
    answer = api.call("POST", "/uploads", "ann", {"Content-Type": "application/gzip"}, content=data)
    assert answer.status_code == 201, answer.text
    upload = answer.json()
    assert (upload["sha256"], upload["size"]) == (hashlib.sha256(data).hexdigest(), len(data))
    stored = row(api, upload["upload_id"])
    kept = store.get_bytes(stored.object_key, 1 << 20)
    assert hashlib.sha256(kept).hexdigest() == stored.object_sha256
    with tarfile.open(fileobj=io.BytesIO(kept)) as tar:
        assert tar.extractfile("train.py").read() == b"print('hi')\n"


def test_form_and_raw_body_are_the_same(api):
    data = archive()
    answer = api.call("POST", "/uploads", "ann", files={"file": ("code.tar.gz", data)})
    assert answer.status_code == 201 and answer.json()["sha256"] == hashlib.sha256(data).hexdigest()


def test_form_without_file_says_so(api):
    answer = api.call("POST", "/uploads", "ann", files={"other": ("code.tar.gz", archive())})
    assert answer.status_code == 422 and answer.json()["errors"][0]["pointer"] == "/file"


def test_unsafe_archive_leaves_nothing_behind(api, store):
    before = {found.key for found in store.list("uploads/")}
    answer = api.call("POST", "/uploads", "ann", content=archive("../up"))
    assert answer.status_code == 422 and answer.json()["code"] == "upload_rejected"
    assert codes(answer) == {"unsafe_path"}
    assert {found.key for found in store.list("uploads/")} == before


def test_upload_over_the_limit_is_cut_off_while_it_arrives(api):
    def endless():
        for _ in range(100):
            yield bytes(1 << 20)

    answer = api.call("POST", "/uploads", "ann", content=endless())
    assert answer.status_code == 413 and answer.json()["code"] == "body_too_large"


def test_large_upload_is_taken_though_json_bodies_are_small(api):
    data = archive("noise", hashlib.shake_256(b"seed").digest(6 << 20))
    assert len(data) > 5 << 20
    answer = api.call("POST", "/uploads", "ann", content=data)
    assert answer.status_code == 201, answer.text


def test_repeated_upload_is_kept_once(api):
    data = archive()
    first, again = (
        api.call("POST", "/uploads", "ann", {"Idempotency-Key": "u1"}, content=data) for _ in range(2)
    )
    assert first.json() == again.json() and again.headers["Idempotency-Replayed"] == "true"
    other = api.call("POST", "/uploads", "ann", {"Idempotency-Key": "u1"}, content=archive("other.py"))
    assert other.status_code == 422 and other.json()["code"] == "idempotency_key_reused"


def test_upload_is_seen_by_the_tenant_only(api):
    upload_id = api.call("POST", "/uploads", "ann", content=archive()).json()["upload_id"]
    assert api.call("GET", f"/uploads/{upload_id}", "vera").status_code == 200
    assert api.call("GET", f"/uploads/{upload_id}", "otto").status_code == 404
    assert api.call("POST", "/uploads", "vera", content=archive()).status_code == 403


def test_upload_whose_storing_failed_is_not_there(tmp_path):
    with context(tmp_path) as ctx:  # nobody listens at its object store
        api = Api(ctx)
        api.add("ann")
        answer = api.call("POST", "/uploads", "ann", content=archive())
        assert answer.status_code == 503 and "Retry-After" in answer.headers
        with ctx.db.read() as session:
            (only,) = session.query(UploadRow).all()
        assert only.stored_at is None
        assert api.call("GET", f"/uploads/{only.id}", "ann").status_code == 404


def test_upload_is_audited(api):
    upload_id = api.call("POST", "/uploads", "ann", content=archive()).json()["upload_id"]
    (entry,) = api.call("GET", "/audit", "root", params={"object_id": upload_id}).json()["items"]
    assert entry["action"] == "upload.store" and entry["after"]["files"] == 1
