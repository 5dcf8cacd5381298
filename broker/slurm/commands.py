"""Every Slurm command line that the broker uses. Contract tests hold each to recorded answers of 22.05, 24.11
and 26.05; what is not here is not run. (sbatch stands in `templates/submit.sh.j2`: it runs on the host, many
times, in one command of ours.)
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from broker.slurm.accounts import Manage, Memberships, QosLimitsList
from broker.slurm.changes import Adjust, Cancel, Control
from broker.slurm.cluster import AccountingFields, ClusterVersion, Nodes, Partitions, Ping, ReadConfig, WhoAmI
from broker.slurm.command import Command
from broker.slurm.events import NodeEvents, Reservations
from broker.slurm.held import BatchScripts, Held
from broker.slurm.queue import Accounting, Queue
from broker.slurm.sacct import Window
from broker.slurm.sharing import Priorities, QosList, Shares
from broker.slurm.usage import RunningUsage

REGISTRY: Mapping[str, type[Command[Any]]] = MappingProxyType(
    {
        "version": ClusterVersion,
        "config": ReadConfig,
        "accounting_fields": AccountingFields,
        "whoami": WhoAmI,
        "ping": Ping,
        "queue": Queue,
        "held": Held,
        "batch_scripts": BatchScripts,
        "accounting": Accounting,
        "warehouse": Window,
        "control": Control,
        "adjust": Adjust,
        "cancel": Cancel,
        "nodes": Nodes,
        "partitions": Partitions,
        "priorities": Priorities,
        "shares": Shares,
        "node_events": NodeEvents,
        "reservations": Reservations,
        "qos": QosList,
        "qos_limits": QosLimitsList,
        "memberships": Memberships,
        "manage": Manage,
        "running_usage": RunningUsage,
    }
)
