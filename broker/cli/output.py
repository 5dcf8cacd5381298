"""What people see: tables and messages. Programs get JSON, and nothing else, on standard output.

Standard output carries the answer; standard error carries progress, messages and errors. Text that came from
elsewhere (names, reasons, logs) never reaches a terminal with its control characters.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import IO, Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from broker.cli.fitting import Bar, Fitted
from broker.errors import BrokerError, Problem, Unauthenticated

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_COLOUR = re.compile(r"\x1b\[[0-9;]{0,32}m")
_PIPED_WIDTH = 240
"""Columns of a table that goes into a pipe: nothing that somebody greps for may be cut."""

STATE_STYLE = {
    "succeeded": "green",
    "COMPLETED": "green",
    "stored": "green",
    "ok": "green",
    "running": "cyan",
    "RUNNING": "cyan",
    "queued": "yellow",
    "pending_approval": "yellow",
    "PENDING": "yellow",
    "warn": "yellow",
    "UPSTREAM_FAILED": "magenta",
    "UNKNOWN": "magenta",
    "failed": "red",
    "rejected": "red",
    "fail": "red",
    "cancelled": "bright_black",
    "CANCELLED": "bright_black",
    "INTENDED": "bright_black",
}
_BAD_STYLE = "red"
_BAD_STATE = re.compile(r"([A-Z]+_)?(FAIL|FAILED|TIMEOUT|DEADLINE)|OUT_OF_MEMORY")


def stdout() -> Console:
    """Where answers go."""
    return _console(sys.stdout)


def stderr() -> Console:
    """Where progress, messages and errors go."""
    return _console(sys.stderr)


def _console(stream: IO[str]) -> Console:
    width = None if stream.isatty() else _PIPED_WIDTH
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False, soft_wrap=False)


def emit(data: Any, render: Callable[[], RenderableType | str], *, as_json: bool) -> None:
    """Print `data` for a program, or what `render` makes of it for a person."""
    if as_json:
        print_json(data)
    else:
        shown = render()
        stdout().print(Text(harmless(shown)) if isinstance(shown, str) else shown)


def print_json(data: Any) -> None:
    """One JSON document, indented."""
    sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False, default=str) + "\n")
    sys.stdout.flush()


def print_json_line(data: Any) -> None:
    """One JSON document on one line (streams)."""
    sys.stdout.write(json.dumps(data, ensure_ascii=False, default=str) + "\n")
    sys.stdout.flush()


def message(text: str, style: str = "") -> None:
    """A sentence for a person, on standard error."""
    stderr().print(Text(harmless(text), style=style), soft_wrap=True)


def harmless(text: str) -> str:
    """The text with control characters made visible, so that it can't steer a terminal.

    >>> harmless("a\\x1b[2Jb")
    'a\\\\x1b[2Jb'
    """
    return _CONTROL.sub(_visible, text)


def harmless_log(text: str) -> str:
    """The same for a log, whose carriage returns and colours are allowed."""
    parts = re.split(f"({_COLOUR.pattern}|\r)", text)
    return "".join(part if index % 2 else harmless(part) for index, part in enumerate(parts))


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def cell(value: Any) -> Text:
    """A table cell: plain text, never markup; states are coloured."""
    if value is None or value == "":
        return Text("–", style="bright_black")
    if isinstance(value, Text):
        return value
    text = harmless(str(value)).replace("\n", " ")
    return Text(text, style=state_style(text))


def state_style(state: str) -> str:
    """The colour of a state; "" for any other text."""
    if state in STATE_STYLE:
        return STATE_STYLE[state]
    return _BAD_STYLE if _BAD_STATE.fullmatch(state) else ""


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, empty: str) -> RenderableType:
    """A table without frills; `empty` stands for no rows.

    A title that ends in `>` aligns right; one with `?` is left out, with its column, where there is no room;
    one with `!` has words that are never cut; columns with `=` keep theirs while others can give way.
    """
    cells = [[value if isinstance(value, Bar) else cell(value) for value in row] for row in rows]
    return Fitted(columns, cells) if cells else Text(empty, style="bright_black")


def fields(pairs: Iterable[tuple[str, Any]]) -> RenderableType:
    """Names and values below each other; pairs without a value are left out."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for name, value in pairs:
        if value is not None and value != "":
            grid.add_row(name, cell(value))
    return grid


def size(count: int | float | None) -> str:
    """Bytes for people (binary units, as `ls -h`).

    >>> size(1536), size(None), size(12)
    ('1.5 KiB', '', '12 B')
    """
    if count is None:
        return ""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def amount(value: float) -> str:
    """A number as people write it, however large: steps and API calls go into the millions.

    >>> amount(20), amount(0.25), amount(1_250_000), amount(9999.6)
    ('20', '0.25', '1,250,000', '10,000')
    """
    return f"{value:,.0f}" if not value % 1 or abs(value) >= 1000 else f"{value:.4g}"


def when(moment: str | None) -> str:
    """An ISO time as local time to the second; "" for none."""
    if not moment:
        return ""
    return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def duration(start: str | None, end: str | None, now: datetime | None = None) -> str:
    """Time between two ISO times (to now, when it has not ended).

    >>> duration("2024-01-01T00:00:00+00:00", "2024-01-02T01:02:03+00:00")
    '1-01:02:03'
    """
    if not start:
        return ""
    until = datetime.fromisoformat(end) if end else (now or datetime.now(UTC))
    seconds = max(0, int((until - datetime.fromisoformat(start)).total_seconds()))
    days, rest = divmod(seconds, 86_400)
    clock = f"{rest // 3600:02d}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
    return f"{days}-{clock}" if days else clock


def problem_document(error: BrokerError) -> dict[str, Any]:
    """The error in the form the API uses (RFC 9457), for `--json`."""
    return {
        "title": error.title,
        "status": error.http_status,
        "detail": error.detail,
        "code": error.code,
        "errors": [problem_entry(problem) for problem in error.problems],
    }


def problem_entry(problem: Problem) -> dict[str, str]:
    """One problem as the API writes it."""
    return {"pointer": problem.pointer, "code": str(problem.code), "detail": problem.detail}


def problems_table(problems: Sequence[Problem]) -> RenderableType:
    """Where, and what; each on its own lines."""
    parts: list[RenderableType] = []
    for problem in problems:
        head = Text(harmless(problem.pointer or "(whole document)"), style="bold")
        head.append(f"  {harmless(str(problem.code))}", style="bright_black")
        parts += [head, Padding(Text(harmless(problem.detail)), (0, 0, 0, 2), expand=False)]
    return Group(*parts)


def report(error: BrokerError, *, as_json: bool) -> None:
    """Say what went wrong on standard error: every problem, and who can mend it."""
    if as_json:
        sys.stderr.write(json.dumps(problem_document(error), ensure_ascii=False, default=str) + "\n")
        return
    console = stderr()
    headline = Text(f"{error.title}: ", style="bold red")
    headline.append(harmless(error.detail), style="not bold default")
    console.print(headline, soft_wrap=True)
    if [problem.detail for problem in error.problems] not in ([], [error.detail]):
        console.print(Padding(problems_table(error.problems), (0, 0, 0, 2), expand=False))
    if remedy := remedy_for(error):
        console.print(Text(remedy, style="bright_black"), soft_wrap=True)


def remedy_for(error: BrokerError) -> str:
    """What to do next, where the sentence of the error does not say it itself."""
    if isinstance(error, Unauthenticated):
        return "Log in with: broker login"
    if error.mender == "time":
        wait = f" in {error.retry_after_s:.0f} s" if error.retry_after_s else " in a moment"
        return f"Try again{wait}; nothing needs to be mended on your side."
    if error.mender == "admin":
        return "An administrator of the broker can mend this."
    return ""
