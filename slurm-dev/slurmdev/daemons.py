"""The daemons of a cluster: how each is started, when it is ready, which processes it consists of."""

from __future__ import annotations

import dataclasses
import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from slurmdev import conf, layout, processes
from slurmdev.layout import Settings

ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}
"""What daemons (and `exec`) start with: nothing of the machine outside leaks in."""

MARIADB_CLIENT = ("mariadb", "--no-defaults", f"--socket={conf.MARIADB_SOCKET}")

Probe = Callable[[float], str]
"""What a daemon that was launched at this time (seconds since 1970) still lacks; "" when it is ready."""


@dataclasses.dataclass(frozen=True)
class Daemon:
    """One daemon: its command in the foreground, its probe, and the seconds it may take to get ready.

    ``own`` is a pattern of process names: only those of its process tree are paused or stopped with it (a
    paused sshd freezes its sessions, not what people run in them). ``namespace`` marks a compute node: the
    process is ``unshare``, whose child is PID 1 of the node; killing that one takes every job step with it.
    """

    name: str
    argv: Sequence[str]
    ready: Probe
    deadline_s: float = 30
    own: str = ""
    namespace: bool = False

    @property
    def log(self) -> Path:
        """Where its standard output and error go."""
        return Path(layout.LOGS) / f"{self.name}.log"


def launch(daemon: Daemon) -> int:
    """Start the daemon; returns its pid. Standard streams go to its log, nothing else is inherited."""
    with daemon.log.open("ab") as log:
        process = subprocess.Popen(
            daemon.argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=dict(ENVIRONMENT),
            start_new_session=True,
        )
    # Waited for by pid in the supervisor; the object must not complain when it is collected.
    process.returncode = 0
    return process.pid


def members(daemon: Daemon, pid: int) -> list[int]:
    """The processes to signal when the daemon as a whole is meant, parents first."""
    return [
        process.pid
        for process in processes.tree(pid)
        if process.pid == pid or re.match(daemon.own, process.name)
    ]


def heart(daemon: Daemon, pid: int) -> list[int]:
    """The processes to end: PID 1 of a compute node (the kernel ends the rest), otherwise all members."""
    if daemon.namespace:
        return [process.pid for process in processes.tree(pid) if process.parent == pid] or [pid]
    return members(daemon, pid)


def complaint(*argv: str, timeout: float = 10) -> str:
    """Why a command does not end with status 0 in time; "" when it does."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=timeout, env=dict(ENVIRONMENT), check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else f"{argv[0]}: {done.stderr.strip() or done.stdout.strip()}"


def answer(*argv: str, timeout: float = 10) -> str | None:
    """What a command printed, or None when it failed or took too long."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=timeout, env=dict(ENVIRONMENT), check=False
        )
    except subprocess.TimeoutExpired:
        return None
    return done.stdout if done.returncode == 0 else None


def slurm_version() -> str:
    """Slurm's full version, such as ``24.11.5``."""
    return (answer("slurmctld", "-V") or "slurm unknown").split()[-1]


def _nodes(timeout: float) -> dict[str, dict[str, str]]:
    """Node → its fields by ``scontrol show node``; empty when slurmctld is silent.

    Not ``sinfo``: that may show a dead node as allocated for minutes after slurmctld has noticed its death.
    """
    text = answer("scontrol", "--oneliner", "show", "node", timeout=timeout) or ""
    lines = (dict(word.split("=", 1) for word in line.split() if "=" in word) for line in text.splitlines())
    return {fields["NodeName"]: fields for fields in lines if "NodeName" in fields}


def node_states(timeout: float = 5) -> dict[str, str]:
    """Node → state (``idle``, ``mixed``, ``down+not_responding``); empty when slurmctld is silent."""
    return {name: fields["State"].lower() for name, fields in _nodes(timeout).items()}


def accounting_complaint(timeout: float = 5) -> str:
    """Why slurmdbd does not answer a query; "" when it does."""
    return complaint("sacctmgr", "--noheader", "--parsable2", "show", "cluster", timeout=timeout)


def _scheduler(_launched: float) -> str:
    said = answer("scontrol", "ping", timeout=3) or "scontrol ping fails"
    return "" if "is UP" in said else said.strip()


def _node_usable(node: str, launched: float) -> str:
    """Does slurmctld use the node, and has it heard from this very slurmd? It remembers old states."""
    fields = _nodes(timeout=5).get(node, {})
    state, *flags = fields.get("State", "UNKNOWN").split("+")
    if state not in ("IDLE", "MIXED", "ALLOCATED") or "NOT_RESPONDING" in flags:
        return f"it is {fields.get('State', 'unknown')} ({fields.get('Reason', 'no reason given')})"
    try:
        registered = time.mktime(time.strptime(fields["SlurmdStartTime"], "%Y-%m-%dT%H:%M:%S"))
    except (KeyError, ValueError):
        registered = 0
    return "" if registered >= int(launched) else "it has not registered with slurmctld"


def _speaks(port: int, greeting: bytes) -> Probe:
    def probe(_launched: float) -> str:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
                said = connection.recv(len(greeting))
        except OSError as error:
            return f"port {port}: {error}"
        return "" if said == greeting else f"port {port} says {said!r}"

    return probe


def _http_ok(url: str) -> Probe:
    def probe(_launched: float) -> str:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return ""
        except OSError as error:
            return f"{url}: {error}"

    return probe


def node_daemon(node: str) -> Daemon:
    """A compute node: slurmd in PID, mount and UTS namespaces of its own, so that the node can really die.

    tini is its PID 1: it reaps the step daemons that slurmd leaves behind.
    """
    inside = f"echo {node} > /proc/sys/kernel/hostname && exec tini -- slurmd -D -N {node}"
    return Daemon(
        node,
        ["unshare", "--pid", "--mount-proc", "--uts", "--fork", "--kill-child", "--", "sh", "-c", inside],
        ready=lambda launched: _node_usable(node, launched),
        namespace=True,
    )


def all_daemons(settings: Settings) -> list[Daemon]:
    """Every daemon of the cluster in the order in which they start."""
    ssh, registry = settings.ports["ssh"], settings.ports["registry"]
    munge = ["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "munged", "--foreground"]
    daemons = [
        Daemon("munge", munge, ready=lambda _launched: complaint("sh", "-c", "munge -n | unmunge")),
        Daemon(
            "mariadb",
            ["mariadbd", *conf.mariadb_options()],
            ready=lambda _launched: complaint(*MARIADB_CLIENT, "-e", "select 1"),
            deadline_s=60,
        ),
        Daemon(
            "sshd",
            ["/usr/sbin/sshd", "-D", "-e", "-f", "/etc/slurm-dev/sshd_config"],
            ready=_speaks(ssh, b"SSH-"),
            own="sshd",
        ),
        Daemon("slurmdbd", ["slurmdbd", "-D"], ready=lambda _launched: accounting_complaint(), deadline_s=60),
        Daemon("slurmctld", ["slurmctld", "-D"], ready=_scheduler, deadline_s=60),
        *(node_daemon(node) for node in layout.NODES),
    ]
    if settings.containers:
        serve = ["docker-registry", "serve", "/etc/slurm-dev/registry.yml"]
        daemons.insert(3, Daemon("registry", serve, ready=_http_ok(f"http://127.0.0.1:{registry}/v2/")))
    return daemons


def wait_ready(daemon: Daemon, launched: float, alive: Callable[[], bool]) -> str:
    """Poll the daemon's probe until it answers. Returns "" or why it never did."""
    deadline = time.monotonic() + daemon.deadline_s
    pause = 0.02
    while lacks := daemon.ready(launched):
        if not alive():
            return "it ended"
        if time.monotonic() > deadline:
            return f"not ready within {daemon.deadline_s:.0f} s: {lacks}"
        time.sleep(pause)
        pause = min(pause * 1.5, 0.3)
    return ""
