"""Two tenants with one of everything, for asking who sees what of whose."""

from __future__ import annotations

import hashlib
import io
import sqlite3
import tarfile
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from sqlalchemy import select

from broker.compiler import ResolvedImage
from broker.context import Context
from broker.db import leases, utcnow
from broker.identity import Role
from broker.models.tables import ModelRow, ModelVersionRow
from broker.notifications import notify
from broker.notifications.courier import LEASE
from broker.notifications.outbox import distribute
from broker.notifications.tables import DeliveryRow
from broker.objects.manifest import Manifest, StoredFile
from broker.resources.samples import keep_samples, samples_of, tenants_amounts
from broker.resources.snapshot import summarize
from broker.resources.tables import ResourceRow
from broker.runs.holding import plan_known
from broker.runs.planning import Resolved, encode, make_plan
from broker.runs.states import JobState, Phase, RunState
from broker.runs.tables import JobRow, RunRow, SubmissionRow
from broker.slurm import Node, parse_tres
from tests.accounting import job, keep
from tests.api_support import Api, spec

OURS, THEIRS = "cherry", "blueberry"
NODE = Node(
    name="node-1",
    state="MIXED",
    flags=frozenset(),
    partitions=("gpu",),
    features=(),
    total=parse_tres("cpu=64,mem=512G,gres/gpu=4,gres/gpu:a100=4"),
    used=parse_tres("cpu=4,mem=1G,gres/gpu=2,gres/gpu:a100=2"),
    memory_free_mib=None,
    load=None,
    reason="",
    boot=None,
)
LARGE = {"components": {"trainer": {"gpu_count": 8}}}


def archive() -> bytes:
    """A code archive with one file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as out:
        info = tarfile.TarInfo("train.py")
        info.size = 12
        out.addfile(info, io.BytesIO(b"print('hi')\n"))
    return buffer.getvalue()


class Tenant:
    """A tenant's people and things. Every text of it holds the tenant's name, so that a leak is seen."""

    def __init__(self, api: Api, name: str) -> None:
        self.api, self.name = api, name
        self.owner, self.boss = f"{name}-owner", f"{name}-boss"
        api.add(self.boss, Role.TENANT_ADMIN, name)
        owner_id = api.add(self.owner, tenant=name)
        self.ids: dict[str, str] = {"tenant": name, "user": self.owner, "user_id": owner_id}
        self._work()
        self._results()
        self._accounted()
        self._around()

    def ask(self, method: str, path: str, who: str, body: Any = None, **more: Any) -> Any:
        """A request that must succeed; its JSON."""
        answer = self.api.call(method, path, who, **({"json": body} if body is not None else {}), **more)
        assert answer.status_code < 300, (path, answer.text)
        return answer.json()

    def _work(self) -> None:
        document = spec(
            pipeline_id=f"{self.name}-digits", name=f"{self.name} digits", env_vars={"WHOSE": self.name}
        )
        for component in document["components"]:
            component["image"]["registry"] = f"registry.example.org/{self.name}/{component['name']}"
        stored = self.ask("POST", "/pipelines", self.owner, document)
        self.ids["pipeline"] = stored["pipeline"]["id"]
        for kind, overrides in (("run", None), ("done", None), ("failed", None), ("large", LARGE)):
            body = {"pipeline": self.ids["pipeline"]} | ({"overrides": overrides} if overrides else {})
            self.ids[kind] = self.ask("POST", "/runs", self.owner, body)["id"]
        job = {
            "job_name": f"{self.name} job",
            "image": {"registry": f"registry.example.org/{self.name}/x", "tag": "1"},
        }
        self.ids["gpu_job"] = self.ask("POST", "/gpu-jobs/submit", self.owner, job)["job_id"]
        headers = {"Content-Type": "application/gzip"}
        upload = self.api.call("POST", "/uploads", self.owner, headers, content=archive())
        self.ids["upload"] = upload.json()["upload_id"]

    def _results(self) -> None:
        for kind in ("run", "large"):
            compile_run(self.api.ctx, self.ids[kind], self.name)
        end_run(self.api.ctx, self.ids["failed"], RunState.FAILED, JobState.FAILED)
        end_run(self.api.ctx, self.ids["done"], RunState.SUCCEEDED, JobState.COMPLETED)
        self.ids["model"] = store_results(self.api.ctx, self.ids["done"], self.name)

    def _accounted(self) -> None:
        """A job of the owner in the accounting warehouse."""
        begun = int(utcnow().timestamp()) - 7200
        number = int(hashlib.sha256(self.name.encode()).hexdigest()[:6], 16)
        names = {"name": f"{self.name} job", "account": self.name, "unix_user": self.owner}
        one = job(number, begun, user=self.owner, tenant=self.name, **names)
        with self.api.ctx.db.write() as session:
            keep(session, one)

    def _around(self) -> None:
        self.ids["key"] = self.ask("POST", "/keys", self.owner, {"name": f"{self.name} key"})["id"]
        hook = {"url": f"https://hooks.example.org/{self.name}"}
        self.ids["webhook"] = self.ask("POST", "/webhooks", self.boss, hook)["id"]
        self.ask("PUT", f"/tenants/{self.name}/quota", "root", {"api_calls_per_day": 10**9})
        prefs = {"email": f"all@{self.name}.example.org"}
        self.ask("PUT", f"/notifications/preferences/{self.name}", self.boss, prefs)
        ctx = self.api.ctx
        with ctx.db.write() as session:
            notify(
                session,
                "run_failed",
                self.name,
                subject=f"{self.name} digits",
                data={"run": self.ids["failed"]},
                user_id=self.ids["user_id"],
            )
        lease = leases.acquire(ctx.db, LEASE, "test", 300)
        assert lease is not None
        distribute(ctx.db, lease, ctx.settings.notifications)
        with ctx.db.write() as session:
            row = session.scalars(
                select(DeliveryRow).where(DeliveryRow.target == self.ids["webhook"])
            ).first()
            assert row is not None
            row.state, row.ended_at = "dead", utcnow()
            self.ids["delivery"] = row.id
        self._on_a_node()

    def _on_a_node(self) -> None:
        """A job of the tenant on the node that everybody sees, and its part in the use over time."""
        running = {
            "job_id": 17,
            "user": f"{self.name}-unix",
            "partition": "gpu",
            "state": "RUNNING",
            "since": None,
            "run_id": self.ids["run"],
            "component": "trainer",
            "tenant": self.name,
            "owner_id": self.ids["user_id"],
        }
        now = utcnow()
        with self.api.ctx.db.write() as session:
            row = session.get(ResourceRow, "main")
            jobs = [*(row.nodes[0]["jobs"] if row else []), running]
            look = summarize([NODE], {}, {NODE.name: jobs})
            amounts = {"cluster": asdict(look.cluster), "partitions": {}}
            session.merge(
                ResourceRow(
                    cluster="main", taken_at=now, all_jobs=True, summary=amounts, nodes=list(look.nodes)
                )
            )
            mine = tenants_amounts([(self.name, 2, 4, 1024)])
            at = now - timedelta(minutes=len(jobs))  # one look each
            keep_samples(session, list(samples_of("main", at, look, mine)))


def compile_run(ctx: Context, run_id: str, tenant: str) -> None:
    """What the worker does when the images are on the cluster: the plan is stored."""
    with ctx.db.write() as session:
        run = session.get_one(RunRow, run_id)
        images = {
            f"registry.example.org/{tenant}/{name}:1.0": ResolvedImage(f"/images/{name}.sif", "sha256:1")
            for name in ("loader", "trainer")
        }
        run.resolved = Resolved(images, {}).document()
    plan, _ = make_plan(ctx, run_id)
    with ctx.db.write() as session:
        run = session.get_one(RunRow, run_id)
        row = SubmissionRow(run_id=run_id, attempt=run.attempt, plan=encode(plan), plan_hash=plan.plan_hash)
        row.intended_at = utcnow()
        session.merge(row)
        plan_known(session, run, plan.plan_hash)


def end_run(ctx: Context, run_id: str, state: RunState, jobs: JobState) -> None:
    """The worker's part of an end, without a cluster."""
    with ctx.db.write() as session:
        run = session.get_one(RunRow, run_id)
        run.state, run.phase, run.ended_at = state, Phase.DONE, utcnow()
        for job in session.scalars(select(JobRow).where(JobRow.run_id == run_id)):
            job.state = jobs


def store_results(ctx: Context, run_id: str, tenant: str) -> str:
    """A model with its log in the object store, as the collector leaves them; the model version's id."""
    files = []
    for path in ("outputs/best_model.pkl", "logs/training.log"):
        data = f"{tenant} {path}".encode()
        key = f"{tenant}/{path}"
        ctx.objects.put_bytes(key, data)
        files.append(StoredFile(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest(), key=key))
    manifest = Manifest.build(run=run_id, component="trainer", attempt=1, files=files, created_at=utcnow())
    ctx.objects.put_bytes(f"{tenant}/manifest.json", manifest.canonical())
    with ctx.db.write() as session:
        run = session.get_one(RunRow, run_id)
        job = session.scalars(
            select(JobRow).where(JobRow.run_id == run_id, JobRow.component == "trainer")
        ).one()
        job.storing, job.manifest_key, job.manifest_sha256 = (
            "stored",
            f"{tenant}/manifest.json",
            manifest.sha256,
        )
        model = ModelRow(
            id=f"mdl-{tenant}",
            pipeline_id=run.pipeline_id,
            component="trainer",
            name=f"{tenant} digits/trainer",
            tenant=tenant,
            latest_version=1,
            created_at=utcnow(),
        )
        session.add(model)
        session.flush()
        version = ModelVersionRow(
            id=f"mv-{tenant}",
            model_id=model.id,
            number=1,
            job_id=job.id,
            run_id=run_id,
            owner_id=run.owner_id,
            tenant=tenant,
            state="READY",
            size=5,
            files=2,
            artifact="outputs/best_model.pkl",
            training={},
            manifest_key=f"{tenant}/manifest.json",
            manifest_sha256=manifest.sha256,
            created_at=utcnow(),
        )
        session.add(version)
    return version.id


class Snapshot:
    """The whole SQLite database, to compare with and to go back to."""

    UNCOUNTED = frozenset({"quota_use"})
    """Counters of API calls are flushed when they are: a refused request counts as a call."""

    def __init__(self, ctx: Context) -> None:
        self._path = ctx.db.engine.url.database
        self._kept = sqlite3.connect(":memory:", check_same_thread=False)
        with sqlite3.connect(str(self._path)) as live:
            live.backup(self._kept)
        self.rows = _rows(self._kept)

    def changed(self) -> list[str]:
        """The tables that differ from what they were."""
        with sqlite3.connect(str(self._path)) as live:
            now = _rows(live)
        return [name for name in now if now[name] != self.rows[name] and name not in self.UNCOUNTED]

    def restore(self) -> None:
        """Everything as it was."""
        with sqlite3.connect(str(self._path)) as live:
            self._kept.backup(live)


def _rows(connection: sqlite3.Connection) -> dict[str, list[tuple[Any, ...]]]:
    names = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
    return {name: connection.execute(f'select * from "{name}"').fetchall() for name in names}
