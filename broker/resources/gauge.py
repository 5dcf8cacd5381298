"""The worker's look at what its running jobs use: CPU and memory by Slurm, GPUs by whoever knows.

Per tick: one `sstat` and one command for the samplers' files for each Unix account whose jobs run, one query
to Prometheus where there is one. None of them stands in another's way: what did not answer is unknown, until
the next tick. `sstat` asks each job's nodes one after the other, so at most so many jobs are asked about in
one tick, those longest ago first.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

import structlog

from broker.compiler.names import gpu_samples
from broker.context import Context
from broker.db import utcnow
from broker.db.leases import Lease
from broker.errors import BrokerError
from broker.hosts.files import tail_all
from broker.resources import dcgm, nvidia_smi
from broker.resources.idle import Standing
from broker.resources.idling import follow_gpus, rule_of, tell
from broker.resources.job_usage import Taken, forget_usage, keep_usage
from broker.resources.usage import CpuMeter, GpuUse, JobUse, Source, choose, slurm_use, with_slurm
from broker.runs.tables import JobRow
from broker.runs.telemetry import contained, everybodys, slurm_call
from broker.runs.views import running_jobs
from broker.slurm import QueueJob, QueueSnapshot, SlurmClient, StepUsage

log = structlog.get_logger("broker.resources")

AT_ONCE = 500
"""Jobs in one `sstat`."""
TAIL = 16 * 1024
"""Bytes of a sampler's file that are read: some minutes of eight GPUs. Of slices all that is written."""
SLICES = 256 * 1024
FRESH_INTERVALS = 3
"""A sampler that has not written for so many of its intervals is not believed any more."""
FORGET_S = 3600.0


class Gauge:
    """Measures the running jobs of one cluster. Used by one thread; `see` may be called by another."""

    def __init__(self, ctx: Context, cluster: str, lease: Lease) -> None:
        self._ctx, self._cluster, self._lease = ctx, cluster, lease
        self._settings = ctx.cluster(cluster)
        self._queue: QueueSnapshot | None = None
        self._meters: dict[str, CpuMeter] = {}
        self._asked: dict[str, tuple[int, float]] = {}
        self._forget_after = 0.0
        self._nodes: tuple[datetime, dict[str, tuple[float, int]]] | None = None

    def nodes(self, now: datetime) -> dict[str, tuple[float, int]]:
        """What our jobs' samplers saw a moment ago, by node: (GPUs' worth of use, GPUs). For any thread."""
        seen = self._nodes
        fresh = timedelta(seconds=FRESH_INTERVALS * self._settings.usage_interval_s)
        return seen[1] if seen is not None and now - seen[0] <= fresh else {}

    def see(self, snapshot: QueueSnapshot) -> None:
        """The queue was just looked at: what each job was given stands there."""
        self._queue = snapshot

    def tick(self) -> None:
        """Measure once everything of ours that runs, and keep it."""
        allocated = {job.job_id: job for job in self._queue.jobs} if self._queue else {}
        accounts: dict[str | None, list[JobRow]] = defaultdict(list)
        running = self._running()
        for job, account in running:
            entry = allocated.get(job.slurm_job_id or 0)
            if entry is not None and entry.name == job.name:
                accounts[account].append(job)
        now = utcnow()
        by_job = self._dcgm(now) if accounts else {}
        taken: list[Taken] = []
        for account, jobs in accounts.items():
            steps = self._steps(account, jobs)
            sampled = self._sampled(account, jobs, allocated)
            for job in jobs:
                with contained("use_not_seen", cluster=self._cluster, run_id=job.run_id):
                    entry = allocated[job.slurm_job_id or 0]
                    # job ids are a cluster's own, and a Prometheus may scrape several
                    gpus = [gpu for gpu in by_job.get(entry.job_id, ()) if gpu.node in entry.nodes]
                    gpus += sampled.get(job.id, ())
                    use = self._use(job, entry, steps.get(entry.job_id, []), gpus)
                    if not use.empty:
                        taken.append(Taken(job, entry, use))
        alive = {job.id for jobs in accounts.values() for job in jobs}
        self._meters = {key: meter for key, meter in self._meters.items() if key in alive}
        self._asked = {key: at for key, at in self._asked.items() if key in alive}
        self._nodes = now, used_by_node(one.use for one in taken)
        self._keep(now, taken, [job for job, _ in running])

    def _running(self) -> list[tuple[JobRow, str | None]]:
        with self._ctx.db.read() as session:
            running = running_jobs(session, self._cluster)
        return [(job, account) for job, account in running if job.slurm_job_id is not None]

    def _dcgm(self, now: datetime) -> dict[int, Sequence[GpuUse]]:
        url = self._settings.prometheus_url
        try:
            return dict(dcgm.ask(url, now).jobs) if url is not None else {}
        except BrokerError as error:
            log.warning("gpu_use_unknown", cluster=self._cluster, detail=error.detail)
            return {}

    def _steps(self, account: str | None, jobs: Sequence[JobRow]) -> dict[int, list[StepUsage]]:
        """What sstat says, as the jobs' owner: an Operator is refused other people's.

        Jobs that it said nothing of the last times come last: a silent node holds up the others' answers.
        """
        due = sorted(jobs, key=lambda job: self._asked.get(job.id, (0, 0.0)))[:AT_ONCE]
        found: dict[int, list[StepUsage]] = defaultdict(list)
        try:
            with slurm_call(self._cluster, "usage"):
                for step in self._slurm(account).running_usage([job.slurm_job_id or 0 for job in due]):
                    found[step.job_id].append(step)
        except BrokerError as error:
            log.warning("usage_unknown", cluster=self._cluster, account=account, detail=error.detail)
        for job in due:
            missed = 0 if (job.slurm_job_id or 0) in found else self._asked.get(job.id, (0, 0.0))[0] + 1
            self._asked[job.id] = missed, time.monotonic()
        return found

    def _slurm(self, account: str | None) -> SlurmClient:
        if account is None:
            return self._ctx.slurm(self._cluster)
        host = self._ctx.host_for(self._cluster, account)
        return SlurmClient(host, timeout_s=self._settings.command_timeout_s, path=self._settings.path)

    def _sampled(
        self, account: str | None, jobs: Sequence[JobRow], allocated: dict[int, QueueJob]
    ) -> dict[str, list[GpuUse]]:
        """What the samplers of jobs with GPUs have written."""
        places: dict[str, tuple[JobRow, str]] = {}
        profile = self._ctx.profile(self._cluster)
        for job in jobs if profile.gpu_sample_s else ():
            entry = allocated[job.slurm_job_id or 0]
            for number, node in enumerate(entry.nodes if entry.tres.gpus else ()):
                path = gpu_samples(profile, job.run_id, job.component, job.attempt, job.restarts, number)
                places[path] = job, node
        if not places:
            return {}
        host = self._ctx.host_for(self._cluster, account)
        try:
            texts = tail_all(host, [f"{path}.csv" for path in places], TAIL)
            sliced = [path for path in places if ", Enabled" in texts.get(f"{path}.csv", "")]
            texts |= tail_all(host, [f"{path}.mig" for path in sliced], SLICES) if sliced else {}
        except BrokerError as error:
            log.warning("samples_not_read", cluster=self._cluster, account=account, detail=error.detail)
            return {}
        now, found = utcnow(), defaultdict[str, list[GpuUse]](list)
        window = timedelta(
            seconds=max(self._settings.usage_interval_s, FRESH_INTERVALS * profile.gpu_sample_s)
        )
        for path, (job, node) in places.items():
            with contained("samples_not_understood", cluster=self._cluster, run_id=job.run_id):
                samples = nvidia_smi.parse_samples(texts.get(f"{path}.csv", ""))
                slices = _slices(texts.get(f"{path}.mig"))
                found[job.id] += nvidia_smi.use_of(node, samples, slices, now, window)
        return found

    def _use(
        self, job: JobRow, entry: QueueJob, steps: Sequence[StepUsage], gpus: Sequence[GpuUse]
    ) -> JobUse:
        now = utcnow()
        meter = self._meters.get(job.id)
        if meter is None or meter.restart != job.restarts:
            meter = self._meters[job.id] = CpuMeter(job.restarts, job.started_at or now)
        memory, whole = slurm_use(now, steps, entry.tres.gpus)
        return with_slurm(choose([*gpus, *whole], entry.tres.gpus), meter.look(now, steps), memory)

    def _keep(self, now: datetime, taken: Sequence[Taken], running: Sequence[JobRow]) -> None:
        """Everything in one transaction; where a defect in one run's undoes that, each run in its own."""
        try:
            found = self._store(now, taken, running)
        except Exception as error:
            if everybodys(error):
                raise
            log.warning("looks_kept_one_by_one", cluster=self._cluster, detail=str(error))
            found = {}
            for run_id in {job.run_id for job in running}:
                with contained("use_not_kept", cluster=self._cluster, run_id=run_id):
                    of_run = [one for one in taken if one.job.run_id == run_id]
                    found |= self._store(now, of_run, [job for job in running if job.run_id == run_id])
        if time.monotonic() >= self._forget_after:
            with self._ctx.db.write() as session:
                self._lease.confirm(session)
                forget_usage(session, self._ctx.settings.resources, now)
            self._forget_after = time.monotonic() + FORGET_S
        tell(self._ctx, self._cluster, self._lease, now, running, found)

    def _store(self, now: datetime, taken: Sequence[Taken], running: Sequence[JobRow]) -> dict[str, Standing]:
        """Store the look at some jobs in one transaction; how their GPUs stand (`follow_gpus`)."""
        rule = rule_of(self._ctx, self._cluster)
        if not (taken or running):
            return {}
        with self._ctx.db.write() as session:
            self._lease.confirm(session)
            keep_usage(session, self._cluster, now, taken)
            uses = {one.job.id: one.use for one in taken}
            return follow_gpus(session, rule, now, running, uses) if rule is not None else {}


def used_by_node(looks: Iterable[JobUse]) -> dict[str, tuple[float, int]]:
    """(GPUs' worth of use, GPUs) of each node whose jobs measured themselves."""
    found: dict[str, tuple[float, int]] = {}
    for use in looks:
        for gpu in use.gpus:
            if gpu.source is Source.SAMPLER and gpu.util is not None:
                worth, count = found.get(gpu.node, (0.0, 0))
                found[gpu.node] = worth + gpu.util / 100, count + 1
    return found


def _slices(text: str | None) -> list[nvidia_smi.Slice]:
    try:
        return nvidia_smi.parse_slices(text) if text else []
    except ValueError:
        return []
