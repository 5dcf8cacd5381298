"""Processes by their place in the tree of parents (from ``/proc``), their signals and their end."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)  # loaded before any fork: a child only calls into it


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
    found = (read(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit())
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


def send(pid: int, number: signal.Signals) -> bool:
    """Send a signal; False when the process is gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def die_with_parent(number: signal.Signals) -> None:
    """Have the kernel send this process a signal when its parent ends (``PR_SET_PDEATHSIG``, prctl(2))."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
