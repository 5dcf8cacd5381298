"""A private PostgreSQL for the tests: its own data folder, user, socket and loopback port; gone at the end.

Where its programs are missing the fixture fails: a test that did not run must not look like one that passed.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from tests.harness.processes import free_port

_NUMBER = itertools.count()
_OPTIONS = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=200")


def programs() -> Path:
    """Where initdb and postgres lie: on PATH, or where Debian puts them."""
    candidates = [Path(found).resolve().parent for found in [shutil.which("initdb")] if found]
    candidates += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in candidates:
        if (folder / "initdb").is_file() and (folder / "postgres").is_file():
            return folder
    raise FileNotFoundError("PostgreSQL's server is missing: apt-get install postgresql")


@contextmanager
def server() -> Iterator[str]:
    """Run a server; the SQLAlchemy URL of its database `broker`."""
    folder = programs()
    # postgres refuses to run as root; Debian's package makes an account for it
    owner = pwd.getpwnam("postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name)
    account = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    base = Path(tempfile.mkdtemp(prefix="broker-pg-"))
    os.chown(base, owner.pw_uid, owner.pw_gid)
    data, log = base / "data", base / "log"
    subprocess.run(
        [folder / "initdb", "-D", data, "-U", "broker", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"],
        check=True,
        capture_output=True,
        cwd=base,
        **account,
    )
    port = free_port()
    argv = [str(folder / "postgres"), "-D", str(data), "-k", str(base), "-h", "127.0.0.1", "-p", str(port)]
    argv += [part for option in _OPTIONS for part in ("-c", option)]
    with log.open("wb") as output:
        process = subprocess.Popen(argv, stdout=output, stderr=output, cwd=base, **account)
    try:
        # pg_ctl would detach it: a child of ours ends with us. pg_isready waits for the server's own word.
        _await_ready(folder, process, base, port, log)
        with psycopg.connect(
            host="127.0.0.1", port=port, user="broker", dbname="postgres", autocommit=True
        ) as c:
            c.execute("create database broker")
        yield f"postgresql+psycopg://broker@127.0.0.1:{port}/broker"
    finally:
        process.send_signal(2)  # fast shutdown
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(base, ignore_errors=True)


def _await_ready(folder: Path, process: subprocess.Popen[bytes], base: Path, port: int, log: Path) -> None:
    for _ in range(300):
        if process.poll() is not None:
            raise RuntimeError(f"PostgreSQL ended at once:\n{log.read_text(errors='replace')}")
        ready = subprocess.run(
            [folder / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port), "-t", "1"],
            check=False,
            cwd=base,
        )
        if ready.returncode == 0:
            return
        try:
            process.wait(timeout=0.1)
        except subprocess.TimeoutExpired:
            continue
    raise RuntimeError(f"PostgreSQL did not become ready:\n{log.read_text(errors='replace')}")


def fresh_database(url: str, name: str) -> str:
    """A new empty database on the same server; its URL."""
    parsed = make_url(url)
    with psycopg.connect(
        host=parsed.host, port=parsed.port, user=parsed.username, dbname="postgres", autocommit=True
    ) as connection:
        connection.execute(f'create database "{name}"')  # type: ignore[arg-type]
    return parsed.set(database=name).render_as_string(hide_password=False)


def database_of(request: pytest.FixtureRequest) -> str | None:
    """What a fixture runs on whose parameter is `sqlite` (also where it has none) or `postgres`: None for
    SQLite in the context's own folder, or a new empty database on the session's server.
    """
    if getattr(request, "param", "sqlite") == "sqlite":
        return None
    return fresh_database(request.getfixturevalue("postgres_url"), f"test-{next(_NUMBER)}")


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a running server's database."""
    with server() as url:
        yield url
