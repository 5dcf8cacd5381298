"""Access tokens: JWTs (HS256) signed with a key that lies in the data folder, for its owner alone."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt

from broker.db import new_id
from broker.errors import Unauthenticated
from broker.settings import read_secret

_ISSUER, _ALGORITHM = "broker", "HS256"
KEY_FILE = "jwt.key"


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified token says: the account, its token version, and the end (Unix seconds)."""

    user_id: str
    token_version: int
    expires_at: float


@dataclass(frozen=True, slots=True)
class TokenSigner:
    """Issues and verifies tokens."""

    key: str
    minutes: float

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
        try:
            claims = jwt.decode(
                token,
                self.key,
                algorithms=[_ALGORITHM],
                issuer=_ISSUER,
                options={"require": ["exp", "iat", "iss", "jti", "sub"]},
            )
            return Claims(str(claims["sub"]), int(claims["tv"]), float(claims["exp"]))
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("The token has expired: log in again") from None
        except (jwt.InvalidTokenError, KeyError, TypeError, ValueError):
            raise Unauthenticated("The token is not valid: log in again") from None


def load_key(data_dir: Path) -> str:
    """The signing key, made at first use (256 bits, file 0600). Machines that serve together share it.

    Two processes that start at once agree on one key: the file is linked into place, and only the first
    link succeeds.
    """
    path = data_dir / KEY_FILE
    if not path.exists():
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = data_dir / f".{KEY_FILE}.{os.getpid()}.{secrets.token_hex(4)}"
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
