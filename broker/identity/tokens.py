"""Access and refresh tokens: JWTs (HS256), signed with a key in the data folder that only its owner reads."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import jwt

from broker.db import new_id
from broker.errors import Unauthenticated
from broker.settings import read_secret

_ISSUER, _REFRESH_ISSUER, _ALGORITHM = "broker", "broker/refresh", "HS256"
KEY_FILE = "jwt.key"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified token says: the account, its token version, and the end (Unix seconds)."""

    user_id: str
    token_version: int
    expires_at: float


@dataclass(frozen=True, slots=True)
class RefreshClaims:
    """What a verified refresh token says: which login, and the how manieth token of it."""

    session_id: str
    generation: int


@dataclass(frozen=True, slots=True)
class TokenSigner:
    """Issues and verifies tokens: access for `minutes`, a whole login for `session_days`."""

    key: str
    minutes: float
    session_days: float = 30

    def issue(self, user_id: str, role: str, token_version: int) -> tuple[str, int]:
        """A token and its life in seconds. `role` is for the reader; the broker goes by the account's."""
        now = datetime.now(UTC)
        life = timedelta(minutes=self.minutes)
        claims = {
            "iss": _ISSUER,
            "sub": user_id,
            "role": role,
            "tv": token_version,
            "iat": now,
            "exp": now + life,
            "jti": new_id("tok"),
        }
        return jwt.encode(claims, self.key, algorithm=_ALGORITHM), int(life.total_seconds())

    def verify(self, token: str) -> Claims:
        """The token's claims; raises `Unauthenticated` for one that is forged, foreign, odd or expired."""
        return self._read(
            token, _ISSUER, lambda said: Claims(str(said["sub"]), int(said["tv"]), float(said["exp"]))
        )

    def issue_refresh(self, session_id: str, generation: int, ends_at: datetime) -> str:
        """The refresh token of a login; its issuer is another, so that neither passes for the other."""
        claims = {
            "iss": _REFRESH_ISSUER,
            "sub": session_id,
            "gen": generation,
            "iat": datetime.now(UTC),
            "exp": ends_at,
            "jti": new_id("ref"),
        }
        return jwt.encode(claims, self.key, algorithm=_ALGORITHM)

    def verify_refresh(self, token: str) -> RefreshClaims:
        """The refresh token's claims; raises `Unauthenticated` like `verify`."""
        return self._read(
            token, _REFRESH_ISSUER, lambda said: RefreshClaims(str(said["sub"]), int(said["gen"]))
        )

    def _read(self, token: str, issuer: str, make: Callable[[dict[str, Any]], T]) -> T:
        try:
            said = jwt.decode(
                token,
                self.key,
                algorithms=[_ALGORITHM],
                issuer=issuer,
                options={"require": ["exp", "iat", "iss", "jti", "sub"]},
            )
            return make(said)
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("The token has expired: log in again") from None
        except (jwt.InvalidTokenError, KeyError, TypeError, ValueError):
            raise Unauthenticated("The token is not valid: log in again") from None


def load_key(data_dir: Path, name: str = KEY_FILE) -> str:
    """The signing key, made at first use (256 bits, file 0600). Machines that serve together share it.

    Two processes that start at once agree on one key: the file is linked into place, and only the first
    link succeeds.
    """
    path = data_dir / name
    if not path.exists():
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = data_dir / f".{name}.{os.getpid()}.{secrets.token_hex(4)}"
        write_private(draft, secrets.token_hex(32) + "\n")
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return read_secret(path)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, durably, replacing what was there."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    with os.fdopen(
        os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8"
    ) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
