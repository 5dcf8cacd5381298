"""Slurm of one cluster, through its command line, on the host where that is installed.

Few calls, each for many jobs. Nothing is cached but the capabilities. Reads raise `Unreachable` when Slurm or
the host does not answer; changes give a result per job instead, because one answer rarely fits all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from broker.errors import BrokerError, OutcomeUnknown, Unreachable
from broker.hosts import Host
from broker.slurm import changes
from broker.slurm.accounts import Manage, Membership, Memberships, QosLimits, QosLimitsList
from broker.slurm.cluster import (
    AccountingFields,
    Capabilities,
    ClusterVersion,
    Controller,
    Node,
    Nodes,
    Partition,
    Partitions,
    Ping,
    ReadConfig,
    WhoAmI,
)
from broker.slurm.command import DONE, Command, Result, ResultKind
from broker.slurm.events import NodeEvent, NodeEvents, ReservationRecord, Reservations
from broker.slurm.held import BatchScripts, Held, HeldJob
from broker.slurm.queue import (
    CLOCK_SKEW,
    Accounting,
    AccountingJob,
    Queue,
    QueueJob,
    QueueSnapshot,
    latest,
)
from broker.slurm.sharing import JobPriority, Priorities, Qos, QosList, Share, Shares
from broker.slurm.states import SlurmState
from broker.slurm.usage import LIMIT_S, RunningUsage, StepUsage
from broker.slurm.versions import accounting_fields

T = TypeVar("T")
Item = TypeVar("Item", int, str)

_WORDS = 48 * 1024
"""Bytes of ids or names in one command line: Linux takes 128 KiB for one word, and sshd passes one word."""
_SCRIPTS = 200
"""Batch scripts in one `scontrol`: some MB."""
_CHANGES = 500
"""Changes in one `scontrol`: 0.5 s when all is well."""


class SlurmClient:
    """The operations of the broker on one cluster. Every method may be called from any thread."""

    def __init__(self, host: Host, *, timeout_s: float = 60.0, path: str = "") -> None:
        self._host, self._timeout_s, self._path = host, timeout_s, path
        self._lock = threading.Lock()
        self._one_sacct = threading.Lock()
        self._capabilities: Capabilities | None = None

    # ---- what this Slurm is ---------------------------------------------------------------------

    def capabilities(self) -> Capabilities:
        """Release, configuration, sacct's fields, our account's name. Read once."""
        with self._lock:
            if self._capabilities is None:
                config = self._ask(ReadConfig())
                fields = self._ask(AccountingFields())
                self._capabilities = Capabilities(
                    version=self._ask(ClusterVersion()),
                    config=config,
                    accounting_fields=accounting_fields(fields),
                    user=self._ask(WhoAmI()),
                )
            return self._capabilities

    @property
    def known_version(self) -> str | None:
        """Slurm's release, once the capabilities have been read; asks nobody."""
        known = self._capabilities
        return str(known.version) if known else None

    def ping(self) -> tuple[Controller, ...]:
        """The controllers and whether each answers."""
        return self._ask(Ping())

    def nodes(self) -> tuple[Node, ...]:
        """All compute nodes, with what is used of them."""
        return self._ask(Nodes())[0]

    def partitions(self) -> tuple[Partition, ...]:
        """All partitions that this account may see."""
        return self._ask(Partitions())[0]

    def priorities(self) -> tuple[JobPriority, ...]:
        """Why pending jobs stand where they stand; held ones are absent."""
        return self._ask(Priorities())[0]

    def shares(self) -> tuple[Share, ...]:
        """The tree of fair shares."""
        return self._ask(Shares())[0]

    def node_events(self, cluster: str, since: int) -> tuple[tuple[NodeEvent, ...], tuple[str, ...]]:
        """What happened to nodes of a `ClusterName` since (epoch seconds), and lines not understood."""
        return self.sacct(NodeEvents(cluster, since))

    def reservations(self, cluster: str, since: int) -> tuple[tuple[ReservationRecord, ...], tuple[str, ...]]:
        """Reservations of a `ClusterName` since (epoch seconds), and lines not understood."""
        return self.sacct(Reservations(cluster, since))

    def qos(self) -> tuple[Qos, ...]:
        """The classes of service and their limits."""
        return self._ask(QosList())[0]

    def qos_limits(self) -> tuple[QosLimits, ...]:
        """What each QOS lets its jobs do."""
        return self._ask(QosLimitsList())[0]

    def memberships(self) -> tuple[Membership, ...]:
        """The accounts of this cluster and the people in them."""
        return self._ask(Memberships(self.capabilities().config.cluster_name))[0]

    def manage(self, words: Sequence[str]) -> str:
        """One change to accounts, people or QOS (`Manage`); Slurm's words. Read back what came of it."""
        return self._ask(Manage(tuple(words)))

    # ---- jobs -----------------------------------------------------------------------------------

    def jobs(self, user: str | None = None, names: Sequence[str] | None = None) -> QueueSnapshot:
        """The queue, or one user's part of it, or the jobs of these names; ended jobs for `MinJobAge` yet."""
        taken_at = datetime.now(UTC)
        jobs: list[QueueJob] = []
        bad: list[str] = []
        for part in _parts(names) if names is not None else [()]:
            found, not_understood = self._ask(Queue(user=user, names=part))
            jobs += found
            bad += not_understood
        return QueueSnapshot(taken_at, tuple(jobs), tuple(bad))

    def find_by_name(
        self, names: Sequence[str], since: datetime, user: str | None = None
    ) -> dict[str, list[int]]:
        """Ids of jobs with these names, oldest first: in the queue, and for those not there in accounting.

        Only jobs of `user` (ours by default): anyone may name a job like one of ours. A name without a job is
        absent. Both places are needed: accounting lists held jobs late, the queue forgets ended ones.
        """
        owner = user or self.capabilities().user
        found: dict[str, set[int]] = {}
        for job in self.jobs(owner, names).jobs:
            if job.user == owner and (job.submit is None or job.submit >= since - CLOCK_SKEW):
                found.setdefault(job.name, set()).add(job.array_id or job.job_id)
        for part in _parts([name for name in names if name not in found]):
            command = Accounting(self.capabilities().accounting_fields, names=part, user=owner, since=since)
            for attempt in latest(self._account(command), since):
                if attempt.user == owner:
                    found.setdefault(attempt.name, set()).add(attempt.array_id or attempt.job_id)
        return {name: sorted(found[name]) for name in names if name in found}

    def accounting(self, job_ids: Sequence[int], since: datetime | None = None) -> list[AccountingJob]:
        """The last attempt of each job that accounting knows, in order of ids. Absent is not ended.

        Give `since`, when the oldest of them was submitted: ids are recycled.
        """
        return latest(self.attempts(job_ids), since)

    def attempts(self, job_ids: Sequence[int]) -> list[AccountingJob]:
        """Every attempt of each job that accounting knows: a requeue makes another, with a submit time of its
        own. Ids are recycled: there may be older jobs among them.
        """
        fields = self.capabilities().accounting_fields
        parts = (Accounting(fields, ids=part) for part in _parts(sorted(set(job_ids))))
        return [job for part in parts for job in self._account(part)]

    def held(self, job_ids: Sequence[int]) -> dict[int, HeldJob]:
        """Jobs with all that was asked for, by id; what the queue does not know is absent."""
        found: dict[int, HeldJob] = {}
        for part in _parts(list(dict.fromkeys(job_ids))):
            jobs, bad = self._ask(Held(part))
            if bad:
                raise OutcomeUnknown(f"squeue gave lines that are not understood: {bad[0]!r}")
            found |= {job.job_id: job for job in jobs}
        return found

    def running_usage(self, job_ids: Sequence[int], limit_s: int = LIMIT_S) -> tuple[StepUsage, ...]:
        """What running jobs use now, by step: those that Slurm told within the limit. Absent is unknown."""
        return self._ask(RunningUsage(tuple(job_ids), limit_s))[0] if job_ids else ()

    def batch_scripts(self, job_ids: Sequence[int]) -> dict[int, str]:
        """The scripts of jobs as slurmctld keeps them, by id; those of jobs it does not know are absent."""
        found: dict[int, str] = {}
        for at in range(0, len(job_ids), _SCRIPTS):
            found |= self._ask(BatchScripts(tuple(job_ids[at : at + _SCRIPTS])))
        return found

    # ---- changes --------------------------------------------------------------------------------

    def hold(self, job_ids: Sequence[int]) -> dict[int, Result]:
        """Hold; as Operator or Administrator so that the owner can't release it. Read the state afterwards:
        holding a running job "succeeds".
        """
        return self._change([changes.hold(job_id) for job_id in job_ids])

    def release(self, job_ids: Sequence[int]) -> dict[int, Result]:
        """Release, in this order."""
        return self._change([changes.release(job_id) for job_id in job_ids])

    def requeue(self, job_ids: Sequence[int]) -> dict[int, Result]:
        """Start again under the same ids."""
        return self._change([changes.requeue(job_id) for job_id in job_ids])

    def update(self, wanted: Sequence[tuple[int, Mapping[str, str]]]) -> dict[int, Result]:
        """Set fields of jobs; "" empties a field, one that is not named stays."""
        return self._change([changes.update(job_id, fields) for job_id, fields in wanted])

    def adjust(self, wanted: Sequence[changes.Change]) -> changes.Adjusted:
        """Change jobs and read them back, in one command (as long as there are at most 500 changes)."""
        results: dict[int, Result] = {}
        before: dict[int, changes.Shown] = {}
        after: dict[int, changes.Shown] = {}
        for at in range(0, len(wanted), _CHANGES):
            part = tuple(wanted[at : at + _CHANGES])
            try:
                answer = self._ask(changes.Adjust(part), extra_s=0.1 * len(part))
            except (Unreachable, OutcomeUnknown) as error:
                results |= dict.fromkeys((change.job_id for change in part), _result(error))
                continue
            results |= answer.results
            before, after = {**answer.before, **before}, after | dict(answer.after)
        return changes.Adjusted(results, before, after)

    def cancel(self, job_ids: Sequence[int]) -> dict[int, Result]:
        """Cancel, and look what came of it: `DONE` is cancelled or being ended, `FINISHED` had ended before,
        `NOT_FOUND` the queue no longer knows.
        """
        results: dict[int, Result] = {}
        for part in _parts(list(dict.fromkeys(job_ids))):
            try:
                refused = self._ask(changes.Cancel(part))
                states = {job.job_id: job.state for job in self._ask(Queue(ids=part))[0]}
            except (Unreachable, OutcomeUnknown) as error:
                results |= dict.fromkeys(part, _result(error))
                continue
            results |= {job_id: _cancelled(states.get(job_id), refused.get(job_id, DONE)) for job_id in part}
        return results

    # ---- how ------------------------------------------------------------------------------------

    def _ask(self, command: Command[T], extra_s: float = 0.0) -> T:
        done = self._host.run(
            command.argv(self._path),
            stdin=command.stdin,
            timeout=self._timeout_s + extra_s,
            readonly=command.readonly,
        )
        return command.parse(done)

    def _account(self, command: Accounting) -> tuple[AccountingJob, ...]:
        return self.sacct(command)[0]

    def sacct(self, command: Command[T], extra_s: float = 0.0) -> T:
        """Ask accounting. One sacct at a time: each costs slurmdbd a scan of its tables."""
        began = time.monotonic()
        if not self._one_sacct.acquire(timeout=self._timeout_s):
            raise Unreachable(f"{self._host.name}: sacct was busy for {time.monotonic() - began:.0f} s")
        try:
            return self._ask(command, extra_s)
        finally:
            self._one_sacct.release()

    def _change(self, wanted: Sequence[changes.Change]) -> dict[int, Result]:
        results: dict[int, Result] = {}
        for at in range(0, len(wanted), _CHANGES):
            part = tuple(wanted[at : at + _CHANGES])
            try:
                results |= self._ask(changes.Control(part), extra_s=0.1 * len(part))
            except (Unreachable, OutcomeUnknown) as error:
                results |= dict.fromkeys((change.job_id for change in part), _result(error))
        return results


def _result(error: BrokerError) -> Result:
    unknown = isinstance(error, OutcomeUnknown)
    return Result(ResultKind.OUTCOME_UNKNOWN if unknown else ResultKind.UNREACHABLE, error.detail)


def _cancelled(state: SlurmState | None, refusal: Result) -> Result:
    if state in {SlurmState.CANCELLED, SlurmState.COMPLETING}:
        return DONE
    if state is None:
        return (
            refusal if refusal != DONE else Result(ResultKind.NOT_FOUND, "the queue does not know this job")
        )
    if state.finished:
        return Result(ResultKind.FINISHED, f"it had ended before: {state}")
    return refusal if refusal != DONE else Result(ResultKind.OUTCOME_UNKNOWN, f"it is still {state}")


def _parts(items: Sequence[Item]) -> Iterator[tuple[Item, ...]]:
    """Items in lists short enough for a command line."""
    part: list[Item] = []
    size = 0
    for item in items:
        length = len(str(item).encode()) + 4
        if part and size + length > _WORDS:
            yield tuple(part)
            part, size = [], 0
        part.append(item)
        size += length
    if part:
        yield tuple(part)
