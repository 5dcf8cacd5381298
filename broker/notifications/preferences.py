"""What people and tenants chose to be told, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from broker.audit import record
from broker.db import utcnow
from broker.errors import InvalidRequest, Problem
from broker.identity.permissions import Principal
from broker.notifications.kinds import NEWS, PERSONAL, Channel, Kind, wanted, wanted_by_tenant
from broker.notifications.outbox import tenant_owner
from broker.notifications.schemas import Preferences, PreferencesView
from broker.notifications.tables import PreferenceRow
from broker.settings import NotificationSettings

Wants = Callable[[Mapping[str, Sequence[str]], Kind, Channel], bool]


def tenant_wants(chosen: Mapping[str, Sequence[str]], kind: Kind, channel: Channel) -> bool:
    """A tenant has an address, and no screen."""
    return channel is Channel.EMAIL and wanted_by_tenant(chosen, kind)


def read_preferences(
    session: Session, owner: str, settings: NotificationSettings, wants: Wants = wanted
) -> PreferencesView:
    """What an owner (`user:ID`, `tenant:NAME`) chose; the defaults where nothing was."""
    row = session.get(PreferenceRow, owner)
    chosen = row.channels if row else {}
    return PreferencesView(
        email=row.email if row else None,
        language="ko" if row and row.language == "ko" else "en",
        channels=chosen,
        effective={kind: [one for one in PERSONAL if wants(chosen, kind, one)] for kind in NEWS},
        email_available=settings.email_url_file is not None,
    )


def write_preferences(
    session: Session, principal: Principal, owner: str, settings: NotificationSettings, choice: Preferences
) -> None:
    """Replace what an owner chose."""
    check_address(choice.email, settings)
    row = session.get(PreferenceRow, owner)
    before = _shown(row) if row else None
    if row is None:
        row = PreferenceRow(owner=owner)
        session.add(row)
    row.email, row.language = choice.email, choice.language
    row.channels = {str(kind): sorted(set(ways)) for kind, ways in choice.channels.items()}
    row.updated_at = utcnow()
    tenant = owner.removeprefix(tenant_owner("")) if owner.startswith(tenant_owner("")) else None
    after = _shown(row)
    record(session, principal, "notifications.choose", "preferences", owner, before, after, tenant=tenant)


def check_address(email: str | None, settings: NotificationSettings) -> None:
    """Raise `InvalidRequest` for an address outside the domains that mail may go to."""
    allowed = [domain.lower() for domain in settings.email_domains]
    if email is None or not allowed or email.rpartition("@")[2].lower() in allowed:
        return
    detail = f"Mail goes to addresses in {', '.join(allowed)} only: give one of those"
    raise InvalidRequest("No mail goes to this address", problems=[Problem("/email", "bad_address", detail)])


def _shown(row: PreferenceRow) -> dict[str, Any]:
    return {"email": row.email, "language": row.language, "channels": row.channels}
