"""Roles and what they allow: the one table of the whole product.

Every route names one permission (`broker.api.security.requires`). Which *objects* a person sees follows
from ownership and tenant (`Principal.sees`, `Principal.may_change`); what is not visible is "not found".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Role(StrEnum):
    """What an account is (AU-01, AU-05)."""

    ADMIN = "admin"
    RESEARCHER = "researcher"
    VIEWER = "viewer"
    INTERNAL = "internal"


class Permission(StrEnum):
    """What a route asks for."""

    ACCOUNT = "account"
    """One's own account: who am I, change my password. The only one a one-time password opens."""
    PIPELINES_READ = "pipelines:read"
    PIPELINES_WRITE = "pipelines:write"
    RUNS_READ = "runs:read"
    RUNS_WRITE = "runs:write"
    MODELS_READ = "models:read"
    MODELS_WRITE = "models:write"
    CLUSTERS_READ = "clusters:read"
    USERS_MANAGE = "users:manage"
    AUDIT_READ = "audit:read"
    METRICS_READ = "metrics:read"


_VIEWER: Final = frozenset(
    {
        Permission.ACCOUNT,
        Permission.PIPELINES_READ,
        Permission.RUNS_READ,
        Permission.MODELS_READ,
        Permission.CLUSTERS_READ,
    }
)
_RESEARCHER: Final = _VIEWER | {Permission.PIPELINES_WRITE, Permission.RUNS_WRITE, Permission.MODELS_WRITE}

ALLOWED: Final[dict[Role, frozenset[Permission]]] = {
    Role.VIEWER: _VIEWER,
    Role.RESEARCHER: _RESEARCHER,
    Role.INTERNAL: _RESEARCHER,
    Role.ADMIN: frozenset(Permission),
}


@dataclass(frozen=True, slots=True)
class Principal:
    """Who makes a request."""

    user_id: str
    username: str
    role: Role
    tenant: str

    @property
    def is_admin(self) -> bool:
        """Whether everything is visible and changeable."""
        return self.role is Role.ADMIN

    def can(self, permission: Permission) -> bool:
        """Whether the role has the permission."""
        return permission in ALLOWED[self.role]

    def sees(self, tenant: str) -> bool:
        """Whether an object of `tenant` may be read: one's own tenant's; an admin's is every tenant."""
        return self.is_admin or tenant == self.tenant

    def may_change(self, owner_id: str) -> bool:
        """Whether an object of `owner_id` may be changed: one's own; an admin's is everyone's."""
        return self.is_admin or owner_id == self.user_id


SYSTEM: Final = Principal(user_id="system", username="system", role=Role.ADMIN, tenant="default")
"""The broker itself, for the audit trail of what nobody asked for."""
