"""The API as tests use it: a real database, real accounts, requests through the whole stack."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from broker import schema
from broker.api.app import create_app
from broker.context import Context
from broker.db import Database, leases
from broker.db.leases import Lease
from broker.identity import SYSTEM, Role
from broker.identity.passwords import hash_password
from broker.identity.schemas import TenantCreate, UserCreate
from broker.identity.service import create_user
from broker.identity.tables import TenantRow
from broker.identity.tenants import create_tenant
from broker.logging import configure_logging
from broker.objects import ObjectStore, S3Config
from broker.runs.tables import JobRow, RunRow
from broker.runs.views import attempt_jobs
from broker.settings import Settings
from tests.harness.product import UNLIMITED

configure_logging("json", "error")

_FOLDER = tempfile.TemporaryDirectory(prefix="broker-template-")  # goes with the process
PASSWORD = "correct-horse-battery"
NOBODY = S3Config(
    endpoint_url="http://127.0.0.1:9", bucket="models", access_key="a", secret_key="b", max_attempts=1
)

SPEC: dict[str, Any] = {
    "pipeline_id": "digits",
    "name": "Handwritten digits",
    "version": "1.0.0",
    "env_vars": {"EPOCHS": "3"},
    "components": [
        {
            "order": 1,
            "name": "loader",
            "type": "data_loader",
            "image": {"registry": "registry.example.org/loader", "tag": "1.0"},
            "resources": {"memory": "4GB", "cpus": 2},
            "params": {"split": 0.2},
        },
        {
            "order": 2,
            "name": "trainer",
            "type": "trainer",
            "image": {"registry": "registry.example.org/trainer", "tag": "1.0"},
            "resources": {"gpu_type": "A100", "gpu_count": 2, "memory": "64GB", "time": "2h"},
            "params": {},
        },
    ],
    "workflow": [{"from": "loader", "to": "trainer"}],
}


def spec(**changes: Any) -> dict[str, Any]:
    """The example spec with changed fields."""
    return copy.deepcopy(SPEC) | changes


@cache
def _template() -> Path:
    """A migrated, empty SQLite file, made once per process."""
    path = Path(_FOLDER.name) / "broker.sqlite3"
    db = Database(f"sqlite:///{path}")
    schema.upgrade(db)
    with db.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    return path


@cache
def password_hash() -> str:
    """The hash of PASSWORD, made once: argon2 takes a tenth of a second."""
    return hash_password(PASSWORD)


@contextmanager
def context(
    folder: Path, url: str | None = None, objects: ObjectStore | None = None, **settings: Any
) -> Iterator[Context]:
    """A context on a fresh database; S3 is an address where nobody listens unless a store is given."""
    folder.mkdir(parents=True, exist_ok=True)
    if url is None:
        shutil.copy(_template(), folder / "broker.sqlite3")
    defaults: dict[str, Any] = {
        "clusters": {"main": {"transport": "local"}},
        "data_dir": folder,
        "quotas": UNLIMITED,
    }
    made = Settings(**(defaults | {"database_url": url} | settings))
    db = Database(made.sqlalchemy_url)
    if url is not None:
        schema.upgrade(db)
    ctx = Context(settings=made, db=db, objects=objects or ObjectStore(NOBODY))
    try:
        yield ctx
    finally:
        ctx.close()


def worker_lease(ctx: Context) -> Lease:
    """The lease of cluster `main`, as its worker has it: for an hour, and renewed by nobody."""
    lease = leases.acquire(ctx.db, "worker:main", "test", 3600)
    assert lease is not None
    return lease


class Api:
    """A client of one application, as one account or another."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        self.app = create_app(ctx)
        self.http = TestClient(self.app, raise_server_exceptions=False)
        self.tokens: dict[str, str] = {}

    def add(
        self, username: str, role: Role = Role.RESEARCHER, tenant: str = "default", *, fresh: bool = False
    ) -> str:
        """Make an account with PASSWORD (one that must not be changed first, unless `fresh`); its id.

        Its tenant is made with it when there is none of that name.
        """
        with self.ctx.db.write() as session:
            if session.get(TenantRow, tenant) is None:
                create_tenant(session, SYSTEM, TenantCreate(name=tenant))
                session.flush()
            wanted = UserCreate(username=username, role=role, tenant=tenant)
            user = create_user(session, SYSTEM, wanted, password_hash())
            user.must_change_password = fresh
            session.flush()
        signer = self.app.state.authenticator.signer
        self.tokens[username], _ = signer.issue(user.id, user.role, user.token_version)
        return user.id

    def headers(self, username: str | None) -> dict[str, str]:
        """What a request as this account carries."""
        return {"Authorization": f"Bearer {self.tokens[username]}"} if username else {}

    def call(
        self,
        method: str,
        path: str,
        who: str | None = None,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> Any:
        """One request below /api/v1 (or from the root for a path like `/healthz`)."""
        root = path.split("/")[1] in {"healthz", "readyz", "metrics"}
        url = path if root else f"/api/v1{path}"
        return self.http.request(method, url, headers=self.headers(who) | dict(headers or {}), **more)

    def store(self, who: str, document: Mapping[str, Any] | None = None) -> Any:
        """Store a spec."""
        return self.call("POST", "/pipelines", who, content=json.dumps(document or SPEC))


def codes(response: Any) -> set[str]:
    """The codes of what a problem names."""
    return {item["code"] for item in response.json()["errors"]}


def row(ctx: Context, run_id: str) -> RunRow:
    """A run as it is stored."""
    with ctx.db.read() as session:
        return session.get_one(RunRow, run_id)


def jobs_of(ctx: Context, run_id: str) -> dict[str, JobRow]:
    """The jobs of a run's latest attempt, by component."""
    with ctx.db.read() as session:
        run = session.get_one(RunRow, run_id)
        return {job.component: job for job in attempt_jobs(session, run_id, run.attempt)}
