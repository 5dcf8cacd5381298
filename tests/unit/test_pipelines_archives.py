"""Uploaded archives: what is refused, and what is kept of the rest."""

import gzip
import io
import stat
import struct
import subprocess
import tarfile
import zipfile

import pytest

from broker.errors import UploadRejected
from broker.pipelines.archives import Limits, repack


def tar(*members, mode="w:gz"):
    """Members: (name, data or TarInfo type, …): a tar.gz."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, what, *more in members:
            info = tarfile.TarInfo(name)
            if isinstance(what, bytes) and len(what) != 1:
                info.size = len(what)
                info.mode = more[0] if more else 0o644
                archive.addfile(info, io.BytesIO(what))
            else:
                info.type = what
                info.linkname = more[0] if more else ""
                archive.addfile(info)
    return buffer.getvalue()


def zipped(*members, compression=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data, *more in members:
            info = zipfile.ZipInfo(name, (2024, 2, 29, 12, 0, 0))
            info.compress_type = compression
            info.external_attr = (more[0] if more else stat.S_IFREG | 0o644) << 16
            archive.writestr(info, data)
    return buffer.getvalue()


def kept(data, limits=None):
    """The tar.gz that is kept, by path."""
    target = io.BytesIO()
    repack(io.BytesIO(data), target, limits)
    with tarfile.open(fileobj=io.BytesIO(target.getvalue())) as archive:
        return {m.name: (m, archive.extractfile(m).read() if m.isfile() else None) for m in archive}


def refusal(data, limits=None):
    with pytest.raises(UploadRejected) as caught:
        repack(io.BytesIO(data), io.BytesIO(), limits)
    (problem,) = caught.value.problems
    return problem.code


@pytest.mark.parametrize("pack", [tar, zipped])
def test_plain_files_are_kept_with_their_content(pack):
    files = kept(pack(("train.py", b"print('hi')\n"), ("./src/util.py", b"x" * 300_000), ("empty", b"")))
    assert {name: data for name, (_, data) in files.items()} == {
        "train.py": b"print('hi')\n",
        "src/util.py": b"x" * 300_000,
        "empty": b"",
    }


def test_what_is_kept_has_no_owner_no_odd_mode_and_only_files_and_folders():
    files = kept(tar(("bin", tarfile.DIRTYPE), ("bin/run", b"#!/bin/sh\n", 0o6755), ("data", b"12", 0o600)))
    assert {name: oct(m.mode) for name, (m, _) in files.items()} == {
        "bin": "0o755",
        "bin/run": "0o755",
        "data": "0o644",
    }
    assert {(m.uid, m.gid, m.uname, m.gname) for m, _ in files.values()} == {(0, 0, "", "")}


def test_executables_of_a_zip_stay_executable():
    files = kept(zipped(("run", b"#!/bin/sh", stat.S_IFREG | 0o755), ("data", b"12")))
    assert [oct(m.mode) for m, _ in files.values()] == ["0o755", "0o644"]


def test_gnu_tar_unpacks_what_is_kept(tmp_path):
    target = tmp_path / "kept.tar.gz"
    with target.open("wb") as file:
        repack(io.BytesIO(tar(("한글/" + "n" * 200 + ".py", b"print(1)"))), file)
    subprocess.run(["tar", "-x", "-f", target, "-C", tmp_path], check=True)
    assert (tmp_path / "한글" / ("n" * 200 + ".py")).read_text() == "print(1)"


def test_the_same_archive_is_kept_as_the_same_bytes():
    data = tar(("a", b"12"), ("b", b"34"))
    first, second = io.BytesIO(), io.BytesIO()
    repack(io.BytesIO(data), first)
    repack(io.BytesIO(data), second)
    assert first.getvalue() == second.getvalue()


UNSAFE = [
    "/etc/passwd",
    "../up",
    "a/../../up",
    "..",
    "C:\\x",
    "C:/x",
    "a\\b",
    "a\nb",
    "a\x1b[2J",
    "x" * 256,
    "d/" * 600 + "x",
]


@pytest.mark.parametrize("name", UNSAFE)
@pytest.mark.parametrize("pack", [tar, zipped])
def test_unsafe_paths_are_refused(pack, name):
    assert refusal(pack((name, b"12"))) == "unsafe_path"


def test_nul_in_a_zip_name_does_not_hide_its_end():
    data = zipped(("nice.pyX/../up", b"12")).replace(b"nice.pyX", b"nice.py\x00")
    assert refusal(data) == "unsafe_path"


def test_names_that_are_not_utf8_are_refused():
    data = gzip.compress(gzip.decompress(tar(("abc", b"12"))).replace(b"abc\x00", b"a\xffc\x00", 1))
    assert refusal(data) in {"unsafe_path", "broken_archive"}


@pytest.mark.parametrize(
    "member",
    [
        ("link", tarfile.SYMTYPE, "/etc/passwd"),
        ("link", tarfile.SYMTYPE, "inside"),
        ("link", tarfile.LNKTYPE, "/etc/passwd"),
        ("dev", tarfile.CHRTYPE),
        ("dev", tarfile.BLKTYPE),
        ("pipe", tarfile.FIFOTYPE),
    ],
)
def test_links_and_devices_are_refused(member):
    assert refusal(tar(("ok.py", b"12"), member)) == "unsafe_member"


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices_in_a_zip_are_refused(kind):
    assert refusal(zipped(("ok.py", b"12"), ("x", b"/etc/passwd", kind | 0o777))) == "unsafe_member"


@pytest.mark.parametrize(
    "members",
    [
        [("a", b"12"), ("a", b"34")],
        [("a", b"12"), ("./a", b"34")],
        [("a", b"12"), ("a/b", b"34")],
        [("a/b", b"12"), ("a", b"34")],
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("pack", [tar, zipped])
def test_one_path_stands_for_one_thing(pack, members):
    assert refusal(pack(*members)) == "duplicate_member"


@pytest.mark.parametrize("pack", [tar, zipped])
def test_bombs_are_stopped_by_what_they_unpack_to(pack):
    limits = Limits(max_bytes=1 << 20, max_members=100)
    assert refusal(pack(("zeros", bytes(8 << 20))), limits) == "too_large_unpacked"


@pytest.mark.parametrize("pack", [tar, zipped])
def test_too_many_members_are_refused(pack):
    members = [(f"f{n}", b"") for n in range(102)]
    assert refusal(pack(*members), Limits(max_members=100)) == "too_many_members"


def test_members_that_name_the_root_are_counted_too():
    assert refusal(tar(*[("./", tarfile.DIRTYPE)] * 300), Limits(max_members=100)) == "too_many_members"


def test_folders_made_of_one_path_are_counted():
    assert refusal(tar(("d/" * 500 + "x", b"12")), Limits(max_members=100)) == "too_many_members"


def test_header_that_claims_much_memory_is_refused():
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 64 << 20
    data = gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(64 << 20))
    assert refusal(data) == "broken_archive"


def test_negative_sizes_do_not_loop():
    info = tarfile.TarInfo("x")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + struct.pack(">h", -512)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    assert refusal(gzip.compress(bytes(header) * 3 + bytes(1024))) in {"unsafe_member", "broken_archive"}


def test_size_in_a_zip_header_is_not_believed():
    data = bytearray(zipped(("x", bytes(5000))))
    at = data.index(b"PK\x01\x02") + 24
    data[at : at + 4] = struct.pack("<I", 10)
    assert refusal(bytes(data)) == "broken_archive"


def test_encrypted_members_are_refused():
    data = bytearray(zipped(("x", b"12")))
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    assert refusal(bytes(data)) == "encrypted_member"


def test_unusual_compression_is_refused():
    assert refusal(zipped(("x", b"12" * 50), compression=zipfile.ZIP_LZMA)) == "unknown_compression"


def test_zip64_directories_are_refused_before_they_are_read():
    locator = b"PK\x06\x07" + bytes(16)
    data = zipped(("x", b"12"))
    at = data.rindex(b"PK\x05\x06")
    assert refusal(data[:at] + locator + data[at:]) == "too_many_members"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        pytest.param(b"", "unknown_archive", id="nothing"),
        pytest.param(b"hello", "unknown_archive", id="text"),
        pytest.param(b"\x1f\x8b", "broken_archive", id="gzip's first bytes"),
        pytest.param(b"\x1f\x8b" + bytes(100), "broken_archive", id="gzip's first bytes and nothing"),
        pytest.param(b"PK\x03\x04" + bytes(100), "broken_archive", id="zip's first bytes and nothing"),
        pytest.param(gzip.compress(b"not a tar" * 100), "broken_archive", id="gzip of something else"),
        pytest.param(tar(("x", b"12" * 5000))[:60], "broken_archive", id="tar cut off"),
        pytest.param(zipped(("x", b"12" * 5000))[:60], "broken_archive", id="zip cut off"),
        pytest.param(tar(), "empty_archive", id="tar of nothing"),
        pytest.param(tar(("d", tarfile.DIRTYPE)), "empty_archive", id="tar of a folder"),
        pytest.param(zipped(), "empty_archive", id="zip of nothing"),
        pytest.param(tar(("x", b"12"), mode="w"), "unknown_archive", id="tar without compression"),
    ],
)
def test_what_is_no_archive_is_refused_with_the_reason(data, code):
    assert refusal(data) == code


def test_any_damage_is_refused_or_harmless():
    for data in (
        tar(("a.py", b"print(1)\n" * 50), ("b", b"34")),
        zipped(("a.py", b"print(1)\n" * 50), ("b", b"34")),
    ):
        for at in range(len(data)):
            for flip in (0x01, 0x80, 0xFF):
                damaged = bytearray(data)
                damaged[at] ^= flip
                try:
                    files = kept(bytes(damaged))
                except UploadRejected:
                    continue
                assert all(m.isfile() or m.isdir() for m, _ in files.values())
                assert not any(name.startswith("/") or ".." in name.split("/") for name in files)
