"""What one attempt of a component left in the object store. Pure.

    PREFIX/files/…          the files, under encoded names
    PREFIX/manifest.json    written last

The manifest is the only word for "stored": it is written when everything it names lies there with its
checksum, so a prefix without one is an unfinished collection, whatever else lies there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from broker.errors import IntegrityError, InvalidRequest
from broker.objects.names import MAX_KEY_BYTES, encode_name

MANIFEST_NAME = "manifest.json"


def _in_utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError("a time needs its offset from UTC")
    return moment.astimezone(UTC)


def _shown(name: object) -> object:
    """A name that is no UTF-8 (`os.fsdecode` gives it lone surrogates), those bytes written as \\udcXX."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8") if isinstance(name, str) else name


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Shown = Annotated[str, BeforeValidator(_shown)]
Moment = Annotated[datetime, AfterValidator(_in_utc)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StoredFile(_Frozen):
    """One file: its path below the outputs, its size in bytes, its SHA-256 (hex), where it is stored."""

    path: str = Field(min_length=1)
    size: int = Field(ge=0)
    sha256: Sha256
    key: str = Field(min_length=1)


class RefusedFile(_Frozen):
    """Something that was found and not stored (a link, a device, a name that can't be carried), and why."""

    path: Shown
    why: str = Field(min_length=1)


class Totals(_Frozen):
    """Sums over the stored files: their number, their size in bytes."""

    files: int = Field(ge=0)
    bytes: int = Field(ge=0)


class Manifest(_Frozen):
    """The list of one attempt's results. `attempt` counts from 1, `restart` is Slurm's requeue count."""

    version: Literal[1] = 1
    run: str = Field(min_length=1)
    component: str = Field(min_length=1)
    attempt: int = Field(ge=1)
    restart: int = Field(0, ge=0)
    created_at: Moment
    files: tuple[StoredFile, ...]
    refused: tuple[RefusedFile, ...] = ()
    totals: Totals

    @classmethod
    def build(
        cls,
        *,
        run: str,
        component: str,
        attempt: int,
        files: Iterable[StoredFile],
        created_at: datetime,
        restart: int = 0,
        refused: Iterable[RefusedFile] = (),
    ) -> Self:
        """The manifest of these files, in canonical order and summed up."""
        ordered = tuple(sorted(files, key=lambda file: file.path))
        return cls(
            run=run,
            component=component,
            attempt=attempt,
            restart=restart,
            created_at=created_at,
            files=ordered,
            refused=tuple(sorted(refused, key=lambda one: (one.path, one.why))),
            totals=_totals(ordered),
        )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        paths = [file.path for file in self.files]
        if paths != sorted(set(paths)):
            raise ValueError("the files are not in the order of their paths, each once")
        if len({file.key for file in self.files}) != len(paths):
            raise ValueError("two files share a key")
        if self.totals != _totals(self.files):
            raise ValueError(f"the totals say {self.totals}, the files sum up to {_totals(self.files)}")
        return self

    def canonical(self) -> bytes:
        """The one JSON form: keys sorted, no blanks, ASCII, so that odd names survive any tool."""
        content = self.model_dump(mode="json")
        return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the canonical form."""
        return hashlib.sha256(self.canonical()).hexdigest()

    @classmethod
    def parse(cls, data: bytes, sha256: str | None = None) -> Self:
        """Read a stored manifest. Raises `IntegrityError` if it is damaged or has not this `sha256`."""
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise IntegrityError(f"The manifest is not the one that was written: its SHA-256 is not {sha256}")
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = "/".join(str(step) for step in first["loc"]) or "the whole"
            raise IntegrityError(f"The manifest is damaged at {where}: {first['msg']}") from error


def _totals(files: Iterable[StoredFile]) -> Totals:
    sizes = [file.size for file in files]
    return Totals(files=len(sizes), bytes=sum(sizes))


def manifest_key(prefix: str) -> str:
    """Where the manifest of the results below `prefix` lies."""
    return f"{prefix.rstrip('/')}/{MANIFEST_NAME}"


def object_key(prefix: str, path: str) -> str:
    """The key of the file at `path` (relative, "/"-separated) below the outputs.

    Raises `InvalidRequest`, with the reason, for a path that can't be carried: see `why_refused`.
    """
    if why := why_refused(prefix, path):
        raise InvalidRequest(f"The file name {path!r} can't be stored: {why}")
    return _joined(prefix, path)


def why_refused(prefix: str, path: str) -> str | None:
    """Why a file of this name is not stored, as a clause; None if it can be.

    Any name that is Unicode text is carried, line breaks and quotes included.
    """
    if not path or path.startswith("/"):
        return "it is not relative to the outputs"
    if any(segment in ("", ".", "..") for segment in path.split("/")):
        return "it has an empty, '.' or '..' segment"
    if "\0" in path:
        return "it has a NUL"
    try:
        size = len(_joined(prefix, path).encode("utf-8"))
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    if size > MAX_KEY_BYTES:
        return f"its key would have {size} bytes, and {MAX_KEY_BYTES} is the limit: use a shorter path"
    return None


def _joined(prefix: str, path: str) -> str:
    return f"{prefix.rstrip('/')}/files/{encode_name(path)}"
