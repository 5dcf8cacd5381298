"""Options that many commands share, and how their help is written."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from broker.cli.client import Api, connect
from broker.errors import InvalidRequest

Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="Show at most this many.")]
SpecFile = Annotated[
    str, typer.Argument(metavar="FILE", help="A pipeline spec (JSON); `-` reads standard input.")
]
Attempt = Annotated[int | None, typer.Option("--attempt", min=1, help="An earlier attempt; else the newest.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="Id of a run, as `broker run list` shows it.")]
PipelineRef = Annotated[
    str, typer.Argument(metavar="PIPELINE", help="Id of a pipeline, or the `pipeline_id` of its spec.")
]
VersionRef = Annotated[str, typer.Option("--version", metavar="N", help="Version number, or `latest`.")]
Interval = Annotated[
    float, typer.Option("--interval", min=0.2, max=600, metavar="SECONDS", help="Time between two looks.")
]


def examples(*lines: str) -> str:
    """The end of a command's help."""
    return "\n\n".join(["Examples:", *(f"  {line}" for line in lines)])


def group(name: str, summary: str) -> typer.Typer:
    """A group of commands; without a subcommand it shows its help."""
    return typer.Typer(name=name, help=summary, no_args_is_help=True, rich_markup_mode="markdown")


def api(ctx: typer.Context) -> Api:
    """A client of the server named by `--server`, the environment or the last login."""
    return connect(ctx.find_root().obj)


def read_input(name: str) -> bytes:
    """The bytes of a file, or of standard input for `-`."""
    if name == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{name} can't be read: {error.strerror}") from None


def pick(item: dict[str, Any], keys: Sequence[str]) -> list[Any]:
    """The values of an item in the order of a table's columns."""
    return [item.get(key) for key in keys]
