"""What `sacct -P` prints, made of jobs given as fields; and an accounting database that answers by its rules.

Slurm itself is not here. The rules are those of sacct(1) as seen on real clusters: with `-s` and `-E` a job
shows in the windows in which it became eligible, ran or ended; `-D` shows every attempt; `-X` would leave
out the steps; each job's row is followed by those of its steps; what runs has run up to now.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from broker.errors import Unreachable
from broker.hosts import Completed
from broker.slurm.sacct import Answer, Window, warehouse_fields
from broker.slurm.states import parse_state
from broker.slurm.versions import Version

FIELDS = warehouse_fields(("Restarts", "FailedNode"))
NOON = int(datetime(2026, 11, 10, 12, tzinfo=UTC).timestamp())
DAY = 86_400
_DEFAULTS: dict[str, str] = {
    **dict.fromkeys(FIELDS, ""),
    **{"User": "kim", "Account": "team-a", "QOS": "training", "Partition": "gpu", "State": "COMPLETED"},
    **{"ExitCode": "0:0", "DerivedExitCode": "0:0", "TimelimitRaw": "120", "NodeList": "a100-1"},
    **{"NNodes": "1", "NCPUS": "4", "Reason": "None", "Priority": "1", "JobName": "train"},
    **{"AllocTRES": "billing=4,cpu=4,gres/gpu:a100=2,gres/gpu=2,mem=8192M,node=1", "ConsumedEnergyRaw": "0"},
}

Row = dict[str, str]


def job(number: int, submit: int = NOON, run: int | None = 3600, wait: int = 60, **fields: Any) -> Row:
    """A job's row: it waited `wait` seconds and ran for `run` (None: it has not ended)."""
    start = submit + wait
    row = _DEFAULTS | {"JobIDRaw": str(number), "JobID": str(number)}
    row |= {"Submit": str(submit), "Eligible": str(submit), "Start": str(start)}
    row |= {"End": "Unknown" if run is None else str(start + run), "ElapsedRaw": str(run or 0)}
    row |= {"State": "RUNNING"} if run is None else {}
    return row | {name: str(value) for name, value in fields.items()}


def step(of: Row, name: str = "batch", **fields: Any) -> Row:
    """A step's row: identity is empty in it, as sacct leaves it."""
    row = of | dict.fromkeys(("User", "QOS", "Partition", "TimelimitRaw"), "")
    return row | {"JobIDRaw": f"{of['JobIDRaw']}.{name}", "JobID": f"{of['JobID']}.{name}"} | fields


def printed(rows: Sequence[Row], delimiter: str, fields: Sequence[str] = FIELDS) -> str:
    """The rows as sacct prints them."""
    return "".join(delimiter.join(row[name] for name in fields) + "\n" for row in rows)


def answer(*rows: Row, version: str = "26.5.5") -> Answer:
    """What the warehouse makes of an answer with these rows."""
    command = Window(FIELDS, Version(*map(int, version.split("."))), NOON, NOON + 60)
    return command.parse(Completed(0, printed(rows, command.delimiter).encode(), b""))


class Slurmdbd:
    """Accounting and queue of a cluster. `rows`: each job's row with those of its steps; `queue`: ids of
    jobs in it."""

    def __init__(self) -> None:
        self.rows: list[list[Row]] = []
        self.queue: set[int] = set()
        self.asked: list[Window] = []
        self.down = False
        self.now = 0
        self.most_s: int | None = None
        self.inventory: list[Any] = []
        self._one = threading.Lock()

    def add(self, *rows: Row) -> None:
        self.rows.append(list(rows))

    def capabilities(self) -> Any:
        config = SimpleNamespace(has_accounting=True)
        fields = ("Restarts", "FailedNode")
        return SimpleNamespace(config=config, accounting_fields=fields, version=Version(26, 5, 5))

    def sacct(self, command: Window, extra_s: float = 0.0) -> Answer:
        assert self._one.acquire(blocking=False), "two queries at once"
        try:
            self.asked.append(command)
            if self.down:
                raise Unreachable("sacct: error: slurm_persist_conn_open: failed to connect to slurmdbd")
            if self.most_s is not None and command.until - command.since > self.most_s:
                error = b"sacct: error: Too wide of a date range in query\n"
                return command.parse(Completed(1, b"", error))
            self.now = max(self.now, command.until)
            shown = [rows for rows in self.rows if _shown(rows[0], command)]
            rows = [_up_to(row, self.now) for rows in shown for row in rows]
            return command.parse(Completed(0, printed(rows, command.delimiter).encode(), b""))
        finally:
            self._one.release()

    def jobs(self) -> Any:
        state = parse_state("RUNNING")
        return SimpleNamespace(jobs=[SimpleNamespace(job_id=one, state=state) for one in sorted(self.queue)])

    def nodes(self) -> list[Any]:
        return self.inventory


_TIMES = ("Eligible", "Start", "End")


def _shown(row: Row, command: Window) -> bool:
    if command.ids:
        return int(re.split(r"\D", row["JobIDRaw"])[0]) in command.ids
    eligible, start, end = (int(at) if (at := row[name]).isdigit() else None for name in _TIMES)
    if start is not None and row["State"] != "PENDING":
        return start <= command.until and (end is None or end >= command.since)
    return any(at is not None and command.since <= at <= command.until for at in (eligible, end))


def _up_to(row: Row, now: int) -> Row:
    """The row of what runs: how long it has, less what its `ElapsedRaw` says it was suspended (below 0)."""
    if row["State"] != "RUNNING" or not row["Start"].isdigit():
        return row
    return row | {"ElapsedRaw": str(max(now - int(row["Start"]) + int(row["ElapsedRaw"]), 0))}
