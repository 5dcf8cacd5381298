"""What a cluster needs before its daemons start (folders, mounts, devices, keys, files), and its accounts.

All of it may run again on a cluster that has run before: what is there is kept, configuration written anew.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

from slurmdev import conf, daemons, layout
from slurmdev.layout import Settings

_DATA = Path(layout.DATA)

# Folder below DATA → where it is mounted, its owner and mode. Database, spool, homes and shared files outlive
# a restart and lie on a real file system (Apptainer and MariaDB are happier there than on an overlay).
_FOLDERS = {
    "log": (layout.LOGS, "root", 0o755),
    "mysql": ("/var/lib/mysql", "mysql", 0o700),
    "spool": ("/var/spool/slurm", "slurm", 0o755),
    "home": ("/home", "root", 0o755),
    "shared": (layout.SHARED, "root", 0o755),
    "tmp": ("/tmp", "root", 0o1777),
    "var-tmp": ("/var/tmp", "root", 0o1777),
}
_VOLATILE = ("tmp", "var-tmp")


def prepare(settings: Settings) -> None:
    """Make everything that the daemons find when they start."""
    _set_hostname()
    _folders()
    _devices()
    _homes()
    _keys(settings)
    _configuration(settings)


def _set_hostname() -> None:
    try:
        Path("/proc/sys/kernel/hostname").write_text(layout.LOGIN_HOST, encoding="ascii")
    except OSError:
        # A container engine named us already (compose: `hostname`), but /etc/hosts must agree.
        if os.uname().nodename != layout.LOGIN_HOST:
            raise


def _make(path: Path | str, owner: str, mode: int) -> Path:
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    shutil.chown(path, owner, owner)
    path.chmod(mode)
    return path


def _folders() -> None:
    for name, (target, owner, mode) in _FOLDERS.items():
        if name in _VOLATILE:
            shutil.rmtree(_DATA / name, ignore_errors=True)
        folder = _make(_DATA / name, owner, mode)
        Path(target).mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--bind", str(folder), target], check=True)
    _make(layout.RUN, "slurm", 0o755)
    _make("/run/munge", "munge", 0o755)
    _make("/run/mysqld", "mysql", 0o755)
    later = Path("/run/mariadbd")
    if not later.is_symlink():
        # Where later releases of MariaDB's client library, hence slurmdbd, look for the socket.
        later.symlink_to("mysqld")
    _make("/run/sshd", "root", 0o755)
    _make("/var/log/munge", "munge", 0o700)
    _make("/var/lib/munge", "munge", 0o700)
    _make("/var/spool/slurm/ctld", "slurm", 0o755)
    _make(layout.JOBS_DIR, layout.SERVICE_USER, 0o755)
    _make(layout.IMAGE_DIR, layout.SERVICE_USER, 0o755)
    for name in layout.NODES:
        _make(f"/var/spool/slurm/{name}", "root", 0o755)


def _devices() -> None:
    """GPU device files (``/dev/null`` under other names) and a ``/dev/fuse`` that everyone may open."""
    Path(layout.GPU_DEVICES).parent.mkdir(exist_ok=True)
    wanted = {f"{layout.GPU_DEVICES}{i}": (1, 3) for i in range(layout.GPUS_PER_NODE)}
    for name, (major, minor) in (wanted | {"/dev/fuse": (10, 229)}).items():
        device = Path(name)
        if not device.exists():
            os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(major, minor))
        device.chmod(0o666)


def _homes() -> None:
    for user in layout.USERS:
        home = Path("/home") / user
        if not home.exists():
            shutil.copytree("/etc/skel", home)
            for path in (home, *home.rglob("*")):
                shutil.chown(path, user, user)
            home.chmod(0o700)


def _keys(settings: Settings) -> None:
    """Host key, one key pair per person, munge's secret, and the known_hosts line that clients check."""
    folder = _make(_DATA / "keys", "root", 0o755)
    for name in ("ssh_host_ed25519_key", *layout.USERS):
        key = folder / name
        if not key.exists():
            argv = [
                "ssh-keygen",
                "-q",
                "-t",
                "ed25519",
                "-N",
                "",
                "-C",
                f"{name}@{settings.name}",
                "-f",
                str(key),
            ]
            subprocess.run(argv, check=True)
        if name in layout.USERS:
            os.chown(key, *settings.owner)
    munge = folder / "munge.key"
    if not munge.exists():
        munge.touch(mode=0o400)
        munge.write_bytes(secrets.token_bytes(128))
    shutil.copy(munge, "/etc/munge/munge.key")
    shutil.chown("/etc/munge/munge.key", "munge", "munge")
    Path("/etc/munge/munge.key").chmod(0o400)
    authorized = _make("/etc/slurm-dev/authorized_keys", "root", 0o755)
    for user in layout.USERS:
        shutil.copy(folder / f"{user}.pub", authorized / user)
    host_key = (folder / "ssh_host_ed25519_key.pub").read_text(encoding="ascii").rsplit(" ", 1)[0]
    # By its address on this machine, and by its name among the containers of docker-compose.yml.
    names = ",".join(f"[{host}]:{settings.ports['ssh']}" for host in ("127.0.0.1", layout.LOGIN_HOST))
    (folder / "known_hosts").write_text(f"{names} {host_key}\n", encoding="ascii")


def _configuration(settings: Settings) -> None:
    year, month = (int(part) for part in daemons.slurm_version().split(".")[:2])
    files = {
        "/etc/hosts": (conf.hosts(), "root", 0o644),
        "/etc/slurm/slurm.conf": (conf.slurm_conf(settings, (year, month)), "root", 0o644),
        "/etc/slurm/gres.conf": (conf.gres_conf(), "root", 0o644),
        "/etc/slurm/cgroup.conf": (conf.cgroup_conf((year, month)), "root", 0o644),
        "/etc/slurm/slurmdbd.conf": (conf.slurmdbd_conf(settings), "slurm", 0o600),
        "/etc/slurm-dev/sshd_config": (conf.sshd_config(settings), "root", 0o644),
        "/etc/sudoers.d/slurm-dev": (conf.sudoers(), "root", 0o440),
        "/etc/slurm-dev/registry.yml": (conf.registry_yaml(settings), "root", 0o644),
    }
    for name, (text, owner, mode) in files.items():
        path = Path(name)
        # Written in place: a container engine mounts /etc/hosts itself, so it can't be replaced.
        path.write_text(text, encoding="utf-8")
        shutil.chown(path, owner, owner)
        path.chmod(mode)


def create_database_files() -> None:
    """Make MariaDB's data folder on first use."""
    if not Path("/var/lib/mysql/mysql").exists():
        argv = [
            "mariadb-install-db",
            "--no-defaults",
            "--user=mysql",
            "--datadir=/var/lib/mysql",
            "--skip-test-db",
        ]
        subprocess.run(
            [*argv, "--innodb-log-file-size=64M"],
            check=True,
            stdout=subprocess.DEVNULL,
            env=dict(daemons.ENVIRONMENT),
        )


def create_database() -> None:
    """Make slurmdbd's database and its user, who is known by the Unix account and has no password."""
    sql = (
        "CREATE DATABASE IF NOT EXISTS slurm_acct_db;"
        "CREATE USER IF NOT EXISTS slurm@localhost IDENTIFIED VIA unix_socket;"
        "GRANT ALL ON slurm_acct_db.* TO slurm@localhost;"
    )
    subprocess.run([*daemons.MARIADB_CLIENT, "-e", sql], check=True, env=dict(daemons.ENVIRONMENT))


def create_accounts() -> None:
    """Register cluster, accounts and people with slurmdbd; once per cluster.

    The service account becomes an Operator: it may place administrator holds, and change others' jobs.
    """
    accounts = ",".join(layout.ACCOUNTS)
    commands = [
        ["add", "cluster", layout.CLUSTER],
        [
            "add",
            "account",
            accounts,
            f"Cluster={layout.CLUSTER}",
            "Description=development",
            "Organization=dev",
        ],
        *(
            ["add", "user", ",".join(people), f"Cluster={layout.CLUSTER}", f"Account={account}"]
            for account, people in layout.ACCOUNTS.items()
        ),
        ["modify", "user", layout.SERVICE_USER, "set", "AdminLevel=Operator"],
    ]
    _register("accounts-created", commands)


def create_classes() -> None:
    """Register the QOS of the priority classes; once per cluster. The service account could not: it takes an
    Administrator.
    """
    # A QOS must exist before another one can name it: who preempts comes last.
    ordered = sorted(layout.QOS.items(), key=lambda item: any("Preempt=" in field for field in item[1]))
    added = [["add", "qos", f"{name}{twin}", *set_] for name, set_ in ordered for twin in ("", "-approved")]
    granted = ["modify", "cluster", layout.CLUSTER, "set", f"QOS={','.join(('normal', *layout.QOS))}"]
    _register("classes-created", [*added, granted])


def _register(marker: str, commands: Sequence[Sequence[str]]) -> None:
    done = _DATA / marker
    if done.exists():
        return
    for command in commands:
        argv = ["sacctmgr", "--immediate", *command]
        made = subprocess.run(
            argv, capture_output=True, text=True, env=dict(daemons.ENVIRONMENT), check=False
        )
        # A start that was cut off half-way has done some of this already.
        if made.returncode != 0 and "lready exist" not in made.stdout + made.stderr:
            raise RuntimeError(f"{' '.join(argv)}: {made.stdout}{made.stderr}".strip())
    done.touch()
