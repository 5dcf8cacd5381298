"""A log that is far larger than what the server may grow by, on the cluster and stored, watched in every way.

The server is a real `broker serve`; "the cluster" is this machine, the store the embedded one. (5 GB, on a
cluster: `prove`.)
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from broker.compiler.names import log_paths
from broker.db import utcnow
from broker.objects import EmbeddedObjectStore, ObjectStore
from broker.objects.manifest import Manifest, StoredFile
from broker.runs.states import JobState, Phase, RunState
from broker.runs.tables import RunRow
from broker.runs.views import newest_jobs
from tests.api_support import PASSWORD, Api, context
from tests.harness.long_logs import watch_long_log, write_long_log
from tests.harness.processes import Process, free_port, until
from tests.harness.product import BROKER


@contextmanager
def server(home: Path, settings: dict[str, object]) -> Iterator[tuple[Process, httpx.Client]]:
    """`broker serve` on a database that is there already."""
    port = free_port()
    env = {name: text for name, text in os.environ.items() if not name.startswith(("BROKER_", "PROMETHEUS_"))}
    env |= {f"BROKER_{name.upper()}": json.dumps(value) for name, value in settings.items()}
    env |= {"BROKER_DATA_DIR": str(home / "data"), "BROKER_API__PORT": str(port)}
    process = Process("api", [str(BROKER), "serve"], env, home / "api.log")
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.alive, process.tail(40)
        try:
            return httpx.get(f"{url}/healthz", timeout=5, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    try:
        until(answers, 60, "the API answers", 0.1)
        with httpx.Client(base_url=f"{url}/api/v1", timeout=120, trust_env=False) as http:
            yield process, http
    finally:
        process.stop()


@pytest.mark.parametrize(("place", "mib"), [("cluster", 1024), ("store", 256)])
def test_a_long_log_is_watched_in_little_memory(tmp_path: Path, place: str, mib: int) -> None:
    clusters = {
        "main": {"transport": "local", "base_path": str(tmp_path / "jobs"), "default_cpus": 1},
    }
    with EmbeddedObjectStore(tmp_path / "s3") as endpoint:
        store = ObjectStore(endpoint.config("models"))
        store.ensure_bucket(())
        s3 = {
            "endpoint_url": endpoint.url,
            "access_key_file": str(endpoint.access_key_file),
            "secret_key_file": str(endpoint.secret_key_file),
        }
        with context(tmp_path / "data", objects=store, clusters=clusters) as ctx:
            api = Api(ctx)
            api.add("ann")
            assert api.store("ann").status_code == 201
            run_id = api.call("POST", "/runs", "ann", json={"pipeline": "digits"}).json()["id"]
            log = Path(log_paths(ctx.profile("main"), run_id, "trainer", 1, 0).training)
            log.parent.mkdir(parents=True)
            size = write_long_log(log, mib)
            with ctx.db.write() as session:
                run = session.get_one(RunRow, run_id)
                run.phase, run.state = Phase.STORING, RunState.RUNNING
                for number, job in enumerate(newest_jobs(session, run_id), 7):
                    job.slurm_job_id, job.started_at, job.ended_at = number, utcnow(), utcnow()
                    job.state, job.storing = JobState.COMPLETED, "failed"  # it is over, and not stored
            if place == "store":
                stored = keep(store, run_id, log)
                with ctx.db.write() as session:
                    job = next(job for job in newest_jobs(session, run_id) if job.component == "trainer")
                    job.storing, job.manifest_key, job.manifest_sha256 = "stored", "m.json", stored.sha256
            login = {"username": "ann", "password": PASSWORD}
        with server(tmp_path, {"clusters": clusters, "s3": s3}) as (process, http):
            token = http.post("/auth/login", json=login).json()["access_token"]
            http.headers["Authorization"] = f"Bearer {token}"
            path = f"/runs/{run_id}/components/trainer/logs"
            assert http.get(path, params={"limit": 1}).json()["source"] == place
            print(place, mib, "MiB:", watch_long_log(http, path, size, process.pid))


def keep(store: ObjectStore, run_id: str, log: Path) -> Manifest:
    """Store a log and its manifest, as the collector does."""
    with log.open("rb") as file:
        done = store.upload_stream(
            "long.log", iter(lambda: file.read(1 << 20), b""), size_hint=log.stat().st_size
        )
    digest = done.sha256 or hashlib.sha256(log.read_bytes()).hexdigest()
    entry = StoredFile(path="logs/training.log", size=log.stat().st_size, sha256=digest, key="long.log")
    manifest = Manifest.build(run=run_id, component="trainer", attempt=1, files=[entry], created_at=utcnow())
    store.put_bytes("m.json", manifest.canonical())
    log.unlink()
    return manifest
