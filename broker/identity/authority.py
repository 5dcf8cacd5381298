"""Who may make whom what: pure. A tenant's admin looks after the people of one tenant, and no further.

What a tenant's admin may not see at all (another tenant, its people) is told as if it did not exist; here is
only what is visible and yet not allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from broker.errors import Denied, Problem
from broker.identity.permissions import ALLOWED, Permission, Principal, Role

GRANTS: Final[dict[Role, frozenset[Role]]] = {
    Role.ADMIN: frozenset(Role),
    Role.TENANT_ADMIN: frozenset({Role.TENANT_ADMIN, Role.RESEARCHER, Role.VIEWER}),
}
"""The roles that a role may give, and whose accounts it may change. `internal` carries a higher limit of runs
(AM-12), so a tenant's admin does not hand it out."""
_EVERYBODYS: Final = frozenset({Permission.ACCOUNT, Permission.KEYS_MANAGE})
"""What every account may and no API key: it says nothing about how much a role may."""
ADMIN_ONLY: Final = ("unix_account", "max_training_hours")
"""Fields that decide as whom and how long jobs run on a cluster."""


def grantable(principal: Principal) -> frozenset[Role]:
    """The roles that this one may give; with an API key of few scopes none that may more than the key."""
    given = GRANTS.get(principal.role, frozenset())
    scopes = principal.scopes
    return frozenset(role for role in given if scopes is None or ALLOWED[role] - _EVERYBODYS <= scopes)


def check_authority(principal: Principal, present: Role | None, fields: Mapping[str, Any]) -> None:
    """Raise `Denied` unless `principal` may set `fields` of an account.

    `present` is the account's role, None for one that is being made; fields that are None at its making do
    not count.
    """
    allowed = grantable(principal)
    if present is not None and present not in allowed:
        raise Denied(
            f"An account with the role {present} is changed by an admin of the broker only; with an API key, "
            "by one whose scopes hold everything that this role may do"
        )
    problems = [
        Problem(f"/{name}", "admin_only", f"Only an admin of the broker sets {name}: leave it out")
        for name in ADMIN_ONLY
        if name in fields and not principal.is_admin and (present is not None or fields[name] is not None)
    ]
    role = fields.get("role")
    if role is not None and Role(role) not in allowed:
        given = ", ".join(sorted(allowed)) or "none"
        problems.append(Problem("/role", "role_not_yours", f"You may give the roles {given}, not {role}"))
    if problems:
        raise Denied(problems[0].detail, problems=problems)
