"""Waking the worker at once, so that a request does not wait for the next tick.

A wake-up carries no data and may be lost: the worker looks at the database on its own ticks too. On
PostgreSQL it is NOTIFY; on SQLite, where all processes share a machine, a datagram to a socket in Linux's
abstract name space (unix(7)): no file to go stale, no limit of 108 characters on its path.
"""

from __future__ import annotations

import contextlib
import hashlib
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg

from broker.db.engine import Database

CHANNEL = "broker_wake"


def _address(data_dir: Path) -> str:
    return "\0broker-wake-" + hashlib.sha256(bytes(data_dir)).hexdigest()[:32]


def send_wake(db: Database, data_dir: Path) -> None:
    """Wake the worker, if one listens; never raises, since the worker's own tick is the guarantee."""
    if db.is_sqlite:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(b"!", _address(data_dir))
        return
    with contextlib.suppress(Exception), db.engine.connect() as connection:
        connection.exec_driver_sql(f"NOTIFY {CHANNEL}")
        connection.commit()


@contextlib.contextmanager
def listen(db: Database, data_dir: Path, woken: threading.Event) -> Iterator[None]:
    """Set `woken` whenever somebody calls `send_wake`, until the block ends."""
    stop = threading.Event()
    target = _listen_socket if db.is_sqlite else _listen_postgres
    thread = threading.Thread(target=target, args=(db, data_dir, woken, stop), name="wake", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


def _listen_socket(_db: Database, data_dir: Path, woken: threading.Event, stop: threading.Event) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(_address(data_dir))
        while not stop.is_set():
            ready, _, _ = select.select([receiver], [], [], 0.5)
            if ready:
                receiver.recv(16)
                woken.set()


def _listen_postgres(db: Database, _data_dir: Path, woken: threading.Event, stop: threading.Event) -> None:
    url = db.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    while not stop.is_set():
        with contextlib.suppress(psycopg.Error), psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"LISTEN {CHANNEL}")
            while not stop.is_set():
                for _ in connection.notifies(timeout=0.5, stop_after=1):
                    woken.set()
        stop.wait(1)  # the database went away; the worker's own ticks go on meanwhile
