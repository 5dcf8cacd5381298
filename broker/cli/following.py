"""Waiting for a run, and reading logs while they grow."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.text import Text

from broker.cli.client import Api, patiently
from broker.cli.output import harmless, harmless_log, message, stderr
from broker.cli.report_words import Language
from broker.cli.run_views import FINAL, changes, run_view
from broker.errors import NotFound, Unreachable

_OUTAGE_PAUSES_S = (1.0, 2.0, 5.0, *(10.0,) * 60)
"""A broker that restarts, or is away for ten minutes, ends no wait: the run goes on without it."""
_FRESH_S = 60.0
"""The server tells what has changed; when a run is expected to end changes by itself as well, so that it is
read whole after this time."""
_CHUNK = 1 << 20

Show = Callable[[dict[str, Any] | None, dict[str, Any]], None]


def wait(
    api: Api,
    run_id: str,
    *,
    interval_s: float,
    timeout_s: float | None = None,
    show: Show,
    each: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Look at a run until it has ended: `show(before, now)` when something changed, `each()` at every look.

    Raises `Unreachable` when the time is over; the run is not touched by that.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    seen: dict[str, Any] | None = None
    tag: str | None = None
    read_at = time.monotonic()
    while True:
        fresh, tag = _look(api, run_id, tag if time.monotonic() - read_at < _FRESH_S else None)
        if fresh is not None:
            show(seen, fresh)
            seen, read_at = fresh, time.monotonic()
        each()
        if seen is not None and seen["state"] in FINAL:
            return seen
        if deadline is not None and time.monotonic() >= deadline:
            state = seen["state"] if seen else "unknown"
            raise Unreachable(f"Run {run_id} is still {state} after {timeout_s:g} s; it goes on by itself")
        time.sleep(interval_s if deadline is None else max(0.0, min(interval_s, deadline - time.monotonic())))


def _look(api: Api, run_id: str, tag: str | None) -> tuple[dict[str, Any] | None, str | None]:
    def look() -> tuple[dict[str, Any] | None, str | None]:
        return api.get_if_changed(f"/runs/{run_id}", tag)

    return patiently(look, pauses_s=_OUTAGE_PAUSES_S)


def tell_changes(before: dict[str, Any] | None, now: dict[str, Any]) -> None:
    """One line for each change, on standard error (when that is no terminal, or logs are followed)."""
    for line in changes(before, now):
        message(line, style="bright_black")


@contextmanager
def display(lang: Language = "en") -> Iterator[Show]:
    """A picture of the run that is redrawn in place; lines where there is no terminal."""
    console = stderr()
    if not console.is_terminal:
        yield tell_changes
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:

        def show(_before: dict[str, Any] | None, now: dict[str, Any]) -> None:
            live.update(_Picture(now, lang))

        yield show


@dataclass
class _Picture:
    """Redrawn several times a second, so that spinner and clocks move between two answers of the server."""

    run: dict[str, Any]
    lang: Language
    spinner: Spinner = field(default_factory=lambda: Spinner("dots"))

    def __rich__(self) -> Group:
        jobs = self.run["jobs"]
        done = sum(job["state"] == "COMPLETED" for job in jobs)
        self.spinner.update(text=Text(f" {harmless(self.run['state'])}: {done} of {len(jobs)} completed"))
        bar = ProgressBar(total=max(1, len(jobs)), completed=done, width=40)
        return Group(run_view(self.run, brief=True, lang=self.lang), Text(""), bar, self.spinner)


@dataclass
class LogReader:
    """One log of one component from where reading has come to (a negative `offset`: so far from the end).

    `attempt` None: the newest.
    """

    api: Api
    run_id: str
    component: str
    stream: str = "output"
    attempt: int | None = None
    offset: int = 0
    complete: bool = False

    def more(self) -> str:
        """What was added since the last call; "" for nothing. Sets `complete` once nothing will follow."""
        path = f"/runs/{self.run_id}/components/{self.component}/logs"
        parts = []
        while True:
            chunk = patiently(
                lambda: self.api.get(
                    path, attempt=self.attempt, stream=self.stream, offset=self.offset, limit=_CHUNK
                ),
                pauses_s=_OUTAGE_PAUSES_S,
            )
            moved = chunk["next_offset"] - self.offset
            self.offset, self.complete = chunk["next_offset"], chunk["complete"]
            parts.append(chunk["text"])
            if not moved or self.offset >= chunk["size"]:
                return "".join(parts)


@dataclass
class LineReader(LogReader):
    """The same, but only the lines of at least `level` that hold `text`; complete lines only."""

    level: str | None = None
    text: str | None = None

    def more(self) -> str:
        """See `LogReader.more`."""
        path = f"/runs/{self.run_id}/components/{self.component}/logs/lines"
        parts = []
        while True:
            found = patiently(
                lambda: self.api.get(
                    path,
                    attempt=self.attempt,
                    stream=self.stream,
                    offset=self.offset,
                    level=self.level,
                    q=self.text,
                    limit=1000,
                ),
                pauses_s=_OUTAGE_PAUSES_S,
            )
            moved = found["next_offset"] > found["offset"]
            self.offset, self.complete = found["next_offset"], found["complete"]
            parts += [f"{line['text']}\n" for line in found["lines"]]
            if not moved or self.complete:
                return "".join(parts)


def write_log(text: str) -> None:
    """A log to standard output: as it is into a pipe, harmless to a terminal."""
    sys.stdout.write(harmless_log(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def follow_log(
    reader: LogReader, interval_s: float, write: Callable[[str], None] = write_log, *, follow: bool = True
) -> None:
    """Print a log until it is complete; without `follow` what there is of it."""
    while True:
        if text := reader.more():
            write(text)
        if reader.complete or not follow:
            return
        time.sleep(interval_s)


class RunLogs:
    """The logs of every component that runs, line by line, each with its component's name."""

    def __init__(self, api: Api, run_id: str) -> None:
        self._api, self._run_id = api, run_id
        self._readers: dict[tuple[str, int], LogReader] = {}
        self._rests: dict[tuple[str, int], str] = {}

    def show(self, before: dict[str, Any] | None, now: dict[str, Any]) -> None:
        """Tell what changed, then print what the logs have gained."""
        tell_changes(before, now)
        for job in now["jobs"]:
            if job["started_at"] and job["state"] != "INTENDED":
                key = job["component"], job["attempt"]
                if key not in self._readers:
                    self._readers[key] = LogReader(
                        self._api, self._run_id, job["component"], attempt=job["attempt"]
                    )
        self.print_new(final=now["state"] in FINAL)

    def print_new(self, *, final: bool = False) -> None:
        """Print every complete line that is new; at the end of the run the incomplete ones too."""
        width = max((len(component) for component, _ in self._readers), default=0)
        for (component, attempt), reader in self._readers.items():
            key = component, attempt
            if reader.complete:
                continue
            try:
                text = self._rests.pop(key, "") + reader.more()
            except NotFound:
                continue  # nothing is written yet
            *lines, rest = text.split("\n")
            if rest and (final or reader.complete):
                lines.append(rest)
            elif rest:
                self._rests[key] = rest
            write_log("".join(f"{component:<{width}} | {line}\n" for line in lines))
