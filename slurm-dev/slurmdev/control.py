"""Commands that reach a running cluster from outside: ``init ctl COMMAND…``, run inside it by ``cluster``.

Each prints what it found as a JSON document; trouble is one line on standard error and status 1.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from slurmdev import daemons, layout, supervisor


class ControlError(Exception):
    """The cluster could not do what was asked; the text says why."""


def request(operation: str, name: str = "") -> dict[str, Any]:
    """Ask PID 1 for one operation; returns the state of all daemons."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        try:
            connection.connect(supervisor.CONTROL)
        except OSError:
            raise ControlError("the cluster is not ready yet") from None
        connection.sendall(json.dumps({"op": operation, "name": name}).encode() + b"\n")
        reply: dict[str, Any] = json.loads(connection.makefile().readline() or "{}")
    if "error" in reply:
        raise ControlError(reply["error"])
    return reply


def _state(name: str) -> str:
    return str(request("status")["daemons"][name]["state"])


def _until(condition: Callable[[], bool], seconds: float, complaint: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise ControlError(complaint)
        time.sleep(0.05)


def status() -> dict[str, Any]:
    """Daemons, node states, Slurm's version, and whether scheduler and accounting answer right now."""
    nodes = daemons.node_states(timeout=3)
    return {
        **request("status"),
        "nodes": nodes,
        "slurm_version": daemons.slurm_version(),
        "scheduler": bool(nodes),
        "accounting": not daemons.accounting_complaint(timeout=3),
    }


def pause(name: str) -> dict[str, Any]:
    """Freeze a daemon (SIGSTOP) with its children: it keeps its sockets and answers nobody."""
    return request("pause", name)


def resume(name: str) -> dict[str, Any]:
    """Let a frozen daemon go on (SIGCONT)."""
    return request("resume", name)


def fail(name: str) -> dict[str, Any]:
    """Kill a compute node as a power cut would: slurmd, step daemons and jobs, all at once."""
    _require_node(name)
    request("kill", name)
    _until(lambda: _state(name) == "ended", 10, f"{name} would not die")
    return request("status")


def recover(name: str) -> dict[str, Any]:
    """Start a failed node again and wait until Slurm uses it."""
    _require_node(name)
    return _start(name)


def restart(name: str) -> dict[str, Any]:
    """Stop a daemon in good order (sshd drops its connections; a node loses its jobs) and start it again."""
    request("resume", name)
    request("stop", name)
    deadline = time.monotonic() + supervisor.STOP_DEADLINE_S
    while _state(name) != "ended":
        if time.monotonic() > deadline:
            request("kill", name)
        time.sleep(0.05)
    return _start(name)


def _start(name: str) -> dict[str, Any]:
    launched = request("start", name)["daemons"][name].get("launched", 0.0)
    daemon = {daemon.name: daemon for daemon in daemons.all_daemons(_settings())}[name]
    trouble = daemons.wait_ready(daemon, launched, alive=lambda: _state(name) != "ended")
    if trouble:
        raise ControlError(f"{name} did not come back: {trouble}; see `cluster logs {name}`")
    return request("status")


def _require_node(name: str) -> None:
    if name not in layout.NODES:
        raise ControlError(f"no node {name!r}; there are: {', '.join(layout.NODES)}")


def _settings() -> layout.Settings:
    return layout.Settings.from_json(Path(layout.DATA, "settings.json").read_text(encoding="utf-8"))


COMMANDS: dict[str, Callable[..., dict[str, Any]]] = {
    "status": status,
    "pause": pause,
    "resume": resume,
    "fail": fail,
    "recover": recover,
    "restart": restart,
}


def main(arguments: Sequence[str]) -> int:
    """Run one command; prints its answer as JSON."""
    command, *rest = arguments or [""]
    try:
        if command not in COMMANDS:
            raise ControlError(f"no command {command!r}; there are: {', '.join(COMMANDS)}")
        print(json.dumps(COMMANDS[command](*rest)))
    except ControlError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
