"""Passwords: argon2id hashes, equal time for unknown users, and a brake on guessing."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from pwdlib import PasswordHash
from pwdlib.exceptions import PwdlibError

from broker.errors import InvalidRequest, LimitReached, Problem

MIN_LENGTH, MAX_LENGTH = 12, 256
_hasher = PasswordHash.recommended()
_at_once = threading.BoundedSemaphore(4)  # each hash takes 64 MiB (argon2id's m=65536)


def hash_password(password: str) -> str:
    """The argon2id hash to store."""
    with _at_once:
        return _hasher.hash(password)


def verify_password(password: str, stored: str | None) -> bool:
    """Whether `password` fits; an account that does not exist (`None`) takes as long as one that does."""
    with _at_once:
        try:
            fits = _hasher.verify(password, stored or _nobody())
        except PwdlibError:  # a hash nobody can read fits nothing
            return False
    return fits and stored is not None


@cache
def _nobody() -> str:
    return _hasher.hash(secrets.token_hex(16))


def one_time_password() -> str:
    """A password for a person to type once: 120 random bits."""
    return secrets.token_urlsafe(15)


def check_new_password(password: str, username: str, pointer: str = "/new") -> None:
    """Raise `InvalidRequest` unless the password may be used (length over rules: NIST SP 800-63B)."""
    reason = None
    if not MIN_LENGTH <= len(password) <= MAX_LENGTH:
        reason = f"A password has {MIN_LENGTH} to {MAX_LENGTH} characters; this one has {len(password)}"
    elif len(set(password)) < 4 or password.casefold().replace(username.casefold(), "") == "":
        reason = "This password is guessed at once (one sign over and over, or the user name): choose another"
    if reason:
        raise InvalidRequest(
            "The new password can't be used", problems=[Problem(pointer, "weak_password", reason)]
        )


@dataclass(slots=True)
class _Tries:
    failures: int = 0
    until: float = 0.0
    in_flight: int = 0


class LoginThrottle:
    """Slows guessing: after five failures of one (user name, address) each further try waits longer.

    The wait doubles from 2 s to 15 min; a success forgets it. Once the brake is on, one try at a time; and
    all logins together never hold more than `at_once` threads. Kept in memory: a restart forgets, which
    costs nothing since nobody outside can bring one about. `clock` is monotonic seconds.
    """

    free_tries, longest_s, remembered, at_once = 5, 900.0, 10_000, 16

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._tries: OrderedDict[tuple[str, str], _Tries] = OrderedDict()
        self._in_flight = 0

    @contextmanager
    def attempt(self, username: str, address: str) -> Iterator[Callable[[], None]]:
        """One try; the block calls what it is given when the password did fit.

        Raises `LimitReached` with the time to wait while the brake is on.
        """
        tries = self._begin((username, address))
        fitted = threading.Event()
        try:
            yield fitted.set
        finally:
            with self._lock:
                self._in_flight -= 1
                tries.in_flight -= 1
                tries.failures = 0 if fitted.is_set() else tries.failures + 1
                over = tries.failures - self.free_tries
                wait = 0.0 if over < 0 else min(2.0 ** min(over + 1, 30), self.longest_s)
                tries.until = self._clock() + wait

    def _begin(self, key: tuple[str, str]) -> _Tries:
        now = self._clock()
        with self._lock:
            tries = self._tries.setdefault(key, _Tries(until=now))
            if now - tries.until > self.longest_s:
                tries.failures = 0  # long quiet: start over
            wait = tries.until - now
            if wait <= 0 and (
                self._in_flight >= self.at_once or (tries.failures >= self.free_tries and tries.in_flight)
            ):
                wait = 1.0
            if wait > 0:
                raise LimitReached(
                    f"Too many logins: try again in {wait:.0f} s", retry_after_s=max(1.0, wait)
                )
            self._in_flight += 1
            tries.in_flight += 1
            self._tries.move_to_end(key)
            while len(self._tries) > self.remembered:
                self._tries.popitem(last=False)
            return tries
