"""What there should be in Slurm, and what there is, in the same words. Pure.

An object is a QOS, an account or a person in an account; its fields are named as sacctmgr(1) sets them, their
values written one way only: times in seconds, memory in MiB, lists sorted, "" for what is not set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from broker.settings import ClusterSettings, PriorityClass
from broker.slurm.accounts import Membership, QosLimits
from broker.spec import Thresholds

Kind = Literal["qos", "account", "user"]
Fields = Mapping[str, str]
APPROVED: Final = "-approved"
"""Ends the name of a class's twin: without thresholds, granted to nobody; an approved job is moved there."""
DEFAULT_CLASS: Final[PriorityClass] = "training"


class Key(NamedTuple):
    """An object: a QOS or account by name, a person as `account/person`."""

    kind: Kind
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant: its Slurm account, its shares, whether it is open, and its limits as sacctmgr takes them."""

    account: str
    fairshare: int
    active: bool = True
    limits: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who submits under an account: a Unix account, and whether it may."""

    account: str
    unix_account: str
    active: bool = True


def qos_name(cluster: ClusterSettings, priority_class: PriorityClass, *, approved: bool = False) -> str:
    """The QOS of a class, or of its twin."""
    return f"{cluster.qos_prefix}{priority_class}{APPROVED if approved else ''}"


def wanted_qos(cluster: ClusterSettings, thresholds: Thresholds) -> dict[Key, Fields]:
    """The four classes and their twins; those that name others come after them.

    Where people submit as themselves, the thresholds of approval stand on the ordinary ones: what is at least
    that large does not start there, whoever submitted it.
    """
    if not cluster.priority_classes:
        return {}
    gives_way = {name for one in cluster.classes.values() for name in one.preempts}
    largest = f"gres/gpu={thresholds.gpu_count - 1},mem={thresholds.memory_mib - 1}"
    found: dict[Key, Fields] = {}
    for name, one in sorted(cluster.classes.items(), key=lambda item: bool(item[1].preempts)):
        victims = [
            qos_name(cluster, other, approved=twin) for other in one.preempts for twin in (False, True)
        ]
        for approved in (False, True):
            found[Key("qos", qos_name(cluster, name, approved=approved))] = {
                "Priority": str(one.priority),
                "GraceTime": str(one.grace_s),
                "Preempt": ",".join(sorted(victims)),
                "PreemptMode": "requeue" if name in gives_way else "cluster",
                "MaxWall": str(one.max_wall_s // 60 * 60 or ""),
                "MaxTRESPerJob": largest if cluster.run_as == "user" and not approved else "",
            }
    return found


def wanted_accounts(
    cluster: ClusterSettings, tenants: Iterable[Tenant], seen: Mapping[Key, Fields]
) -> dict[Key, Fields]:
    """An account for each tenant; a closed one takes no jobs. It is never removed: that would end its jobs.

    Where people submit as themselves, an account has the four classes and no other QOS (another one would
    know no thresholds); else what it has beside them is left alone.
    """
    classes = {qos_name(cluster, name) for name in cluster.classes}
    found: dict[Key, Fields] = {}
    for tenant in tenants:
        key = Key("account", tenant.account)
        fields = {
            "Fairshare": str(tenant.fairshare),
            "GrpSubmitJobs": "" if tenant.active else "0",
            **{name: _limit(value) for name, value in tenant.limits.items()},
        }
        if cluster.priority_classes and cluster.run_as == "user":
            fields |= {"QOS": ",".join(sorted(classes)), "DefaultQOS": qos_name(cluster, DEFAULT_CLASS)}
        elif cluster.priority_classes:
            has = set(filter(None, seen.get(key, {}).get("QOS", "").split(",")))
            fields["QOS"] = ",".join(sorted(classes | has))
        found[key] = fields
    return found


def wanted_people(people: Iterable[Person]) -> dict[Key, Fields]:
    """The people in the accounts; one who was shut out keeps the association and can't submit."""
    return {
        Key("user", f"{one.account}/{one.unix_account}"): {"MaxSubmitJobs": "" if one.active else "0"}
        for one in people
    }


def seen(qos: Iterable[QosLimits], memberships: Iterable[Membership]) -> dict[Key, Fields]:
    """What there is. Associations with a partition of their own are somebody else's and left out."""
    found: dict[Key, Fields] = {Key("qos", one.name): _qos_fields(one) for one in qos}
    for one in memberships:
        if one.partition:
            continue
        if one.user:
            fields = {"MaxSubmitJobs": _number(one.max_submit)}
            found[Key("user", f"{one.account}/{one.user}")] = fields
        else:
            found[Key("account", one.account)] = {
                "Fairshare": one.shares,
                "QOS": ",".join(sorted(one.qos)),
                "DefaultQOS": one.default_qos,
                "GrpTRES": one.group_tres,
                "GrpTRESRunMins": one.group_running,
                "GrpSubmitJobs": _number(one.group_submit),
            }
    return found


def _qos_fields(one: QosLimits) -> Fields:
    return {
        "Priority": str(one.priority),
        "GraceTime": str(one.grace_s),
        "Preempt": ",".join(sorted(one.preempts)),
        "PreemptMode": one.preempt_mode,
        "MaxWall": _number(one.max_wall_s),
        "MaxTRESPerJob": one.max_per_job,
    }


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def _limit(text: str) -> str:
    """A limit as sacctmgr takes it, in our words: `gres/gpu=-1` takes it away."""
    return ",".join(sorted(part for part in text.split(",") if not part.endswith("=-1")))


# ---- changes ------------------------------------------------------------------------------------------

_TRES: Final = frozenset({"GrpTRES", "GrpTRESRunMins", "MaxTRESPerJob"})


def add_words(key: Key, fields: Fields, cluster: str) -> tuple[str, ...]:
    """What sacctmgr is told to make an object. `cluster`: slurm.conf's ClusterName."""
    settings = _assignments({name: value for name, value in fields.items() if value}, {})
    match key.kind:
        case "qos":
            return ("add", "qos", key.name, *settings)
        case "account":
            about = (f"Cluster={cluster}", f"Description={key.name}", "Organization=broker")
            return ("add", "account", key.name, *about, *settings)
        case "user":
            account, _, person = key.name.partition("/")
            return ("add", "user", person, f"Account={account}", f"Cluster={cluster}", *settings)


def modify_words(key: Key, fields: Fields, before: Fields, cluster: str) -> tuple[str, ...]:
    """What sacctmgr is told to change these fields of an object that had `before`."""
    match key.kind:
        case "qos":
            which: Sequence[str] = (f"Name={key.name}",)
        case "account":
            which = (f"Name={key.name}", f"Cluster={cluster}")
        case "user":
            account, _, person = key.name.partition("/")
            which = (f"Name={person}", f"Account={account}", f"Cluster={cluster}")
    return ("modify", key.kind, "where", *which, "set", *_assignments(fields, before))


def _assignments(fields: Fields, before: Fields) -> list[str]:
    return [f"{name}={_value(name, value, before.get(name, ''))}" for name, value in fields.items()]


def _value(name: str, value: str, before: str) -> str:
    if name in _TRES:
        gone = [part.partition("=")[0] for part in before.split(",") if part]
        kept = {part.partition("=")[0]: part.partition("=")[2] for part in value.split(",") if part}
        parts = {**dict.fromkeys(gone, "-1"), **kept}
        return ",".join(
            f"{tres}={n}{'M' if tres == 'mem' and n != '-1' else ''}" for tres, n in parts.items()
        )
    if name == "MaxWall":
        return str(int(value) // 60) if value else "-1"
    return value if value or name == "Preempt" else "-1"
