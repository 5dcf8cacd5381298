"""Runs whose trainers run in Slurm, a gauge that looks at them, and the API on the same database.

Slurm is not here: a host answers `sstat` in the form that was recorded (tests/contract/recordings), and runs
every other command really, so that the samplers' files are real files on this machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from broker.compiler.names import gpu_samples
from broker.db import utcnow
from broker.errors import Unreachable
from broker.hosts import Completed, LocalHost
from broker.identity import Role
from broker.resources.gauge import Gauge
from broker.slurm import QueueJob, QueueSnapshot, SlurmClient, SlurmState
from tests.api_support import Api, worker_lease
from tests.queue_jobs import queue_job, running_run

MINUTE = timedelta(minutes=1)
ROW = "{0}.batch|1|00:00:00|1|cpu={1},mem={2}\n"


class Login(LocalHost):
    """A login node on which sstat says what the test says. `asked`: every sstat's job ids."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, tuple[str, int]] = {}
        self.asked: list[list[int]] = []
        self.commands = 0
        self.silent = False

    def run(
        self, argv: Sequence[str], *, stdin: Any = b"", timeout: float, readonly: bool = False
    ) -> Completed:
        self.commands += 1
        if "sstat" not in argv:
            return super().run(argv, stdin=stdin, timeout=timeout, readonly=readonly)
        if self.silent:
            raise Unreachable("no route")
        ids = [int(word) for word in argv[list(argv).index("-j") + 1].split(",")]
        self.asked.append(ids)
        known = [ROW.format(job_id, *self.rows[job_id]) for job_id in ids if job_id in self.rows]
        unknown = [f"sstat: error: couldn't get steps for job {n}" for n in ids if n not in self.rows]
        return Completed(0, "".join(known).encode(), "\n".join(unknown).encode())


class World:
    """Runs whose trainers run in Slurm, a gauge, and the API on the same database."""

    def __init__(self, api: Api) -> None:
        self.api, self.ctx, self.host = api, api.ctx, Login()
        self.ctx._hosts["main"] = self.host
        self.ctx._slurm["main"] = SlurmClient(self.host)
        lease = worker_lease(self.ctx)
        self.lease = lease
        self.gauge = Gauge(self.ctx, "main", lease)
        self.queue: dict[int, QueueJob] = {}
        for name, role, tenant in (
            ("ann", Role.RESEARCHER, "red"),
            ("eye", Role.VIEWER, "red"),
            ("bob", Role.RESEARCHER, "blue"),
        ):
            api.add(name, role, tenant)

    def run_of(self, who: str, number: int, gpus: int = 2, nodes: tuple[str, ...] = ("n1",)) -> str:
        """A run whose trainer Slurm runs under `number`."""
        run_id, name = running_run(self.api, who, number)
        has = f"cpu=8,mem=16G,node=1,gres/gpu={gpus},gres/gpu:a100={gpus}"
        seen = {"state": SlurmState.RUNNING, "reason": "None", "account": "red", "nodes": nodes, "cpus": 8}
        self.queue[number] = queue_job(number, name, has, **seen)
        return run_id

    def sample(self, run_id: str, *lines: str, node: int = 0, suffix: str = "csv", restart: int = 0) -> None:
        """What the sampler of the run's trainer has written on a node."""
        place = gpu_samples(self.ctx.profile("main"), run_id, "trainer", 1, restart, node)
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        Path(f"{place}.{suffix}").write_text("\n".join(lines) + "\n")

    def tick(self) -> None:
        self.gauge.see(QueueSnapshot(utcnow(), tuple(self.queue.values())))
        self.gauge.tick()

    def usage(self, run_id: str, who: str = "ann", **query: Any) -> Any:
        answer = self.api.call("GET", f"/runs/{run_id}/usage", who, params=query)
        assert answer.status_code == 200, answer.text
        return next(job for job in answer.json()["jobs"] if job["component"] == "trainer")


def line(index: int, util: int | str, memory: int = 1000, at: datetime | None = None) -> str:
    when = (at or utcnow()).strftime("%Y/%m/%d %H:%M:%S.%f")[:-3]
    return f"{when}, {index}, GPU-{index}, {util}, 1, {memory}, 40960, 50, 200.0, Disabled"
