"""Where commands run and files lie: this machine, or a login node over SSH.

host = SshHost(SshConfig(host="login1", port=22, user="broker", key_file=…, known_hosts=…))
host.run(["squeue", "-h"], timeout=10, readonly=True).stdout
"""

from broker.hosts.base import Completed, FileEntry, Host, Progress, RemotePath, Stdin
from broker.hosts.link import SshConfig
from broker.hosts.local import LocalHost
from broker.hosts.person import PersonHost
from broker.hosts.ssh import SshHost

__all__ = [
    "Completed",
    "FileEntry",
    "Host",
    "LocalHost",
    "PersonHost",
    "Progress",
    "RemotePath",
    "SshConfig",
    "SshHost",
    "Stdin",
]
