"""Passwords: argon2id hashes, and equal time for unknown users. The brake on guessing: `throttle`."""

from __future__ import annotations

import secrets
import threading
from functools import cache
from typing import Final

from pwdlib import PasswordHash
from pwdlib.exceptions import PwdlibError

from broker.errors import InvalidRequest, Problem

MIN_LENGTH, MAX_LENGTH = 12, 256
NO_PASSWORD: Final = "!"  # noqa: S105 - the absence of one
"""Stored instead of a hash for an account that logs in elsewhere: no password fits it."""
_hasher = PasswordHash.recommended()
_at_once = threading.BoundedSemaphore(4)  # each hash takes 64 MiB (argon2id's m=65536)


def hash_password(password: str) -> str:
    """The argon2id hash to store."""
    with _at_once:
        return _hasher.hash(password)


def verify_password(password: str, stored: str | None) -> bool:
    """Whether `password` fits; an account that does not exist (`None`), or has none, takes as long."""
    known = None if stored == NO_PASSWORD else stored
    with _at_once:
        try:
            fits = _hasher.verify(password, known or _nobody())
        except PwdlibError:  # a hash nobody can read fits nothing
            return False
    return fits and known is not None


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
