"""Pure: what a provider says about a person, as an account of this broker."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from broker.errors import Denied
from broker.identity.permissions import Role
from broker.settings import OidcSettings

_USERNAME: Final = re.compile(r"[a-z0-9][a-z0-9._@-]{0,62}")
_STRONGEST_FIRST: Final = (Role.ADMIN, Role.TENANT_ADMIN, Role.INTERNAL, Role.RESEARCHER, Role.VIEWER)


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody at the provider, and what the settings make of their groups. `role` None: no access."""

    subject: str
    username: str
    display_name: str
    role: Role | None
    tenant: str


def person_of(claims: Mapping[str, Any], settings: OidcSettings) -> Person:
    """The person that verified claims speak of; raises `Denied` when they do not name one that fits.

    Of several groups with a role the strongest counts; of several with a tenant the first in the settings.
    """
    subject = claims.get("sub")
    if not isinstance(subject, str) or not 0 < len(subject) <= 255:
        raise Denied("The provider's answer has no usable `sub`: whoever runs it must mend that")
    found = lookup(claims, settings.username_claim)
    username = found.lower() if isinstance(found, str) else ""
    if not _USERNAME.fullmatch(username):
        raise Denied(
            f"The provider's claim {settings.username_claim!r} is no user name (letters, digits, "
            "`._@-`, at most 63): an admin names another claim in `oidc.username_claim`"
        )
    groups = _groups(lookup(claims, settings.groups_claim))
    roles = {Role(settings.roles[group]) for group in groups if group in settings.roles}
    default = Role(settings.default_role) if settings.default_role else None
    tenant = next(
        (name for group, name in settings.tenants.items() if group in groups), settings.default_tenant
    )
    return Person(
        subject=subject,
        username=username,
        display_name=_line(claims.get("name")),
        role=next((role for role in _STRONGEST_FIRST if role in roles), default),
        tenant=tenant,
    )


def lookup(claims: Mapping[str, Any], path: str) -> Any:
    """A claim by its name, or by a path into nested ones (`realm_access.roles`); None without it."""
    if path in claims:
        return claims[path]
    value: Any = claims
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _groups(value: Any) -> frozenset[str]:
    values = value if isinstance(value, list) else [value]
    return frozenset(one for one in values if isinstance(one, str))


def _line(value: Any) -> str:
    """A name for people, without characters that do not print, at most 128 long."""
    text = value if isinstance(value, str) else ""
    kept = (c for c in text if unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Zl", "Zp"})
    return "".join(kept).strip()[:128]
