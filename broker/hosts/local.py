"""This machine as a host: the broker runs where Slurm's commands are installed."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import IO

from broker.errors import OutcomeUnknown, TransferInterrupted, Unreachable
from broker.hosts.base import (
    Completed,
    Stdin,
    checked_argv,
    chunks_of,
    clean_environment,
    gather,
    logged,
    program,
)
from broker.hosts.files import HostFiles, failure

_STDERR_CAP = 2**20
_PIPE = 65536
"""Bytes that a pipe takes without anyone reading (pipe(7)): no thread is needed to write them."""


class LocalHost(HostFiles):
    """Commands as child processes in sessions of their own.

    A command that outlives its time is killed with all its children; as over SSH, what it had done by then is
    unknown. It inherits a short list of variables (`clean_environment`), never the broker's settings.
    """

    def __init__(self, name: str = "localhost", environment: Mapping[str, str] | None = None) -> None:
        self._name = name
        self._environment = clean_environment(os.environ if environment is None else environment)

    @property
    def name(self) -> str:
        """See `Host.name`."""
        return self._name

    def run(
        self, argv: Sequence[str], *, stdin: Stdin = b"", timeout: float, readonly: bool = False
    ) -> Completed:
        """See `Host.run`."""
        with logged(self.name, argv, readonly=readonly) as note:
            return note(self._run(argv, stdin, timeout, readonly))

    def _run(self, argv: Sequence[str], stdin: Stdin, timeout: float, readonly: bool) -> Completed:
        child = self._start(argv)
        if child is None:
            return Completed(127, b"", f"{argv[0]}: command not found".encode())
        try:
            done = gather(_pump(child, stdin, deadline=time.monotonic() + timeout, silence=None))
        except TimeoutError:
            detail = f"{self.name}: {program(argv)} did not end within {timeout:g} s"
            raise (Unreachable if readonly else OutcomeUnknown)(detail) from None
        finally:
            _end(child)
        if done.rc < 0:
            detail = f"{self.name}: {program(argv)} was killed by signal {-done.rc}"
            raise (Unreachable if readonly else OutcomeUnknown)(detail)
        return done

    def stream(self, argv: Sequence[str], *, stdin: Stdin = b"", timeout: float) -> Iterator[bytes]:
        """See `Host.stream`."""
        child = self._start(argv)
        if child is None:
            raise failure(self.name, f"run {program(argv)}", Completed(127, b"", b"command not found"))
        try:
            rc, complaint = yield from _pump(child, stdin, deadline=None, silence=timeout)
        except TimeoutError:
            detail = f"{self.name}: {program(argv)} moved nothing for {timeout:g} s"
            raise TransferInterrupted(detail) from None
        finally:
            _end(child)
        if rc < 0:
            raise TransferInterrupted(f"{self.name}: {program(argv)} was killed by signal {-rc}")
        if rc:
            raise failure(self.name, f"run {program(argv)}", Completed(rc, b"", complaint))

    def close(self) -> None:
        """Nothing is held between commands."""

    def _start(self, argv: Sequence[str]) -> subprocess.Popen[bytes] | None:
        try:
            return subprocess.Popen(
                checked_argv(argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._environment,
                start_new_session=True,
            )
        except FileNotFoundError:
            return None
        except OSError as error:  # no processes or memory left, a command line too long, …
            raise Unreachable(f"{self.name}: can't start {program(argv)}: {error}") from error


def _pump(
    child: subprocess.Popen[bytes], stdin: Stdin, *, deadline: float | None, silence: float | None
) -> Generator[bytes, None, tuple[int, bytes]]:
    """Yield standard output, feed standard input beside it, return (exit status, standard error's head)."""
    assert child.stdin and child.stdout and child.stderr
    feeder = _Feeder(child.stdin, stdin)
    if isinstance(stdin, bytes) and len(stdin) <= _PIPE:
        feeder.run()
    else:
        feeder.start()
    complaint = bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        selector.register(child.stderr, selectors.EVENT_READ)
        seen, since = 0, time.monotonic()
        while selector.get_map():
            limit = deadline if deadline is not None else since + (silence or 0)
            ready = selector.select(min(1.0, max(0.0, limit - time.monotonic())))
            if feeder.moved != seen or ready:
                seen, since = feeder.moved, time.monotonic()
            elif time.monotonic() >= limit:
                raise TimeoutError
            for key, _ in ready:
                data = os.read(key.fd, 256 * 1024)
                if not data:
                    selector.unregister(key.fileobj)
                elif key.fileobj is child.stdout:
                    yield data
                    since = time.monotonic()
                else:
                    complaint += data[: max(0, _STDERR_CAP - len(complaint))]
    remaining = (deadline - time.monotonic()) if deadline is not None else silence
    try:
        rc = child.wait(max(0.0, remaining or 0.0))
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    if feeder.error is not None:
        raise feeder.error
    return rc, bytes(complaint)


class _Feeder(threading.Thread):
    """Writes standard input beside the reading of the output: a child may do both at once."""

    def __init__(self, pipe: IO[bytes], stdin: Stdin) -> None:
        super().__init__(name="stdin", daemon=True)
        self._pipe, self._stdin = pipe, stdin
        self.moved = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            for chunk in chunks_of(self._stdin):
                self._pipe.write(chunk)
                self.moved += len(chunk)
        except BrokenPipeError:
            pass  # it ended without reading all: its exit status tells the rest
        except BaseException as error:
            self.error = error
        with suppress(OSError, ValueError):
            self._pipe.close()


def _end(child: subprocess.Popen[bytes]) -> None:
    """Leave neither a process nor a descriptor behind.

    What sudo runs for a person is not ours to kill: as over SSH, it goes on without a reader.
    """
    if child.poll() is None:
        with suppress(ProcessLookupError):
            try:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
            except PermissionError:
                pass
    for pipe in (child.stdout, child.stderr):
        if pipe:
            pipe.close()
