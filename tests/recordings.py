"""What Slurm 22.05, 24.11 and 26.05 really answered, as tests/contract/record*.py kept it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from broker.hosts import Completed
from broker.slurm import AccountingJob, QueueJob
from broker.slurm.changes import Change
from broker.slurm.command import Command
from broker.slurm.commands import REGISTRY
from broker.slurm.queue import latest
from broker.slurm.versions import Version

RECORDINGS = Path(__file__).parent / "contract" / "recordings"
VERSIONS = ("22.05.8", "24.11.5", "26.05.5")
NEWEST = VERSIONS[-1]


def facts(folder: str) -> Any:
    """What is true of the jobs that were asked about: `folder` is a release's, or one in it."""
    return json.loads((RECORDINGS / folder / "facts.json").read_text())


def printed(name: str, version: str = NEWEST) -> str:
    """What one command of a release wrote to its standard output."""
    found: str = json.loads((RECORDINGS / version / f"{name}.json").read_text())["stdout"]
    return found


def read(name: str, version: str = NEWEST) -> tuple[Command[Any], Completed]:
    """One command as the broker makes it now, and what it got for it; fails if it would ask otherwise."""
    found = json.loads((RECORDINGS / version / f"{name}.json").read_text())
    options = {key: _revived(key, value) for key, value in found["options"].items()}
    command = REGISTRY[found["command"]](**options)
    assert command.argv() == found["argv"], "the command line is no longer the one that was recorded"
    out, err = (found[key].encode("utf-8", "surrogateescape") for key in ("stdout", "stderr"))
    return command, Completed(found["rc"], out, err)


def parsed(name: str, version: str = NEWEST) -> Any:
    """What the broker makes of one answer; its error, if it is one."""
    command, done = read(name, version)
    return command.parse(done)


def _revived(key: str, value: Any) -> Any:
    """An option as the command takes it: JSON has neither tuples nor times."""
    if key == "changes":
        return tuple(Change(job_id, line) for job_id, line in value)
    if key == "version":
        return Version(*value)
    if key == "since" and isinstance(value, str):
        return datetime.fromisoformat(value)
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True)
class Recordings:
    """One release's answers about jobs with labels."""

    version: str
    ids: Mapping[str, int]
    names: Mapping[str, str]

    def read(self, name: str) -> tuple[Command[Any], Completed]:
        return read(name, self.version)

    def parse(self, name: str) -> Any:
        return parsed(name, self.version)

    def queue(self, name: str = "queue") -> dict[str, QueueJob]:
        jobs, bad = self.parse(name)
        assert bad == ()
        return {label: job for label, job_id in self.ids.items() for job in jobs if job.job_id == job_id}

    def accounting(self) -> dict[str, AccountingJob]:
        attempts, bad = self.parse("accounting")
        assert bad == ()
        last = {job.job_id: job for job in latest(attempts)}
        return {label: last[job_id] for label, job_id in self.ids.items()}
