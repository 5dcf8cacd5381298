"""What waits, read from the database when Prometheus asks: true even when no worker lives to say so.

Times are Unix times of the oldest thing that waits; where nothing waits there is no time. Each figure is one
question to an index, so that a look every few seconds costs nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import datetime

import structlog
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import and_, func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from broker.approvals.service import requests
from broker.db import Database
from broker.identity import SYSTEM
from broker.notifications.delivery import DeliveryState
from broker.notifications.tables import DeliveryRow, NotificationRow
from broker.runs.states import JobState, Phase
from broker.runs.tables import JobRow, RunRow

log = structlog.get_logger("broker.api")

_OPEN = [phase for phase in Phase if phase is not Phase.DONE]
_RUNS = JobRow.state == JobState.RUNNING


class Backlog(Collector):
    """The gauges of one database and its clusters; while it is silent, `broker_database_up` 0 alone."""

    def __init__(self, db: Database, clusters: Collection[str]) -> None:
        self._db, self._clusters = db, clusters

    @staticmethod
    def describe() -> list[Metric]:
        """Every family without its samples (and without asking the database)."""
        return [
            GaugeMetricFamily("broker_database_up", "Whether the database answers the API"),
            GaugeMetricFamily("broker_runs_open", "Runs that have not ended", labels=["cluster", "phase"]),
            GaugeMetricFamily(
                "broker_submission_oldest_timestamp_seconds",
                "Since when the oldest run waits to be given to Slurm, Unix time",
                labels=["cluster"],
            ),
            GaugeMetricFamily(
                "broker_jobs_stalled", "Jobs that run and give no sign of life", labels=["cluster"]
            ),
            GaugeMetricFamily(
                "broker_results_pending", "Ended jobs whose results are not stored yet", labels=["cluster"]
            ),
            GaugeMetricFamily(
                "broker_results_oldest_timestamp_seconds",
                "When the oldest job ended whose results are not stored yet, Unix time",
                labels=["cluster"],
            ),
            GaugeMetricFamily("broker_approvals_pending", "Runs that wait for a person's decision"),
            GaugeMetricFamily(
                "broker_approvals_oldest_timestamp_seconds",
                "Since when the oldest run waits for a decision, Unix time",
                labels=[],
            ),
            GaugeMetricFamily(
                "broker_outbox_pending", "Deliveries that are still to be made", labels=["channel"]
            ),
            GaugeMetricFamily(
                "broker_outbox_oldest_timestamp_seconds",
                "When the oldest notice that nobody has handed out yet was written (`new`), "
                "and the delivery that is latest was due (`due`), Unix time",
                labels=["stage"],
            ),
        ]

    def collect(self) -> Iterator[Metric]:
        """What Prometheus is told."""
        families = {family.name: family for family in self.describe()}
        up = families["broker_database_up"]
        try:
            with self._db.read() as session:
                _fill(session, self._clusters, families)
        except SQLAlchemyError as error:
            log.warning("database_trouble", detail=str(error))
            up.add_sample(up.name, {}, 0)
            yield up
            return
        up.add_sample(up.name, {}, 1)
        yield from families.values()


def _fill(session: Session, clusters: Collection[str], families: dict[str, Metric]) -> None:
    def put(name: str, value: float | datetime | None, **labels: str) -> None:
        if value is not None:
            number = value.timestamp() if isinstance(value, datetime) else value
            families[name].add_sample(name, labels, number)

    open_runs = (
        select(RunRow.cluster, RunRow.phase, func.count(), func.min(RunRow.created_at))
        .where(RunRow.cluster.in_(clusters), RunRow.phase.in_(_OPEN))
        .group_by(RunRow.cluster, RunRow.phase)
    )
    on_their_way: dict[str, datetime] = {}
    for cluster, phase, count, oldest in session.execute(open_runs):
        put("broker_runs_open", count, cluster=cluster, phase=phase)
        if phase in {Phase.PREPARING, Phase.SUBMITTING}:
            on_their_way[cluster] = min(oldest, on_their_way.get(cluster, oldest))
    for cluster, oldest in on_their_way.items():
        put("broker_submission_oldest_timestamp_seconds", oldest, cluster=cluster)

    stalled = (
        select(RunRow.cluster, func.count(JobRow.id))
        .outerjoin(JobRow, and_(JobRow.run_id == RunRow.id, JobRow.stalled_since.is_not(None), _RUNS))
        .where(RunRow.cluster.in_(clusters), RunRow.phase.in_(_OPEN))
        .group_by(RunRow.cluster)
    )
    for cluster, count in session.execute(stalled):
        put("broker_jobs_stalled", count, cluster=cluster)

    results = (
        select(RunRow.cluster, func.count(), func.min(JobRow.ended_at))
        .join(RunRow, RunRow.id == JobRow.run_id)
        .where(JobRow.storing == "pending")
        .group_by(RunRow.cluster)
    )
    for cluster, count, ended_at in session.execute(results):
        put("broker_results_pending", count, cluster=cluster)
        put("broker_results_oldest_timestamp_seconds", ended_at, cluster=cluster)

    since = func.min(func.coalesce(RunRow.approval_requested_at, RunRow.created_at))
    count, oldest = session.execute(requests(SYSTEM, "pending").with_only_columns(func.count(), since)).one()
    put("broker_approvals_pending", count)
    put("broker_approvals_oldest_timestamp_seconds", oldest)

    deliveries = (
        select(
            DeliveryRow.channel,
            func.count(),
            func.min(func.coalesce(DeliveryRow.next_try_at, DeliveryRow.created_at)),
        )
        .where(DeliveryRow.state == DeliveryState.PENDING)
        .group_by(DeliveryRow.channel)
    )
    due: list[datetime] = []
    for channel, count, oldest in session.execute(deliveries):
        put("broker_outbox_pending", count, channel=channel)
        due.append(oldest)
    unread = select(func.min(NotificationRow.created_at)).where(NotificationRow.seq.is_(None))
    put("broker_outbox_oldest_timestamp_seconds", session.scalar(unread), stage="new")
    put("broker_outbox_oldest_timestamp_seconds", min(due, default=None), stage="due")
