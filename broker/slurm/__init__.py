"""Slurm's language: commands as objects without I/O, and one client that runs them on a host.

slurm = SlurmClient(host)
slurm.jobs(user="broker").by_id()[4711].state
"""

from broker.slurm.client import SlurmClient
from broker.slurm.cluster import Capabilities, Config, Controller, Node, Partition
from broker.slurm.command import DONE, Result, ResultKind
from broker.slurm.queue import AccountingJob, QueueJob, QueueSnapshot
from broker.slurm.sharing import JobPriority, Qos, Share
from broker.slurm.states import SlurmState, parse_state
from broker.slurm.tres import Tres, parse_quantity, parse_tres
from broker.slurm.usage import StepUsage
from broker.slurm.versions import Version

__all__ = [
    "DONE",
    "AccountingJob",
    "Capabilities",
    "Config",
    "Controller",
    "JobPriority",
    "Node",
    "Partition",
    "Qos",
    "QueueJob",
    "QueueSnapshot",
    "Result",
    "ResultKind",
    "Share",
    "SlurmClient",
    "SlurmState",
    "StepUsage",
    "Tres",
    "Version",
    "parse_quantity",
    "parse_state",
    "parse_tres",
]
