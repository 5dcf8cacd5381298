"""The configuration files of a cluster, as text. Pure: settings and the Slurm version in, files out.

What differs between Slurm releases hangs on the constants ``_PREEMPT_PARAMETERS`` and ``_CGROUP_DISABLED``.
"""

from __future__ import annotations

from collections.abc import Mapping

from slurmdev import layout
from slurmdev.layout import Settings

Version = tuple[int, int]
"""Slurm's year and month, as in 24.11 → ``(24, 11)``."""

_PREEMPT_PARAMETERS: Version = (23, 2)
"""From here on preemption has a parameter of its own; before, it was among the scheduler's."""
_CGROUP_DISABLED: Version = (23, 11)
"""From here on control groups can be switched off."""

MARIADB_SOCKET = "/run/mysqld/mysqld.sock"

_SLURM_CONF = """\
ClusterName={cluster}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmUser=slurm
AuthType=auth/munge
# Short-lived credentials make a requeue after a node failure wait seconds instead of two minutes.
AuthInfo=cred_expire=15
# Each daemon binds what its host name resolves to (loopback, see /etc/hosts) instead of every interface.
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny

StateSaveLocation=/var/spool/slurm/ctld
SlurmdSpoolDir=/var/spool/slurm/%n
SlurmctldPidFile=/run/slurm-dev/slurmctld.pid
SlurmdPidFile=/run/slurm-dev/slurmd-%n.pid
SlurmctldSyslogDebug=quiet
SlurmdSyslogDebug=quiet
LogTimeFormat=iso8601_ms,format_stderr
MailProg=/bin/true

# A node that falls silent is down within 30 s, and back as soon as it answers: slurmctld calls it down at its
# third look without an answer, and a look at a node that refuses connections lasts as long as a message may.
SlurmdTimeout=8
MessageTimeout=7
ReturnToService=2
KillWait=10
MinJobAge=300
JobRequeue=1
MaxJobCount=20000
MaxArraySize=10001

# The machine has fewer CPUs and less memory than its nodes claim.
SlurmdParameters=config_overrides
# Processes are found by their parentage: neither memory nor GPUs are fenced.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
PropagateResourceLimits=NONE
MpiDefault=none

SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=1024
GresTypes=gpu
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=5,sched_min_interval=10000,batch_sched_delay=1,bf_interval=5,\
bf_continue,default_queue_depth=1000,bf_max_job_test=1000{more_scheduling}

PriorityType=priority/multifactor
PriorityDecayHalfLife=7-0
PriorityCalcPeriod=1
PriorityMaxAge=1-0
PriorityWeightAge=1000
PriorityWeightFairshare=10000
PriorityWeightQOS=10000
PreemptType=preempt/qos
PreemptMode=REQUEUE

AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={host}
AccountingStoragePort={dbd_port}
AccountingStorageEnforce=associations,limits,qos,safe
AccountingStorageTRES=gres/gpu,{gpu_tres}
AccountingStoreFlags=job_comment,job_script
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=5
"""


def slurm_conf(settings: Settings, version: Version) -> str:
    """``slurm.conf(5)``: the scheduler, the nodes and the partitions."""
    head = _SLURM_CONF.format(
        cluster=layout.CLUSTER,
        host=layout.LOGIN_HOST,
        ctld_port=settings.ports["slurmctld"],
        dbd_port=settings.ports["slurmdbd"],
        more_scheduling="" if version >= _PREEMPT_PARAMETERS else ",preempt_send_user_signal",
        gpu_tres=",".join(f"gres/gpu:{kind.name}" for kind in layout.KINDS),
    )
    nodes = [
        f"NodeName={node} NodeHostname={node} NodeAddr=127.0.0.1 Port={settings.ports[node]} "
        f"CPUs={kind.cpus} Boards=1 SocketsPerBoard=2 CoresPerSocket={kind.cpus // 2} ThreadsPerCore=1 "
        f"RealMemory={kind.memory_mib} Gres=gpu:{kind.name}:{kind.gpus} Feature={kind.name} State=UNKNOWN"
        for kind in layout.KINDS
        for node in kind.nodes
    ]
    partitions = ["PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP"] + [
        f"PartitionName={kind.name} Nodes={','.join(kind.nodes)} MaxTime=INFINITE State=UP"
        for kind in layout.KINDS
    ]
    partitions.append("PartitionName={} Nodes={} MaxTime=INFINITE State=UP".format(*layout.CAPPED))
    preempt = ["PreemptParameters=send_user_signal"] if version >= _PREEMPT_PARAMETERS else []
    return "\n".join([head, *preempt, "", *nodes, "", *partitions, ""])


def cgroup_conf(version: Version) -> str:
    """``cgroup.conf(5)``: no control groups. Old releases can't be told so; v1's plugin waits to be used."""
    return f"CgroupPlugin={'disabled' if version >= _CGROUP_DISABLED else 'cgroup/v1'}\n"


def gres_conf() -> str:
    """``gres.conf(5)``: typed GPUs, each with a device file."""
    return "".join(
        f"NodeName={','.join(kind.nodes)} Name=gpu Type={kind.name} "
        f"File={layout.GPU_DEVICES}[0-{kind.gpus - 1}]\n"
        for kind in layout.KINDS
    )


def slurmdbd_conf(settings: Settings) -> str:
    """``slurmdbd.conf(5)``: reaches MariaDB by Unix socket, as the user it runs as, without a password."""
    return f"""\
AuthType=auth/munge
DbdHost={layout.LOGIN_HOST}
DbdAddr=127.0.0.1
DbdPort={settings.ports["slurmdbd"]}
SlurmUser=slurm
CommunicationParameters=NoInAddrAny
PidFile=/run/slurm-dev/slurmdbd.pid
DebugLevelSyslog=quiet
LogTimeFormat=iso8601_ms,format_stderr
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StorageLoc=slurm_acct_db
"""


def hosts() -> str:
    """``/etc/hosts``: every name of the cluster is this machine's loopback."""
    return f"127.0.0.1 localhost {layout.LOGIN_HOST} {' '.join(layout.NODES)}\n::1 localhost ip6-localhost\n"


def sshd_config(settings: Settings) -> str:
    """``sshd_config(5)``: keys only, the limits at their defaults (``MaxSessions 10`` above all)."""
    return f"""\
Port {settings.ports["ssh"]}
ListenAddress {settings.listen}
HostKey {layout.DATA}/keys/ssh_host_ed25519_key
AuthorizedKeysFile /etc/slurm-dev/authorized_keys/%u
AllowUsers {" ".join(layout.USERS)}
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
PidFile none
PrintMotd no
SetEnv LANG=C.UTF-8
Subsystem sftp internal-sftp
"""


def sudoers() -> str:
    """``sudoers(5)``: the service account may run commands as those in one Unix group, as nobody else."""
    return f"{layout.SERVICE_USER} ALL=(%{layout.PEOPLE_GROUP}) NOPASSWD: ALL\n"


def registry_yaml(settings: Settings) -> str:
    """The OCI registry's configuration: plain HTTP, no accounts, content on disk."""
    return f"""\
version: 0.1
log: {{level: warn, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {layout.REGISTRY_STORE}}}
  delete: {{enabled: true}}
http: {{addr: "{settings.listen}:{settings.ports["registry"]}"}}
"""


def mariadb_options() -> list[str]:
    """``mariadbd(8)`` options: Unix socket only, sized to what slurmdbd asks for."""
    options: Mapping[str, str] = {
        "datadir": "/var/lib/mysql",
        "socket": MARIADB_SOCKET,
        "pid-file": "/run/mysqld/mysqld.pid",
        "user": "mysql",
        "innodb-buffer-pool-size": "256M",
        "innodb-log-file-size": "64M",
        "innodb-lock-wait-timeout": "900",
        "innodb-flush-log-at-trx-commit": "2",
        # On by default since 11.6; slurmdbd ends when two of its writes meet. Older servers don't know it.
        "loose-innodb-snapshot-isolation": "OFF",
        "max-allowed-packet": "16M",
        "performance-schema": "0",
    }
    return ["--no-defaults", "--skip-networking", *(f"--{key}={value}" for key, value in options.items())]
