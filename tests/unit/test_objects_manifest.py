"""Manifests and the names of objects: pure."""

import hashlib
import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import IntegrityError, InvalidRequest
from broker.objects.manifest import (
    Manifest,
    RefusedFile,
    StoredFile,
    manifest_key,
    object_key,
    why_refused,
)
from broker.objects.names import check_key, checked_metadata, content_disposition, decode_name, encode_name

WHEN = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
PREFIX = "runs/r1/trainer/1.0"
HOSTILE = [
    "a\nb",
    "q\"u'o`te",
    "$(id)",
    "a|b",
    "#SBATCH --x",
    "모델 최종.pt",
    "%2e%2e",
    "<xml>&",
    "tab\t",
    "\u202eevil",
]
segments = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40
).filter(lambda s: s not in (".", ".."))


def stored(path, content=b"x"):
    return StoredFile(
        path=path,
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        key=object_key(PREFIX, path),
    )


def manifest(files, **more):
    options = {"run": "r1", "component": "trainer", "attempt": 1, "created_at": WHEN} | more
    return Manifest.build(files=files, **options)


def test_canonical_form_is_byte_for_byte_this():
    built = manifest(
        [stored("b.txt", b"bb"), stored("a.txt", b"a")], refused=[RefusedFile(path="l", why="a link")]
    )
    a, b = (hashlib.sha256(content).hexdigest() for content in (b"a", b"bb"))
    assert built.canonical().decode() == (
        '{"attempt":1,"component":"trainer","created_at":"2026-05-04T03:02:01Z","files":['
        f'{{"key":"{PREFIX}/files/a.txt","path":"a.txt","sha256":"{a}","size":1}},'
        f'{{"key":"{PREFIX}/files/b.txt","path":"b.txt","sha256":"{b}","size":2}}],'
        '"refused":[{"path":"l","why":"a link"}],"restart":0,"run":"r1",'
        '"totals":{"bytes":3,"files":2},"version":1}'
    )
    assert built.sha256 == hashlib.sha256(built.canonical()).hexdigest()


def test_canonical_form_depends_on_neither_order_nor_time_zone():
    files = [stored(name) for name in ("z", "a/b", "a", "모델")]
    elsewhere = WHEN.astimezone(timezone(timedelta(hours=9)))
    assert manifest(files).canonical() == manifest(files[::-1], created_at=elsewhere).canonical()


def test_parse_gives_back_what_was_written():
    built = manifest([stored(name) for name in HOSTILE])
    assert Manifest.parse(built.canonical(), built.sha256) == built


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda m: m.update(totals={"files": 1, "bytes": 5}), "totals"),
        (lambda m: m["files"].append(m["files"][0]), "each once"),
        (lambda m: m["files"].reverse(), "order"),
        (lambda m: m["files"][0].update(sha256="abc"), "files/0/sha256"),
        (lambda m: m["files"][0].update(size=-1), "files/0/size"),
        (lambda m: m["files"][1].update(key=m["files"][0]["key"]), "share a key"),
        (lambda m: m.update(extra=1), "extra"),
        (lambda m: m.pop("run"), "run"),
        (lambda m: m.update(version=2), "version"),
        (lambda m: m.update(created_at="2026-05-04T03:02:01"), "created_at"),
    ],
)
def test_damaged_manifest_is_refused_with_the_place_named(change, where):
    content = json.loads(manifest([stored("a"), stored("b")]).canonical())
    change(content)
    with pytest.raises(IntegrityError, match=where):
        Manifest.parse(json.dumps(content).encode())


def test_refused_name_that_is_no_text_is_listed_all_the_same():
    built = manifest([], refused=[RefusedFile(path="caf\udce9", why="its name is not UTF-8")])
    assert Manifest.parse(built.canonical()).refused[0].path == "caf\\udce9"


def test_manifest_with_another_checksum_is_refused():
    built = manifest([stored("a")])
    with pytest.raises(IntegrityError, match="not the one"):
        Manifest.parse(built.canonical() + b" ", built.sha256)


def test_no_output_file_can_take_the_manifests_place():
    assert manifest_key(PREFIX) == manifest_key(PREFIX + "/") == f"{PREFIX}/manifest.json"
    assert object_key(PREFIX, "manifest.json") != manifest_key(PREFIX)


@given(st.lists(segments, min_size=1, max_size=4).map("/".join))
def test_every_name_of_text_is_carried_and_comes_back(path):
    encoded = encode_name(path)
    assert decode_name(encoded) == path
    assert not set(encoded) & set("\"'`<>&\\ ?#\n\r\t")
    if why_refused("", path) is None:
        check_key(object_key("p", path))


@given(st.lists(segments, min_size=2, max_size=2, unique=True))
def test_two_names_never_share_a_key(paths):
    assert encode_name(paths[0]) != encode_name(paths[1])


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "relative"),
        ("/etc/passwd", "relative"),
        ("a/../b", "segment"),
        ("./a", "segment"),
        ("a//b", "segment"),
        ("a\0b", "NUL"),
        ("caf\udce9", "UTF-8"),  # a Latin-1 name as os.fsdecode gives it
        ("x" * 900, "limit"),
        ("\n" * 300, "limit"),
    ],
)
def test_name_that_cannot_be_carried_is_refused_with_the_reason(path, reason):
    assert reason in why_refused(PREFIX, path)
    with pytest.raises(InvalidRequest, match=reason):
        object_key(PREFIX, path)


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "a/../b", "a\nb", "a\x7fb", "\udc80", "é" * 451])
def test_key_that_urls_or_listings_would_change_is_refused(key):
    with pytest.raises(InvalidRequest):
        check_key(key)


@pytest.mark.parametrize("name", ["a.txt", *HOSTILE])
def test_download_name_cannot_leave_its_header(name):
    header = content_disposition(name)
    assert header.isascii()
    assert header.isprintable()
    assert header.count('"') == 2
    assert decode_name(header.rsplit("''", 1)[1]) == name


@pytest.mark.parametrize(
    "metadata", [{"A": "x"}, {"sha256": "x"}, {"a": "é"}, {"a": "x\ny"}, {"a": "x" * 1025}, {"a b": "x"}]
)
def test_metadata_that_headers_do_not_carry_are_refused(metadata):
    with pytest.raises(InvalidRequest, match="metadata"):
        checked_metadata(metadata)
