"""The outbox's first half: number the notices, and find out who receives each.

Only the holder of the lease does it, in one transaction per batch: numbers follow the order of commits and
have no gaps, and a notice has either all of its deliveries or none yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, func, or_, select
from sqlalchemy.orm import Session

from broker.db import Database, new_id, utcnow
from broker.db.leases import Lease
from broker.identity.permissions import Principal
from broker.identity.tables import UserRow
from broker.notifications.delivery import DeliveryState
from broker.notifications.kinds import Channel, Kind, concerns, wanted, wanted_by_tenant
from broker.notifications.tables import (
    AttemptRow,
    DeliveryRow,
    NotificationRow,
    PreferenceRow,
    WebhookRow,
)
from broker.settings import ChatSettings, NotificationSettings

BATCH = 200
PURGED_AT_ONCE = 1000
_QUOTA = (Kind.QUOTA_80, Kind.QUOTA_100)
_MONTH = timedelta(days=31)


@dataclass(frozen=True, slots=True)
class Book:
    """Everybody who may receive something, as of one moment."""

    webhooks: Sequence[WebhookRow]
    people: Sequence[tuple[Principal, PreferenceRow]]
    tenants: Sequence[PreferenceRow]
    rooms: dict[str, ChatSettings]


def user_owner(user_id: str) -> str:
    """The `owner` of a person's preferences, and the target of e-mail to them."""
    return f"user:{user_id}"


def tenant_owner(tenant: str) -> str:
    """The same of a tenant's shared address."""
    return f"tenant:{tenant}"


def receivers(
    book: Book, kind: Kind, tenant: str | None, user_id: str | None
) -> Iterator[tuple[Channel, str]]:
    """Who gets a notice, and how: (channel, target). Pure."""
    if kind is Kind.WEBHOOK_TEST:  # has its one delivery from the beginning
        return
    for hook in book.webhooks:
        if (hook.tenant is None or hook.tenant == tenant) and (not hook.kinds or kind in hook.kinds):
            yield Channel.WEBHOOK, hook.id
    for person, choice in book.people:
        if concerns(person, kind, tenant, user_id) and wanted(choice.channels, kind, Channel.EMAIL):
            yield Channel.EMAIL, choice.owner
    for choice in book.tenants:
        own = tenant is not None and choice.owner == tenant_owner(tenant)
        if own and wanted_by_tenant(choice.channels, kind):
            yield Channel.EMAIL, choice.owner
    for name, room in book.rooms.items():
        if (not room.kinds or str(kind) in room.kinds) and (not room.tenants or tenant in room.tenants):
            yield Channel.CHAT, name


def distribute(db: Database, lease: Lease, settings: NotificationSettings) -> int:
    """Number what is new and make its deliveries; how many notices it was (at most `BATCH`)."""
    waiting = select(NotificationRow).where(NotificationRow.seq.is_(None))
    with db.read() as session:  # most looks find nothing: they take no lock
        if session.scalar(waiting.limit(1)) is None:
            return 0
    with db.write() as session:
        lease.confirm(session)
        oldest = waiting.order_by(NotificationRow.created_at, NotificationRow.id)
        rows = session.scalars(oldest.limit(BATCH)).all()
        book = _book(session, settings)
        number = session.scalar(select(func.max(NotificationRow.seq))) or 0
        now = utcnow()
        made: list[DeliveryRow] = []
        for number, row in enumerate(rows, number + 1):  # noqa: B020 - counts on from the last number
            row.seq = number
            found = receivers(book, Kind(row.kind), row.tenant, row.user_id)
            made += [new_delivery(row.id, channel, target, now) for channel, target in found]
        # Each receiver gets the lowest first, and a clock may be set back between two of them.
        for row_id, delivery in zip(sorted(one.id for one in made), made, strict=True):
            delivery.id = row_id
        session.add_all(made)
        return len(rows)


def new_delivery(notification_id: str, channel: Channel, target: str, now: datetime) -> DeliveryRow:
    """A delivery that is due at once."""
    return DeliveryRow(
        id=new_id("dl"),
        notification_id=notification_id,
        channel=channel,
        target=target,
        state=DeliveryState.PENDING,
        tries=0,
        forgiven=0,
        next_try_at=now,
        created_at=now,
    )


def _book(session: Session, settings: NotificationSettings) -> Book:
    addressed = PreferenceRow.email.is_not(None)
    mail = settings.email_url_file is not None
    people = select(UserRow, PreferenceRow).join(PreferenceRow, PreferenceRow.owner == "user:" + UserRow.id)
    tenants = select(PreferenceRow).where(addressed, PreferenceRow.owner.startswith("tenant:"))
    found = session.execute(people.where(addressed, UserRow.active)).all() if mail else []
    return Book(
        webhooks=session.scalars(select(WebhookRow).where(WebhookRow.active)).all(),
        people=[(user.principal(), choice) for user, choice in found],
        tenants=session.scalars(tenants).all() if mail else [],
        rooms=settings.chat,
    )


def purge(db: Database, lease: Lease, keep_days: float) -> int:
    """Forget notices that have had their time, with the log of their deliveries; how many.

    What still has a delivery to make stays, however old. Of numbered ones the newest stays always: the next
    number is made from it. What was told of a quota stays for the longest month: else its key would be free,
    and it be told a second time in one period.
    """
    now = utcnow()
    before = now - timedelta(days=keep_days)
    with db.write() as session:
        lease.confirm(session)
        newest = session.scalar(select(func.max(NotificationRow.seq))) or 0
        unfinished = select(DeliveryRow.notification_id).where(DeliveryRow.state == DeliveryState.PENDING)
        old = session.scalars(
            select(NotificationRow.id)
            .where(
                NotificationRow.created_at < before,
                NotificationRow.seq < newest,
                NotificationRow.id.not_in(unfinished),
                or_(NotificationRow.kind.not_in(_QUOTA), NotificationRow.created_at < now - _MONTH),
            )
            .limit(PURGED_AT_ONCE)
        ).all()
        deliveries = select(DeliveryRow.id).where(DeliveryRow.notification_id.in_(old))
        session.execute(delete(AttemptRow).where(AttemptRow.delivery_id.in_(deliveries)))
        session.execute(delete(DeliveryRow).where(DeliveryRow.notification_id.in_(old)))
        session.execute(delete(NotificationRow).where(NotificationRow.id.in_(old)))
        return len(old)
