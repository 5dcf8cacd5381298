"""The parent's side of the embedded S3 server: start it, know when it died, start it again."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import structlog

from broker.errors import BrokerError, ConfigurationError, Unreachable
from broker.objects.config import S3Config
from broker.objects.server.config import REGION

START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 5.0
_LOG_LIMIT = 10 << 20  # bytes of server.log that are kept when the server is started
_STEADY_S = 60.0  # a server that lived this long did not die of its start

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class S3Endpoint:
    """Where the server answers, and the keys to it (also in 0600 files, for settings that name files)."""

    url: str
    access_key: str
    secret_key: str = field(repr=False)
    access_key_file: Path
    secret_key_file: Path
    region: str = REGION

    def config(self, bucket: str) -> S3Config:
        """The configuration of a bucket there."""
        return S3Config(
            endpoint_url=self.url,
            bucket=bucket,
            access_key=self.access_key,
            secret_key=self.secret_key,
            region=self.region,
        )


class EmbeddedObjectStore:
    """One server process below one directory; it dies with this process, however this one ends.

    `port` 0 takes a free port at the first start and keeps it. `cors_origins` are the web origins whose
    pages may use presigned URLs; none given allows any. Usable as a context manager.
    """

    def __init__(
        self, root: Path, host: str = "127.0.0.1", port: int = 0, *, cors_origins: Sequence[str] = ()
    ) -> None:
        self.root = root
        self._host, self._port, self._cors_origins = host, port, tuple(cors_origins)
        self._process: subprocess.Popen[bytes] | None = None
        self._url = ""
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        # PR_SET_PDEATHSIG tells of the end of the *thread* that forked (prctl(2)): one that stays.
        self._spawner = ThreadPoolExecutor(1, thread_name_prefix="object-store")

    def __enter__(self) -> S3Endpoint:
        return self.start()

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        process = self._process
        return process.pid if process and process.poll() is None else None

    def start(self) -> S3Endpoint:
        """Start the server, unless it runs, and wait until it answers.

        Raises `ConfigurationError` when the directory or the port can't be used (the sentence says how to
        mend it), `Unreachable` when the server did not come up in time.
        """
        with self._lock:
            if self._stopping.is_set():
                raise ConfigurationError("The embedded object store was stopped: make a new one")
            if self.pid is None:
                self._process, self._url = self._spawner.submit(self._spawn).result()
            return self._endpoint()

    def alive(self, timeout_s: float = 2.0) -> bool:
        """Whether the process runs and answers HTTP (a refusal for want of keys is an answer)."""
        if self.pid is None:
            return False
        parts = urlsplit(self._url)
        connection = HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status < 500
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()

    def stop(self) -> None:
        """End the server and wait for its end. What was stored is on disk."""
        self._stopping.set()
        with self._lock:
            if self._process and self._process.poll() is None:
                self._process.terminate()
                try:
                    self._process.wait(_STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    self._process.wait()
        self._spawner.shutdown()

    def supervise(self, on_restart: Callable[[S3Endpoint], None] | None = None) -> None:
        """Start the server again whenever it dies, until `stop` is called. Blocks: give it a thread.

        A server that dies at once is tried again ever more slowly, up to every 10 s.
        """
        pause = 0.2
        while not self._stopping.is_set():
            process, since = self._process, time.monotonic()
            if process is None:
                raise ConfigurationError("Start the embedded object store before supervising it")
            status = process.wait()
            if self._stopping.is_set():
                return
            pause = 0.2 if time.monotonic() - since > _STEADY_S else min(pause * 2, 10.0)
            log.warning("object_store_died", status=status, restart_in_s=pause, log=str(self._log_path))
            self._stopping.wait(pause)
            try:
                endpoint = self.start()
            except BrokerError as error:
                if self._stopping.is_set():
                    return
                log.error("object_store_restart_failed", error=str(error))
                continue
            if on_restart:
                on_restart(endpoint)

    @property
    def _log_path(self) -> Path:
        return self.root / "server.log"

    def _endpoint(self) -> S3Endpoint:
        files = self.root / "access_key", self.root / "secret_key"
        access, secret = (path.read_text().strip() for path in files)
        return S3Endpoint(self._url, access, secret, *files)

    def _spawn(self) -> tuple[subprocess.Popen[bytes], str]:
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        command = [sys.executable, "-m", "broker.objects.server", "--root", str(self.root)]
        command += ["--host", self._host, "--port", str(self._port), "--parent-pid", str(os.getpid())]
        for origin in self._cors_origins:
            command += ["--cors-origin", origin]
        oversized = self._log_path.exists() and self._log_path.stat().st_size > _LOG_LIMIT
        flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if oversized else os.O_APPEND)
        with os.fdopen(os.open(self._log_path, flags, 0o600), "wb") as errors:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
            )
        try:
            return process, self._await_ready(process)
        except BaseException:
            process.kill()
            process.wait()
            raise

    def _await_ready(self, process: subprocess.Popen[bytes]) -> str:
        """The URL from the server's first line. Its standard output says nothing after that."""
        assert process.stdout is not None
        with process.stdout as output, selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            answered = bool(selector.select(START_TIMEOUT_S))
            line = output.readline() if answered else b""
        if not line:
            how = f"ended with status {process.wait()}" if answered else "did not answer in time"
            raise Unreachable(f"The embedded object store {how}: see {self._log_path}")
        said = json.loads(line)
        if "error" in said:
            raise ConfigurationError(f"The embedded object store can't start: {said['error']}")
        return str(said["url"])
