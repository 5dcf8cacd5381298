"""What every host can do, whatever lies between it and us.

A host runs commands and holds files. Commands are argument lists, never shell text; the two outcomes that a
caller must not confuse have an error each:

    Unreachable      certain: the command was not started (or it only reads, and was declared so)
    OutcomeUnknown   it was handed over and no exit status came back: it may have happened
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal, Protocol

import structlog

from broker.errors import BrokerError, InvalidRequest

log = structlog.get_logger("broker.hosts")

Stdin = bytes | Iterable[bytes]
"""What a command reads: all of it, or chunks (of any size) that are pulled while the command runs."""

RemotePath = str | PurePosixPath
"""A path on the host. Bytes that are not UTF-8 are carried by `surrogateescape`, as `os.fsdecode` does."""

Progress = Callable[[int, int | None], None]
"""Called with (bytes that have arrived, bytes in all or None where that is not known)."""

FileKind = Literal["file", "dir", "link", "other"]

COMPLAINT_CHARS = 2000
"""How much of a program's complaint is kept: it stands in rows, events and answers."""


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that ended: its exit status, all it wrote, and the head of what it complained about."""

    rc: int
    stdout: bytes
    stderr: bytes

    @property
    def complaint(self) -> str:
        """Standard error as one line for a person; says so when there was none."""
        said = as_one_line(self.stderr.decode(errors="replace"))
        return said or f"exit status {self.rc}, without a word"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One name as `lstat(2)` sees it: a link is a link, whatever it points to.

    `path` is relative to the folder that was walked (or the path that was asked for); `size` is in bytes;
    `mtime` in seconds since the epoch.
    """

    path: str
    size: int
    mtime: float
    kind: FileKind


class Host(Protocol):
    """This machine, or a login node over SSH. Every method may be called from any thread."""

    @property
    def name(self) -> str:
        """How people know it; it stands in every error."""

    def run(
        self, argv: Sequence[str], *, stdin: Stdin = b"", timeout: float, readonly: bool = False
    ) -> Completed:
        """Run a command to its end; `timeout` (s) covers everything, connecting included.

        `readonly` declares that repeating is harmless: a lost connection is then tried once more, and what
        would be `OutcomeUnknown` is `Unreachable`.
        """

    def stream(self, argv: Sequence[str], *, stdin: Stdin = b"", timeout: float) -> Iterator[bytes]:
        """Yield standard output as it comes; after the last chunk a non-zero exit status is raised.

        `timeout` (s) bounds the silence between two chunks, not the whole. A broken connection is
        `TransferInterrupted`. Closing the iterator early ends the command's channel.
        """

    def read(self, path: RemotePath, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield the bytes of a regular file from `offset`; past its end there are none."""

    def stat(self, path: RemotePath) -> FileEntry | None:
        """What lies there, or None."""

    def walk(self, path: RemotePath) -> list[FileEntry]:
        """Everything below a folder, sorted by path, links not followed. Incomplete is an error."""

    def sha256(self, paths: Sequence[RemotePath]) -> dict[str, str]:
        """Hex digests, computed where the files lie."""

    def write(
        self,
        path: RemotePath,
        data: Stdin,
        *,
        mode: int = 0o600,
        sha256: str | None = None,
        on_progress: Progress | None = None,
    ) -> None:
        """Put a file there whole or not at all, checked by its digest at both ends."""

    def mkdirs(self, path: RemotePath, mode: int = 0o700) -> None:
        """Make a folder and those above it; one that exists is left as it is."""

    def remove_tree(self, path: RemotePath, marker: str) -> None:
        """Delete a folder that holds the file `marker`, and no other."""

    def close(self) -> None:
        """Let go of connections. A command that runs is not ended by this."""


def as_one_line(complaint: str) -> str:
    r"""What a program complained of as one line for a person, of `COMPLAINT_CHARS` characters at most.

    It may repeat what strangers wrote (a git server's message, a registry's): control characters go, since
    PostgreSQL stores no NUL and terminals obey the others.

    >>> as_one_line("fatal:\x00no\n\n  such ref\n")
    'fatal: no; such ref'
    """
    lines = ("".join(c if c.isprintable() else " " for c in line).strip() for line in complaint.splitlines())
    text = "; ".join(line for line in lines if line)
    return text if len(text) <= COMPLAINT_CHARS else f"{text[:COMPLAINT_CHARS]}…"


def checked_argv(argv: Sequence[str]) -> list[str]:
    """The argument list, refused where no operating system could carry it (NUL, nothing at all)."""
    if not argv:
        raise InvalidRequest("an empty command can't be run")
    for position, word in enumerate(argv):
        if "\0" in word:
            raise InvalidRequest(f"argument {position} of {argv[0]} holds a NUL character; leave it out")
    return list(argv)


ACTING = ("--", "env", "-C", "/")
"""Where sudo's own words end and those of a command begin that is run for a person (`person.acting_argv`)."""


def program(argv: Sequence[str]) -> str:
    """What a command line runs, for an error's sentence and the log: `env -u TZ LC_ALL=C dd …` runs `dd`."""
    if "sudo" in argv[:3] and ACTING[0] in argv:
        argv = argv[argv.index(ACTING[0]) + len(ACTING) :]
    words = iter(argv)
    for word in words:
        if word in {"-u", "-C"}:  # env(1)'s, with a name and a folder
            next(words, None)
        elif word != "env" and "=" not in word:
            return word
    return argv[0]


@contextmanager
def logged(host: str, argv: Sequence[str], *, readonly: bool) -> Iterator[Callable[[Completed], Completed]]:
    """Log a command that is run meanwhile, under the run's ids that are bound to the context.

    Its program only, since arguments are long and may be a user's words. Hand what came of it to the
    function that this gives. What only reads is logged at `debug`: there is a look every few seconds.
    """
    said: dict[str, int | str] = {}
    began = time.perf_counter()

    def note(done: Completed) -> Completed:
        said["rc"] = done.rc
        return done

    try:
        yield note
    except BaseException as error:
        said["error"] = error.code if isinstance(error, BrokerError) else type(error).__name__
        raise
    finally:
        took = round((time.perf_counter() - began) * 1000, 1)
        (log.debug if readonly else log.info)(
            "remote_command", host=host, program=program(argv) if argv else "", ms=took, **said
        )


def chunks_of(data: Stdin, size: int = 256 * 1024) -> Iterator[bytes]:
    """The data in pieces of at most `size` bytes (a single huge `send` would copy the rest each time)."""
    for piece in (data,) if isinstance(data, bytes) else data:
        if len(piece) <= size:
            yield piece
        else:
            view = memoryview(piece)
            yield from (bytes(view[at : at + size]) for at in range(0, len(view), size))


def clean_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """What a local command inherits: who and where we are, never the broker's own settings or secrets.

    `SBATCH_*` and `SQUEUE_*` would silently change what commands do (sbatch(1), INPUT ENVIRONMENT VARIABLES).
    """
    kept = ("HOME", "LANG", "LOGNAME", "PATH", "SHELL", "SLURM_CONF", "TMPDIR", "USER")
    return {name: variables[name] for name in kept if name in variables}


def gather(pump: Generator[bytes, None, tuple[int, bytes]]) -> Completed:
    """Run a pump to its end, keeping all that it yields."""
    out = bytearray()
    while True:
        try:
            out += next(pump)
        except StopIteration as end:
            rc, complaint = end.value
            return Completed(rc, bytes(out), complaint)
