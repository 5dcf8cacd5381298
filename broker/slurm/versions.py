"""What differs between releases of Slurm, in this one place.

Seen on 22.05.8, 24.11.5 and 26.05.5:

- `sacct`: 22.05 has no `Restarts`, `FailedNode`, `Extra`, `StdOut`, `Planned` (there `Reserved`). One unknown
  field fails the command, so only fields that `sacct -e` lists are asked for (`accounting_fields`); what is
  missing is None in the record.
- `sacct` 22.05 shows a job that has just ended as `allocation`, without QOS and partition, for up to 3 s.
- Accounting of 22.05 keeps names in Latin-1 (the rest are question marks), and says exit code 0 of a job
  whose node failed, later releases 1.
- `sacct` of all releases writes a double quote in a job's name as a backtick; `squeue` does not.
- TRES: `squeue` 22.05 writes `gres:gpu:2`, later releases `gres/gpu:2` (`tres.parse_tres` reads both).
- `squeue -O exit_code` is a raw wait status on 22.05: exit codes are taken from `sacct` alone.
- `afterok` on a parent that Slurm has forgotten: 22.05 runs the child, from 23.02 sbatch refuses.
- States: EXPEDITING exists from 25.11 on.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import NamedTuple

REQUIRED_FIELDS = (
    "JobIDRaw",
    "JobID",
    "User",
    "Account",
    "QOS",
    "Partition",
    "State",
    "ExitCode",
    "DerivedExitCode",
    "Submit",
    "Eligible",
    "Start",
    "End",
    "ElapsedRaw",
    "TimelimitRaw",
    "NodeList",
    "NNodes",
    "NCPUS",
    "AllocTRES",
    "ReqTRES",
    "Reason",
    "Priority",
)
OPTIONAL_FIELDS = ("Restarts", "FailedNode")
LAST_FIELD = "JobName"
"""Its owner's text, so it stands last (see `text.table`)."""


class Version(NamedTuple):
    """A release: (24, 11, 5)."""

    year: int
    month: int
    patch: int

    def __str__(self) -> str:
        return f"{self.year}.{self.month:02d}.{self.patch}"


def parse_version(text: str) -> Version | None:
    """The release in `slurm-wlm 24.11.5` or `slurm 26.05.0-0rc1`."""
    match = re.search(r"\b(\d\d)\.(\d\d)\.(\d+)", text)
    return Version(int(match[1]), int(match[2]), int(match[3])) if match else None


def accounting_fields(available: Collection[str]) -> tuple[str, ...]:
    """The fields to ask sacct for, of those that this release has; `available` as `sacct -e` names them."""
    known = {name.lower() for name in available}
    return (*REQUIRED_FIELDS, *(f for f in OPTIONAL_FIELDS if f.lower() in known), LAST_FIELD)
