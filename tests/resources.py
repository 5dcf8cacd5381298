"""A cluster of emulated nodes, the worker's keeper of what is seen of it, and people who read that."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select

from broker.db import utcnow
from broker.errors import Unreachable
from broker.hosts import Completed, LocalHost
from broker.identity import Role
from broker.resources.keeper import ResourceKeeper
from broker.runs.tables import JobRow
from broker.slurm import QueueJob, QueueSnapshot, SlurmClient, SlurmState
from tests.api_support import Api, worker_lease
from tests.queue_jobs import queue_job, running_run
from tests.recordings import printed

RECORDED = printed("nodes").splitlines()
START = datetime(2026, 3, 1, tzinfo=UTC)


def emulated(count: int) -> bytes:
    """The recorded nodes again and again under other names."""
    lines = (RECORDED[n % len(RECORDED)] for n in range(count))
    named = (re.sub(r"NodeName=\S+", f"NodeName=n{n}", line, count=1) for n, line in enumerate(lines))
    return ("\n".join(named) + "\n").encode()


class Login(LocalHost):
    """A login node that answers `scontrol show node`, counts what it was asked, and runs nothing else."""

    def __init__(self, nodes: bytes) -> None:
        super().__init__()
        self.nodes, self.asked, self.silent = nodes, [], False

    asked: list[list[str]]

    def run(
        self, argv: Sequence[str], *, stdin: Any = b"", timeout: float, readonly: bool = False
    ) -> Completed:
        self.asked.append(list(argv))
        if self.silent:
            raise Unreachable("no route")
        assert argv[-4:] == ["-o", "-d", "show", "node"], argv
        return Completed(0, self.nodes, b"")


class World:
    """One cluster with emulated nodes, a keeper, and the API on the same database."""

    def __init__(self, api: Api, nodes: int) -> None:
        self.api, self.ctx = api, api.ctx
        self.host = Login(emulated(nodes))
        self.ctx._hosts["main"] = self.host
        self.ctx._slurm["main"] = SlurmClient(self.host)
        lease = worker_lease(self.ctx)
        self.lease = lease
        self.keeper = ResourceKeeper(self.ctx, "main", lease)
        for name, role, tenant in (
            ("root", Role.ADMIN, "default"),
            ("ann", Role.RESEARCHER, "red"),
            ("amy", Role.RESEARCHER, "red"),
            ("eye", Role.VIEWER, "red"),
            ("bob", Role.RESEARCHER, "blue"),
        ):
            api.add(name, role, tenant)

    def run_of(self, who: str, number: int) -> str:
        """A run whose trainer Slurm runs under `number`."""
        return running_run(self.api, who, number)[0]

    def queue_job(self, number: int, node: str, name: str = "strange", gpus: int = 2) -> QueueJob:
        with self.ctx.db.read() as session:
            ours = session.scalar(select(JobRow.name).where(JobRow.slurm_job_id == number))
        has = f"cpu=4,mem=8G,node=1,gres/gpu={gpus},gres/gpu:a100={gpus}"
        more: dict[str, Any] = {
            "account": "red",
            "submit": START,
            "start": START,
            "nodes": (node,),
            "cpus": 4,
        }
        return queue_job(number, ours or name, has, state=SlurmState.RUNNING, reason="None", **more)

    def tick(self, *jobs: QueueJob) -> None:
        self.keeper.see(QueueSnapshot(utcnow(), jobs))
        self.keeper.tick()

    def get(self, path: str, who: str = "root", **query: Any) -> Any:
        answer = self.api.call("GET", path, who, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()


NUMBER = itertools.count()
