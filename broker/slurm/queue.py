"""Jobs: the queue as `squeue` shows it, and what became of them as `sacct` remembers it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from typing_extensions import override

from broker.errors import InvalidRequest
from broker.hosts import Completed
from broker.slurm.command import Command, complaint
from broker.slurm.nodelist import expand
from broker.slurm.states import SlurmState, parse_state
from broker.slurm.text import duration_s, fresh_delimiter, moment, number, table
from broker.slurm.tres import Tres, parse_tres

CLOCK_SKEW = timedelta(hours=1)
"""How far the cluster's clock may be from ours when a job is told from an older one with the same id."""

ALL_STATES = "BF,CA,CD,DL,F,NF,OOM,PD,PR,R,RQ,RS,RV,S,TO"


@dataclass(frozen=True, slots=True)
class QueueJob:
    """One row of the queue.

    `job_id` is Slurm's raw id, unique at any time but recycled over the years; an element of an array has
    `array_id` and `array_task` (for elements that wait together an expression: `0,2-5%2`), and its last
    element's `job_id` is the array's. `start` is an estimate while the job is pending.
    """

    job_id: int
    name: str
    state: SlurmState
    reason: str
    user: str
    account: str
    qos: str
    partition: str
    submit: datetime | None
    start: datetime | None
    end: datetime | None
    time_limit_s: int | None
    nodes: tuple[str, ...]
    node_count: int
    cpus: int
    tres: Tres
    priority: int
    nice: int
    dependency: str
    restart_count: int
    array_id: int | None = None
    array_task: str | None = None


@dataclass(frozen=True, slots=True)
class QueueSnapshot:
    """The queue at one moment. `taken_at` lies before Slurm was asked: the truth is at least that new.

    `bad_rows`: lines that were not understood; never silently lost.
    """

    taken_at: datetime
    jobs: tuple[QueueJob, ...]
    bad_rows: tuple[str, ...] = ()

    def by_id(self) -> dict[int, QueueJob]:
        """Jobs by raw id; of several rows of one array the last."""
        return {job.job_id: job for job in self.jobs}


@dataclass(frozen=True, slots=True)
class AccountingJob:
    """One attempt of one job as the accounting database has it.

    Times are UTC; `exit_code` is the script's, `signal` what ended it (0: none); `elapsed_s` without
    suspensions; `restarts` None where this release does not say (22.05). `reason` is why it waited last.
    """

    job_id: int
    name: str
    state: SlurmState
    cancelled_by: int | None
    exit_code: int
    signal: int
    derived_exit_code: int
    submit: datetime | None
    eligible: datetime | None
    start: datetime | None
    end: datetime | None
    elapsed_s: int
    time_limit_s: int | None
    restarts: int | None
    nodes: tuple[str, ...]
    node_count: int
    cpus: int
    alloc_tres: Tres
    req_tres: Tres
    user: str
    account: str
    qos: str
    partition: str
    reason: str
    priority: int
    failed_node: str | None
    array_id: int | None = None
    array_task: str | None = None


_QUEUE_COLUMNS = (
    *("JobID", "ArrayJobID", "ArrayTaskID", "State", "Reason", "UserName", "Account", "QOS", "Partition"),
    *("SubmitTime", "StartTime", "EndTime", "TimeLimit", "NodeList", "NumNodes", "NumCPUs", "tres-alloc"),
    *("PriorityLong", "Nice", "Dependency", "RestartCnt", "Name"),
)


@dataclass(frozen=True)
class Queue(Command[tuple[tuple[QueueJob, ...], tuple[str, ...]]]):
    """`squeue`: all jobs it knows (ended ones stay for `MinJobAge`), of a user, by name or by id.

    Gives (jobs, lines not understood).
    """

    user: str | None = None
    names: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()
    delimiter: str = field(default_factory=fresh_delimiter)
    program = "squeue"

    @override
    def args(self) -> list[str]:
        # "Field:suffix", never "Field:width": a width cuts what is longer (Dependency at 20 by default).
        columns = ",".join(f"{name}:{self.delimiter}" for name in _QUEUE_COLUMNS[:-1])
        words = ["-h", "-a", "-t", "all", "-O", f"{columns},{_QUEUE_COLUMNS[-1]}:"]
        words += [] if self.user is None else [f"--user={self.user}"]
        words += [f"--name={','.join(map(checked_name, self.names))}"] if self.names else []
        return words + ([f"--jobs={','.join(map(str, self.ids))}"] if self.ids else [])

    @override
    def parse(self, done: Completed) -> tuple[tuple[QueueJob, ...], tuple[str, ...]]:
        if self.ids and done.rc and b"Invalid job id" in done.stderr:
            return (), ()  # a single id that was purged; of several, squeue leaves such out without a word
        jobs, bad = table(self.text(done), self.delimiter, len(_QUEUE_COLUMNS), _queue_job)
        return tuple(jobs), tuple(bad)


def _queue_job(fields: Sequence[str]) -> QueueJob:
    row = dict(zip(_QUEUE_COLUMNS, fields, strict=True))
    task = row["ArrayTaskID"]
    array = task not in {"N/A", ""}
    return QueueJob(
        job_id=number(row["JobID"]),
        name=row["Name"],
        state=parse_state(row["State"]),
        reason=row["Reason"],
        user=row["UserName"],
        account=_text(row["Account"]),
        qos=_text(row["QOS"]),
        partition=row["Partition"],
        submit=moment(row["SubmitTime"]),
        start=moment(row["StartTime"]),
        end=moment(row["EndTime"]),
        time_limit_s=duration_s(row["TimeLimit"]),
        nodes=expand(row["NodeList"]),
        node_count=number(row["NumNodes"].partition("-")[0], 0),  # a pending job may ask for "2-4"
        cpus=number(row["NumCPUs"], 0),
        tres=parse_tres(row["tres-alloc"]),
        priority=number(row["PriorityLong"], 0),
        nice=number(row["Nice"], 0),
        dependency=_text(row["Dependency"]),
        restart_count=number(row["RestartCnt"], 0),
        array_id=number(row["ArrayJobID"]) if array else None,
        array_task=task if array else None,
    )


def _text(field_: str) -> str:
    return "" if field_ in {"(null)", "N/A"} else field_


@dataclass(frozen=True)
class Accounting(Command[tuple[tuple[AccountingJob, ...], tuple[str, ...]]]):
    """`sacct`: what the accounting database knows of jobs by id, or of a user's jobs by name.

    Gives (attempts, lines not understood). By id it also knows jobs that are held or wait for a dependency;
    by name it leaves those out, and goes back to `since` only. A job cancelled while held shows up by name
    only because all states are asked for (`-s`), which in turn needs an end (`-E now`).
    """

    fields: tuple[str, ...]
    ids: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    user: str | None = None
    since: datetime | None = None
    delimiter: str = field(default_factory=fresh_delimiter)
    program = "sacct"

    @override
    def args(self) -> list[str]:
        words = ["-a", "-n", "-P", "-D", "-X", f"--delimiter={self.delimiter}", "-o", ",".join(self.fields)]
        if self.ids:
            return [*words, f"--jobs={','.join(map(str, self.ids))}"]
        since = (self.since or datetime(1970, 1, 2, tzinfo=UTC)) - CLOCK_SKEW
        words += ["-S", since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S"), "-E", "now", "-s", ALL_STATES]
        words += [f"--name={','.join(map(checked_name, self.names))}"] if self.names else []
        return words + ([f"--user={self.user}"] if self.user else [])

    @override
    def parse(self, done: Completed) -> tuple[tuple[AccountingJob, ...], tuple[str, ...]]:
        text = self.text(done)
        if done.stderr and b"error" in done.stderr:  # part of an answer is no answer: absence must be certain
            raise complaint(self.program, done)
        jobs, bad = table(text, self.delimiter, len(self.fields), self._job)
        return tuple(jobs), tuple(bad)

    def _job(self, fields: Sequence[str]) -> AccountingJob:
        row = dict(zip(self.fields, fields, strict=True))
        code, _, signal = row["ExitCode"].partition(":")
        by = re.search(r" by (\d+)", row["State"])
        array_id, _, task = row["JobID"].partition("_")
        restarts = row.get("Restarts")
        return AccountingJob(
            job_id=number(row["JobIDRaw"]),
            name=row["JobName"],
            state=parse_state(row["State"]),
            cancelled_by=int(by[1]) if by else None,
            exit_code=number(code, 0),
            signal=number(signal, 0),
            derived_exit_code=number(row["DerivedExitCode"].partition(":")[0], 0),
            submit=moment(row["Submit"]),
            eligible=moment(row["Eligible"]),
            start=moment(row["Start"]),
            end=moment(row["End"]),
            elapsed_s=number(row["ElapsedRaw"], 0),
            time_limit_s=_minutes(row["TimelimitRaw"]),
            restarts=number(restarts, 0) if restarts is not None else None,
            nodes=expand(row["NodeList"]),
            node_count=number(row["NNodes"], 0),
            cpus=number(row["NCPUS"], 0),
            alloc_tres=parse_tres(row["AllocTRES"]),
            req_tres=parse_tres(row["ReqTRES"]),
            user=row["User"],
            account=row["Account"],
            qos=row["QOS"],
            partition=row["Partition"],
            reason=row["Reason"],
            priority=number(row["Priority"], 0),
            failed_node=_text(row.get("FailedNode", "")) or None,
            array_id=number(array_id) if task else None,
            array_task=task.strip("[]") if task else None,
        )


def _minutes(text: str) -> int | None:
    return int(text) * 60 if text.isascii() and text.isdigit() else None


def latest(attempts: Iterable[AccountingJob], since: datetime | None = None) -> list[AccountingJob]:
    """The last attempt of each job id, told by its submit time (a requeue submits anew), in order of ids.

    Ids are recycled: what was submitted before `since`, clocks apart, was another job.
    """
    last: dict[int, AccountingJob] = {}
    for job in attempts:
        if since is not None and job.submit is not None and job.submit < since - CLOCK_SKEW:
            continue
        known = last.get(job.job_id)
        if known is None or _age(known) <= _age(job):
            last[job.job_id] = job
    return [last[job_id] for job_id in sorted(last)]


def _age(job: AccountingJob) -> tuple[float, ...]:
    return tuple(at.timestamp() if at else 0.0 for at in (job.submit, job.start))


def checked_name(name: str) -> str:
    """A job name that `--name=A,B,…` takes as one name."""
    if not name or "," in name or any(not char.isprintable() for char in name):
        raise InvalidRequest(f"{name!r} is no job name to look up: empty, a comma or a control character")
    return name
