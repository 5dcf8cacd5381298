"""The login node: programs, folders, clock. One script gathers the facts, pure functions judge them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from broker.checks import Check
from broker.errors import SlurmRefused
from broker.hosts import Host
from broker.settings import ClusterSettings

PROGRAMS = (
    *("sbatch", "scontrol", "squeue", "sacct", "scancel", "sinfo", "sacctmgr"),
    *("apptainer", "bash", "curl", "dd", "find", "flock", "git", "sha256sum", "stat", "sync", "tar", "xargs"),
)
_NEEDED_FOR = {
    "apptainer": "images can't be fetched",
    "curl": "images can't be looked up in their registries",
    "git": "components with `code.git` can't run",
    "flock": "nothing can be submitted",
}
_MIN_FREE_MIB = 10 * 1024
_SKEW_WARN_S = 5.0

_SCRIPT = r"""
PATH=$1 base=$2 images=$3; shift 3
export PATH
printf 'clock=%s\n' "$(date +%s.%N)"
printf 'user=%s\n' "$(id -un)"
printf 'uid=%s\n' "$(id -u)"
printf 'host=%s\n' "$(hostname)"
for program; do command -v "$program" >/dev/null || printf 'missing=%s\n' "$program"; done
look() {
    if trial=$(mktemp "$2/.broker-doctor.XXXXXX" 2>&1); then
        if echo probe > "$trial" && sync "$trial" && mv "$trial" "$trial.moved"; then
            printf '%s_ok=1\n' "$1"
        else
            printf '%s_trouble=%s\n' "$1" 'files can not be written there'
        fi
        rm -f "$trial" "$trial.moved"
    else
        printf '%s_trouble=%s\n' "$1" "$trial"
    fi
    printf '%s_free=%s\n' "$1" "$(df -Pk "$2" 2>/dev/null | tail -n 1 | awk '{print $4}')"
    printf '%s_type=%s\n' "$1" "$(stat -f -c %T "$2" 2>/dev/null)"
    printf '%s_mode=%s\n' "$1" "$(stat -c %a "$2" 2>/dev/null)"
}
look base "$base"
look images "$images"
"""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that the broker writes to. `trouble` is "" when it can."""

    path: str
    trouble: str
    free_mib: int | None
    file_system: str
    mode: int | None


@dataclass(frozen=True, slots=True)
class LoginFacts:
    """What the login node said. `clock` is its time in seconds since the epoch."""

    clock: float
    user: str
    uid: int
    host: str
    missing: tuple[str, ...]
    base: Folder
    images: Folder


def gather(host: Host, cluster: ClusterSettings) -> LoginFacts:
    """Ask the login node everything at once."""
    argv = ["sh", "-c", _SCRIPT, "sh", cluster.path, cluster.base_path, cluster.image_dir, *PROGRAMS]
    done = host.run(argv, timeout=cluster.command_timeout_s, readonly=True)
    if done.rc:
        raise SlurmRefused(f"The login node could not be examined: {done.complaint}")
    return parse(done.stdout.decode(errors="replace"), cluster)


def parse(text: str, cluster: ClusterSettings) -> LoginFacts:
    """Read the script's lines."""
    rows = [line.partition("=")[::2] for line in text.splitlines() if "=" in line]
    values = dict(rows)

    def folder(name: str, path: str) -> Folder:
        trouble = "" if values.get(f"{name}_ok") else values.get(f"{name}_trouble", "nothing is known of it")
        free, mode = values.get(f"{name}_free", ""), values.get(f"{name}_mode", "")
        return Folder(
            path=path,
            trouble=trouble,
            free_mib=int(free) // 1024 if free.isdecimal() else None,
            file_system=values.get(f"{name}_type", ""),
            mode=int(mode, 8) if mode.isdecimal() else None,
        )

    return LoginFacts(
        clock=float(values.get("clock") or 0),
        user=values.get("user", ""),
        uid=int(values.get("uid") or -1),
        host=values.get("host", ""),
        missing=tuple(value for key, value in rows if key == "missing"),
        base=folder("base", cluster.base_path),
        images=folder("images", cluster.image_dir),
    )


def judge(facts: LoginFacts, *, asked_at: float, answered_at: float) -> Iterator[Check]:
    """Every finding. The two times are ours, in seconds since the epoch, around the question."""
    yield _account(facts)
    yield _programs(facts)
    yield folder_check("base path", facts.base, "base_path")
    yield folder_check("image cache", facts.images, "image_dir")
    yield clock_check("login node's clock", facts.clock, asked_at, answered_at)


def _account(facts: LoginFacts) -> Check:
    shown = f"{facts.user} (uid {facts.uid}) on {facts.host}"
    if facts.uid == 0:
        return Check(
            "account", "fail", f"commands run as root: {shown}", "Use an account of its own (`ssh_user`)"
        )
    return Check("account", "ok", shown)


def _programs(facts: LoginFacts) -> Check:
    if not facts.missing:
        return Check("programs", "ok", "all there")
    effects = [_NEEDED_FOR.get(name, "the broker can't work") for name in facts.missing]
    only_git = set(facts.missing) <= {"git"}
    detail = "not on PATH: " + ", ".join(
        f"{name} ({effect})" for name, effect in zip(facts.missing, effects, strict=True)
    )
    return Check(
        "programs", "warn" if only_git else "fail", detail, "Install them on the login node, or set `path`"
    )


def folder_check(name: str, folder: Folder, setting: str) -> Check:
    """Is a folder writable, closed to others' writing, and has it room?"""
    if folder.trouble:
        remedy = f"Create {folder.path}, owned by the service account, or set `{setting}`"
        return Check(name, "fail", folder.trouble, remedy)
    if folder.mode is not None and folder.mode & 0o022 and not folder.mode & 0o1000:
        detail = f"{folder.path} has mode {folder.mode:o}: others may replace what lies in it"
        remedy = f"chmod go-w {folder.path}; +t as well where it is the base path of `run_as: user`"
        return Check(name, "fail", detail, remedy)
    if folder.free_mib is not None and folder.free_mib < _MIN_FREE_MIB:
        detail = f"{folder.path} has {folder.free_mib / 1024:.1f} GiB left"
        return Check(name, "warn", detail, "Make room: images and outputs go there first")
    room = "" if folder.free_mib is None else f", {folder.free_mib / 1024:.0f} GiB free"
    return Check(
        name, "ok", f"{folder.path} is writable ({folder.file_system or 'unknown file system'}{room})"
    )


def clock_check(name: str, clock: float, earliest: float, latest: float) -> Check:
    """Does a clock lie between two moments of another one? All in seconds since the epoch."""
    off = clock - latest if clock > latest else min(0.0, clock - earliest)
    if abs(off) <= _SKEW_WARN_S:
        return Check(name, "ok", "agrees" if abs(off) < 1 else f"differs by {off:+.1f} s")
    detail = f"differs by {off:+.0f} s: times of jobs and of files can't be compared"
    return Check(name, "warn", detail, "Let both keep time by NTP (chrony)")
