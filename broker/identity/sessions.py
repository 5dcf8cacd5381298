"""From a bearer token or API key to the one who asks, fast: reads of the API pass here thousands of times.

A signature is checked once per token; an account and an API key are read at most once per second. So a
deactivated account, a new password, a new role or a revoked key takes effect within `max_age_s` in every
process, and at once in the one that made the change (`forget`).
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from broker.db import Database
from broker.errors import Unauthenticated
from broker.identity import keys
from broker.identity.permissions import Principal
from broker.identity.tables import UserRow
from broker.identity.tenants import may_enter
from broker.identity.tokens import Claims, TokenSigner

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Account:
    """What is remembered of an account. `read_at` is monotonic seconds."""

    principal: Principal
    token_version: int
    active: bool
    must_change_password: bool
    read_at: float


class Authenticator:
    """Verifies tokens against accounts; safe to share between threads."""

    remembered = 10_000

    def __init__(
        self,
        db: Database,
        signer: TokenSigner,
        *,
        max_age_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.signer = signer
        self._db, self._max_age_s, self._clock = db, max_age_s, clock
        self._lock = threading.Lock()
        self._claims: OrderedDict[str, Claims] = OrderedDict()
        self._accounts: OrderedDict[str, Account] = OrderedDict()
        self._keys: OrderedDict[str, Account] = OrderedDict()

    def remembered_account(self, token: str) -> Account | None:
        """The account of a token seen within the last second, without any I/O; None: ask `verify`."""
        if token.startswith(keys.PREFIX):
            with self._lock:
                found = self._keys.get(token)
            return found if found and self._clock() - found.read_at <= self._max_age_s else None
        with self._lock:
            claims = self._claims.get(token)
            account = self._accounts.get(claims.user_id) if claims else None
        if claims is None or account is None or self._clock() - account.read_at > self._max_age_s:
            return None
        if account.token_version != claims.token_version:  # the token may be newer than what is remembered
            return None
        return self._fitting(claims, account)

    def verify(self, token: str) -> Account:
        """The token's account; raises `Unauthenticated` when token or account are not valid any more."""
        if token.startswith(keys.PREFIX):
            return self._verify_key(token)
        claims = self._claims.get(token) or self.signer.verify(token)
        with self._db.read() as session:
            row = session.get(UserRow, claims.user_id)
            if row is None:
                raise Unauthenticated("The token is not valid: log in again")
            account = self._account(row, row.principal(), may_enter(session, row))
        with self._lock:
            self._keep(self._claims, token, claims)
            self._keep(self._accounts, claims.user_id, account)
        return self._fitting(claims, account)

    def _verify_key(self, text: str) -> Account:
        owner, principal = keys.verify_key(self._db, text)
        account = self._account(owner, principal, True)
        with self._lock:
            self._keep(self._keys, text, account)
        return account

    def _account(self, row: UserRow, principal: Principal, active: bool) -> Account:
        return Account(principal, row.token_version, active, row.must_change_password, self._clock())

    def forget(self, user_id: str | None) -> None:
        """Read this account (None: every account) anew at its next request: it was just changed."""
        with self._lock:
            for kept in (self._accounts, self._keys):
                for token, account in list(kept.items()):
                    if user_id in (None, account.principal.user_id):
                        del kept[token]

    def _keep(self, kept: OrderedDict[str, T], key: str, value: T) -> None:
        kept[key] = value
        kept.move_to_end(key)
        while len(kept) > self.remembered:
            kept.popitem(last=False)

    @staticmethod
    def _fitting(claims: Claims, account: Account) -> Account:
        if claims.expires_at <= time.time():
            raise Unauthenticated("The token has expired: log in again")
        if not account.active or account.token_version != claims.token_version:
            raise Unauthenticated("The token was withdrawn: log in again")
        return account
