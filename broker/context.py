"""What a process needs to serve or to work: settings, database, object store, clusters. Made once."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from broker.compiler import ClassProfile, ClusterProfile
from broker.db import Database
from broker.db.wake import send_wake
from broker.errors import ConfigurationError
from broker.hosts import Host, LocalHost, PersonHost, SshConfig, SshHost
from broker.objects import ObjectStore, S3Config
from broker.settings import ClusterSettings, Settings, read_secret
from broker.slurm import SlurmClient


@dataclass
class Context:
    """Everything with a connection in it. Hosts are opened when first used and shared by all threads."""

    settings: Settings
    db: Database
    objects: ObjectStore
    _hosts: dict[str, Host] = field(default_factory=dict)
    _people: dict[tuple[str, str], Host] = field(default_factory=dict)
    _slurm: dict[str, SlurmClient] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def cluster(self, name: str) -> ClusterSettings:
        """The settings of one cluster."""
        try:
            return self.settings.clusters[name]
        except KeyError:
            known = ", ".join(self.settings.clusters) or "none is configured"
            raise ConfigurationError(f"There is no cluster {name!r}; known: {known}") from None

    def profile(self, name: str) -> ClusterProfile:
        """The compiler's view of one cluster."""
        return profile_of(name, self.cluster(name), self.settings.environment)

    def host(self, name: str) -> Host:
        """Where commands of this cluster run."""
        with self._lock:
            if name not in self._hosts:
                self._hosts[name] = open_host(name, self.cluster(name))
            return self._hosts[name]

    def host_for(self, name: str, account: str | None) -> Host:
        """Where a run's files lie and its jobs are submitted: as its Unix account; None is the service's."""
        host = self.host(name)
        if account is None:
            return host
        with self._lock:
            return self._people.setdefault((name, account), PersonHost(host, account))

    def slurm(self, name: str) -> SlurmClient:
        """Slurm of this cluster."""
        host = self.host(name)
        with self._lock:
            if name not in self._slurm:
                cluster = self.cluster(name)
                self._slurm[name] = SlurmClient(host, timeout_s=cluster.command_timeout_s, path=cluster.path)
            return self._slurm[name]

    def wake(self) -> None:
        """Tell the worker that there is something to do."""
        send_wake(self.db, self.settings.data_dir)

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            for host in self._hosts.values():
                host.close()
            self._hosts.clear()
            self._people.clear()
            self._slurm.clear()
        self.db.close()


def profile_of(name: str, cluster: ClusterSettings, environment: str) -> ClusterProfile:
    """Settings of a cluster as the pure compiler takes them."""
    return ClusterProfile(
        name=name,
        env=environment,
        base_path=cluster.base_path,
        image_dir=cluster.image_dir,
        registry_mirrors=cluster.registry_mirrors,
        gpu_types=cluster.gpu_types,
        partition=cluster.partition,
        account=cluster.account,
        qos=cluster.qos,
        classes={
            name: ClassProfile(f"{cluster.qos_prefix}{name}", one.max_wall_s or None)
            for name, one in cluster.classes.items()
            if cluster.priority_classes
        },
        default_cpus=cluster.default_cpus,
        signal_before_s=cluster.signal_before_s,
        gpu_sample_s=cluster.gpu_sample_interval_s,
        path=cluster.path,
    )


def open_host(name: str, cluster: ClusterSettings) -> Host:
    """The login node of a cluster; connects on first use, not now."""
    if cluster.transport == "local":
        return LocalHost()
    if cluster.ssh_key_file is None or cluster.ssh_known_hosts is None:
        raise ConfigurationError(
            f"Cluster {name!r} needs `ssh_key_file` and `ssh_known_hosts` (make the latter with ssh-keyscan "
            "and compare the fingerprint with the administrator's)"
        )
    return SshHost(
        SshConfig(
            host=cluster.ssh_host,
            port=cluster.ssh_port,
            user=cluster.ssh_user,
            key_file=cluster.ssh_key_file,
            known_hosts=cluster.ssh_known_hosts,
            connect_timeout=cluster.ssh_timeout_s,
            max_channels=cluster.ssh_channels,
        )
    )


def s3_config(settings: Settings) -> S3Config:
    """How to reach the object store."""
    s3 = settings.s3
    if s3.endpoint_url is None or s3.access_key_file is None or s3.secret_key_file is None:
        raise ConfigurationError(
            "No object store is configured: set `s3.endpoint_url`, `s3.access_key_file` and "
            "`s3.secret_key_file`, or start everything with `broker up`, which brings its own"
        )
    return S3Config(
        endpoint_url=s3.endpoint_url,
        public_url=s3.public_url,
        region=s3.region,
        bucket=s3.bucket,
        access_key=read_secret(s3.access_key_file),
        secret_key=read_secret(s3.secret_key_file),
        part_size=s3.part_size_mib << 20,
    )


def build_context(settings: Settings) -> Context:
    """Open the database and the object store's client; nothing is contacted yet."""
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Context(
        settings=settings,
        db=Database(settings.sqlalchemy_url),
        objects=ObjectStore(s3_config(settings)),
    )
