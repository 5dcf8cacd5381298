"""Webhooks' secrets and signatures (the Standard Webhooks convention, standardwebhooks.com).

No secret lies in the database: each is made anew from the key file, the webhook's id and the number of its
version. Rotation raises the number; for a while messages then carry two signatures, and a receiver may check
either. What a receiver holds is `whsec_…`, as every library of the convention takes it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from standardwebhooks import Webhook

from broker.identity.tokens import load_key

KEY_FILE = "webhooks.key"
PREFIX = "whsec_"


@dataclass(frozen=True, slots=True)
class Keyring:
    """Makes the secrets of every webhook from one key of 256 bits."""

    key: bytes

    def secret(self, webhook_id: str, version: int) -> bytes:
        """32 bytes: HMAC-SHA256 of the id and the version, under the key (a pseudo-random function)."""
        return hmac.new(self.key, f"webhook/{webhook_id}/{version}".encode(), hashlib.sha256).digest()

    def shown(self, webhook_id: str, version: int) -> str:
        """The secret as its receiver writes it down."""
        return PREFIX + base64.b64encode(self.secret(webhook_id, version)).decode()


def load_keyring(data_dir: Path) -> Keyring:
    """The keyring, its key made at first use (0600). Machines that serve or work together share the file."""
    return Keyring(bytes.fromhex(load_key(data_dir, KEY_FILE)))


def valid_versions(version: int, previous_until: datetime | None, now: datetime) -> list[int]:
    """The versions of a webhook's secret that are valid now, the newest first."""
    return [version, version - 1] if previous_until is not None and now < previous_until else [version]


def headers(keys: Sequence[bytes], message_id: str, at: datetime, body: str) -> dict[str, str]:
    """The three headers of the convention; one signature per valid secret, parted by a space.

    `at` is the time of this try (aware): a receiver refuses what is more than five minutes off.
    """
    signatures = " ".join(Webhook(key).sign(message_id, at, body) for key in keys)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": signatures,
    }
