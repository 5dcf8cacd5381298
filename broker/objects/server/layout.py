"""The server's directory: what is kept between starts, and the checks before it is trusted.

DIR/keys.json   {"ACCESS": "secret"}, made at the first start, 0600
DIR/access_key, DIR/secret_key   the first of them again, for settings that name files
DIR/salt        part of every path's hash: without it the data can't be found again
DIR/port        the port once chosen (presigned URLs cover the host and port they were made for)
DIR/lock        held while a server runs; names its process
DIR/conf        Swift's configuration, written anew at every start
DIR/data/d1     the data
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import shutil
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

DEVICE = "d1"
_XATTR_PROBE = b"user.broker.probe"
# Swift keeps an object's metadata in xattrs of up to 64 KiB together, in pieces of at most 64 KiB;
# ext4 without `ea_inode` gives 4 KiB a file, which is enough for S3's 2 KiB of user metadata.
_XATTR_PROBE_SIZE = 3072


class SetupError(Exception):
    """The directory or the port can't be used; the sentence says why and how to mend it."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths below `root`, which is absolute."""

    root: Path

    @property
    def conf(self) -> Path:
        """Swift's configuration files and rings."""
        return self.root / "conf"

    @property
    def data(self) -> Path:
        """What Swift calls `devices`."""
        return self.root / "data"

    @property
    def device(self) -> Path:
        """The one device."""
        return self.data / DEVICE

    @property
    def keys(self) -> Path:
        """Access keys and their secrets."""
        return self.root / "keys.json"

    @property
    def port(self) -> Path:
        """The port that was chosen at the first start."""
        return self.root / "port"


def prepare(root: Path) -> Layout:
    """Make what is missing below `root`, take its lock and check that the file system will do.

    The lock lasts as long as the process. Raises `SetupError`.
    """
    layout = Layout(root.absolute())
    for folder in (layout.root, layout.conf, layout.data, layout.device):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _lock(layout.root / "lock")
    _check_xattrs(layout.device)
    if not layout.keys.exists():
        key, secret = secrets.token_hex(10).upper(), secrets.token_urlsafe(30)
        _write_private(layout.keys, json.dumps({key: secret}))
    key, secret = next(iter(json.loads(layout.keys.read_text()).items()))
    _write_private(layout.root / "access_key", key)
    _write_private(layout.root / "secret_key", secret)
    # Bodies that a killed server was receiving: nobody was ever told that they had arrived.
    shutil.rmtree(layout.device / "tmp", ignore_errors=True)
    return layout


def salt(layout: Layout) -> str:
    """The installation's salt, made at the first start."""
    path = layout.root / "salt"
    if not path.exists():
        if any(layout.device.iterdir()):
            raise SetupError(
                f"{path} is missing, and without it the objects in {layout.device} can't be found: "
                "restore it from a backup, or move the directory away to begin afresh"
            )
        _write_private(path, secrets.token_hex(16))
    return path.read_text().strip()


def listen_socket(layout: Layout, host: str, port: int) -> socket.socket:
    """A listening socket on `port`; 0 is the port kept from an earlier start, else a free one, then kept."""
    kept = int(layout.port.read_text()) if port == 0 and layout.port.exists() else port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, kept))
    except OSError as error:
        listener.close()
        remedy = (
            f"; it was chosen at an earlier start and presigned URLs cover it, so free it, "
            f"or remove {layout.port} to choose another"
            if port == 0 and kept
            else "; free it or give another port"
        )
        raise SetupError(f"can't listen on {host}:{kept}: {error.strerror}{remedy}") from error
    listener.listen(1024)
    if port == 0 and not kept:
        _write_private(layout.port, str(listener.getsockname()[1]))
    return listener


def _lock(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)  # held until the process ends
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(descriptor, 32).decode() or "unknown"
        os.close(descriptor)
        raise SetupError(
            f"another object store (process {holder}) already serves {path.parent}: stop it, "
            "or use another directory"
        ) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)


def _check_xattrs(folder: Path) -> None:
    probe = folder / ".xattr-probe"
    try:
        probe.touch()
        os.setxattr(probe, _XATTR_PROBE, b"x" * _XATTR_PROBE_SIZE)
        os.getxattr(probe, _XATTR_PROBE)
    except OSError as error:
        named = errno.errorcode.get(error.errno or 0, "?")
        raise SetupError(
            f"the file system of {folder} keeps no user extended attributes ({named}: {error.strerror}): use "
            "a directory on ext4, xfs or btrfs (an old ext needs the mount option user_xattr; NFS has none)"
        ) from error
    finally:
        with suppress(OSError):
            probe.unlink()


def _write_private(path: Path, text: str) -> None:
    """Write by rename, readable by the owner alone from the first moment."""
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
