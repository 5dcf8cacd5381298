"""Rows of accounting in sacct's own format, read by the product's own parser."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from broker.hosts import Completed
from broker.slurm import AccountingJob
from broker.slurm.queue import Accounting
from broker.slurm.versions import OPTIONAL_FIELDS, REQUIRED_FIELDS, accounting_fields

FIELDS = accounting_fields([*REQUIRED_FIELDS, *OPTIONAL_FIELDS])


@dataclass(frozen=True)
class Row:
    """One attempt of a job. Times are seconds after `base`; for `suspended` seconds it did not run."""

    job_id: int
    base: datetime
    submit: int = 0
    start: int | None = 0
    end: int | None = 0
    suspended: int = 0
    gpus: int = 1
    state: str = "COMPLETED"
    name: str = "job"

    @property
    def elapsed(self) -> int:
        """`ElapsedRaw`."""
        return 0 if self.start is None or self.end is None else self.end - self.start - self.suspended

    def at(self, seconds: int | None) -> str:
        """A moment as sacct writes it."""
        return "Unknown" if seconds is None else str(int(self.base.timestamp()) + seconds)

    def text(self, fields: Iterable[str], delimiter: str) -> str:
        """The row as `sacct -P` prints it with `SLURM_TIME_FORMAT=%s`."""
        gpu = f",gres/gpu:a100={self.gpus},gres/gpu={self.gpus}" if self.gpus else ""
        known = {
            "JobID": str(self.job_id),
            "JobIDRaw": str(self.job_id),
            "JobName": self.name,
            "User": "broker",
            "Account": "default",
            "QOS": "normal",
            "Partition": "main",
            "State": self.state,
            "ExitCode": "0:0",
            "DerivedExitCode": "0:0",
            "Submit": self.at(self.submit),
            "Eligible": self.at(self.submit),
            "Start": self.at(self.start),
            "End": self.at(self.end),
            "ElapsedRaw": str(self.elapsed),
            "TimelimitRaw": "60",
            "AllocTRES": "" if self.start is None else f"billing=8,cpu=8{gpu},mem=64G,node=1",
            "ReqTRES": f"billing=8,cpu=8{gpu},mem=64G,node=1",
            "NNodes": "1",
            "NCPUS": "8",
            "NodeList": "None assigned" if self.start is None else "gpu1",
            "Priority": "1",
            "Reason": "None",
        }
        return delimiter.join(known.get(field, "") for field in fields)


def parse(rows: Iterable[Row], fields: tuple[str, ...] = FIELDS) -> list[AccountingJob]:
    """What the product makes of an answer of `sacct` with these rows."""
    command = Accounting(fields, ids=(1,))
    text = "".join(row.text(fields, command.delimiter) + "\n" for row in rows)
    jobs, bad = command.parse(Completed(0, text.encode(), b""))
    assert not bad, bad
    return list(jobs)
