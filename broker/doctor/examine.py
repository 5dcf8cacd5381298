"""All of it, in the order in which one trouble hides the next."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from broker.checks import Check
from broker.context import open_host
from broker.doctor import login, probes, rules
from broker.doctor.commands import AdminLevel, Associations, Sharing, ask
from broker.doctor.people import examine_people
from broker.doctor.services import check_database, check_objects
from broker.errors import BrokerError, ConfigurationError, Denied
from broker.hosts import Host
from broker.notifications.checks import check_notifications
from broker.reports.exporter import check_exports
from broker.settings import ClusterSettings, Settings
from broker.slurm import Capabilities, SlurmClient

_SLURM = frozenset({"sbatch", "scontrol", "squeue", "sacct", "scancel", "sinfo"})


@dataclass(frozen=True, slots=True)
class Report:
    """The findings about one subject: `cluster NAME`, `object store`, `database`."""

    subject: str
    checks: tuple[Check, ...]

    @property
    def failed(self) -> bool:
        """Is there something that must be mended?"""
        return any(check.status == "fail" for check in self.checks)


def examine(settings: Settings, cluster: str | None = None, *, with_jobs: bool = True) -> Iterator[Report]:
    """One report after the other; with `cluster` only that one's.

    Raises `ConfigurationError` for a cluster that is not configured.
    """
    if cluster is not None and cluster not in settings.clusters:
        known = ", ".join(settings.clusters) or "none"
        raise ConfigurationError(f"There is no cluster {cluster!r}; configured: {known}")
    if cluster is None:
        yield Report("database", tuple(check_database(settings)))
        yield Report("object store", tuple(check_objects(settings)))
        if ways := tuple(check_notifications(settings.notifications)):
            yield Report("notifications", ways)
        if exports := tuple(check_exports(settings.reports)):
            yield Report("reports", exports)
        if not settings.clusters:
            nothing = Check(
                "clusters", "warn", "none is configured", "Add `[clusters.NAME]`: docs/settings.md"
            )
            yield Report("clusters", (nothing,))
    for name in settings.clusters if cluster is None else [cluster]:
        checks = examine_cluster(name, settings.clusters[name], with_jobs=with_jobs)
        yield Report(f"cluster {name}", tuple(checks))


def examine_cluster(name: str, cluster: ClusterSettings, *, with_jobs: bool) -> Iterator[Check]:
    """Every finding about one cluster; ends early where nothing more can be found out."""
    yield from _key(cluster)
    try:
        host = open_host(name, cluster)
    except ConfigurationError as error:
        yield Check("settings", "fail", error.detail, "docs/settings.md")
        return
    try:
        yield from _examine(host, cluster, with_jobs)
    finally:
        host.close()


def _examine(host: Host, cluster: ClusterSettings, with_jobs: bool) -> Iterator[Check]:
    connection = list(_connection(host, cluster))
    yield from connection
    if any(check.status == "fail" for check in connection):
        return
    asked = time.time()
    try:
        facts = login.gather(host, cluster)
    except BrokerError as error:
        yield Check("login node", "fail", error.detail, "It must run sh and the usual programs")
        return
    yield from login.judge(facts, asked_at=asked, answered_at=time.time())
    if _SLURM & set(facts.missing):
        return
    slurm = SlurmClient(host, timeout_s=cluster.command_timeout_s)
    try:
        capabilities = slurm.capabilities()
    except BrokerError as error:
        yield Check("Slurm", "fail", error.detail, asking_remedy(error.detail))
        return
    yield from _configuration(host, slurm, capabilities, cluster)
    if cluster.run_as == "user":
        yield from guarded("acting for people", lambda: examine_people(host, cluster, capabilities.user))
    if with_jobs:
        yield from _trials(host, slurm, capabilities, cluster, facts.uid)


def asking_remedy(detail: str) -> str:
    """What to look at: sacct(1) asks slurmdbd before it says anything, all else asks slurmctld."""
    if "sacct" in detail:
        return "Is slurmdbd running? See: sacctmgr ping, and its log"
    return "Is slurmctld running? See: scontrol ping"


def key_checks(path: Path | None, mode: int | None) -> Iterator[Check]:
    """Is the private key there and ours alone? `mode`: its permission bits, None if it is not there."""
    if path is None:
        return
    if mode is None:
        yield Check("SSH key", "fail", f"{path} can't be read", "Set `ssh_key_file`: ssh-keygen -t ed25519")
    elif mode & 0o077:
        yield Check("SSH key", "fail", f"{path} has mode {mode:o}: others can read it", f"chmod 600 {path}")
    else:
        yield Check("SSH key", "ok", f"{path} is ours alone")


def _key(cluster: ClusterSettings) -> Iterator[Check]:
    if cluster.transport != "ssh" or cluster.ssh_key_file is None:
        return
    try:
        mode = cluster.ssh_key_file.stat().st_mode & 0o777
    except OSError:
        mode = None
    yield from key_checks(cluster.ssh_key_file, mode)


def _connection(host: Host, cluster: ClusterSettings) -> Iterator[Check]:
    """Can we log in, as often at once as we are going to, and how far away is it?"""
    try:
        host.run(["true"], timeout=cluster.ssh_timeout_s, readonly=True)
    except Denied as error:
        remedy = f"Put the public key into ~{cluster.ssh_user}/.ssh/authorized_keys of the login node"
        yield Check("connection", "fail", error.detail, remedy)
        return
    except BrokerError as error:
        remedy = "Check `ssh_host`, `ssh_port`, the network, and the known hosts file"
        yield Check("connection", "fail", error.detail, remedy)
        return
    began = time.monotonic()
    host.run(["true"], timeout=cluster.ssh_timeout_s, readonly=True)
    yield connection_check(cluster, time.monotonic() - began)
    if cluster.transport == "ssh":
        yield Check("host key", "ok", f"is the one in {cluster.ssh_known_hosts}")
        yield _channels(host, cluster)


def connection_check(cluster: ClusterSettings, round_trip_s: float) -> Check:
    """How long does one command take, over the connection that is already there?"""
    where = f"{cluster.ssh_user}@{cluster.ssh_host}:{cluster.ssh_port}"
    place = where if cluster.transport == "ssh" else "this machine"
    detail = f"{place}, {round_trip_s * 1000:.0f} ms for a command"
    if round_trip_s > 1:
        return Check("connection", "warn", detail, "The login node is busy or far away: all will be slow")
    return Check("connection", "ok", detail)


def _channels(host: Host, cluster: ClusterSettings) -> Check:
    """As many commands at once as the settings allow; each says when it began and when it ended."""
    count = cluster.ssh_channels
    argv = ["sh", "-c", "date +%s.%N; sleep 1; date +%s.%N"]
    with ThreadPoolExecutor(count) as pool:
        futures = [
            pool.submit(host.run, argv, timeout=cluster.ssh_timeout_s, readonly=True) for _ in range(count)
        ]
        done = [future.result() for future in futures if not future.exception()]
    times = [[float(word) for word in one.stdout.split()] for one in done if not one.rc]
    return sessions_check(count, [(began, ended) for began, ended in times])


def sessions_check(wanted: int, spans: Sequence[tuple[float, float]]) -> Check:
    """Did the commands run side by side? `spans`: when each began and ended, seconds by one clock.

    sshd refuses sessions above `MaxSessions`; ours then wait for one another, which looks like slowness.
    """
    at_once = max((sum(began <= moment < ended for began, ended in spans) for moment, _ in spans), default=0)
    if at_once >= wanted:
        return Check("sessions", "ok", f"{wanted} at once")
    detail = f"of {wanted} sessions {at_once} ran at once: the others had to wait"
    return Check("sessions", "warn", detail, "Lower `ssh_channels`, or raise MaxSessions in sshd_config")


def _configuration(
    host: Host, slurm: SlurmClient, capabilities: Capabilities, cluster: ClusterSettings
) -> Iterator[Check]:
    """What Slurm says of itself."""
    config, user, patience = capabilities.config, capabilities.user, cluster.command_timeout_s

    yield rules.version_check(capabilities.version)
    yield from guarded("controller", lambda: [_controllers(slurm)])
    yield from guarded("nodes", lambda: _nodes(slurm, capabilities, cluster))
    yield from guarded("partition", lambda: [rules.partition_check(cluster, slurm.partitions())])
    yield from rules.accounting_checks(config)
    if config.has_accounting:
        command = Associations(user, config.cluster_name)
        yield from guarded(
            "association",
            lambda: rules.association_checks(cluster, ask(host, command, patience), user, config),
        )
        yield from guarded(
            "priority classes",
            lambda: [
                rules.class_check(
                    cluster, {one.name for one in slurm.qos_limits()}, ask(host, command, patience), user
                )
            ],
        )
    yield from guarded("overcommit", lambda: rules.overcommit_checks(config, ask(host, Sharing(), patience)))
    yield rules.lifetime_check(config, capabilities.version, cluster.poll_interval_s)
    yield from rules.behaviour_checks(config)


def _controllers(slurm: SlurmClient) -> Check:
    controllers = slurm.ping()
    shown = ", ".join(f"{one.host} ({one.role}) {'answers' if one.up else 'is down'}" for one in controllers)
    if not any(one.up for one in controllers):
        return Check("controller", "fail", shown, "Start slurmctld")
    if not all(one.up for one in controllers):
        return Check("controller", "warn", shown, "Start the other slurmctld: there is no stand-in now")
    return Check("controller", "ok", shown)


def _nodes(slurm: SlurmClient, capabilities: Capabilities, cluster: ClusterSettings) -> list[Check]:
    nodes = slurm.nodes()
    types = {kind for node in nodes for kind in node.total.gpu_types}
    return [
        rules.node_check(nodes),
        rules.gpu_type_check(cluster, nodes),
        rules.tracking_check(capabilities.config, types),
    ]


def _trials(
    host: Host, slurm: SlurmClient, capabilities: Capabilities, cluster: ClusterSettings, uid: int
) -> Iterator[Check]:
    """What Slurm does when it is asked."""
    types = tuple(sorted({kind for node in slurm.nodes() for kind in node.total.gpu_types}))
    submission = list(probes.test_only(host, cluster, types))
    yield from submission
    if submission[0].status == "fail":
        return

    def held() -> Iterable[Check]:
        facts = probes.try_hold(host, slurm, cluster)
        level = ask(host, AdminLevel(capabilities.user), cluster.command_timeout_s)
        return probes.judge_hold(facts, level)

    def visited() -> Iterable[Check]:
        token, facts, why = probes.visit_node(host, slurm, cluster)
        if facts is None:
            remedy = "See the reason; a job that only waits (no free node) says nothing against the cluster"
            return [Check("job on a node", "warn" if "still PENDING" in why else "fail", why, remedy)]
        return probes.judge_node(facts, token, uid, cluster)

    yield from guarded("held job", held)
    yield from guarded("job on a node", visited)


def guarded(name: str, act: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    """The findings of `act`; an error on the way is a finding too."""
    try:
        yield from act()
    except BrokerError as error:
        yield Check(name, "fail", error.detail, "Mend this first; then run the doctor again")
