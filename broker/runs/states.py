"""The states of runs and jobs, and the pure functions that derive one from the other."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Protocol


class RunState(StrEnum):
    """What people see (REQUIREMENTS QU-04); Korean names in `RUN_STATE_KO`."""

    PENDING_APPROVAL = "pending_approval"
    REJECTED = "rejected"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether nothing more will happen to the run by itself."""
        return self in {RunState.REJECTED, RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED}


RUN_STATE_KO = {
    RunState.PENDING_APPROVAL: "승인대기",
    RunState.REJECTED: "반려",
    RunState.QUEUED: "대기",
    RunState.RUNNING: "실행 중",
    RunState.SUCCEEDED: "완료",
    RunState.FAILED: "실패",
    RunState.CANCELLED: "취소",
}


class Gate(StrEnum):
    """How far Slurm's administrator hold follows the set of a run's holds (`holding`)."""

    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"
    OPENING = "opening"


class Phase(StrEnum):
    """How far the broker has come with a run (see the package's docstring)."""

    PREPARING = "preparing"
    SUBMITTING = "submitting"
    RELEASING = "releasing"
    ACTIVE = "active"
    STORING = "storing"
    DONE = "done"


class JobState(StrEnum):
    """Slurm's own words (`squeue(1)`, JOB STATE CODES) and three of the broker's."""

    INTENDED = "INTENDED"  # ours: asked for, no Slurm id yet
    UPSTREAM_FAILED = "UPSTREAM_FAILED"  # ours: a component before it failed; it never started
    UNKNOWN = "UNKNOWN"  # ours: neither squeue nor sacct nor the completion marker knows
    PENDING = "PENDING"
    CONFIGURING = "CONFIGURING"
    RUNNING = "RUNNING"
    COMPLETING = "COMPLETING"
    STAGE_OUT = "STAGE_OUT"
    SIGNALING = "SIGNALING"
    STOPPED = "STOPPED"
    SUSPENDED = "SUSPENDED"
    REQUEUED = "REQUEUED"
    REQUEUE_FED = "REQUEUE_FED"
    REQUEUE_HOLD = "REQUEUE_HOLD"
    SPECIAL_EXIT = "SPECIAL_EXIT"
    RESIZING = "RESIZING"
    RESV_DEL_HOLD = "RESV_DEL_HOLD"
    POWER_UP_NODE = "POWER_UP_NODE"
    EXPEDITING = "EXPEDITING"
    UPDATE_DB = "UPDATE_DB"
    COMPLETED = "COMPLETED"
    BOOT_FAIL = "BOOT_FAIL"
    CANCELLED = "CANCELLED"
    DEADLINE = "DEADLINE"
    FAILED = "FAILED"
    NODE_FAIL = "NODE_FAIL"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    PREEMPTED = "PREEMPTED"
    REVOKED = "REVOKED"
    LAUNCH_FAILED = "LAUNCH_FAILED"
    RECONFIG_FAIL = "RECONFIG_FAIL"
    TIMEOUT = "TIMEOUT"

    @property
    def ended(self) -> bool:
        """Whether this attempt of the component is over."""
        return self in _ENDED

    @property
    def failed(self) -> bool:
        """Ended, and its descendants can't run: everything that ended but success."""
        return self.ended and self is not JobState.COMPLETED

    @property
    def occupies_nodes(self) -> bool:
        """Whether it holds resources now (a completing job still does)."""
        return self in _ON_NODES


_ENDED = frozenset(
    {
        JobState.UPSTREAM_FAILED,
        JobState.COMPLETED,
        JobState.BOOT_FAIL,
        JobState.CANCELLED,
        JobState.DEADLINE,
        JobState.FAILED,
        JobState.NODE_FAIL,
        JobState.OUT_OF_MEMORY,
        JobState.PREEMPTED,
        JobState.REVOKED,
        JobState.LAUNCH_FAILED,
        JobState.RECONFIG_FAIL,
        JobState.TIMEOUT,
    }
)
_ON_NODES = frozenset(
    {
        JobState.CONFIGURING,
        JobState.RUNNING,
        JobState.COMPLETING,
        JobState.STAGE_OUT,
        JobState.SIGNALING,
        JobState.STOPPED,
        JobState.SUSPENDED,
        JobState.RESIZING,
    }
)


class FailureClass(StrEnum):
    """Why a job failed, as far as a retry is concerned (REQUIREMENTS DD-13)."""

    TEMPORARY = "temporary"  # the cluster's fault: the same job may well succeed
    RESOURCE = "resource"  # it asked for too little: retry with more
    UPSTREAM = "upstream"  # another component's fault
    CANCELLED = "cancelled"  # somebody's wish
    PERMANENT = "permanent"  # the program's own fault


_FAILURE_CLASS = {
    JobState.BOOT_FAIL: FailureClass.TEMPORARY,
    JobState.NODE_FAIL: FailureClass.TEMPORARY,
    JobState.LAUNCH_FAILED: FailureClass.TEMPORARY,
    JobState.RECONFIG_FAIL: FailureClass.TEMPORARY,
    JobState.PREEMPTED: FailureClass.TEMPORARY,
    JobState.OUT_OF_MEMORY: FailureClass.RESOURCE,
    JobState.TIMEOUT: FailureClass.RESOURCE,
    JobState.DEADLINE: FailureClass.RESOURCE,
    JobState.UPSTREAM_FAILED: FailureClass.UPSTREAM,
    JobState.CANCELLED: FailureClass.CANCELLED,
    JobState.REVOKED: FailureClass.CANCELLED,
    JobState.FAILED: FailureClass.PERMANENT,
}


NO_HEARTBEAT = "NoHeartbeat"
"""The reason of a job that the broker ended because it gave no sign of life (`heartbeat`)."""


def failure_class(state: JobState, reason: str | None = None) -> FailureClass | None:
    """The class of a failed state; None for anything else.

    Silence may be a node's fault or a file system's: the same job may well succeed.
    """
    if state is JobState.FAILED and reason == NO_HEARTBEAT:
        return FailureClass.TEMPORARY
    return _FAILURE_CLASS.get(state)


class HasState(Protocol):
    """What `derive_run_state` looks at: the state, and whether the job was ever seen to have started."""

    @property
    def state(self) -> JobState: ...  # noqa: D102
    @property
    def started(self) -> bool: ...  # noqa: D102


def derive_run_state(
    jobs: Iterable[HasState], *, cancel_requested: bool, stored: bool, approval: str = "not_required"
) -> RunState:
    """The state of a run from the newest job of each component, and from the decision about it.

    `stored`: every ended job's results lie in the object store. A run whose jobs have all completed is not
    yet a success: what it made must be safe first. UNKNOWN is not an end: absence is never success; nor does
    a job that had started wait again because nobody knows of it.

    >>> derive_run_state([], cancel_requested=True, stored=True)
    <RunState.CANCELLED: 'cancelled'>
    """
    jobs = list(jobs)
    states = [job.state for job in jobs]
    if all(state.ended for state in states):
        if not stored:
            return RunState.RUNNING
        if all(state is JobState.COMPLETED for state in states) and states:
            return RunState.SUCCEEDED
        if approval == "rejected":
            return RunState.REJECTED
        return RunState.CANCELLED if cancel_requested else RunState.FAILED
    started = any(
        job.state.occupies_nodes or job.state in _WORKED or (job.state is JobState.UNKNOWN and job.started)
        for job in jobs
    )
    if started:
        return RunState.RUNNING
    return RunState.PENDING_APPROVAL if approval == "pending" else RunState.QUEUED


_WORKED = _ENDED - {JobState.CANCELLED, JobState.UPSTREAM_FAILED}
