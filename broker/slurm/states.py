"""Every state and flag a job can show (squeue(1), JOB STATE CODES; sacct(1), JOB STATE CODES)."""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache


class SlurmState(StrEnum):
    """A job's state in Slurm's own words; `UNKNOWN` is ours, for a word no release up to 26.05 has.

    Flags stand beside the base state inside Slurm and hide it in `squeue`: COMPLETING says that the script
    has ended and the nodes are being cleaned, not how it ended. A flag is therefore active, never final.
    """

    BOOT_FAIL = "BOOT_FAIL"
    CANCELLED = "CANCELLED"
    COMPLETED = "COMPLETED"
    COMPLETING = "COMPLETING"
    CONFIGURING = "CONFIGURING"
    DEADLINE = "DEADLINE"
    EXPEDITING = "EXPEDITING"
    FAILED = "FAILED"
    LAUNCH_FAILED = "LAUNCH_FAILED"
    NODE_FAIL = "NODE_FAIL"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    PENDING = "PENDING"
    POWER_UP_NODE = "POWER_UP_NODE"
    PREEMPTED = "PREEMPTED"
    RECONFIG_FAIL = "RECONFIG_FAIL"
    REQUEUED = "REQUEUED"
    REQUEUE_FED = "REQUEUE_FED"
    REQUEUE_HOLD = "REQUEUE_HOLD"
    RESIZING = "RESIZING"
    RESV_DEL_HOLD = "RESV_DEL_HOLD"
    REVOKED = "REVOKED"
    RUNNING = "RUNNING"
    SIGNALING = "SIGNALING"
    SPECIAL_EXIT = "SPECIAL_EXIT"
    STAGE_OUT = "STAGE_OUT"
    STOPPED = "STOPPED"
    SUSPENDED = "SUSPENDED"
    TIMEOUT = "TIMEOUT"
    UPDATE_DB = "UPDATE_DB"
    UNKNOWN = "UNKNOWN"

    @property
    def finished(self) -> bool:
        """It has ended and will not run again under this id (a requeued job shows PENDING or a flag)."""
        return self in _FINISHED

    @property
    def succeeded(self) -> bool:
        """It ended and its script's exit status was 0."""
        return self is SlurmState.COMPLETED

    @property
    def active(self) -> bool:
        """It waits, runs or is being cleaned up. UNKNOWN is neither active nor finished."""
        return not self.finished and self is not SlurmState.UNKNOWN

    @property
    def pending(self) -> bool:
        """It waits for resources, a dependency, a time or a person."""
        return self in _PENDING


_FINISHED = frozenset(
    {
        SlurmState.BOOT_FAIL,
        SlurmState.CANCELLED,
        SlurmState.COMPLETED,
        SlurmState.DEADLINE,
        SlurmState.FAILED,
        SlurmState.LAUNCH_FAILED,
        SlurmState.NODE_FAIL,
        SlurmState.OUT_OF_MEMORY,
        SlurmState.PREEMPTED,
        SlurmState.REVOKED,
        SlurmState.TIMEOUT,
    }
)
_PENDING = frozenset(
    {
        SlurmState.PENDING,
        SlurmState.REQUEUED,
        SlurmState.REQUEUE_FED,
        SlurmState.REQUEUE_HOLD,
        SlurmState.RESV_DEL_HOLD,
        SlurmState.SPECIAL_EXIT,
    }
)
# The short codes of `squeue -t` and `sacct -s`, which some commands also print.
_CODES = {
    "BF": SlurmState.BOOT_FAIL,
    "CA": SlurmState.CANCELLED,
    "CD": SlurmState.COMPLETED,
    "CF": SlurmState.CONFIGURING,
    "CG": SlurmState.COMPLETING,
    "DL": SlurmState.DEADLINE,
    "F": SlurmState.FAILED,
    "NF": SlurmState.NODE_FAIL,
    "OOM": SlurmState.OUT_OF_MEMORY,
    "PD": SlurmState.PENDING,
    "PR": SlurmState.PREEMPTED,
    "R": SlurmState.RUNNING,
    "RD": SlurmState.RESV_DEL_HOLD,
    "RF": SlurmState.REQUEUE_FED,
    "RH": SlurmState.REQUEUE_HOLD,
    "RQ": SlurmState.REQUEUED,
    "RS": SlurmState.RESIZING,
    "RV": SlurmState.REVOKED,
    "S": SlurmState.SUSPENDED,
    "SE": SlurmState.SPECIAL_EXIT,
    "SI": SlurmState.SIGNALING,
    "SO": SlurmState.STAGE_OUT,
    "ST": SlurmState.STOPPED,
    "TO": SlurmState.TIMEOUT,
}


@lru_cache(1024)
def parse_state(text: str) -> SlurmState:
    """The state in `RUNNING`, `CG`, `CANCELLED by 1000`, `COMPLETED+`; what is none is UNKNOWN."""
    word = text.split(maxsplit=1)[0].rstrip("+*") if text.strip() else ""
    try:
        return SlurmState(word)
    except ValueError:
        return _CODES.get(word, SlurmState.UNKNOWN)
