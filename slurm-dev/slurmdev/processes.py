"""Processes by their place in the tree of parents, read from ``/proc``."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    """One line of the process table: ids, the kernel's short name and the state letter (``proc(5)``)."""

    pid: int
    parent: int
    name: str
    state: str


def read(pid: int) -> Process | None:
    """The process, or None when there is none (any more)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    name = text[text.index("(") + 1 : text.rindex(")")]
    state, parent = text[text.rindex(")") + 2 :].split()[:2]
    return Process(pid, int(parent), name, state)


def table() -> list[Process]:
    """Every process of this PID namespace and of those below it."""
    found = (read(int(entry)) for entry in os.listdir("/proc") if entry.isdigit())
    return [process for process in found if process is not None]


def tree(root: int) -> Iterator[Process]:
    """``root`` and all its descendants, parents first."""
    children: dict[int, list[Process]] = {}
    for process in table():
        children.setdefault(process.parent, []).append(process)
        if process.pid == root:
            yield process
    queue = [root]
    while queue:
        for child in children.get(queue.pop(), ()):
            yield child
            queue.append(child.pid)


def start_time(pid: int) -> int | None:
    """Clock ticks after boot at which the process began: with the pid, its identity. None when gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(text[text.rindex(")") + 2 :].split()[19])


def send(pid: int, number: signal.Signals) -> bool:
    """Send a signal; False when the process is gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
