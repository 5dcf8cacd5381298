"""`broker up`: prepare what the API and the worker stand on, then keep both running."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy.exc import OperationalError

from broker import schema
from broker.cli.output import message
from broker.cli.server import database_trouble, this_program
from broker.cli.serving import listen, print_ready, url_of
from broker.context import build_context
from broker.errors import Conflict
from broker.identity.service import ensure_first_admin
from broker.logging import configure_logging
from broker.objects import EmbeddedObjectStore
from broker.settings import Settings
from broker.supervisor import Child, Supervisor

LOCK = "up.lock"
_WORKER_GRACE_S, _API_GRACE_S = 15.0, 12.0
_PROBE_TIMEOUT_S = 5.0


def run_everything(settings: Settings, ready_file: Path | None) -> int:
    """Run until SIGTERM or SIGINT; the exit status."""
    configure_logging(settings.log_format, settings.log_level)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until the supervisor takes over
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with ExitStack() as stack:
        stack.enter_context(_only_one(settings.data_dir))
        if ready_file:
            ready_file.unlink(missing_ok=True)
            stack.callback(ready_file.unlink, missing_ok=True)
        listener = stack.enter_context(listen(settings.api.host, settings.api.port))
        embedded = _object_store(settings, stack)
        _prepare(settings.model_copy(update={"s3": settings.s3.model_copy(update=embedded)}), bool(embedded))
        environment = os.environ | {
            "BROKER_DATA_DIR": str(settings.data_dir),
            "PROMETHEUS_MULTIPROC_DIR": str(_fresh_folder(settings.data_dir / "metrics")),
        }
        environment |= {f"BROKER_S3__{name.upper()}": str(value) for name, value in embedded.items()}
        return _supervisor(listener, environment, ready_file).run()


def _fresh_folder(folder: Path) -> Path:
    """An empty folder: what an earlier process group counted is of an earlier life."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    return folder


@contextmanager
def _only_one(data_dir: Path) -> Iterator[None]:
    """Hold the data folder; two brokers in one would fight over the object store and the worker's socket."""
    with (data_dir / LOCK).open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise Conflict(
                f"Another `broker up` (process {file.read().strip() or 'unknown'}) uses {data_dir}; "
                "end it first, or set another `data_dir`"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _object_store(settings: Settings, stack: ExitStack) -> dict[str, object]:
    """Start the embedded object store unless another is configured; the settings it stands for."""
    if settings.s3.endpoint_url is not None:
        return {}
    store = EmbeddedObjectStore(
        settings.data_dir / "objects", port=settings.s3.embedded_port, cors_origins=settings.s3.cors_origins
    )
    stack.callback(store.stop)
    endpoint = store.start()
    threading.Thread(target=store.supervise, name="object-store", daemon=True).start()
    return {
        "endpoint_url": endpoint.url,
        "region": endpoint.region,
        "access_key_file": endpoint.access_key_file,
        "secret_key_file": endpoint.secret_key_file,
    }


def _prepare(settings: Settings, embedded: bool) -> None:
    """Tables, the first admin and (of our own object store) the bucket. Repeating it changes nothing."""
    ctx = build_context(settings)
    try:
        schema.upgrade(ctx.db)
        if first := ensure_first_admin(ctx.db, settings.data_dir):
            message(
                f"First start: log in as {first.username!r}; the one-time password lies in {first.path} "
                "and must be changed.",
                style="bold",
            )
        if embedded:
            ctx.objects.ensure_bucket(settings.s3.cors_origins)
    except OperationalError as error:
        raise database_trouble(error) from None
    finally:
        ctx.close()


def _supervisor(listener: socket.socket, environment: dict[str, str], ready_file: Path | None) -> Supervisor:
    """API and worker. The listening socket is ours: it stays while the API is started again."""
    url = url_of(listener)

    def on_ready() -> None:
        if ready_file:
            temporary = ready_file.with_name(f"{ready_file.name}.{os.getpid()}")
            temporary.write_text(f"{url}\n", encoding="utf-8")
            temporary.replace(ready_file)
        print_ready(url)

    return Supervisor(
        [
            Child(
                "api",
                this_program("serve", "--fd", str(listener.fileno())),
                environment,
                pass_fds=(listener.fileno(),),
                grace_s=_API_GRACE_S,
            ),
            Child("worker", this_program("worker"), environment, grace_s=_WORKER_GRACE_S),
        ],
        probe=lambda: _answers(url),
        on_ready=on_ready,
        stop_order=("api", "worker"),
    )


def _answers(url: str) -> bool:
    """Whether the API says that it can serve."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=_PROBE_TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
