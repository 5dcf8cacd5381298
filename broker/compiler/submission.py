"""How a plan gets to the cluster: one archive on the standard input of one remote command.

The command takes the run's lock, unpacks the archive and goes on with the submission script, which keeps the
lock. Every process it starts counts: four jobs may not take twice as long as four bare sbatch calls.
`submit.sh` is the archive's last member: if it is there, everything before it is.
"""

from __future__ import annotations

import io
import tarfile
from enum import IntEnum
from typing import Final

from broker.compiler.names import CONTROL, MARKER
from broker.compiler.plan import FETCH, Plan
from broker.compiler.render import as_json, render, sh

LOCK_WAIT_S: Final = 60
AT_ONCE: Final = 3
"""sbatch calls at once, of jobs that do not wait for each other: most of a call is starting the program. Far
below what slurmctld's own limit lets a user do (`rl_bucket_size`, slurm.conf(5): 30 at least)."""
TRUST_SQUEUE_S: Final = 40
"""How long after the first start squeue alone is believed. slurmctld forgets ended jobs after `MinJobAge`
(slurm.conf(5); default 300 s, sites choose 60 and more); later, sacct is asked too."""


class SubmissionExit(IntEnum):
    """Exit codes of the submission script."""

    COMPLETE = 0
    REFUSED = 3
    UNKNOWN = 4
    LOCKED = 5
    FENCED = 6
    FOREIGN = 7


_UNCLEAR: Final = (
    "Socket timed out",
    "Unable to contact slurm controller",
    "Zero Bytes were transmitted",
    "Transport endpoint is not connected",
    "Unexpected message received",
    "communication connection failure",
    "Connection reset",
    "Connection timed out",
    "Broken pipe",
)
"""What sbatch says when it does not know whether the job exists (slurm_errno.c): never a refusal."""

_FAILED: Final = (
    "BOOT_FAIL",
    "CANCELLED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "REVOKED",
    "TIMEOUT",
)
_ALL_STATES: Final = "BF,CA,CD,DL,F,NF,OOM,PD,PR,R,RQ,RS,RV,S,TO"
"""Without a list of states, and an end, sacct leaves out jobs that were cancelled while held; with one that
it does not account for (CF, CG) it answers nothing at all."""


def submission_script(plan: Plan, *, hold: bool = True) -> str:
    """Write the script that submits the plan: safe to kill anywhere, safe to run again."""
    fetches = [
        (job.component, f"{plan.run_dir}/{path}")
        for job in plan.jobs
        for path in job.files
        if path.endswith(f"/{FETCH}")
    ]
    return render(
        "submit.sh.j2",
        run_dir=plan.run_dir,
        attempt=plan.attempt,
        hold=hold,
        jobs=plan.jobs,
        fetches=fetches,
        exits={exit_code.name.lower(): exit_code.value for exit_code in SubmissionExit},
        at_once=AT_ONCE,
        lock_wait_s=LOCK_WAIT_S,
        trust_squeue_s=TRUST_SQUEUE_S,
        all_states=_ALL_STATES,
        failed_states="|".join(_FAILED),
        unclear="|".join(f"*{sh(text)}*" for text in _UNCLEAR),
    )


def staging_archive(plan: Plan, *, hold: bool = True) -> bytes:
    """Pack what the run directory needs before anything is submitted: a tar, everything private."""
    files = {path: data for job in plan.jobs for path, data in job.files.items()}
    files[f"{CONTROL}/plan.{plan.attempt}.json"] = _summary(plan).encode()
    files[_submit_path(plan.attempt)] = submission_script(plan, hold=hold).encode()
    packed = io.BytesIO()
    with _archive(packed, plan) as archive:
        for path in _folders(files):
            archive.addfile(_member(path, 0o700, tarfile.DIRTYPE))
        for path, data in {MARKER: b"", **files}.items():
            member = _member(path, 0o600, tarfile.REGTYPE)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return packed.getvalue()


def stage_and_submit_argv(plan: Plan) -> list[str]:
    """Give the remote command that unpacks `staging_archive` from its standard input and submits."""
    return stage_argv(plan.run_dir, plan.attempt, len(plan.jobs))


def stage_argv(run_dir: str, attempt: int, jobs: int, path: str = "") -> list[str]:
    """The same, from what is known before there is a plan: it can be started while the plan is being made.

    So it also begins the journal of a first start, and waits for the disk, before the archive is there.
    `path` is the `PATH` that Slurm's commands are on, if not the account's own.
    """
    journal = f"{CONTROL}/journal.{attempt}"
    begin = (
        f"[[ -e {journal} ]] || {{ printf '# %(%s)T\\n' -1 >{journal} && sync -d {journal} && begun=here; }}"
    )
    unpack = "tar -xzf -" if _compressed(jobs) else "tar -xf -"
    script = f"{begin}; {unpack} && . {_submit_path(attempt)} locked ${{begun:-before}}"
    found = f"export PATH={sh(path)}; " if path else ""
    return ["bash", "-c", found + _locked(run_dir, script)]


def fence_argv(plan: Plan) -> list[str]:
    """Give the remote command after which no script submits anything for this attempt any more.

    It waits for a script that is at work; later ones end with `SubmissionExit.FENCED`.
    """
    return ["sh", "-c", _locked(plan.run_dir, f": >{CONTROL}/fenced.{plan.attempt}")]


def claim_argv(run_dir: str) -> list[str]:
    """Give the remote command that makes the run's directory, and nothing in it but our mark."""
    return ["sh", "-c", _locked(run_dir, ":")]


def _locked(run_dir: str, command: str) -> str:
    """`command` in the run's directory, under its lock; the directory has our mark from then on.

    Where everybody may make folders in the base path (`run_as: user`), somebody may have made this one first,
    or a link: nothing is written into what is not ours. Once it is, the sticky bit keeps it so.
    """
    place, name = sh(run_dir), sh(run_dir.rpartition("/")[2])
    foreign = f"{{ echo foreign; exit {SubmissionExit.FOREIGN}; }}"
    return (
        f"umask 077; mkdir -p {sh(f'{run_dir}/{CONTROL}')}; [ ! -e {place} ] || [ -O {place} ] || {foreign}; "
        f'cd -P {place} || exit 1; [ -O . ] && [ "${{PWD##*/}}" = {name} ] || {foreign}; '
        f"exec 9>{CONTROL}/.lock && : >{MARKER} || exit 1; "
        f"flock -w {LOCK_WAIT_S} 9 || {{ echo locked; exit {SubmissionExit.LOCKED}; }}; {command}"
    )


def _compressed(jobs: int) -> bool:
    """Small archives are sent as they are: starting gzip takes longer than sending them."""
    return jobs > 50


def _archive(target: io.BytesIO, plan: Plan) -> tarfile.TarFile:
    if _compressed(len(plan.jobs)):
        return tarfile.open(fileobj=target, mode="w:gz", compresslevel=1, format=tarfile.GNU_FORMAT)
    return tarfile.open(fileobj=target, mode="w", format=tarfile.GNU_FORMAT)


def _submit_path(attempt: int) -> str:
    return f"{CONTROL}/submit.{attempt}.sh"


def _summary(plan: Plan) -> str:
    jobs = [{"component": job.component, "name": job.name, "depends_on": job.depends_on} for job in plan.jobs]
    return as_json({"attempt": plan.attempt, "plan_hash": plan.plan_hash, "jobs": jobs}) + "\n"


def _folders(files: dict[str, bytes]) -> list[str]:
    found: dict[str, None] = {}
    for path in files:
        parts = path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            found["/".join(parts[:depth])] = None
    return list(found)


def _member(path: str, mode: int, kind: bytes) -> tarfile.TarInfo:
    member = tarfile.TarInfo(path)
    member.mode, member.type = mode, kind
    return member
