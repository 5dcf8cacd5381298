"""`run_as: user`: may we act for people, for nobody else, and are their folders theirs alone?

`sudo -n -l` says what the rule allows (sudo(8)), the groups database who is covered; then one of them is
acted for: what works for that person is tried, not concluded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from broker.checks import Check
from broker.doctor.commands import AdminLevel, ask
from broker.errors import BrokerError, SlurmRefused
from broker.hosts import Host, PersonHost
from broker.hosts.person import ACCOUNT, FIRST_UID
from broker.settings import ClusterSettings

_RULE = re.compile(r"\s+\((?P<whom>[^():]*)[^()]*\)\s+(?P<what>.+)")
_OPERATORS = {"Operator", "Administrator"}

_FACTS = r"""
printf 'base=%s\n' "$(stat -L -c '%U %a' -- "$2")"
gid=$(getent group "$1" | cut -d: -f3)
[ -n "$gid" ] || exit 0
printf 'gid=%s\n' "$gid"
{ getent group "$1" | cut -d: -f4 | tr , '\n'; getent passwd | awk -F: -v g="$gid" '$4 == g { print $1 }'; } |
    sort -u | while read -r name; do
        [ -n "$name" ] && printf 'member=%s %s\n' "$(id -u -- "$name")" "$name"
    done
"""
_TRIAL = r"""
umask 077
if made=$(mktemp -d "$1/.broker-doctor.XXXXXX" 2>&1); then
    printf 'made=%s\n' "$(stat -c '%U %a' -- "$made")"
    rmdir "$made"
else
    printf 'trouble=%s\n' "$made"
fi
[ -r "$2" ] && [ -x "$2" ] && echo reads=1
[ -w "$2" ] && echo writes=1
true
"""


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that sudo allows us: as whom (names, `%group`, `ALL`), and what, tags before the commands."""

    whom: tuple[str, ...]
    what: str

    @property
    def group(self) -> str | None:
        """The one Unix group whose members it is about; None when it is about others, or more."""
        return self.whom[0][1:] if len(self.whom) == 1 and self.whom[0].startswith("%") else None

    @property
    def anything(self) -> bool:
        """Any command, without a password."""
        tags, _, commands = self.what.rpartition(": ")
        return "NOPASSWD" in tags.split(": ") and commands.strip() == "ALL"


@dataclass(frozen=True, slots=True)
class Group:
    """Who may be acted for: (uid, name) of the members; `base_owner`, `base_mode` of the base path."""

    name: str
    exists: bool
    members: tuple[tuple[int, str], ...]
    base_owner: str
    base_mode: int | None


@dataclass(frozen=True, slots=True)
class Trial:
    """What a member of the group could do: `made` is owner and mode of a folder in the base path."""

    person: str
    made: str
    trouble: str
    reads_images: bool
    writes_images: bool


def examine_people(host: Host, cluster: ClusterSettings, user: str) -> Iterator[Check]:
    """Every finding about acting for people; `user` is our own account's name."""
    patience = cluster.command_timeout_s
    yield operator_check(ask(host, AdminLevel(user), patience), user)
    listed = host.run(["env", "LC_ALL=C", "sudo", "-n", "-l"], timeout=patience, readonly=True)
    rules = parse_rules(listed.stdout.decode(errors="replace")) if listed.rc == 0 else ()
    finding, group = rule_check(rules, user, listed.complaint if listed.rc else "")
    yield finding
    if group is None:
        return
    argv = ["env", "LC_ALL=C", "sh", "-c", _FACTS, "sh", group, cluster.base_path]
    facts = host.run(argv, timeout=patience, readonly=True)
    if facts.rc:
        raise SlurmRefused(f"The group {group} could not be looked at: {facts.complaint}")
    found = parse_group(group, facts.stdout.decode(errors="replace"))
    yield from group_checks(found, cluster, user)
    person = next((name for uid, name in found.members if is_person(uid, name, user)), None)
    if person is not None:
        yield from trial_checks(_try(host, cluster, person), cluster)


def _try(host: Host, cluster: ClusterSettings, person: str) -> Trial:
    argv = ["sh", "-c", _TRIAL, "sh", cluster.base_path, cluster.image_dir]
    try:
        done = PersonHost(host, person).run(argv, timeout=cluster.command_timeout_s)
    except BrokerError as error:
        return Trial(person, "", error.detail, reads_images=False, writes_images=False)
    values = dict(line.partition("=")[::2] for line in done.stdout.decode(errors="replace").splitlines())
    trouble = values.get("trouble", "" if values.get("made") else done.complaint)
    return Trial(person, values.get("made", ""), trouble, "reads" in values, "writes" in values)


def operator_check(level: str, user: str) -> Check:
    """Other people's jobs are held, released and cancelled: only an operator of Slurm's may."""
    if level in _OPERATORS:
        return Check("Slurm rights", "ok", f"{user} is {level}")
    detail = f"{user} is no operator of Slurm (AdminLevel {level}): it can't hold or cancel people's jobs"
    return Check("Slurm rights", "fail", detail, f"sacctmgr modify user {user} set adminlevel=Operator")


def parse_rules(text: str) -> tuple[Rule, ...]:
    """Read `sudo -l`: indented lines `(as whom) TAGS: commands` after the sentence that names us."""
    _, _, allowed = text.partition(" may run the following commands ")
    matches = (_RULE.fullmatch(line) for line in allowed.splitlines()[1:])
    return tuple(
        Rule(tuple(name.strip() for name in match["whom"].split(",")), match["what"].strip())
        for match in matches
        if match
    )


def rule_check(rules: tuple[Rule, ...], user: str, trouble: str = "") -> tuple[Check, str | None]:
    """The finding about sudo's rules, and the group that they limit us to; None where there is none."""
    wanted = f"visudo -f /etc/sudoers.d/broker: {user} ALL=(%GROUP) NOPASSWD: ALL"
    right = next((rule for rule in rules if rule.group and rule.anything), None)
    if right is None:
        shown = "; ".join(f"({', '.join(rule.whom)}) {rule.what}" for rule in rules)
        detail = f"no rule lets {user} act for a Unix group: {shown or trouble or 'sudo allows it nothing'}"
        return Check("sudo rule", "fail", detail, wanted), None
    others = sorted({name for rule in rules for name in rule.whom} - {f"%{right.group}"})
    if others:
        detail = f"{user} may act as {', '.join(others)} as well as for the group {right.group}"
        return Check("sudo rule", "fail", detail, f"Leave one rule, for one group. {wanted}"), right.group
    return Check(
        "sudo rule", "ok", f"{user} acts for the Unix group {right.group}, for nobody else"
    ), right.group


def parse_group(name: str, text: str) -> Group:
    """Read the script's lines."""
    rows = [line.partition("=")[::2] for line in text.splitlines()]
    values = dict(rows)
    members = (value.partition(" ")[::2] for key, value in rows if key == "member")
    owner, _, mode = values.get("base", "").partition(" ")
    return Group(
        name=name,
        exists="gid" in values,
        members=tuple((int(uid), who) for uid, who in members if uid.isdecimal()),
        base_owner=owner,
        base_mode=int(mode, 8) if mode.isdecimal() else None,
    )


def is_person(uid: int, name: str, user: str) -> bool:
    """Whether jobs may run as that member: no system account, and not our own."""
    return uid >= FIRST_UID and name != user and ACCOUNT.fullmatch(name) is not None


def group_checks(group: Group, cluster: ClusterSettings, user: str) -> Iterator[Check]:
    """Who is in the group, and whose the base path is."""
    name = f"group {group.name}"
    strange = [who for uid, who in group.members if not is_person(uid, who, user)]
    if strange:
        detail = f"{', '.join(strange)}: no people's accounts, and {user} may act as them"
        yield Check(name, "fail", detail, f"gpasswd --delete {strange[0]} {group.name}")
    elif not group.members:
        why = "has no members that can be listed" if group.exists else "does not exist"
        yield Check(name, "warn", f"it {why}", f"gpasswd --add PERSON {group.name}")
    else:
        yield Check(name, "ok", f"{len(group.members)} people")
    yield _base_check(group, cluster.base_path, user)


def _base_check(group: Group, path: str, user: str) -> Check:
    """Everybody makes their run directories there; nobody may rename or replace another's."""
    name = "base path for people"
    remedy = f"chown {user} {path} && chmod 1777 {path}"
    if group.base_mode is None:
        return Check(name, "fail", f"nothing is known of {path}", remedy)
    if group.base_owner not in {"root", user}:
        detail = f"{path} belongs to {group.base_owner}, who can replace everybody's run directories"
        return Check(name, "fail", detail, remedy)
    if not group.base_mode & 0o1000:
        detail = (
            f"{path} has mode {group.base_mode:o}, without the sticky bit: people can replace each other's"
        )
        return Check(name, "fail", detail, remedy)
    return Check(name, "ok", f"{path} has mode {group.base_mode:o}")


def trial_checks(trial: Trial, cluster: ClusterSettings) -> Iterator[Check]:
    """What came of acting for somebody."""
    name = f"acting as {trial.person}"
    if trial.made != f"{trial.person} 700":
        detail = trial.trouble or f"a folder made in {cluster.base_path} is {trial.made}, not 700 and theirs"
        yield Check(name, "fail", detail, f"chmod 1777 {cluster.base_path}; see docs/operations.md")
    else:
        yield Check(name, "ok", f"makes folders of their own in {cluster.base_path}")
    if trial.writes_images:
        detail = (
            f"{trial.person} may write in {cluster.image_dir}: images could be replaced under others' runs"
        )
        yield Check("image cache for people", "fail", detail, f"chmod go-w {cluster.image_dir}")
    elif not trial.reads_images:
        detail = f"{trial.person} can't read {cluster.image_dir}"
        yield Check("image cache for people", "fail", detail, f"chmod go+rx {cluster.image_dir}")
    else:
        yield Check("image cache for people", "ok", "read by people, written by us alone")
