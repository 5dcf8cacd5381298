"""`sacct` for the warehouse: all jobs of a window of time, every attempt, with their steps. Pure.

What is asked for, and why (sacct(1)): `-D` shows every attempt of a requeued job. No `-X`: the CPU time and
memory used stand with the steps. No `-T`: it would clip times but not what was used. `--noconvert`: no
rounding. `-s` with `-E`: otherwise a job cancelled while held is left out. `--array`, where it exists, and
`SLURM_BITSTR_LEN=0` (22.05): elements of an array that wait are counted, not shown as one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain

from pydantic_core import to_json
from typing_extensions import override

from broker.hosts import Completed
from broker.slurm import gpu_types
from broker.slurm.command import Command, complaint
from broker.slurm.gpu_use import GpuSource, by_accounting, entry
from broker.slurm.queue import ALL_STATES
from broker.slurm.states import SlurmState, parse_state
from broker.slurm.text import fresh_delimiter, number
from broker.slurm.tres import parse_quantity, parse_tres
from broker.slurm.versions import LAST_FIELD, OPTIONAL_FIELDS, REQUIRED_FIELDS, Version

USAGE_FIELDS = (
    "CPUTimeRAW",
    "TotalCPU",
    "MaxRSS",
    "TRESUsageInTot",
    "TRESUsageInAve",
    "ConsumedEnergyRaw",
    "AdminComment",
)
"""What a job used: on every release from 22.05 on."""
_OF_STEP = ("JobIDRaw", "State", "ExitCode", "ElapsedRaw", *USAGE_FIELDS)
"""What is kept of a step: the rest stands with its job."""
MAX_NODE_W = 20_000
"""No node draws more: more joules than this times its time are a counter that ran over (`ConsumedEnergy`)."""
_MAX_STEPS = 100
"""Steps of one job whose raw values are kept; sums and maxima are over all of them."""
_ARRAY_SINCE = (24, 11)
_CPU_TIME = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+(?:\.\d+)?)")
_NO_TIME = frozenset({"", "n/a", "none", "unknown", "(null)", "0", "4294967294", "4294967295"})
_ENDED_FROM_OUTSIDE = frozenset(
    {
        SlurmState.TIMEOUT,
        SlurmState.CANCELLED,
        SlurmState.OUT_OF_MEMORY,
        SlurmState.NODE_FAIL,
        SlurmState.PREEMPTED,
        SlurmState.DEADLINE,
        SlurmState.REQUEUED,
    }
)


@dataclass(slots=True)
class JobRecord:
    """One attempt of a job, its steps joined. Fields as the columns of `AccountingJobRow`; `raw` is JSON
    already: thousands of jobs are in memory at a time, and a text is less to hold and to look through than
    dozens of values.
    """

    job_id: int
    submit_at: int
    array_id: int | None
    array_task: str | None
    tasks: int
    name: str
    unix_user: str
    account: str
    qos: str
    partition: str
    state: str
    exit_code: int
    signal: int
    cancelled_by: int | None
    reason: str
    eligible_at: int | None
    start_at: int | None
    end_at: int | None
    elapsed_s: int
    timelimit_s: int | None
    cpus: int
    nodes: int
    node_list: str
    gpu_count: int
    gpu_type: str
    gpu_types: str
    mem_mib: int
    billing: int
    total_cpu_s: int | None
    cpu_partial: bool
    max_rss_mib: int | None
    mem_in_tot_mib: int | None
    gpu_util: float | None
    gpu_util_by: GpuSource | None
    energy_j: int | None
    digest: str
    raw: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What one sacct gave: records, and lines that were not understood (each costs itself only)."""

    jobs: tuple[JobRecord, ...]
    bad_rows: tuple[str, ...]


def warehouse_fields(available: Sequence[str]) -> tuple[str, ...]:
    """The fields to ask for; `available` are those that `Capabilities.accounting_fields` has."""
    optional = (name for name in OPTIONAL_FIELDS if name in available)
    return (*REQUIRED_FIELDS, *USAGE_FIELDS, *optional, LAST_FIELD)


@dataclass(frozen=True)
class Window(Command[Answer]):
    """All jobs that waited, ran or ended between `since` and `until` (epoch seconds), or those of `ids`."""

    fields: tuple[str, ...]
    version: Version
    since: int = 0
    until: int = 0
    ids: tuple[int, ...] = ()
    delimiter: str = field(default_factory=fresh_delimiter)
    program = "sacct"

    @override
    def argv(self, path: str = "") -> list[str]:
        words = super().argv(path)
        at = words.index(self.program)
        return [*words[:at], "SLURM_BITSTR_LEN=0", *words[at:]]

    @override
    def args(self) -> list[str]:
        words = ["-D", "-a", "-n", "-P", "--noconvert"]
        words += ["--array"] if self.version[:2] >= _ARRAY_SINCE else []
        words += [f"--delimiter={self.delimiter}", "-o", ",".join(self.fields)]
        if self.ids:
            return [*words, f"--jobs={','.join(map(str, self.ids))}"]
        return [*words, "-S", _clock(self.since), "-E", _clock(self.until), "-s", ALL_STATES]

    @override
    def parse(self, done: Completed) -> Answer:
        text = self.text(done)
        if b"error" in done.stderr:  # part of an answer is no answer: the window would count as read
            raise complaint(self.program, done)
        return read_rows(text, self.delimiter, self.fields)


def _clock(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def read_rows(text: str, delimiter: str, fields: Sequence[str]) -> Answer:
    """Join each job's row with those of its steps, which follow it; the job's row says whose it is."""
    bad: list[str] = []
    jobs: dict[tuple[int, int], JobRecord] = {}
    for job, steps in _grouped(text, delimiter, fields, bad):
        try:
            record = _record(job, steps)
        except (ValueError, OverflowError, KeyError):
            bad.append(delimiter.join(job.values()))
            continue
        known = jobs.get(key := (record.job_id, record.submit_at))
        if known is not None and record.state == SlurmState.PENDING == known.state:
            known.tasks += record.tasks  # elements that wait together have the array's id, all of them
            known.digest = _digest([known.digest, record.digest])
        else:
            jobs[key] = record
    return Answer(tuple(jobs.values()), tuple(bad))


def _grouped(
    text: str, delimiter: str, fields: Sequence[str], bad: list[str]
) -> Iterator[tuple[dict[str, str], list[dict[str, str]]]]:
    """Each job's row, and of those of its steps what is kept where there is something."""
    of_id, of_step = fields.index("JobIDRaw"), [(name, fields.index(name)) for name in _OF_STEP]
    job: dict[str, str] | None = None
    steps: list[dict[str, str]] = []
    for values in _lines(text, delimiter, len(fields), bad):
        job_id, dot, _ = values[of_id].partition(".")
        if not dot:
            if job is not None:
                yield job, steps
            job, steps = dict(zip(fields, values, strict=True)), []
        elif job is not None and job["JobIDRaw"] == job_id:
            steps.append({name: value for name, place in of_step if (value := values[place])})
        else:
            bad.append(delimiter.join(values))
    if job is not None:
        yield job, steps


def _lines(text: str, delimiter: str, columns: int, bad: list[str]) -> Iterator[list[str]]:
    """Rows of `columns` values; a line without delimiter goes on with the name of the row before."""
    last: list[str] | None = None
    for line in text.removesuffix("\n").split("\n"):
        values = line.split(delimiter)
        if len(values) == columns:
            if last is not None:
                yield last
            last = values
        elif len(values) == 1 and last is not None:
            last[-1] += "\n" + line
        elif line:
            bad.append(line)
    if last is not None:
        yield last


def _record(row: dict[str, str], steps: Sequence[dict[str, str]]) -> JobRecord:
    state = parse_state(row["State"])
    start, end, submit = (_at(row[name]) for name in ("Start", "End", "Submit"))
    if submit is None:
        raise ValueError("a job without submit time has no key")
    array_id, _, task = row["JobID"].partition("_")
    by = re.search(r" by (\d+)", row["State"]) if " " in row["State"] else None
    code, _, signal = row["ExitCode"].partition(":")
    tres, elapsed = parse_tres(row["AllocTRES"]), number(row["ElapsedRaw"], 0)
    nodes = number(row["NNodes"].partition("-")[0], 0)
    waits = state.pending and end is None  # an attempt that was requeued is REQUEUED and has ended
    # of a job that waits, the start is an estimate; of one cancelled before it began, its end
    never_ran = not elapsed and row["NodeList"] in {"", "None assigned"}
    gpu_type, types = gpu_types.named(tres.gpu_types, tres.gpus) if tres.gpus else ("", "")
    usage = [step.get("TRESUsageInTot", "") for step in steps]
    gpu_util, gpu_util_by = by_accounting(row["AdminComment"], usage, tres.gpus)
    raw: dict[str, object] = {name: value for name, value in row.items() if value}
    if steps:
        raw["steps"] = steps[:_MAX_STEPS]
    return JobRecord(
        job_id=number(row["JobIDRaw"]),
        submit_at=submit,
        array_id=number(array_id) if task else None,
        array_task=task.strip("[]")[:64] if task else None,
        tasks=count_tasks(task) if waits else 1,
        name=row["JobName"],
        unix_user=row["User"],
        account=row["Account"],
        qos=row["QOS"],
        partition=row["Partition"],
        state=str(state),
        exit_code=number(code, 0),
        signal=number(signal, 0),
        cancelled_by=int(by[1]) if by else None,
        reason=row["Reason"],
        eligible_at=_at(row["Eligible"]),
        start_at=None if waits or never_ran else start,
        end_at=end,
        elapsed_s=elapsed,
        timelimit_s=int(limit) * 60 if (limit := row["TimelimitRaw"]).isascii() and limit.isdigit() else None,
        cpus=number(row["NCPUS"], 0),
        nodes=nodes,
        node_list=row["NodeList"],
        gpu_count=tres.gpus,
        gpu_type=gpu_type,
        gpu_types=types,
        mem_mib=tres.memory_mib,
        billing=tres.billing if "billing=" in row["AllocTRES"] else _asked_billing(row, tres.cpus),
        total_cpu_s=_cpu_used(row, steps) if end is not None else None,
        cpu_partial=any(one in _ENDED_FROM_OUTSIDE for one in (state, *_states(steps))),
        max_rss_mib=_most(_mib(step.get("MaxRSS", "")) for step in steps),
        mem_in_tot_mib=_most(_mib(entry(total, "mem")) for total in usage),
        gpu_util=gpu_util,
        gpu_util_by=gpu_util_by,
        energy_j=_energy(row["ConsumedEnergyRaw"], elapsed, nodes),
        digest=_digest(chain(row.values(), *map(dict.values, steps))),
        raw=to_json(raw).decode(),
    )


def _states(steps: Sequence[Mapping[str, str]]) -> Iterator[SlurmState]:
    """How the steps ended: a job may go on after one that was killed, and end well."""
    return (parse_state(step.get("State", "")) for step in steps)


def _asked_billing(row: Mapping[str, str], cpus: int) -> int:
    """26.05 leaves billing out of what the parts of a heterogeneous job were given: what they asked for."""
    return parse_tres(row["ReqTRES"]).billing if cpus else 0


def _digest(values: Iterable[str]) -> str:
    return hashlib.blake2b("\x1f".join(values).encode(), digest_size=16).hexdigest()


def _at(text: str) -> int | None:
    """Seconds since the epoch; None for Unknown, None, N/A and the like."""
    return None if text.lower() in _NO_TIME else int(text)


def count_tasks(expression: str) -> int:
    """How many elements wait in `[0,2-5%2]` or `7`; 1 for what names none.

    >>> count_tasks("[8-5000]"), count_tasks("[0,2-5%2]"), count_tasks("[0-9:3]"), count_tasks("")
    (4993, 5, 4, 1)
    """
    total = 0
    for part in expression.strip("[]").partition("%")[0].split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?::(\d+))?)?", part)
        if match:
            first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
            total += (last - first) // max(step, 1) + 1
    return max(total, 1)


@lru_cache(4096)  # a job's time and memory stand with it, and with its steps
def cpu_seconds(text: str) -> float | None:
    """`1-02:03:04`, `02:03:04`, `03:04.567` as seconds; None for what is empty or no duration."""
    match = _CPU_TIME.fullmatch(text.strip())
    if match is None:
        return None
    days, hours, minutes = (int(part or 0) for part in match.groups()[:3])
    return ((days * 24 + hours) * 60 + minutes) * 60 + float(match[4])


def _cpu_used(row: Mapping[str, str], steps: Sequence[Mapping[str, str]]) -> int | None:
    """The job's CPU time: the sum over its steps. Without steps nobody measured it."""
    found = [used for step in steps if (used := cpu_seconds(step.get("TotalCPU", ""))) is not None]
    return round(max(sum(found), cpu_seconds(row["TotalCPU"]) or 0.0)) if found else None


@lru_cache(4096)
def _mib(text: str) -> int | None:
    """A memory size in MiB, rounded up: sacct means bytes where no unit stands. None where there is none.

    0 is none as well: no process takes no memory, but a step that ends before slurmd's first sample
    (`JobAcctGatherFrequency`) shows `mem=0`.
    """
    try:
        return -(-parse_quantity(text) >> 20) or None if text else None
    except ValueError:
        return None


def _most(values: Iterator[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _energy(text: str, elapsed_s: int, nodes: int) -> int | None:
    """Joules; None where the cluster does not measure (0), and where the counter says what cannot be."""
    joules = number(text, 0) if text.isdigit() else 0
    return joules if 0 < joules <= MAX_NODE_W * max(elapsed_s, 1) * max(nodes, 1) else None
