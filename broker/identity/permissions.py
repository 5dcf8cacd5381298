"""Roles and what they allow: the one table of the whole product.

Every route names one permission (`broker.api.security.requires`). Which *objects* a person sees follows
from ownership and tenant (`Principal.sees`, `.may_change`, `.governs`): what is not visible is "not found"
(404), what is visible but not allowed is "denied" (403).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Role(StrEnum):
    """What an account is (AU-01, AU-05)."""

    ADMIN = "admin"
    TENANT_ADMIN = "tenant_admin"
    """Runs one tenant: its people, notifications and runs; decides about no approval, priority or quota."""
    RESEARCHER = "researcher"
    VIEWER = "viewer"
    INTERNAL = "internal"


class Permission(StrEnum):
    """What a route asks for."""

    ACCOUNT = "account"
    """One's own account: who am I, change my password. The only one a one-time password opens."""
    KEYS_MANAGE = "keys:manage"
    """One's own API keys."""
    PIPELINES_READ = "pipelines:read"
    PIPELINES_WRITE = "pipelines:write"
    RUNS_READ = "runs:read"
    RUNS_WRITE = "runs:write"
    MODELS_READ = "models:read"
    MODELS_WRITE = "models:write"
    APPROVALS_READ = "approvals:read"
    APPROVALS_DECIDE = "approvals:decide"
    QUEUE_READ = "queue:read"
    QUEUE_MANAGE = "queue:manage"
    QUOTAS_READ = "quotas:read"
    QUOTAS_MANAGE = "quotas:manage"
    CLUSTERS_READ = "clusters:read"
    CLUSTERS_MANAGE = "clusters:manage"
    REPORTS_READ = "reports:read"
    EXPORTS_READ = "exports:read"
    """What became of scheduled exports of reports: of all tenants, an admin's."""
    EXPORTS_MANAGE = "exports:manage"
    """Asking for exports of earlier periods."""
    PRICES_MANAGE = "prices:manage"
    RESOURCES_READ = "resources:read"
    NOTIFICATIONS_MANAGE = "notifications:manage"
    """An admin's: every tenant's; a tenant admin's: the own tenant's."""
    TENANTS_READ = "tenants:read"
    TENANTS_MANAGE = "tenants:manage"
    USERS_MANAGE = "users:manage"
    """An admin's: everybody; a tenant admin's: the own tenant's people."""
    AUDIT_READ = "audit:read"
    METRICS_READ = "metrics:read"


_VIEWER: Final = frozenset(
    {
        Permission.ACCOUNT,
        Permission.KEYS_MANAGE,
        Permission.PIPELINES_READ,
        Permission.RUNS_READ,
        Permission.MODELS_READ,
        Permission.APPROVALS_READ,
        Permission.QUEUE_READ,
        Permission.QUOTAS_READ,
        Permission.CLUSTERS_READ,
        Permission.REPORTS_READ,
        Permission.RESOURCES_READ,
        Permission.TENANTS_READ,
    }
)
_RESEARCHER: Final = _VIEWER | {Permission.PIPELINES_WRITE, Permission.RUNS_WRITE, Permission.MODELS_WRITE}
_TENANT_ADMIN: Final = _RESEARCHER | {
    Permission.USERS_MANAGE,
    Permission.NOTIFICATIONS_MANAGE,
    Permission.AUDIT_READ,
}

ALLOWED: Final[dict[Role, frozenset[Permission]]] = {
    Role.VIEWER: _VIEWER,
    Role.RESEARCHER: _RESEARCHER,
    Role.INTERNAL: _RESEARCHER,
    Role.TENANT_ADMIN: _TENANT_ADMIN,
    Role.ADMIN: frozenset(Permission),
}


@dataclass(frozen=True, slots=True)
class Principal:
    """Who makes a request. `scopes` narrows the role's permissions: an API key's, None for a login."""

    user_id: str
    username: str
    role: Role
    tenant: str
    scopes: frozenset[Permission] | None = None

    @property
    def is_admin(self) -> bool:
        """Whether everything is visible and changeable (within the scopes)."""
        return self.role is Role.ADMIN

    @property
    def permissions(self) -> frozenset[Permission]:
        """What the role allows, within the scopes."""
        allowed = ALLOWED[self.role]
        return allowed if self.scopes is None else allowed & self.scopes

    def can(self, permission: Permission) -> bool:
        """Whether the role has the permission, and the scopes too."""
        return permission in self.permissions

    def sees(self, tenant: str) -> bool:
        """Whether an object of `tenant` may be read: one's own tenant's; an admin's is every tenant."""
        return self.is_admin or tenant == self.tenant

    def governs(self, tenant: str) -> bool:
        """Whether people of `tenant` are this one's to look after: an admin, or the tenant's own admin."""
        return self.is_admin or (self.role is Role.TENANT_ADMIN and tenant == self.tenant)

    def may_change(self, owner_id: str) -> bool:
        """Whether an object of `owner_id` may be changed: one's own; an admin's is everyone's."""
        return self.is_admin or owner_id == self.user_id


SYSTEM: Final = Principal(user_id="system", username="system", role=Role.ADMIN, tenant="default")
"""The broker itself, for the audit trail of what nobody asked for."""
