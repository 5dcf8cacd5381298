"""Acting as a person: their Unix account's rights, nobody's key but ours (`run_as: user`).

Every command goes through one sudo rule of the service account, limited to a Unix group (sudoers(5)):

    broker ALL=(%people) NOPASSWD: ALL

What it then does, it does with the person's rights and no others: links and devices that a person leaves in a
run directory lead nowhere the person could not go anyway. The connection stays the service account's.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence

from broker.errors import Denied, InvalidRequest, Unreachable
from broker.hosts.base import ACTING, Completed, Host, Stdin, checked_argv
from broker.hosts.files import HostFiles

ACCOUNT = re.compile(r"[a-z_][a-z0-9_-]{0,31}", re.ASCII)
"""What useradd(8) takes for a name. `#0`, `%group` and `-x`, which sudo(8) would understand, are none."""
FIRST_UID = 1000
"""Below it are root and the system's own accounts (login.defs(5), UID_MIN)."""
_HARMLESS = "sudo: unable to resolve host"
"""A warning; the command is run."""


def acting_argv(account: str, argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` as `account`, in `/`: where we are, the person may not be.

    >>> " ".join(acting_argv("kim", ["id", "-un"]))
    'env LC_ALL=C sudo -n -H -u kim -- env -C / id -un'

    Raises `InvalidRequest` for what is no account's name.
    """
    if not ACCOUNT.fullmatch(account) or account == "root":
        raise InvalidRequest(f"{account!r} is no person's Unix account: lower-case letters, digits, _ and -")
    return ["env", "LC_ALL=C", "sudo", "-n", "-H", "-u", account, *ACTING, *checked_argv(argv)]


def refusal(done: Completed) -> str | None:
    """What sudo itself said when it did not run the command; None when the exit status is the command's.

    >>> refusal(Completed(1, b"", b"sudo: a password is required"))
    'sudo: a password is required'
    >>> refusal(Completed(1, b"", b"find: No such file or directory"))
    >>> refusal(Completed(127, b"", "env: \u2018sudo\u2019: No such file or directory".encode()))
    'env: \u2018sudo\u2019: No such file or directory'
    """
    if done.rc not in {1, 127}:
        return None
    said = done.stderr.decode(errors="replace").splitlines()
    return next((line for line in said if _OWN.match(line) and not line.startswith(_HARMLESS)), None)


_OWN = re.compile(r"sudo: |Sorry, user |env: .?sudo.?: ")


class PersonHost(HostFiles):
    """`host`, with the rights of one Unix account there. It shares the host's connection."""

    def __init__(self, host: Host, account: str) -> None:
        acting_argv(account, ["true"])
        self._host, self.account = host, account
        self._lock = threading.Lock()
        self._known = False

    @property
    def name(self) -> str:
        """See `Host.name`."""
        return f"{self.account} on {self._host.name}"

    def run(
        self, argv: Sequence[str], *, stdin: Stdin = b"", timeout: float, readonly: bool = False
    ) -> Completed:
        """See `Host.run`. `Denied` when the account is no person's, or the sudo rule does not cover it."""
        acting = acting_argv(self.account, argv)
        self._verify(timeout)
        done = self._host.run(acting, stdin=stdin, timeout=timeout, readonly=readonly)
        if why := refusal(done):
            raise Denied(
                f"{self._host.name}: can't act as {self.account}: {why}. The service account needs the "
                "sudoers rule of docs/operations.md, and the account must be in the Unix group that it names"
            )
        return done

    def stream(self, argv: Sequence[str], *, stdin: Stdin = b"", timeout: float) -> Iterator[bytes]:
        """See `Host.stream`."""
        acting = acting_argv(self.account, argv)
        self._verify(timeout)
        return self._host.stream(acting, stdin=stdin, timeout=timeout)

    def close(self) -> None:
        """The connection is the host's."""

    def _verify(self, timeout: float) -> None:
        """Once: an account of a person's there, and not the one we came with, which Slurm lets do more."""
        with self._lock:
            if self._known:
                return
            both = ["env", "LC_ALL=C", "sh", "-c", 'id -u; id -u -- "$1"', "sh", self.account]
            done = self._host.run(both, timeout=timeout, readonly=True)
            if done.rc and "no such user" not in done.complaint:
                raise Unreachable(f"{self._host.name}: can't look up {self.account}: {done.complaint}")
            if done.rc:
                raise Denied(f"{self._host.name} has no Unix account {self.account!r}: an admin mends it")
            own, theirs = (int(uid) for uid in done.stdout.split()[-2:])
            if theirs < FIRST_UID or theirs == own:
                why = "the service account" if theirs == own else f"a system account (uid {theirs})"
                raise Denied(f"{self.account} is {why} on {self._host.name}: nobody's jobs run as that")
            self._known = True
