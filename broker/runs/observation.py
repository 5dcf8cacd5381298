"""What is known of a job, and what follows from it. Pure: no socket, no clock.

Three sources are asked, each only about the jobs the one before did not know (ARCHITECTURE, rule 3):
squeue, sacct, and the completion marker that the job's own script wrote. Absence from all three is
UNKNOWN, which is not an end; after a deadline it is given up as FAILED, saying so.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from broker.runs.states import JobState
from broker.slurm import AccountingJob, QueueJob


@dataclass(frozen=True, slots=True)
class Known:
    """What the database says of a job."""

    state: JobState
    reason: str | None
    restarts: int
    started_at: datetime | None
    observed_at: datetime | None
    unknown_since: datetime | None


@dataclass(frozen=True, slots=True)
class Sighting:
    """What one source says of a job. `restarts` and the rest are None where the source does not know."""

    state: JobState
    reason: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    restarts: int | None = None
    nodes: str | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Marker:
    """`status.json`, written by the end of the job's script (or of an earlier start of it)."""

    job_id: int
    exit_code: int
    restart: int
    started_at: datetime | None
    ended_at: datetime | None
    output_dir: str
    log_dir: str


def job_state(word: str) -> JobState:
    """Slurm's word as a state; a word that is not known is UNKNOWN, never an end."""
    try:
        return JobState(word)
    except ValueError:
        return JobState.UNKNOWN


def from_queue(entry: QueueJob) -> Sighting:
    """A row of squeue. Its start of a pending job is an estimate and left out."""
    state = job_state(entry.state)
    began = state.occupies_nodes or state.ended
    return Sighting(
        state=state,
        reason=_word(entry.reason),
        restarts=entry.restart_count,
        nodes=",".join(entry.nodes) or None,
        started_at=entry.start if began else None,
        ended_at=entry.end if state.ended else None,
    )


def from_accounting(entry: AccountingJob) -> Sighting:
    """A row of sacct (the newest one of the job id). Its reason is why it last *waited*: of an end, none."""
    state = job_state(entry.state)
    return Sighting(
        state=state,
        reason=None if state.ended else _word(entry.reason),
        exit_code=entry.exit_code if state.ended else None,
        signal=entry.signal if state.ended else None,
        restarts=entry.restarts,
        nodes=",".join(entry.nodes) or None,
        started_at=entry.start,
        ended_at=entry.end if state.ended else None,
    )


def from_marker(marker: Marker) -> Sighting:
    """The script's own word: it ended with this status."""
    return Sighting(
        state=JobState.COMPLETED if marker.exit_code == 0 else JobState.FAILED,
        reason=None if marker.exit_code == 0 else "NonZeroExitCode",
        exit_code=marker.exit_code,
        restarts=marker.restart,
        started_at=marker.started_at,
        ended_at=marker.ended_at,
    )


def unseen(known: Known, now: datetime, deadline: timedelta) -> Sighting:
    """No source knows what became of it: UNKNOWN, until the deadline has passed since it was first missed."""
    since = known.unknown_since
    if since is not None and now - since > deadline:
        return Sighting(
            JobState.FAILED,
            reason="Lost: it left squeue, and sacct and its completion marker have known no end of it "
            f"since {since:%Y-%m-%d %H:%M} UTC",
            ended_at=now,
        )
    return Sighting(
        JobState.UNKNOWN, reason="It left squeue; neither sacct nor its completion marker knows how it ended"
    )


NEVER_STARTS = "BadConstraints"
"""Slurm's reason for a job that no node of the cluster could ever run (squeue(1), JOB REASON CODES). sbatch
refuses it unless it is submitted held: then Slurm finds out at the release and lets it wait for ever."""


def never_starts(seen: Sighting) -> bool:
    """Whether a waiting job waits for what the cluster does not have, not even when all nodes are well."""
    return seen.state is JobState.PENDING and seen.reason == NEVER_STARTS


def parse_marker(data: bytes) -> Marker | None:
    """Read `status.json`; None when it is not one (cut short, another program's, a person's own)."""
    try:
        value = json.loads(data)
        return Marker(
            job_id=_number(value["job_id"], 1 << 32),
            exit_code=_number(value["exit_code"], 256),
            restart=_number(value["restart"], 1 << 31),
            started_at=_moment(value.get("started_at")),
            ended_at=_moment(value.get("ended_at")),
            output_dir=str(value["output_dir"]),
            log_dir=str(value["log_dir"]),
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def change(known: Known, seen: Sighting, taken_at: datetime) -> Sighting | None:
    """What has to be written down, or None: stale, nothing new, or a step backwards from an end.

    A snapshot that is older than what is stored changes nothing. A job that has ended stays ended, except
    that Slurm may start it again (a requeue), which `restarts` proves.
    """
    if known.observed_at is not None and taken_at < known.observed_at:
        return None
    restarted = seen.restarts is not None and seen.restarts > known.restarts
    if known.state.ended and known.state is not JobState.UPSTREAM_FAILED and not restarted:
        return None
    if known.state is JobState.UPSTREAM_FAILED:
        return None
    same = (
        seen.state is known.state
        and seen.reason == known.reason
        and not restarted
        and (seen.started_at is None or seen.started_at == known.started_at)
    )
    return None if same else seen


def culprits(
    parents: Mapping[str, Collection[str]], failed: Mapping[str, JobState], alive: Collection[str]
) -> dict[str, str]:
    """For every live component that can't run any more: the failed component that is the cause.

    `parents` in topological order; `failed` are the components that failed by themselves.

    >>> culprits({"a": [], "b": ["a"], "c": ["b"]}, {"a": JobState.FAILED}, {"b", "c"})
    {'b': 'a', 'c': 'a'}
    """
    cause: dict[str, str] = {name: name for name in failed}
    for component, before in parents.items():
        blamed = next((cause[parent] for parent in before if parent in cause), None)
        if component not in cause and blamed is not None:
            cause[component] = blamed
    return {name: culprit for name, culprit in cause.items() if name in alive and name not in failed}


def _word(reason: str | None) -> str | None:
    return None if reason in {None, "", "None", "Unknown"} else reason


def _number(value: object, end: int) -> int:
    if isinstance(value, int) and 0 <= value < end:
        return value
    raise ValueError(f"{value!r} is no number below {end}")


def _moment(value: object) -> datetime | None:
    return datetime.fromisoformat(value).astimezone(UTC) if isinstance(value, str) else None
