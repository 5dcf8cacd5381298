"""Slurm's configuration, judged. Pure: what Slurm said of itself in, findings out.

Sources: slurm.conf(5), and what the releases 22.05, 24.11 and 26.05 were seen to do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from broker.checks import Check, Status
from broker.doctor.commands import Association, PartitionSharing
from broker.settings import ClusterSettings
from broker.slurm import Config, Node, Partition, Version
from broker.tenancy.objects import qos_name

OLDEST, NEWEST = Version(22, 5, 0), Version(26, 5, 99)
"""The releases whose answers the parsers are tested with."""
_FORGETS_PARENTS = Version(23, 2, 0)


def version_check(version: Version) -> Check:
    """Is this a release that the broker was tested with?"""
    name = "Slurm version"
    if version < OLDEST:
        return Check(name, "fail", f"{version} is older than {OLDEST}", "Upgrade Slurm")
    if version > NEWEST:
        remedy = "Run the contract tests against it (docs/slurm.md), then go on"
        return Check(name, "warn", f"{version} is newer than any release tested ({NEWEST.year}.05)", remedy)
    return Check(name, "ok", str(version))


def accounting_checks(config: Config) -> list[Check]:
    """slurmdbd there, limits enforced, GPUs tracked by type."""
    if not config.has_accounting:
        remedy = "Set AccountingStorageType=accounting_storage/slurmdbd: what left the queue is asked there"
        return [Check("accounting", "fail", f"no slurmdbd ({config.accounting_storage or 'none'})", remedy)]
    missing = {"associations", "limits", "qos", "safe"} - config.enforce
    shown = ",".join(sorted(config.enforce)) or "nothing"
    if "associations" in missing:
        why = ": anybody may submit under any account"
    else:
        why = ": limits are not kept, or running jobs are killed at one (without `safe`)" if missing else ""
    enforced = Check(
        "enforced limits",
        "warn" if missing else "ok",
        f"AccountingStorageEnforce={shown}{why}",
        "Set AccountingStorageEnforce=associations,limits,qos,safe" if missing else "",
    )
    return [Check("accounting", "ok", "slurmdbd"), enforced]


def tracking_check(config: Config, gpu_types: Collection[str]) -> Check:
    """Does accounting count GPUs by type? Reports and per-type quotas stand on it."""
    wanted = {"gres/gpu", *(f"gres/gpu:{kind}" for kind in gpu_types)}
    missing = sorted(wanted - set(config.tracked_tres))
    if not missing:
        return Check("GPU accounting", "ok", f"tracked by type: {', '.join(sorted(gpu_types)) or 'no types'}")
    remedy = f"Add to AccountingStorageTRES: {','.join(missing)} (then restart slurmctld)"
    return Check("GPU accounting", "warn", f"not tracked: {', '.join(missing)}", remedy)


def association_checks(
    cluster: ClusterSettings, associations: Sequence[Association], user: str, config: Config
) -> list[Check]:
    """May our account on the cluster submit under the configured Slurm account and QOS?"""
    own = [one for one in associations if one.user == user]
    accounts = sorted({one.account for one in own})
    remedy = f"sacctmgr add user {user} account={cluster.account or 'ACCOUNT'}"
    if not own:
        status: Status = "fail" if "associations" in config.enforce else "warn"
        return [Check("association", status, f"{user} has no Slurm association", remedy)]
    if cluster.account is not None and cluster.account not in accounts:
        detail = f"{user} has no association with account {cluster.account!r}; it has: {', '.join(accounts)}"
        return [Check("association", "fail", detail, f"{remedy} (or change `account`)")]
    name = cluster.account or "its default account"
    checks = [Check("association", "ok", f"{user} may submit under {name}")]
    allowed = {qos for one in own if cluster.account in (None, one.account) for qos in one.qos}
    if cluster.qos is not None and cluster.qos not in allowed:
        detail = f"{user} may not use QOS {cluster.qos!r}; allowed: {', '.join(sorted(allowed)) or 'none'}"
        more = f"sacctmgr modify user {user} where account={name} set qos+={cluster.qos}"
        checks.append(Check("QOS", "fail", detail, more))
    return checks


def class_check(
    cluster: ClusterSettings, qos: Collection[str], associations: Sequence[Association], user: str
) -> Check:
    """Is there a QOS for each priority class, and may our account use it? `qos`: all names there are."""
    name = "priority classes"
    if not cluster.priority_classes:
        return Check(name, "ok", "off: every class is the same (`priority_classes`)")
    wanted = [qos_name(cluster, one) for one in cluster.classes]
    remedy = (
        "broker cluster sync (QOS take a Slurm Administrator: --script), or set `priority_classes = false`"
    )
    if missing := [one for one in wanted if one not in qos]:
        return Check(name, "fail", f"there is no QOS {', '.join(missing)}: sbatch will refuse jobs", remedy)
    account = [one for one in associations if one.user == user and cluster.account in (None, one.account)]
    allowed = {one for association in account for one in association.qos}
    denied = [one for one in wanted if one not in allowed]
    if denied and cluster.run_as == "service":
        return Check(name, "fail", f"{user} may not use QOS {', '.join(denied)}", remedy)
    if twins := [one for c in cluster.classes if (one := qos_name(cluster, c, approved=True)) not in qos]:
        return Check(name, "warn", f"no QOS for approved jobs: {', '.join(twins)}", remedy)
    return Check(name, "ok", ", ".join(wanted))


def partition_check(cluster: ClusterSettings, partitions: Iterable[Partition]) -> Check:
    """Is there a partition that jobs go to, and does it take any?"""
    known = {one.name: one for one in partitions}
    if cluster.partition is not None:
        found = known.get(cluster.partition)
        missing = f"there is no partition {cluster.partition!r}; there are: {', '.join(known) or 'none'}"
    else:
        found = next((one for one in known.values() if one.default), None)
        missing = f"no partition is Slurm's default; there are: {', '.join(known) or 'none'}"
    if found is None:
        return Check("partition", "fail", missing, "Set `partition` of the cluster")
    if found.state != "UP":
        return Check("partition", "fail", f"{found.name} is {found.state}", "scontrol update state=up")
    limit = "no time limit" if found.max_time_s is None else f"jobs run {found.max_time_s // 60} min at most"
    return Check("partition", "ok", f"{found.name}: {found.total_nodes} nodes, {limit}")


def gpu_type_check(cluster: ClusterSettings, nodes: Iterable[Node]) -> Check:
    """Do the GRES types that specs are translated to exist?"""
    present: dict[str, int] = {}
    untyped = []
    for node in nodes:
        for kind, count in node.total.gpu_types.items():
            present[kind] = present.get(kind, 0) + count
        if node.total.gpus > sum(node.total.gpu_types.values()):
            untyped.append(node.name)
    shown = ", ".join(f"{kind} x {count}" for kind, count in sorted(present.items())) or "none"
    strange = sorted(f"{spec} → {gres}" for spec, gres in cluster.gpu_types.items() if gres not in present)
    if strange:
        remedy = f"Mend `gpu_types`: the cluster's GRES types are {shown}"
        return Check("GPU types", "fail", f"no node has: {', '.join(strange)}", remedy)
    if untyped:
        remedy = "Give each GPU a Type in gres.conf: specs ask for types"
        return Check("GPU types", "warn", f"GPUs without a type on {', '.join(untyped[:5])}", remedy)
    if not present:
        return Check("GPU types", "warn", "no node has GPUs", "Only CPU components can run here")
    return Check("GPU types", "ok", shown)


def node_check(nodes: Sequence[Node]) -> Check:
    """Can anything run at all?"""
    down = [node for node in nodes if not node.available]
    if not nodes or len(down) == len(nodes):
        reasons = "; ".join(sorted({node.reason for node in down if node.reason})) or "no reason is given"
        return Check("nodes", "fail", f"none of {len(nodes)} nodes takes jobs: {reasons}", "See sinfo -R")
    if down:
        shown = ", ".join(f"{node.name} {node.state}" for node in down[:5])
        return Check("nodes", "warn", f"{len(down)} of {len(nodes)} take no jobs: {shown}", "See sinfo -R")
    return Check("nodes", "ok", f"all {len(nodes)} take jobs")


def overcommit_checks(config: Config, sharing: Iterable[PartitionSharing]) -> list[Check]:
    """CD-13: memory and GPUs are never given to two jobs at once."""
    raw = config.raw
    checks = [_select_check(raw)]
    shared = [one for one in sharing if one.oversubscribes]
    if shared:
        shown = ", ".join(f"{one.name} OverSubscribe={one.value}" for one in shared)
        detail = f"CPUs are shared between jobs, and GPUs in time slices: {shown}"
        checks.append(Check("overcommit", "fail", detail, "Set OverSubscribe=NO (or EXCLUSIVE)"))
    else:
        checks.append(Check("overcommit", "ok", "no partition lets jobs share resources"))
    fenced = "task/cgroup" in raw.get("TaskPlugin", "") and "cgroup" in raw.get("ProctrackType", "")
    if fenced:
        checks.append(Check("fences", "ok", "jobs are confined by cgroups"))
    else:
        detail = "jobs are not confined: one can use memory and GPUs that another was given"
        remedy = "ProctrackType=proctrack/cgroup, TaskPlugin=task/cgroup,task/affinity; in cgroup.conf "
        remedy += "ConstrainRAMSpace=yes and ConstrainDevices=yes"
        checks.append(Check("fences", "warn", detail, remedy))
    return checks


def _select_check(raw: Mapping[str, str]) -> Check:
    plugin, parameters = raw.get("SelectType", ""), raw.get("SelectTypeParameters", "")
    if plugin != "select/cons_tres":
        remedy = "Set SelectType=select/cons_tres"
        return Check("memory as a resource", "fail", f"{plugin or 'no plugin'} can't give out GPUs", remedy)
    if "MEMORY" not in parameters.upper():
        detail = (
            f"SelectTypeParameters={parameters or '(none)'} does not count memory: jobs can ask for more "
        )
        remedy = "Set SelectTypeParameters=CR_Core_Memory"
        return Check("memory as a resource", "fail", f"{detail}than a node has in all", remedy)
    return Check("memory as a resource", "ok", parameters)


def lifetime_check(config: Config, version: Version, poll_interval_s: float) -> Check:
    """How long Slurm remembers an ended job: the queue must be seen in that time."""
    age = config.min_job_age_s
    if age < 3 * poll_interval_s:
        remedy = f"Set MinJobAge={max(300, int(3 * poll_interval_s))}, or a smaller poll_interval_s"
        detail = f"ended jobs are forgotten after {age} s, the queue is looked at every {poll_interval_s:g} s"
        return Check("MinJobAge", "warn", detail, remedy)
    if version < _FORGETS_PARENTS and age < 300:
        detail = f"{age} s; before 23.02 a child runs when its parent has been forgotten, whatever came of it"
        return Check("MinJobAge", "warn", detail, "Set MinJobAge=300 or more, or upgrade Slurm")
    return Check("MinJobAge", "ok", f"ended jobs are remembered for {age} s")


def behaviour_checks(config: Config) -> list[Check]:
    """Settings that change what becomes of jobs after trouble."""
    raw = config.raw
    checks = []
    if "kill_invalid_depend" in raw.get("DependencyParameters", ""):
        detail = "kill_invalid_depend: children of a failed job vanish as if somebody had cancelled them"
        remedy = "Remove it from DependencyParameters: the broker ends them itself and names the culprit"
        checks.append(Check("dependencies", "warn", detail, remedy))
    else:
        checks.append(Check("dependencies", "ok", "left to the broker when a parent fails"))
    requeue = "on" if config.job_requeue else "off in slurm.conf, but every job asks for it (--requeue)"
    checks.append(Check("requeue", "ok", f"after a node's failure: {requeue}"))
    checks.append(_preemption(config))
    if config.max_job_count < 2000:
        detail = f"MaxJobCount={config.max_job_count}: sbatch waits up to 120 s when the queue is full"
        checks.append(Check("MaxJobCount", "warn", detail, "Raise MaxJobCount (slurm.conf default: 10000)"))
    else:
        checks.append(Check("MaxJobCount", "ok", str(config.max_job_count)))
    return checks


def _preemption(config: Config) -> Check:
    modes = {mode.upper() for mode in config.preempt_mode}
    if not config.preempt_type or config.preempt_type.endswith("none") or modes <= {"OFF"}:
        return Check("preemption", "ok", "off: nothing is stopped for more urgent work")
    if "SUSPEND" in modes:
        detail = "PreemptMode=SUSPEND: a suspended job keeps its GPUs, so nothing is gained"
        return Check("preemption", "warn", detail, "Set PreemptMode=REQUEUE")
    if "send_user_signal" not in config.preempt_parameters:
        detail = "preempted jobs get SIGTERM only, not the signal a component chose"
        return Check("preemption", "warn", detail, "Set PreemptParameters=send_user_signal")
    return Check("preemption", "ok", f"{config.preempt_type}, {','.join(sorted(modes))}")
