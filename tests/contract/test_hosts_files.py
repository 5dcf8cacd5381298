"""Files on a host: the same promises on this machine and over SSH."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.errors import (
    Denied,
    DiskFull,
    IntegrityError,
    InvalidRequest,
    NotFound,
    OutcomeUnknown,
    TransferInterrupted,
    Unreachable,
)
from broker.hosts import Completed, Host, LocalHost, SshHost
from broker.hosts.files import failure
from tests.contract.sshserver import ssh_server

HOSTILE = ["-rf", "$(touch x)", "two\nlines", 'it\'s "quoted"', "ünï 한", "tab\there", "back\\slash", "*"]
NOT_UTF8 = os.fsdecode(b"caf\xe9")


@pytest.fixture(params=["local", "ssh"])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    if request.param == "local":
        yield LocalHost()
        return
    with ssh_server(tmp_path_factory.mktemp("ssh")) as server:
        found = SshHost(server.config())
        yield found
        found.close()


@pytest.mark.parametrize("word", [*HOSTILE, NOT_UTF8, "", " "])
def test_a_word_reaches_the_command_as_it_is(host: Host, word: str) -> None:
    done = host.run(["printf", "%s|", word, "end"], timeout=10)
    assert done.stdout == os.fsencode(word) + b"|end|"


def test_what_no_command_line_can_carry_is_refused(host: Host) -> None:
    for argv in ([], ["echo", "a\0b"]):
        with pytest.raises(InvalidRequest):
            host.run(argv, timeout=5)


def test_the_exit_status_and_both_outputs_come_back(host: Host) -> None:
    done = host.run(["sh", "-c", "cat; echo trouble >&2; exit 3"], stdin=b"in", timeout=10)
    assert (done.rc, done.stdout, done.stderr) == (3, b"in", b"trouble\n")
    assert done.complaint == "trouble"
    assert host.run(["no-such-program-here"], timeout=10).rc == 127


def test_nothing_of_the_brokers_environment_reaches_a_local_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKER_JWT_KEY", "secret")
    monkeypatch.setenv("SBATCH_PARTITION", "other")
    names = [line.split(b"=")[0] for line in LocalHost().run(["env"], timeout=5).stdout.splitlines()]
    assert b"PATH" in names
    assert {b"BROKER_JWT_KEY", b"SBATCH_PARTITION"}.isdisjoint(names)


def test_a_time_out_ends_a_local_command_with_all_its_children(tmp_path: Path) -> None:
    script = f"sleep 100 & echo $! > {tmp_path}/pid; wait"
    with pytest.raises(OutcomeUnknown):
        LocalHost().run(["sh", "-c", script], timeout=1)
    pid = int((tmp_path / "pid").read_text())
    state, deadline = Path(f"/proc/{pid}/stat"), time.monotonic() + 10
    while state.exists() and ") Z" not in state.read_text():  # gone, or dead and waiting for init
        assert time.monotonic() < deadline, "it goes on"
        time.sleep(0.01)


def test_what_runs_for_a_person_and_is_not_ours_to_kill_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A command behind sudo belongs to root and the person: kill(2) answers EPERM."""

    def refused(pid: int, number: int) -> None:
        raise PermissionError(pid, number)

    monkeypatch.setattr(os, "killpg", refused)
    gate = tmp_path / "gate"
    began = time.monotonic()
    with pytest.raises(OutcomeUnknown):
        LocalHost().run(["sh", "-c", f"until [ -e {gate} ]; do sleep 0.1; done"], timeout=0.3)
    assert time.monotonic() - began < 10
    gate.touch()


def test_silence_for_too_long_is_an_interruption(host: Host) -> None:
    assert host.run(["true"], timeout=20).rc == 0  # connected: the time below is the command's alone
    with pytest.raises(TransferInterrupted):
        list(host.stream(["sleep", "30"], timeout=1))


def test_a_reader_may_be_slower_than_the_time_out(host: Host) -> None:
    assert host.run(["true"], timeout=20).rc == 0
    chunks = host.stream(["sh", "-c", "head -c 3000000 /dev/zero; echo end"], timeout=2)
    total = 0
    for chunk in chunks:
        if not total:
            time.sleep(2.5)
        total += len(chunk)
    assert total == 3_000_004


@pytest.mark.parametrize("name", [*HOSTILE, NOT_UTF8])
def test_a_file_of_any_name_goes_and_comes_back(host: Host, tmp_path: Path, name: str) -> None:
    path = f"{tmp_path}/{name}"
    data = b"a\0b\n" * 1000
    host.write(path, data, mode=0o640)
    assert Path(path).read_bytes() == data
    assert Path(path).stat().st_mode & 0o777 == 0o640
    assert b"".join(host.read(path)) == data
    assert b"".join(host.read(path, offset=5, length=7)) == data[5:12]
    assert list(host.read(path, offset=10_000)) == []
    entry = host.stat(path)
    assert entry is not None
    assert (entry.path, entry.size, entry.kind) == (path, len(data), "file")
    assert host.sha256([path]) == {path: hashlib.sha256(data).hexdigest()}


def test_a_folder_is_listed_with_every_kind_and_no_link_is_followed(host: Host, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "two\nlines").write_bytes(b"12345")
    (tmp_path / "out").symlink_to("/etc")
    os.mkfifo(tmp_path / "pipe")
    found = {entry.path: (entry.kind, entry.size) for entry in host.walk(str(tmp_path))}
    assert found.keys() == {"sub", "sub/two\nlines", "out", "pipe"}
    assert found["sub/two\nlines"] == ("file", 5)
    assert (found["sub"][0], found["out"][0], found["pipe"][0]) == ("dir", "link", "other")
    mtime = next(entry.mtime for entry in host.walk(str(tmp_path)) if entry.path == "out")
    assert abs(mtime - (tmp_path / "out").lstat().st_mtime) < 0.001


def test_what_is_not_there_is_not_found(host: Host, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    assert host.stat(missing) is None
    for call in (
        lambda: list(host.read(missing)),
        lambda: host.walk(missing),
        lambda: host.sha256([missing]),
    ):
        with pytest.raises(NotFound, match="missing"):
            call()
    with pytest.raises(NotFound):
        host.write(f"{missing}/file", b"x")


def test_a_link_or_a_pipe_in_the_place_of_a_file_is_not_read(host: Host, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/hostname")
    with pytest.raises(Denied):
        list(host.read(str(tmp_path / "link")))
    os.mkfifo(tmp_path / "pipe")
    assert list(host.read(str(tmp_path / "pipe"))) == []  # and does not wait for a writer


def test_a_file_appears_whole_or_not_at_all(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(IntegrityError):
        host.write(str(path), b"new", sha256="0" * 64)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    host.write(str(path), [b"in ", b"", b"pieces"])
    assert path.read_bytes() == b"in pieces"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_wrong_part_from_before_costs_one_try(host: Host, tmp_path: Path) -> None:
    data = os.urandom(5 * 2**20)
    digest = hashlib.sha256(data).hexdigest()
    part = tmp_path / f".file.{digest[:16]}.part"
    part.write_bytes(b"x" * 1000)
    with pytest.raises(IntegrityError):
        host.write(str(tmp_path / "file"), data)
    assert not part.exists()
    host.write(str(tmp_path / "file"), data)
    assert (tmp_path / "file").read_bytes() == data


def test_progress_counts_up_to_the_end(host: Host, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    host.write(
        str(tmp_path / "file"), b"x" * 1_000_000, on_progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (1_000_000, 1_000_000)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_full_disk_is_told_from_a_cut_and_from_a_missing_right(host: Host) -> None:
    with pytest.raises(DiskFull, match="No space left"):
        host.stream(["sh", "-c", "cat > /dev/full"], stdin=b"x", timeout=5).__next__()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("dd: error writing 'x': No space left on device", DiskFull),
        ("dd: error writing 'x': Disk quota exceeded", DiskFull),
        ("dd: failed to open 'x': Permission denied", Denied),
        ("mv: cannot move: Read-only file system", Denied),
        ("dd: failed to open 'x': No such file or directory", NotFound),
        ("find: 'x': Stale file handle", TransferInterrupted),
        ("sh: fork: Resource temporarily unavailable", Unreachable),
    ],
)
def test_complaints_tell_who_can_mend_it(words: str, error: type[Exception]) -> None:
    assert type(failure("login1", "write x", Completed(1, b"", words.encode()))) is error


def test_folders_are_made_private_and_left_as_they_are(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "a b" / "c"
    host.mkdirs(str(path), mode=0o750)
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o750, 0o700)
    (path / "kept").touch()
    host.mkdirs(str(path), mode=0o700)
    assert path.stat().st_mode & 0o777 == 0o750
    assert (path / "kept").exists()


def test_only_a_marked_folder_is_deleted_and_no_link_leads_out_of_it(host: Host, tmp_path: Path) -> None:
    outside, run = tmp_path / "outside", tmp_path / "run"
    outside.mkdir()
    (outside / "precious").touch()
    run.mkdir()
    (run / "link").symlink_to(outside)
    (run / "deep" / "er").mkdir(parents=True)
    (run / "-rf").touch()
    with pytest.raises(Denied, match="marker"):
        host.remove_tree(str(run), ".broker-run")
    assert (run / "deep").exists()
    (run / ".broker-run").touch()
    (tmp_path / "alias").symlink_to(run)
    with pytest.raises(Denied):
        host.remove_tree(str(tmp_path / "alias"), ".broker-run")
    host.remove_tree(str(run), ".broker-run")
    assert not run.exists()
    assert (outside / "precious").exists()
    host.remove_tree(str(run), ".broker-run")  # a second time there is nothing to do


@pytest.mark.parametrize("path", ["/", "//", "/home", "relative/path", "/a/../b", "/a/b/..", "", "/a/./x"])
def test_a_path_that_is_no_run_folder_is_never_deleted(host: Host, path: str) -> None:
    with pytest.raises(InvalidRequest):
        host.remove_tree(path, ".broker-run")


@pytest.mark.parametrize("marker", ["", "../x", "a/b"])
def test_a_marker_is_a_plain_name(host: Host, tmp_path: Path, marker: str) -> None:
    with pytest.raises(InvalidRequest):
        host.remove_tree(str(tmp_path), marker)
