"""The worker's postman: numbers what is new, sends what is due, notes how it went.

One process at a time does it, behind a lease of its own. To one receiver goes one message at a time, so a
receiver that is slow, or has not answered for days, holds up nobody else. A try is written down before it is
made; who takes the lease after a crash finds the tries without an end and makes them again at once.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from sqlalchemy import exists, func, select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from broker import metrics
from broker.audit import record
from broker.context import Context
from broker.db import leases, utcnow
from broker.db.leases import Lease, LeaseLost
from broker.identity.permissions import SYSTEM
from broker.identity.tables import UserRow
from broker.notifications.channels import Post, post, tell
from broker.notifications.delivery import DeliveryState, Outcome, Patience, decide
from broker.notifications.guard import Rules
from broker.notifications.kinds import Channel, Kind
from broker.notifications.outbox import BATCH, PURGED_AT_ONCE, distribute, purge
from broker.notifications.schemas import payload
from broker.notifications.signing import load_keyring, valid_versions
from broker.notifications.tables import (
    AttemptRow,
    DeliveryRow,
    NotificationRow,
    PreferenceRow,
    WebhookRow,
)
from broker.notifications.texts import Language, write

log = structlog.get_logger("broker.notifications")

LEASE = "notifications"
TICK_S = 1.0
PURGE_S = 3600.0
IN_A_ROW = 20
"""Deliveries that a thread makes to one receiver before another receiver's turn; a failure ends them too."""
_CLAIM_MARGIN_S = 60
"""A claimed try whose end could not be written is made again this long after it should have ended."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """A delivery that was claimed: how to send it. `counted`: tries in this round, this one included."""

    delivery_id: str
    number: int
    counted: int
    channel: Channel
    target: str
    send: Callable[[], Outcome]
    patience: Patience


class Courier:
    """Takes the lease and works while it holds it; the worker's loops own it like a cluster's worker."""

    def __init__(self, ctx: Context, holder: str, stop: threading.Event) -> None:
        self._ctx, self._holder, self._stop = ctx, holder, stop
        self._settings = ctx.settings.notifications
        self._rules = Rules.of(self._settings.allowed_networks)
        self._keyring = load_keyring(ctx.settings.data_dir)
        self._woken = threading.Event()
        self._busy: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def wake(self) -> None:
        """There may be something to tell."""
        self._woken.set()

    def run(self) -> None:
        """Until stopped: get the lease, work, and begin again if it is lost."""
        ttl = self._ctx.settings.lease_s
        while not self._stop.is_set():
            try:
                lease = leases.acquire(self._ctx.db, LEASE, self._holder, ttl)
                if lease is None:
                    self._stop.wait(min(ttl / 3, 2.0))
                    continue
                self.work(lease)
                leases.release(self._ctx.db, lease)
            except LeaseLost:
                metrics.LEASES_LOST.labels(LEASE).inc()
            except SQLAlchemyError as error:
                log.error("database_trouble", detail=str(error))
                self._stop.wait(2.0)
            except Exception:  # a defect must not end the loop that everybody's notices depend on
                log.exception("worker_defect")
                metrics.WORKER_DEFECTS.inc()
                self._stop.wait(2.0)

    def work(self, lease: Lease) -> None:
        """Deliver until stopped, or until the lease is lost."""
        self.recover(lease)
        for way in Channel:
            for result in ("delivered", "failed", "dead", "skipped"):
                metrics.DELIVERIES.labels(way, result)  # from 0 on: see `broker.metrics`
        renewed, purged = 0.0, float("-inf")
        pool = ThreadPoolExecutor(self._settings.concurrency, thread_name_prefix="notify")
        try:
            while not self._stop.is_set() and not lease.lost.is_set():
                now = time.monotonic()
                if now - renewed >= self._ctx.settings.lease_s / 3:
                    leases.renew(self._ctx.db, lease, self._ctx.settings.lease_s)
                    renewed = now
                if now - purged >= PURGE_S:
                    some = purge(self._ctx.db, lease, self._settings.keep_days)
                    purged = purged if some == PURGED_AT_ONCE else now  # more of them: at the next look
                more = distribute(self._ctx.db, lease, self._settings) == BATCH
                for delivery_id, channel, target in self.due():
                    self._start(pool, lease, delivery_id, (channel, target))
                if not more:
                    self._woken.wait(timeout=TICK_S)
                self._woken.clear()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            self._busy.clear()

    def recover(self, lease: Lease) -> None:
        """What another holder was sending when it ended is sent again now, under the same message id."""
        with self._ctx.db.write() as session:
            lease.confirm(session)
            last_is_open = exists().where(
                AttemptRow.delivery_id == DeliveryRow.id,
                AttemptRow.number == DeliveryRow.tries,  # an earlier one stays open for ever
                AttemptRow.ended_at.is_(None),
            )
            session.execute(
                update(DeliveryRow)
                .where(DeliveryRow.state == DeliveryState.PENDING, last_is_open)
                .values(next_try_at=utcnow())
                .execution_options(synchronize_session=False)
            )

    def due(self) -> list[tuple[str, str, str]]:
        """The oldest due delivery of every receiver that has one: (id, channel, target)."""
        query = (
            select(func.min(DeliveryRow.id), DeliveryRow.channel, DeliveryRow.target)
            .where(DeliveryRow.state == DeliveryState.PENDING, DeliveryRow.next_try_at <= utcnow())
            .group_by(DeliveryRow.channel, DeliveryRow.target)
        )
        with self._ctx.db.read() as session:
            return [(key, channel, target) for key, channel, target in session.execute(query)]

    def _next(self, receiver: tuple[str, str]) -> str | None:
        """The oldest due delivery of one receiver."""
        query = select(func.min(DeliveryRow.id)).where(
            DeliveryRow.state == DeliveryState.PENDING,
            DeliveryRow.channel == receiver[0],
            DeliveryRow.target == receiver[1],
            DeliveryRow.next_try_at <= utcnow(),
        )
        with self._ctx.db.read() as session:
            return session.scalar(query)

    def _start(
        self, pool: ThreadPoolExecutor, lease: Lease, delivery_id: str, receiver: tuple[str, str]
    ) -> None:
        with self._lock:
            if receiver in self._busy:
                return
            self._busy.add(receiver)

        def task() -> None:
            try:
                due: str | None = delivery_id
                for _ in range(IN_A_ROW):
                    if due is None or lease.lost.is_set() or self._stop.is_set():
                        break
                    if not self.deliver(lease, due):
                        break  # one that hangs or refuses costs a thread one try, then it is others' turn
                    due = self._next(receiver)
            except LeaseLost:
                log.warning("lease_lost", lease=LEASE)
            except SQLAlchemyError as error:
                log.error("database_trouble", detail=str(error))
            except Exception:  # a defect in one delivery must not end the others
                log.exception("worker_defect", delivery_id=delivery_id)
                metrics.WORKER_DEFECTS.inc()
            finally:
                with self._lock:
                    self._busy.discard(receiver)
                self._woken.set()

        pool.submit(task)

    # ---- one delivery --------------------------------------------------------------------------------

    def deliver(self, lease: Lease, delivery_id: str) -> bool:
        """Try once: the intent, the sending, the result; whether the receiver may be sent more at once."""
        parcel = self._claim(lease, delivery_id)
        if parcel is None:
            return True
        try:
            outcome = parcel.send()
        except Exception as error:  # counts as a try: what can't be sent is given up in the end
            log.exception("worker_defect", delivery_id=delivery_id)
            metrics.WORKER_DEFECTS.inc()
            outcome = Outcome(error=f"The broker failed to send it ({type(error).__name__}); see its log")
        self._finish(lease, parcel, outcome)
        return outcome.error is None or outcome.unwanted

    def _claim(self, lease: Lease, delivery_id: str) -> Parcel | None:
        """Write down that a try begins; None when the delivery is over or not due any more."""
        with self._ctx.db.write() as session:
            lease.confirm(session)
            row = session.get_one(DeliveryRow, delivery_id)
            now = utcnow()
            if row.state != DeliveryState.PENDING or row.next_try_at is None or row.next_try_at > now:
                return None
            row.tries += 1
            row.next_try_at = now + timedelta(seconds=self._settings.timeout_s + _CLAIM_MARGIN_S)
            session.add(AttemptRow(delivery_id=row.id, number=row.tries, began_at=now))
            notice = session.get_one(NotificationRow, row.notification_id)
            return Parcel(
                delivery_id=row.id,
                number=row.tries,
                counted=row.tries - row.forgiven,
                channel=Channel(row.channel),
                target=row.target,
                send=self._sender(session, row, notice),
                patience=self._patience(Kind(notice.kind)),
            )

    def _patience(self, kind: Kind) -> Patience:
        """A test is tried once: whoever pressed the button is waiting for the answer."""
        tries = 1 if kind is Kind.WEBHOOK_TEST else self._settings.max_tries
        return Patience(tries, self._settings.first_pause_s, self._settings.longest_pause_s)

    def _sender(self, session: Session, row: DeliveryRow, notice: NotificationRow) -> Callable[[], Outcome]:
        """What sends this delivery, with everything read that it needs: it runs outside the transaction."""
        if row.channel == Channel.WEBHOOK:
            return self._webhook_sender(session, row, notice)
        kind = Kind(notice.kind)
        if row.channel == Channel.CHAT:
            room = self._settings.chat.get(row.target)
            if room is None:
                return _unwanted("The room is not in the settings any more")
            message = write(kind, notice.subject, notice.data, room.language).for_chat()
            return lambda: tell(room.url_file, message, notice.id)
        return self._mail_sender(session, row, notice)

    def _webhook_sender(
        self, session: Session, row: DeliveryRow, notice: NotificationRow
    ) -> Callable[[], Outcome]:
        hook = session.get(WebhookRow, row.target)
        if hook is None or (not hook.active and notice.kind != Kind.WEBHOOK_TEST):
            return _unwanted("The webhook was deleted or switched off")
        now = utcnow()
        versions = valid_versions(hook.secret_version, hook.previous_until, now)
        keys = [self._keyring.secret(hook.id, version) for version in versions]
        what = Post(hook.url, keys, notice.id, payload(notice))
        settings = self._settings
        return lambda: post(
            what, self._rules, seconds=settings.timeout_s, ca_file=settings.ca_file, now=utcnow()
        )

    def _mail_sender(
        self, session: Session, row: DeliveryRow, notice: NotificationRow
    ) -> Callable[[], Outcome]:
        choice = session.get(PreferenceRow, row.target)
        url_file = self._settings.email_url_file
        kind, _, owner = row.target.partition(":")
        user = session.get(UserRow, owner) if kind == "user" else None
        if choice is None or choice.email is None or (kind == "user" and (user is None or not user.active)):
            return _unwanted("There is no address any more")
        if url_file is None:
            return _unwanted("No mail server is configured any more")
        address, language = choice.email, _language(choice)
        message = write(Kind(notice.kind), notice.subject, notice.data, language)
        return lambda: tell(url_file, message, notice.id, to=address)

    def _finish(self, lease: Lease, parcel: Parcel, outcome: Outcome) -> None:
        """Write down how a try went, and what follows."""
        now = utcnow()
        verdict = decide(outcome, parcel.counted, parcel.patience, now, random.random())  # noqa: S311
        with self._ctx.db.write() as session:
            lease.confirm(session)
            attempt = session.get_one(AttemptRow, (parcel.delivery_id, parcel.number))
            attempt.ended_at, attempt.status, attempt.error = now, outcome.status, verdict.error
            row = session.get_one(DeliveryRow, parcel.delivery_id)
            row.state, row.next_try_at = verdict.state, verdict.next_try_at
            row.last_status, row.last_error = outcome.status, verdict.error
            row.ended_at = None if verdict.state is DeliveryState.PENDING else now
            if outcome.gone and parcel.channel is Channel.WEBHOOK:
                switch_off(session, parcel.target, now)
        metrics.DELIVERIES.labels(parcel.channel, _result(verdict.state)).inc()
        say = log.info if outcome.error is None else log.warning
        say(
            "notification_" + _result(verdict.state),
            delivery_id=parcel.delivery_id,
            channel=parcel.channel,
            target=parcel.target,
            tries=parcel.number,
            error=verdict.error,
        )


def switch_off(session: Session, webhook_id: str, now: datetime) -> None:
    """Send nothing more to a receiver that answered 410, as the convention asks."""
    hook = session.get(WebhookRow, webhook_id)
    if hook is None or not hook.active:
        return
    hook.active, hook.updated_at = False, now
    hook.disabled_reason = "It answered 410 (gone)"
    after = {"active": False, "disabled_reason": hook.disabled_reason}
    record(
        session, SYSTEM, "webhook.disable", "webhook", hook.id, {"active": True}, after, tenant=hook.tenant
    )


def _unwanted(error: str) -> Callable[[], Outcome]:
    return lambda: Outcome(error=error, unwanted=True)


def _language(choice: PreferenceRow) -> Language:
    return "ko" if choice.language == "ko" else "en"


def _result(state: DeliveryState) -> str:
    return "failed" if state is DeliveryState.PENDING else str(state)
