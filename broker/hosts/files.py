"""Files on a host, by the host's own tools: one command, one round trip.

Reading and writing stream over a command's standard output and input (`dd`), not over the SFTP subsystem,
on the same connection. Measured with paramiko 5.1 against OpenSSH 9.2 on a loopback, 512 MiB, aes128-gcm:
reading 535 MiB/s (SFTP with prefetch: 74), writing 447 (SFTP pipelined: 278), with one window of memory
instead of a queue of read requests. It needs no second kind of channel, and a local host runs the same code.

Needed on the host: a POSIX shell, GNU coreutils (>= 8.24, for `sync FILE`) and findutils.
"""

from __future__ import annotations

import hashlib
import posixpath
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence

from broker.errors import (
    BrokerError,
    ConfigurationError,
    Denied,
    DiskFull,
    IntegrityError,
    InvalidRequest,
    NotFound,
    TransferInterrupted,
    Unreachable,
)
from broker.hosts.base import Completed, FileEntry, FileKind, Host, Progress, RemotePath, Stdin, chunks_of

_KINDS: dict[bytes, FileKind] = {b"f": "file", b"d": "dir", b"l": "link"}
_ENTRY = r"%y\t%s\t%T@\t%P\0"
_C = ("env", "LC_ALL=C")
"""Complaints in English, so that they can be told apart."""
_RESUMABLE_FROM = 4 * 2**20
"""Bytes. Below this a broken transfer starts afresh: asking how much arrived costs more than sending it."""
_SILENCE = 120.0
"""Seconds without a byte moving after which a transfer counts as broken."""
_CHECKSUM_TIME = 4 * 3600.0
"""Seconds: a large file is silent while it is read."""
_DIFFERS = "checksum differs"

# $1 part, $2 offset, $3 dd's conv, $4 target, $5 digest, $6 mode, $7 folder
_RECEIVE = """umask 077
dd of="$1" bs=1M iflag=fullblock oflag=seek_bytes seek="$2" conv="$3" status=none || exit 1
"""
# Verify, make durable, and only then let the name appear; `sync DIR` makes the renaming durable too. A part
# that differs is left: after a cut connection this runs on what had arrived, and the next try goes on there.
_FINISH = f"""sum=$(sha256sum < "$1") || exit 1
[ "${{sum%% *}}" = "$5" ] || {{ echo '{_DIFFERS}' >&2; exit 1; }}
chmod "$6" "$1" && sync -- "$1" && mv -fT -- "$1" "$4" && sync -- "$7"
"""
# The marker goes last: a deletion that was cut short can be done again.
_REMOVE = """[ -e "$1" ] || [ -L "$1" ] || exit 0
[ -d "$1" ] && [ ! -L "$1" ] && [ -f "$1/$2" ] && [ ! -L "$1/$2" ] || exit 65
find "$1" -mindepth 1 -maxdepth 1 ! -name "$2" -exec rm -rf --one-file-system -- {} + || exit 1
rm -f -- "$1/$2" && rmdir -- "$1"
"""


# Those of the names that can be seen, by one `stat`.
_STAT_ALL = r"""for name; do shift; if [ -e "$name" ]; then set -- "$@" "$name"; fi; done
[ $# -eq 0 ] || exec stat --printf='%s\t%.9Y\t%n\0' -- "$@"
"""


class HostFiles(ABC):
    """The file half of `Host`, in terms of its `run` and `stream`."""

    @property
    @abstractmethod
    def name(self) -> str:
        """See `Host.name`."""

    @abstractmethod
    def run(
        self, argv: Sequence[str], *, stdin: Stdin = b"", timeout: float, readonly: bool = False
    ) -> Completed:
        """See `Host.run`."""

    @abstractmethod
    def stream(self, argv: Sequence[str], *, stdin: Stdin = b"", timeout: float) -> Iterator[bytes]:
        """See `Host.stream`."""

    def read(self, path: RemotePath, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """See `Host.read`. A link in the last place is refused, not followed; a pipe gives what is in it."""
        if offset < 0 or (length is not None and length < 0):
            raise InvalidRequest(f"offset {offset} and length {length} must not be negative")
        argv = [*_C, "dd", f"if={path}", "bs=256K", "iflag=skip_bytes,count_bytes,nofollow,nonblock"]
        argv += [f"skip={offset}", "status=none", *([] if length is None else [f"count={length}"])]
        return self.stream(argv, timeout=_SILENCE)

    def stat(self, path: RemotePath) -> FileEntry | None:
        """See `Host.stat`."""
        argv = [*_C, "find", "-P", _operand(path), "-maxdepth", "0", "-printf", _ENTRY]
        done = self.run(argv, timeout=30, readonly=True)
        if done.rc:
            error = failure(self.name, f"stat {path}", done)
            if isinstance(error, NotFound):
                return None
            raise error
        (entry,) = _entries(done.stdout)
        return FileEntry(str(path), entry.size, entry.mtime, entry.kind)

    def walk(self, path: RemotePath) -> list[FileEntry]:
        """See `Host.walk`. One `find`, names ended by NUL, so that no name can forge another."""
        argv = [*_C, "find", "-P", _operand(path), "-mindepth", "1", "-printf", _ENTRY]
        done = self.run(argv, timeout=600, readonly=True)
        if done.rc:
            raise failure(self.name, f"list {path}", done)
        return sorted(_entries(done.stdout), key=lambda entry: entry.path)

    def sha256(self, paths: Sequence[RemotePath]) -> dict[str, str]:
        """See `Host.sha256`. One command for any number of files, however they are called."""
        names = {_operand(path): str(path) for path in paths}
        if not names:
            return {}
        stdin = b"".join(name.encode(errors="surrogateescape") + b"\0" for name in names)
        argv = [*_C, "xargs", "-0", "-r", "sha256sum", "-z", "--"]
        done = self.run(argv, stdin=stdin, timeout=_CHECKSUM_TIME, readonly=True)
        if done.rc:
            raise failure(self.name, "compute checksums", done)
        digests: dict[str, str] = {}
        for line in done.stdout.split(b"\0")[:-1]:
            digest, _, name = line.partition(b"  ")
            digests[names[name.decode(errors="surrogateescape")]] = digest.decode()
        return digests

    def write(
        self,
        path: RemotePath,
        data: Stdin,
        *,
        mode: int = 0o600,
        sha256: str | None = None,
        on_progress: Progress | None = None,
    ) -> None:
        """Write beside the name, check the digest on the host, fsync, rename: whole or not at all (DD-02).

        With the digest known (`bytes`: always), what arrived of a broken transfer is kept under a name made
        from it, and the next call with the same data goes on from there; `data` begins at its beginning every
        time. Told apart (DD-20): `TransferInterrupted`, `DiskFull`, `Denied`, `NotFound` (the folder),
        `IntegrityError`.
        """
        folder, name = posixpath.split(_operand(path))
        if not name:
            raise InvalidRequest(f"{path} names a folder; give the name of a file")
        if isinstance(data, bytes):
            sha256 = sha256 or hashlib.sha256(data).hexdigest()
        part = posixpath.join(folder, f".{name[:80]}.{sha256[:16] if sha256 else secrets.token_hex(8)}.part")
        source = _Source(data, on_progress)
        if sha256 and (source.total is None or source.total >= _RESUMABLE_FROM):
            held = self.stat(part)
            source.skip = held.size if held and held.kind == "file" else 0

        def step(script: str, digest: str, stdin: Stdin = b"", silence: float = _SILENCE) -> None:
            where = [part, str(source.skip), "notrunc" if source.skip else "fsync"]
            what = [posixpath.join(folder, name), digest, f"{mode:o}", folder or "."]
            for _ in self.stream(
                [*_C, "sh", "-c", script, "sh", *where, *what], stdin=stdin, timeout=silence
            ):
                pass  # these commands are silent; what counts is how they end

        try:
            if sha256 and source.total is not None and source.total < _RESUMABLE_FROM:
                step(_RECEIVE + _FINISH, sha256, source)
            else:
                step(_RECEIVE, "", source)
                step(_FINISH, sha256 or source.digest.hexdigest(), silence=_CHECKSUM_TIME)
        except (IntegrityError, DiskFull) as error:
            if not sha256 or isinstance(error, IntegrityError):
                self.run([*_C, "rm", "-f", "--", part], timeout=30)
            raise

    def mkdirs(self, path: RemotePath, mode: int = 0o700) -> None:
        """See `Host.mkdirs`."""
        script = 'umask 077; exec mkdir -p -m "$2" -- "$1"'
        done = self.run([*_C, "sh", "-c", script, "sh", str(path), f"{mode:o}"], timeout=30, readonly=True)
        if done.rc:
            raise failure(self.name, f"make the folder {path}", done)

    def remove_tree(self, path: RemotePath, marker: str) -> None:
        """See `Host.remove_tree`. Nothing there: nothing to do. Never leaves the file system it is on."""
        target = str(path)
        if posixpath.normpath(target) != target.rstrip("/") or target.strip("/").count("/") < 1:
            raise InvalidRequest(f"{target} is no folder to delete: give an absolute path two levels deep")
        if not target.startswith("/") or not marker or "/" in marker:
            raise InvalidRequest(f"{target} must be absolute and the marker {marker!r} a plain file name")
        done = self.run([*_C, "sh", "-c", _REMOVE, "sh", target, marker], timeout=3600, readonly=True)
        if done.rc == 65:
            raise Denied(f"{target} on {self.name} has no marker {marker}: it is not ours and is left alone")
        if done.rc:
            raise failure(self.name, f"delete {target}", done)


class _Source:
    """The bytes to send: hashed all, sent from `skip` on, counted."""

    def __init__(self, data: Stdin, on_progress: Progress | None) -> None:
        self.data = data
        self.total = len(data) if isinstance(data, bytes) else None
        self.skip = 0
        self.digest = hashlib.sha256()
        self._on_progress: Progress = on_progress or (lambda _done, _total: None)

    def __iter__(self) -> Iterator[bytes]:
        at = 0
        for chunk in chunks_of(self.data):
            self.digest.update(chunk)
            fresh = chunk[max(0, self.skip - at) :]
            at += len(chunk)
            if fresh:
                yield fresh
                self._on_progress(at, self.total)


def stat_all(host: Host, paths: Sequence[str]) -> dict[str, tuple[int, float]]:
    """Size (bytes) and time of change (seconds since the epoch) of those of many files that can be seen.

    One command for all. A file that goes away meanwhile, or whose name breaks the rules, has no entry.
    """
    stdin = b"".join(_operand(path).encode(errors="surrogateescape") + b"\0" for path in paths)
    argv = [*_C, "xargs", "-0", "-r", "sh", "-c", _STAT_ALL, "sh"]
    done = host.run(argv, stdin=stdin, timeout=60, readonly=True)
    if done.rc and b"No such file" not in done.stderr:
        raise failure(host.name, "look at files", done)
    found: dict[str, tuple[int, float]] = {}
    for row in done.stdout.split(b"\0")[:-1]:
        size, mtime, name = row.split(b"\t", 2)
        found[name.decode(errors="surrogateescape")] = int(size), float(mtime)
    return found


# The ends of those of the names that are files of ours: name and text, each ended by NUL.
_TAIL_ALL = r"""size=$1; shift
for name; do
  if [ -f "$name" ] && [ ! -L "$name" ]; then
    printf '%s\0' "$name"; tail -c "$size" -- "$name" | tr -d '\000'; printf '\0'
  fi
done
"""


def tail_all(host: Host, paths: Sequence[str], size: int) -> dict[str, str]:
    """The last `size` bytes of those of many files that are there, as text, without NUL; links are not
    followed. One command for all.
    """
    stdin = b"".join(_operand(path).encode(errors="surrogateescape") + b"\0" for path in paths)
    argv = [*_C, "xargs", "-0", "-r", "sh", "-c", _TAIL_ALL, "sh", str(size)]
    done = host.run(argv, stdin=stdin, timeout=60, readonly=True)
    if done.rc and b"No such file" not in done.stderr:
        raise failure(host.name, "read the ends of files", done)
    parts = [part.decode(errors="replace") for part in done.stdout.split(b"\0")[:-1]]
    return dict(zip(parts[::2], parts[1::2], strict=False))


def _operand(path: RemotePath) -> str:
    """A path that no tool takes for an option or an expression."""
    text = str(path)
    if not text or "\0" in text:
        raise InvalidRequest(f"{text!r} is no path")
    return text if text.startswith(("/", "./", "../")) else f"./{text}"


def _entries(listing: bytes) -> Iterator[FileEntry]:
    for row in listing.split(b"\0")[:-1]:
        try:
            kind, size, mtime, name = row.split(b"\t", 3)
            what = _KINDS.get(kind, "other")
            yield FileEntry(name.decode(errors="surrogateescape"), int(size), float(mtime), what)
        except ValueError as error:
            raise ConfigurationError(f"find answered {row[:200]!r}, which is no entry (GNU find?)") from error


# errno's English words (strerror(3)) in a tool's complaint -> who can mend it. The first that fits.
_COMPLAINTS: tuple[tuple[tuple[str, ...], Callable[[str], BrokerError]], ...] = (
    ((_DIFFERS,), IntegrityError),
    (("No space left on device", "Disk quota exceeded"), DiskFull),
    (("Permission denied", "Operation not permitted", "Read-only file system"), Denied),
    (("Too many levels of symbolic links",), Denied),
    (("No such file or directory", "Not a directory"), NotFound),
    (("command not found", "not found"), ConfigurationError),
    (("Is a directory", "File exists", "Invalid argument"), InvalidRequest),
    (("Input/output error", "Stale file handle", "Transport endpoint"), TransferInterrupted),
    (("Resource temporarily unavailable", "Cannot allocate memory"), Unreachable),
)


def failure(host: str, what: str, done: Completed) -> BrokerError:
    """The error for a tool that ended with a non-zero exit status, chosen by what it complained about."""
    sentence = f"{host}: can't {what}: {done.complaint}"
    for words, error in _COMPLAINTS:
        if any(word in done.complaint for word in words):
            return error(sentence)
    return ConfigurationError(sentence)
