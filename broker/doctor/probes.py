"""Trying it for real: would Slurm take our jobs, is a hold a hold, what is a compute node like?

Two tiny jobs are submitted. One is held, found by its name, held by an administrator, and cancelled without
ever having run. The other runs on whatever node is free and writes what it sees into the base path, where the
login node reads it: the same folder on both, or not.
"""

from __future__ import annotations

import secrets
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime

from broker.checks import Check
from broker.doctor.commands import DryRun, Submit, ask
from broker.doctor.login import clock_check
from broker.errors import BrokerError, NotFound, TransferInterrupted
from broker.hosts import Host
from broker.settings import ClusterSettings
from broker.slurm import DONE, Result, SlurmClient
from broker.tenancy.objects import DEFAULT_CLASS, qos_name

MARKER = ".broker-doctor"
NODE_WAIT_S = 90.0
_LOOK_S = 0.5
_CACHE_S = 15.0
"""How late a file that a node wrote may appear on the login node (nfs(5), acregmax)."""

_NODE_SCRIPT = """#!/bin/sh
unset SLURM_EXPORT_ENV  # of --export=NONE, which srun would obey: its steps would have no PATH
PATH={path}; export PATH
out={folder}/node.part
{{
    printf 'clock=%s\\n' "$(date +%s.%N)"
    printf 'host=%s\\n' "$(hostname)"
    printf 'uid=%s\\n' "$(id -u)"
    printf 'token=%s\\n' "$(cat {folder}/token)"
    printf 'apptainer=%s\\n' "$(apptainer --version 2>&1 | head -n 1)"
    for program in squashfuse squashfuse_ll fuse2fs; do
        command -v $program >/dev/null && printf 'have=%s\\n' $program
        [ -x /usr/libexec/apptainer/bin/$program ] && printf 'have=%s\\n' $program
    done
    [ -r /dev/fuse ] && [ -w /dev/fuse ] && printf 'fuse=1\\n'
    [ -d {image_dir} ] && printf 'images=1\\n'
    printf 'step=%s\\n' "$(srun --ntasks=1 echo works 2>&1 | tail -n 1)"
}} > "$out"
mv "$out" {folder}/node
"""


@dataclass(frozen=True, slots=True)
class HeldFacts:
    """What came of the held job. `found`: ids that its name led to; `reason` after our own hold."""

    job_id: int
    found: tuple[int, ...]
    hold: Result
    reason: str
    state_after_hold: str
    cancel: Result
    in_accounting: bool


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What a job saw on a compute node. `clock`, `started_at`: seconds since the epoch, None if unknown."""

    host: str
    uid: int
    token: str
    clock: float
    started_at: float | None
    apptainer: str
    helpers: frozenset[str]
    fuse: bool
    images: bool
    step: str


def job_arguments(cluster: ClusterSettings) -> list[str]:
    """What every probe job asks for."""
    words = ["--time=2", "--nodes=1", "--ntasks=1", "--mem=64M", "--export=NONE", "--chdir=/", "--no-requeue"]
    qos = qos_name(cluster, DEFAULT_CLASS) if cluster.priority_classes else cluster.qos
    for option, value in (("partition", cluster.partition), ("account", cluster.account), ("qos", qos)):
        if value:
            words.append(f"--{option}={value}")
    return words


# ---- would Slurm take it? -----------------------------------------------------------------------------


def test_only(host: Host, cluster: ClusterSettings, gres_types: Sequence[str]) -> Iterator[Check]:
    """`sbatch --test-only` without GPUs and with one of each type."""
    for kind in ("", *gres_types):
        name = f"sbatch with 1 GPU ({kind})" if kind else "sbatch"
        words = job_arguments(cluster) + ([f"--gres=gpu:{kind}:1"] if kind else [])
        try:
            ask(host, DryRun(tuple(words)), cluster.command_timeout_s)
        except BrokerError as error:
            remedy = "Ask Slurm's administrator; `account`, `partition` and `qos` of the cluster are ours"
            yield Check(name, "fail", error.detail, remedy)
        else:
            yield Check(name, "ok", "Slurm would take it")


# ---- a held job ---------------------------------------------------------------------------------------


def try_hold(host: Host, slurm: SlurmClient, cluster: ClusterSettings) -> HeldFacts:
    """Submit held, find by name, hold as administrator, cancel; the job is cancelled whatever happens."""
    name = f"broker-doctor.{secrets.token_hex(8)}"
    since = datetime.now(UTC)
    words = [*job_arguments(cluster), "--hold", f"--job-name={name}", "--output=/dev/null"]
    with _submitted(host, slurm, cluster, Submit(tuple(words), "#!/bin/sh\ntrue\n")) as job_id:
        found = slurm.find_by_name([name], since).get(name, [])
        held = slurm.hold([job_id])[job_id]
        job = slurm.jobs(names=[name]).by_id().get(job_id)
        in_accounting = _eventually(lambda: bool(slurm.accounting([job_id], since)), seconds=10)
        cancelled = slurm.cancel([job_id])[job_id]
    return HeldFacts(
        job_id=job_id,
        found=tuple(found),
        hold=held,
        reason=job.reason if job else "",
        state_after_hold=str(job.state) if job else "",
        cancel=cancelled,
        in_accounting=in_accounting,
    )


def judge_hold(facts: HeldFacts, admin_level: str) -> Iterator[Check]:
    """Every finding about the held job."""
    if facts.found == (facts.job_id,):
        yield Check("found by name", "ok", "a held job is found by its unique name")
    else:
        detail = (
            f"job {facts.job_id} was submitted, its name led to: {', '.join(map(str, facts.found)) or 'none'}"
        )
        yield Check(
            "found by name", "fail", detail, "squeue must show our jobs (PrivateData, squeue's filters)"
        )
    if facts.hold != DONE:
        remedy = "Without it nothing can be held: ask Slurm's administrator"
        yield Check("hold", "fail", f"scontrol hold: {facts.hold.message}", remedy)
    elif facts.reason == "JobHeldAdmin":
        yield Check("hold", "ok", f"an administrator's hold (our level: {admin_level})")
    else:
        detail = f"our holds are a user's ({facts.reason or 'no reason shown'}; our level: {admin_level}): "
        remedy = "sacctmgr modify user where name=SERVICE set adminlevel=Operator"
        yield Check("hold", "warn", detail + "whoever owns the job can release it", remedy)
    if facts.cancel == DONE:
        yield Check("cancel", "ok", "done at once")
    else:
        yield Check(
            "cancel", "fail", facts.cancel.message or str(facts.cancel.kind), "scancel must work for us"
        )
    if facts.in_accounting:
        yield Check("sacct", "ok", "knows the job")
    else:
        detail = "sacct does not know a job that was just submitted"
        yield Check("sacct", "fail", detail, "See slurmdbd's log, and whether our account may read its jobs")


# ---- a job on a compute node --------------------------------------------------------------------------


def visit_node(host: Host, slurm: SlurmClient, cluster: ClusterSettings) -> tuple[str, NodeFacts | None, str]:
    """Run a job that looks round. Gives the token it should have read, what it saw (None: it did not run,
    or what it wrote did not arrive), and why not."""
    token = secrets.token_hex(16)
    folder = f"{cluster.base_path.rstrip('/')}/.doctor-{token[:12]}"
    host.mkdirs(folder)
    host.write(f"{folder}/{MARKER}", b"")
    host.write(f"{folder}/token", token.encode())
    script = _NODE_SCRIPT.format(
        path=shlex.quote(cluster.path), folder=shlex.quote(folder), image_dir=shlex.quote(cluster.image_dir)
    )
    name = f"broker-doctor.{token[:12]}"
    words = [*job_arguments(cluster), f"--job-name={name}", f"--output={folder}/log"]
    try:
        with _submitted(host, slurm, cluster, Submit(tuple(words), script)) as job_id:
            why, started_at = _await_end(slurm, job_id, name, NODE_WAIT_S)
            text = _read(host, f"{folder}/node", 0 if why else _CACHE_S)
            if text is None:
                log = _read(host, f"{folder}/log", 0) or ""
                return (
                    token,
                    None,
                    why or f"it ended, but what it wrote is not in {folder} here. {log[-300:]}",
                )
            return token, parse_node(text, started_at), ""
    finally:
        with suppress(BrokerError):
            host.remove_tree(folder, MARKER)


def parse_node(text: str, started_at: float | None) -> NodeFacts:
    """Read the lines that the job wrote."""
    rows = [line.partition("=")[::2] for line in text.splitlines() if "=" in line]
    values: Mapping[str, str] = dict(rows)
    return NodeFacts(
        host=values.get("host", ""),
        uid=int(values.get("uid") or -1),
        token=values.get("token", ""),
        clock=float(values.get("clock") or 0),
        started_at=started_at,
        apptainer=values.get("apptainer", ""),
        helpers=frozenset(value for key, value in rows if key == "have"),
        fuse="fuse" in values,
        images="images" in values,
        step=values.get("step", ""),
    )


def judge_node(facts: NodeFacts, token: str, uid: int, cluster: ClusterSettings) -> Iterator[Check]:
    """Every finding about the node that was visited."""
    yield Check("job on a node", "ok", f"ran on {facts.host}")
    if facts.token == token:
        yield Check("shared base path", "ok", f"{cluster.base_path} is the same on {facts.host}")
    else:
        remedy = "base_path must be one shared file system on login and compute nodes"
        detail = f"{cluster.base_path} on {facts.host} is not the login node's"
        yield Check("shared base path", "fail", detail, remedy)
    if not facts.images:
        remedy = "image_dir must be shared with the compute nodes"
        yield Check("shared image cache", "fail", f"{facts.host} has no {cluster.image_dir}", remedy)
    if facts.uid != uid:
        detail = f"we are uid {facts.uid} on {facts.host}, uid {uid} on the login node"
        yield Check("user ids", "fail", detail, "Accounts must be the same on all nodes")
    if facts.step != "works":
        remedy = "srun must work inside jobs: signals reach programs through steps only"
        yield Check("job steps", "fail", f"srun in a job: {facts.step or 'no answer'}", remedy)
    yield _apptainer(facts)
    if facts.started_at is not None:
        # Slurm gives the start in whole seconds; a prolog may take a while before the script begins.
        yield clock_check("node's clock", facts.clock, facts.started_at - 1, facts.started_at + 30)


def _apptainer(facts: NodeFacts) -> Check:
    name = "Apptainer"
    if "apptainer version" not in facts.apptainer:
        detail = f"on {facts.host}: {facts.apptainer or 'nothing answers'}"
        return Check(
            name, "fail", detail, "Install apptainer (1.1 or newer) on every compute node, or set `path`"
        )
    version = facts.apptainer.removeprefix("apptainer version ")
    if not facts.helpers & {"squashfuse", "squashfuse_ll"}:
        detail = f"{version} without squashfuse: each start unpacks the whole image"
        return Check(name, "warn", detail, "Install squashfuse on the compute nodes")
    if not facts.fuse:
        detail = f"{version}, but /dev/fuse is closed to us: containers of ordinary users do not start"
        return Check(name, "fail", detail, "chmod 666 /dev/fuse on the compute nodes (udev rule of fuse3)")
    if "fuse2fs" not in facts.helpers:
        return Check(name, "ok", f"{version} with squashfuse (no fuse2fs: overlay images can't be used)")
    return Check(name, "ok", f"{version} with squashfuse and fuse2fs")


# ---- how ----------------------------------------------------------------------------------------------


@contextmanager
def _submitted(host: Host, slurm: SlurmClient, cluster: ClusterSettings, command: Submit) -> Iterator[int]:
    """A probe job that is cancelled at the end, whatever happens."""
    job_id = ask(host, command, cluster.submit_timeout_s)
    try:
        yield job_id
    finally:
        with suppress(BrokerError):
            slurm.cancel([job_id])


def _await_end(slurm: SlurmClient, job_id: int, name: str, seconds: float) -> tuple[str, float | None]:
    """Wait for the end: "" or why it was no good one, and the start by Slurm's clock (s since the epoch)."""
    deadline = time.monotonic() + seconds
    while True:
        job = slurm.jobs(names=[name]).by_id().get(job_id)
        if job is None:
            return f"job {job_id} vanished from the queue", None
        if job.state.finished:
            why = "" if job.state.succeeded else f"the probe job ended {job.state} ({job.reason})"
            return why, job.start.timestamp() if job.start else None
        if time.monotonic() > deadline:
            return f"the probe job is still {job.state} ({job.reason}) after {seconds:.0f} s", None
        time.sleep(_LOOK_S)


def _read(host: Host, path: str, patience_s: float) -> str | None:
    """A small file; None when it does not appear in time."""
    deadline = time.monotonic() + patience_s
    while True:
        with suppress(NotFound, TransferInterrupted):
            return b"".join(host.read(path, 0, 1 << 16)).decode(errors="replace")
        if time.monotonic() > deadline:
            return None
        time.sleep(_LOOK_S)


def _eventually(true: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_S)
    return True
