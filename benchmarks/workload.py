"""A year of a cluster's jobs as the text that `sacct` prints of them, made from a seed.

300 people in 20 tenants, 12 partitions, four GPU types; two thirds of what people submit are single jobs, the
rest arrays; every job that ran has its batch and extern step and up to two of `srun`. All ends a job can have
are among them, requeues (every attempt is a row, as `-D` shows it) and jobs cancelled before they began. Rows
are printed as the recorded ones are (`tests/accounting_support.py`). The text is written to a file once; what
a window shows is read from there.
"""

from __future__ import annotations

import random
import time
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from typing_extensions import override

from broker.hosts import Completed
from broker.slurm.sacct import Answer, Window
from broker.slurm.tres import Tres
from tests.accounting_support import DAY, NOON, Slurmdbd, job, printed, step

YEAR = 365 * DAY
BEGIN = NOON - YEAR
USERS, TENANTS = 300, 20
GPU_TYPES = ("a100", "h100", "l40s", "v100")
PARTITIONS = (*(f"gpu-{name}" for name in GPU_TYPES), "gpu-short", "cpu", "long", "short")
PARTITIONS += ("bigmem", "debug", "interactive", "preempt")
ENDS = {
    "COMPLETED": 77.0,
    "FAILED": 10.0,
    "CANCELLED": 6.0,
    "TIMEOUT": 3.0,
    "OUT_OF_MEMORY": 1.5,
    "never began": 1.0,
    "REQUEUED": 0.6,
    "PREEMPTED": 0.4,
    "NODE_FAIL": 0.3,
    "DEADLINE": 0.1,
    "BOOT_FAIL": 0.1,
}
_EXIT = {"FAILED": "1:0", "CANCELLED": "0:15", "OUT_OF_MEMORY": "0:125", "NODE_FAIL": "1:0"}
_LONGEST_S = 3 * DAY
_SEPARATOR = "\x1f"


@dataclass(frozen=True, slots=True)
class Shape:
    """What one person submits again and again; `text` is a job with its steps, to be filled in."""

    weight: float
    text: tuple[str, ...]
    cpus: int
    limit_s: int
    run_s: float
    wait_s: float
    tasks: int


@dataclass(frozen=True, slots=True)
class Attempt:
    """One row's place in time, and its text."""

    eligible_at: int
    end_at: int
    text: str


def shapes(chance: random.Random) -> list[Shape]:
    """What the people of the cluster submit: three kinds of job each."""
    made = []
    for user in range(USERS):
        weight = 1 / (user + 1) ** 0.6
        for kind in range(3):
            partition = chance.choice(PARTITIONS)
            made.append(_shape(chance, user, kind, partition, weight * chance.uniform(0.2, 1.0)))
    return made


def _shape(chance: random.Random, user: int, kind: int, partition: str, weight: float) -> Shape:
    gpus = chance.choice((1, 1, 1, 2, 4, 8)) if "gpu" in partition or partition == "preempt" else 0
    of_type = partition.removeprefix("gpu-") if partition.removeprefix("gpu-") in GPU_TYPES else "a100"
    cpus = chance.choice((4, 6, 8, 12)) * gpus or chance.choice((1, 1, 2, 4, 8, 16, 24, 32, 64, 128))
    mib = cpus * chance.choice((2048, 4096, 8192))
    # every sixth GPU job names no type: it is found by the job's node
    typed = f"gres/gpu:{of_type}={gpus}," if chance.random() < 5 / 6 else ""
    tres = f"billing={cpus},cpu={cpus}," + (f"{typed}gres/gpu={gpus}," if gpus else "") + f"mem={mib}M,node=1"
    limit_min = chance.choice((30, 60, 240, 720, 1440, 2880))
    row = job(
        0,
        JobIDRaw="{id}",
        JobID="{shown}",
        Submit="{submit}",
        Eligible="{eligible}",
        Start="{start}",
        End="{end}",
        ElapsedRaw="{run}",
        CPUTimeRAW="{cputime}",
        TotalCPU="{cpu}",
        State="{state}",
        ExitCode="{exit}",
        User=f"user{user:03}",
        Account=f"team-{(user + (kind == 2)) % TENANTS:02}",
        Partition=partition,
        QOS=chance.choice(("normal", "normal", "training", "urgent")),
        TimelimitRaw=limit_min if chance.random() < 0.95 else "UNLIMITED",
        NCPUS=cpus,
        NodeList=f"{of_type if gpus else 'cpu'}-{{node}}",
        AllocTRES=tres,
        ReqTRES=tres,
        JobName=f"job-{user}-{kind}",
    )
    measured = ",gres/gpumem=4194304,gres/gpuutil={util}" if gpus and chance.random() < 0.5 else ""
    usage = "cpu={cpu},energy=0,fs/disk=7340032,mem={mem},pages=0,vmem={mem}"
    steps = [
        step(
            row,
            "batch",
            TotalCPU="{cpu}",
            MaxRSS="{mem}",
            TRESUsageInTot=usage + measured,
            TRESUsageInAve=usage + measured,
        ),
        step(row, "extern", TotalCPU="00:00:00", State="COMPLETED", MaxRSS="262144"),
        *(
            step(row, str(n), TotalCPU="00:00:01", MaxRSS="{mem}", TRESUsageInTot=usage)
            for n in range(chance.choice((0, 1, 2)))
        ),
    ]
    waiting = row | {"AllocTRES": "", "NodeList": "None assigned", "TotalCPU": "00:00:00", "NCPUS": "0"}
    return Shape(
        weight,
        (printed([row, *steps], _SEPARATOR), printed([waiting], _SEPARATOR)),
        cpus,
        limit_min * 60,
        limit_min * 60 * chance.uniform(0.05, 0.5),
        chance.choice((5, 30, 300, 1800, 7200)),
        1 if chance.random() < 2 / 3 else chance.choice((4, 10, 30, 100)),
    )


def attempts(jobs: int, seed: int) -> Iterator[Attempt]:
    """`jobs` rows over the year, those submitted first first (a requeued attempt follows the one before)."""
    chance = random.Random(seed)
    kinds = shapes(chance)
    weights = [kind.weight / kind.tasks for kind in kinds]
    made, number = 0, 1000
    while made < jobs:
        kind = chance.choices(kinds, weights)[0]
        submit = BEGIN + made * (YEAR - 2 * DAY) // jobs
        first = number
        for task in range(min(kind.tasks, jobs - made)):
            shown = f"{first}_{task}" if kind.tasks > 1 else f"{number}"
            for one in _job(chance, kind, submit, number, shown, task):
                if made < jobs:
                    yield one
                    made += 1
            number += 1


_WORDS, _WEIGHTS = tuple(ENDS), tuple(ENDS.values())


def _job(
    chance: random.Random, kind: Shape, submit: int, number: int, shown: str, task: int
) -> Iterator[Attempt]:
    end = chance.choices(_WORDS, _WEIGHTS)[0]
    yield (one := _attempt(chance, kind, submit, number, shown, task, end))
    if end == "REQUEUED":
        yield _attempt(chance, kind, one.end_at, number, shown, task, "COMPLETED")


def _attempt(
    chance: random.Random, kind: Shape, submit: int, number: int, shown: str, task: int, end: str
) -> Attempt:
    held = int(chance.expovariate(1 / 3600)) if chance.random() < 0.05 else 0
    left = NOON - submit - 120  # all have ended at NOON
    eligible = submit + min(held, left // 8)
    start = eligible + min(int(chance.lognormvariate(0, 1.5) * kind.wait_s), left // 4, DAY)
    began = end not in ("never began", "DEADLINE", "BOOT_FAIL")
    run = kind.limit_s if end == "TIMEOUT" else int(chance.lognormvariate(0, 0.8) * kind.run_s) + 1
    run = min(run, kind.limit_s, left // 2) if began else 0
    cpu_s = int(run * kind.cpus * chance.random())
    state = {"never began": f"CANCELLED by {1000 + number % USERS}"}.get(end, end)
    text = kind.text[not began].format_map(
        {
            "id": number,
            "shown": shown,
            "submit": submit,
            "eligible": eligible,
            "start": start,
            "end": start + run,
            "run": run,
            "cputime": run * kind.cpus,
            "cpu": f"{cpu_s // 86400}-{cpu_s // 3600 % 24:02}:{cpu_s // 60 % 60:02}:{cpu_s % 60:02}",
            "state": state,
            "exit": _EXIT.get(end, "0:0"),
            "node": 1 + number % 60,
            "mem": (kind.cpus << 30) + (int(chance.random() * 1000) << 20),
            "util": task * 7 % 101,
        }
    )
    return Attempt(eligible, start + run, text)


class Recorded(Slurmdbd):
    """An accounting database that holds a year of `jobs` jobs; Slurm itself is not here.

    As with sacct, a job is in every window in which it waited to start, ran or ended. `spent`: seconds by the
    clock and by this process's CPU that went into cutting windows out of the file: not what is measured.
    """

    def __init__(self, jobs: int, path: Path, seed: int = 1) -> None:
        super().__init__()
        self.count, self._path = jobs, path
        self._order, self._eligible, self._end = array("q"), array("q"), array("q")
        self._at = array("q", [0])
        self.wall_s = self.cpu_s = 0.0
        latest = 0
        with path.open("wb") as file:
            for one in attempts(jobs, seed):
                text = one.text.encode()
                file.write(text)
                latest = max(latest, one.eligible_at)
                self._order.append(latest)
                self._eligible.append(one.eligible_at)
                self._end.append(one.end_at)
                self._at.append(self._at[-1] + len(text))
        self.inventory = [
            SimpleNamespace(name=f"{of_type}-{n}", total=Tres(gpus=8, gpu_types={of_type: 8}))
            for of_type in GPU_TYPES
            for n in range(1, 61)
        ]

    @override
    def sacct(self, command: Window, extra_s: float = 0.0) -> Answer:
        wall, cpu = time.monotonic(), time.process_time()
        first = bisect_left(self._order, command.since - 2 * _LONGEST_S)
        last = bisect_right(self._order, command.until + _LONGEST_S)
        with self._path.open("rb") as file:
            file.seek(self._at[first])
            text = file.read(self._at[last] - self._at[first])
        parts = [
            text[self._at[n] - self._at[first] : self._at[n + 1] - self._at[first]]
            for n in range(first, last)
            if self._eligible[n] <= command.until and self._end[n] >= command.since
        ]
        shown = b"".join(parts).replace(_SEPARATOR.encode(), command.delimiter.encode())
        del text, parts
        self.wall_s += time.monotonic() - wall
        self.cpu_s += time.process_time() - cpu
        return command.parse(Completed(0, shown, b""))
