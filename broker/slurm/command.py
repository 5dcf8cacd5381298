"""A Slurm command as an object without I/O: it says its argument list and understands what comes back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Generic, TypeVar

from broker.errors import (
    BrokerError,
    ConfigurationError,
    Conflict,
    Denied,
    InvalidRequest,
    NotFound,
    OutcomeUnknown,
    SlurmRefused,
    Unreachable,
)
from broker.hosts import Completed

T_co = TypeVar("T_co", covariant=True)

_UNSET = (
    *(f"SQUEUE_{name}" for name in ("ACCOUNT", "ALL", "ARRAY", "FORMAT", "FORMAT2", "LICENSES", "NAMES")),
    *(f"SQUEUE_{name}" for name in ("PARTITION", "PRIORITY", "QOS", "SORT", "STATES", "USERS")),
    *(
        "SACCT_FEDERATION",
        "SACCT_LOCAL",
        "SCANCEL_NAME",
        "SCANCEL_STATE",
        "SCANCEL_USER",
        "SCANCEL_PARTITION",
    ),
    *(
        "SCANCEL_ACCOUNT",
        "SCANCEL_INTERACTIVE",
        "SCONTROL_ALL",
        "SINFO_FORMAT",
        "SPRIO_FORMAT",
        "SLURM_CLUSTERS",
    ),
)
"""Filters and formats that an account's profile may set and that would change answers silently."""

ENVIRONMENT = (
    "env",
    *(word for name in _UNSET for word in ("-u", name)),
    *("TZ=UTC", "LC_ALL=C", "SLURM_TIME_FORMAT=%s"),
)
"""Before every command: times as seconds since the epoch, messages in English, nobody's defaults."""


class ResultKind(StrEnum):
    """What became of one change to one job."""

    DONE = "done"
    NOT_FOUND = "not_found"
    HELD = "held"
    FINISHED = "finished"
    DENIED = "denied"
    INVALID_REQUEST = "invalid_request"
    UNREACHABLE = "unreachable"
    OUTCOME_UNKNOWN = "outcome_unknown"


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one change to one job, and Slurm's words for it ("" when it was done)."""

    kind: ResultKind
    message: str = ""


DONE = Result(ResultKind.DONE)


class Command(ABC, Generic[T_co]):
    """One command line. Subclasses are frozen dataclasses of what varies in it."""

    program: ClassVar[str]
    readonly: ClassVar[bool] = True

    @abstractmethod
    def args(self) -> list[str]:
        """The words after the program's name."""

    @abstractmethod
    def parse(self, done: Completed) -> T_co:
        """What the answer means; raises a `BrokerError` when it is none."""

    @property
    def stdin(self) -> bytes:
        """What the command reads."""
        return b""

    def argv(self, path: str = "") -> list[str]:
        """The whole argument list; `path` is the PATH on which Slurm's programs lie ("": the account's)."""
        return [*ENVIRONMENT, *((f"PATH={path}",) if path else ()), self.program, *self.args()]

    def text(self, done: Completed) -> str:
        """Standard output of a command that succeeded; else its complaint is raised."""
        if done.rc or (not done.stdout and b"error:" in done.stderr):
            raise complaint(self.program, done)
        return decoded(done.stdout)


def decoded(data: bytes) -> str:
    """Slurm prints names as the bytes they were given as; what is not UTF-8 is shown, not fatal."""
    return data.decode("utf-8", errors="replace")


# Slurm's words (src/common/slurm_errno.c; the same from 22.05 to 26.05) -> what they mean for us; the first
# that fits. A time-out comes after the request was sent; a connect failure before.
_WORDS: tuple[tuple[ResultKind, tuple[str, ...]], ...] = (
    (
        ResultKind.UNREACHABLE,
        (
            "connect failure",
            "Connection refused",
            "Slurm backup controller in standby mode",
            "controller is in standby mode",
            "Unable to connect to database",
            "failed to open persistent connection",
            "Problem talking to the database",
            "slurm_persist_conn_open",
        ),
    ),
    (
        ResultKind.OUTCOME_UNKNOWN,
        (
            "Socket timed out",
            "Zero Bytes were transmitted",
            "Unable to contact slurm controller",
            "Unexpected message received",  # scontrol hold, when the controller is frozen or gone
            "Message receive failure",
            "Message connection failure",
            "Communication connection failure",
            "Communication shutdown failure",
            "Connection reset by peer",
            "Unspecified error",
        ),
    ),
    (ResultKind.NOT_FOUND, ("Invalid job id",)),
    (
        ResultKind.FINISHED,
        ("Job/step already completing or completed", "already finished", "Job has already finished"),
    ),
    (ResultKind.HELD, ("Job is in held state",)),
    (
        ResultKind.DENIED,
        (
            "Access/permission denied",
            "Access denied",
            "Invalid user id",
            "Operation not permitted",
            "Only the job owner",
        ),
    ),
)

_ERRORS: dict[ResultKind, type[BrokerError]] = {
    ResultKind.NOT_FOUND: NotFound,
    ResultKind.HELD: Conflict,
    ResultKind.FINISHED: Conflict,
    ResultKind.DENIED: Denied,
    ResultKind.INVALID_REQUEST: InvalidRequest,
    ResultKind.UNREACHABLE: Unreachable,
    ResultKind.OUTCOME_UNKNOWN: OutcomeUnknown,
}


def judged(message: str) -> Result:
    """What Slurm's complaint about a change means; words we don't know are a refusal of the request."""
    for kind, phrases in _WORDS:
        if any(phrase in message for phrase in phrases):
            return Result(kind, message)
    return Result(ResultKind.INVALID_REQUEST, message)


def error_of(result: Result) -> BrokerError:
    """The exception for a result that is not `DONE`."""
    return _ERRORS[result.kind](result.message)


def complaint(program: str, done: Completed) -> BrokerError:
    """The error for a reading command that failed. It only reads: without an answer, nothing happened."""
    sentence = f"{program}: {done.complaint}"
    if done.rc == 127:
        return ConfigurationError(
            f"{sentence}. Slurm's commands are not on the PATH: name their folder in the setting `path`"
        )
    if "nvalid field requested" in sentence or "nvalid job format specification" in sentence:
        return ConfigurationError(f"{sentence}. This release of Slurm is not one the broker knows")
    result = judged(sentence)
    if result.kind in {ResultKind.UNREACHABLE, ResultKind.OUTCOME_UNKNOWN}:
        return Unreachable(sentence)
    return SlurmRefused(sentence) if result.kind is ResultKind.INVALID_REQUEST else error_of(result)
