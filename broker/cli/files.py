"""Answers of the API as files: CSV, JSON, Parquet."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import typer

from broker.cli.options import api
from broker.cli.output import emit
from broker.errors import InvalidRequest

FORMATS: Final = ("csv", "json", "parquet")


def format_of(given: str | None, output: str) -> str:
    """The format that is asked for, else the one that the file's name says, else CSV.

    >>> format_of(None, "usage.parquet"), format_of(None, "-"), format_of("json", "usage.txt")
    ('parquet', 'csv', 'json')
    """
    named = Path(output).suffix.removeprefix(".").lower()
    wanted = given or named or "csv"
    if wanted not in FORMATS:
        said = f"--format {given}" if given else f"--output {output}"
        raise InvalidRequest(f"{said}: there is no such format; there are: {', '.join(FORMATS)}")
    return wanted


def save(
    ctx: typer.Context,
    path: str,
    asked: Mapping[str, Any],
    output: str,
    *,
    option: str = "--output",
    as_json: bool,
) -> None:
    """Write what the API answers into the file that an `option` names (`-`: standard output). A file that was
    there is replaced when the new one is whole.
    """
    if output == "-":
        if as_json:
            raise InvalidRequest(f"With --json the file needs a place of its own: name it with {option} FILE")
        with api(ctx) as client:
            client.save(path, sys.stdout.buffer.write, **asked)
        sys.stdout.flush()
        return
    target = Path(output)
    draft = target.parent / f".{target.name}.part"
    try:
        with api(ctx) as client, draft.open("wb") as file:
            count = client.save(path, file.write, **asked)
        draft.replace(target)
    except OSError as error:
        raise InvalidRequest(f"{output} can't be written: {error.strerror}") from None
    finally:
        with suppress(OSError):
            draft.unlink()
    emit({"path": output, "bytes": count}, lambda: f"Wrote {output} ({count} bytes).", as_json=as_json)
