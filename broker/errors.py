"""Every error the broker raises on purpose.

    BrokerError
    ├── InvalidRequest        the caller mends it: something named in `problems` is wrong
    │   ├── InvalidSpec         … in a pipeline spec
    │   ├── UploadRejected      … in uploaded code (not an archive, unsafe member, too large)
    │   ├── BodyTooLarge        … the whole of it is too large
    │   ├── MediaTypeRefused    … its `Content-Type`
    │   ├── MethodNotAllowed    … the HTTP method
    │   ├── KeyReused           … its `Idempotency-Key` was used for another request
    │   ├── ImageUnavailable    … an image that the cluster can't get
    │   └── CodeUnavailable     … code that can't be had
    ├── Unauthenticated       the caller mends it: log in
    ├── Denied                an admin mends it: the role or the file system does not allow it
    ├── NotFound              the caller mends it
    ├── Conflict              the caller mends it: read again, then decide
    │   └── PreconditionFailed  … `If-Match` names a version that is not the present one
    ├── LimitReached          time mends it: `retry_after_s`
    ├── SlurmRefused          the caller mends it: Slurm said no, in its own words
    ├── ConfigurationError    an admin mends it: a setting or the cluster's set-up is wrong
    ├── IntegrityError        an admin looks: what arrived is not what was sent
    ├── Unreachable           time mends it: *nothing was done*; repeating is safe
    │   ├── TransferInterrupted a transfer broke off; it resumes where it was
    │   └── DiskFull            … because the far side is full (an admin mends it)
    └── OutcomeUnknown        *it may have been done*: look for the effect by its key before repeating

Each class says who can mend it, its HTTP status and the exit code of the command line. The difference
between `Unreachable` and `OutcomeUnknown` is the one that decides whether a job is submitted twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

Mender = Literal["caller", "admin", "time"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in one place.

    `pointer` is a JSON pointer (RFC 6901) into what was sent, "" for the whole; `code` is stable and
    documented in `docs/errors.md`; `detail` is a sentence that names the culprit and the remedy.
    """

    pointer: str
    code: str
    detail: str


@dataclass(eq=False)
class BrokerError(Exception):
    """Base of all. `detail` is one sentence for a person; `code` is what programs compare."""

    detail: str
    problems: Sequence[Problem] = field(default=(), kw_only=True)
    retry_after_s: float | None = field(default=None, kw_only=True)

    code: ClassVar[str] = "internal"
    title: ClassVar[str] = "The broker failed"
    mender: ClassVar[Mender] = "admin"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 70

    def __str__(self) -> str:
        return self.detail


class InvalidRequest(BrokerError):
    """What was sent can't be used; `problems` lists everything wrong with it at once."""

    code, title, mender, http_status, exit_code = "invalid_request", "Invalid request", "caller", 422, 2


class InvalidSpec(InvalidRequest):
    """A pipeline spec that can't be run; every problem at once, each with its pointer."""

    code, title = "invalid_spec", "Invalid pipeline spec"


class UploadRejected(InvalidRequest):
    """Uploaded code that is not a safe archive, or too large."""

    code, title = "upload_rejected", "Upload rejected"


class BodyTooLarge(InvalidRequest):
    """The request's body is larger than the server takes."""

    code, title, http_status = "body_too_large", "Request body too large", 413


class MediaTypeRefused(InvalidRequest):
    """The request's `Content-Type` is not one that this address takes."""

    code, title, http_status = "media_type_refused", "Content type not taken", 415


class MethodNotAllowed(InvalidRequest):
    """The address exists, but not with this HTTP method."""

    code, title, http_status = "method_not_allowed", "Method not allowed", 405


class KeyReused(InvalidRequest):
    """The `Idempotency-Key` was used for a different request; nothing was done."""

    code, title = "idempotency_key_reused", "Idempotency-Key used before"


class ImageUnavailable(InvalidRequest):
    """An image that the cluster can't get: no such name or tag, or pulling it failed."""

    code, title = "image_unavailable", "Image unavailable"


class CodeUnavailable(InvalidRequest):
    """A component's code that can't be had: no such repository, ref, upload or folder."""

    code, title = "code_unavailable", "Code unavailable"


class Unauthenticated(BrokerError):
    """No valid token came with the request."""

    code, title, mender, http_status, exit_code = "unauthenticated", "Not logged in", "caller", 401, 77


class Denied(BrokerError):
    """Known who, but not allowed."""

    code, title, mender, http_status, exit_code = "denied", "Not allowed", "admin", 403, 77


class NotFound(BrokerError):
    """It does not exist, or the asker may not know that it does."""

    code, title, mender, http_status, exit_code = "not_found", "Not found", "caller", 404, 66


class Conflict(BrokerError):
    """It exists but its state does not allow this, or it changed since it was read."""

    code, title, mender, http_status, exit_code = "conflict", "Conflict", "caller", 409, 75


class PreconditionFailed(Conflict):
    """It changed since it was read: `If-Match` names another version. Nothing was done."""

    code, title, http_status = "precondition_failed", "Changed since it was read", 412


class LimitReached(BrokerError):
    """Too much in too little time; `retry_after_s` says when to come back."""

    code, title, mender, http_status, exit_code = "limit_reached", "Limit reached", "time", 429, 75


class SlurmRefused(BrokerError):
    """Slurm answered, and the answer was no. Nothing was done."""

    code, title, mender, http_status, exit_code = "slurm_refused", "Slurm refused", "caller", 422, 65


class ConfigurationError(BrokerError):
    """A setting, or the cluster's set-up, is wrong; the sentence says which and how to mend it."""

    code, title, mender, http_status, exit_code = "configuration", "Configuration error", "admin", 500, 78


class IntegrityError(BrokerError):
    """A checksum differs: what arrived is not what was sent."""

    code, title, mender, http_status, exit_code = "integrity", "Checksum mismatch", "admin", 502, 74


class Unreachable(BrokerError):
    """The other side did not answer and nothing was started there: repeating is safe."""

    code, title, http_status, exit_code = "unreachable", "Unreachable", 503, 69
    mender: ClassVar[Mender] = "time"


class TransferInterrupted(Unreachable):
    """A file transfer broke off; the part that arrived is kept and the next try goes on from it."""

    code, title = "transfer_interrupted", "Transfer interrupted"


class DiskFull(Unreachable):
    """The far side has no room left; an admin makes room, then the next try goes on."""

    code, title, http_status = "disk_full", "Disk full", 507
    mender: ClassVar[Mender] = "admin"


class OutcomeUnknown(BrokerError):
    """It was asked for and no answer came: it may have happened. Find the effect before repeating."""

    code, title, mender, http_status, exit_code = "outcome_unknown", "Outcome unknown", "time", 503, 69


def all_errors() -> list[type[BrokerError]]:
    """Every class of the tree, parents before children (the documentation and its test walk it)."""
    found: list[type[BrokerError]] = []
    queue: list[type[BrokerError]] = [BrokerError]
    while queue:
        cls = queue.pop(0)
        found.append(cls)
        queue.extend(cls.__subclasses__())
    return found
