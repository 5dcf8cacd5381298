"""A simulated month of jobs: the ledger of GPU hours equals what sacct's own rows say, to the second.

Only the cluster's time can't be had: a month of requeues, preemptions and node failures is written down as
rows in sacct's format, which the broker reads with its own client and parser, bit by bit and out of order,
on a real database.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from broker.context import Context
from broker.db import leases, utcnow
from broker.db.leases import Lease
from broker.hosts import Completed, Host
from broker.identity import SYSTEM, Principal, Role
from broker.notifications.tables import NotificationRow
from broker.quotas import accounts
from broker.quotas.accounts import Want
from broker.quotas.periods import bounds, month_of, next_month
from broker.quotas.schemas import QuotaChange
from broker.quotas.service import set_quota
from broker.quotas.tables import ChargeRow, ReservationRow
from broker.runs.events import events_after
from broker.runs.ledger import Bookkeeper, reserve_or_hold
from broker.runs.schemas import RunRequest
from broker.runs.service import create_run
from broker.runs.states import Gate, JobState, Phase
from broker.runs.tables import JobRow, RunHoldRow, RunRow
from broker.runs.views import attempt_jobs
from broker.slurm import Capabilities, SlurmClient, Version
from broker.slurm.cluster import Config
from broker.spec import Overrides
from broker.spec.overrides import ResourceChange
from tests.api_support import SPEC, Api, context
from tests.harness.sacct import FIELDS, Row
from tests.postgres import fresh_database

MONTH = "2026-11"
BEGIN, END = bounds(MONTH)
LENGTH = int((END - BEGIN).total_seconds())
BACK = ["REQUEUED", "PREEMPTED", "NODE_FAIL"]
ENDS = ["COMPLETED", "FAILED", "TIMEOUT", "CANCELLED by 1000", "OUT_OF_MEMORY", "NODE_FAIL", "DEADLINE"]


@dataclass
class Accounting:
    """A host on which `sacct` answers with the rows that are there by now."""

    rows: list[Row] = field(default_factory=list)
    asked: int = 0
    name: str = "sacct"

    def run(self, argv: Sequence[str], **_: object) -> Completed:
        options = dict(word.split("=", 1) for word in argv if word.startswith("--"))
        fields = argv[list(argv).index("-o") + 1].split(",")
        wanted = {int(number) for number in options["--jobs"].split(",")}
        self.asked += 1
        lines = [row.text(fields, options["--delimiter"]) for row in self.rows if row.job_id in wanted]
        return Completed(0, "".join(f"{line}\n" for line in lines).encode(), b"")


@pytest.fixture(params=["sqlite", "postgresql"])
def ctx(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Context]:
    url = None
    if request.param == "postgresql":  # of its own: the worker's part looks at every tenant's runs
        url = fresh_database(request.getfixturevalue("postgres_url"), f"month-{secrets.token_hex(4)}")
    with context(tmp_path, url) as made:
        yield made


@pytest.fixture
def sacct(ctx: Context) -> Accounting:
    host = Accounting()
    client = SlurmClient(cast(Host, host))
    client._capabilities = Capabilities(Version(24, 11, 5), cast(Config, None), FIELDS, "broker")
    ctx._slurm["main"] = client
    return host


def person(ctx: Context) -> Principal:
    """A person with a pipeline of one component with GPUs, in a tenant of their own."""
    api, name = Api(ctx), f"ann-{secrets.token_hex(4)}"
    user_id = api.add(name, tenant=name)
    document = SPEC | {"components": [SPEC["components"][1]], "workflow": []}
    assert api.store(name, document).status_code == 201
    return Principal(user_id, name, Role.RESEARCHER, name)


@pytest.fixture
def lease(ctx: Context) -> Lease:
    held = leases.acquire(ctx.db, "worker:main", "test", 3000)
    assert held is not None
    return held


@dataclass
class Clock:
    """The simulated time."""

    now: datetime

    def __call__(self) -> datetime:
        return self.now


NUMBERS = iter(range(1000, 10**6))


def released(ctx: Context, ann: Principal, submitted: datetime) -> str:
    """A run whose only job Slurm has: its GPU time is set aside. The job's id with the broker."""
    run_id = create_run(ctx, ann, RunRequest(pipeline="digits")).id
    with ctx.db.write() as session:
        run = session.get_one(RunRow, run_id)
        (job,) = attempt_jobs(session, run_id, 1)
        session.delete(session.get_one(RunHoldRow, (run_id, "submission")))
        run.phase = Phase.RELEASING
        job.slurm_job_id, job.state, job.submitted_at = next(NUMBERS), JobState.PENDING, submitted
        session.flush()
        assert reserve_or_hold(ctx, session, run, [job])
    return job.id


def seen(ctx: Context, job_id: str, **columns: object) -> None:
    """What the tracker writes down of a job."""
    with ctx.db.write() as session:
        job = session.get_one(JobRow, job_id)
        for name, value in columns.items():
            setattr(job, name, value)


def job(ctx: Context, job_id: str) -> JobRow:
    with ctx.db.read() as session:
        return session.get_one(JobRow, job_id)


def charged(ctx: Context, tenant: str) -> Mapping[str, int]:
    """GPU-seconds by month, of what is settled."""
    sums: Counter[str] = Counter()
    with ctx.db.read() as session:
        for row in session.scalars(select(ChargeRow).where(ChargeRow.tenant == tenant)):
            sums[row.month] += row.gpu_seconds
    return {month: seconds for month, seconds in sums.items() if seconds}


# ---- the month ----------------------------------------------------------------------------------------


@st.composite
def histories(draw: st.DrawFn) -> list[Row]:
    """The attempts of one job, somewhere around the month: it waits, runs, is put back, and ends at last."""
    gpus = draw(st.sampled_from([1, 2, 3, 8]))
    at = draw(st.one_of(st.integers(-90_000, LENGTH), st.integers(LENGTH - 9_000, LENGTH)))
    backs = draw(st.lists(st.sampled_from(BACK), max_size=4))
    rows = []
    for state in [*backs, draw(st.sampled_from(ENDS))]:
        submit = at
        start: int | None = submit + draw(st.integers(0, 20_000))
        end = start + draw(st.integers(0, 130_000))
        if state.startswith("CANCELLED") and draw(st.booleans()):
            start = None  # while it waited
        rows.append(Row(0, BEGIN, submit, start, end, gpus=gpus if start is not None else 0, state=state))
        at = end + draw(st.integers(1, 200))
    return rows


def truth_of(rows: Sequence[Row]) -> dict[str, int]:
    """GPU-seconds by month: for each attempt the length of what it shares with each month."""
    sums: Counter[str] = Counter()
    for row in rows:
        if row.start is None or row.end is None:
            continue
        for month in ("2026-10", "2026-11", "2026-12", "2027-01"):
            first, after = ((at - BEGIN) // timedelta(seconds=1) for at in bounds(month))
            sums[month] += row.gpus * max(0, min(row.end, after) - max(row.start, first))
    return {month: seconds for month, seconds in sums.items() if seconds}


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(jobs=st.lists(histories(), min_size=1, max_size=6), data=st.data())
def test_the_ledger_of_a_month_is_what_sacct_says_to_the_second(
    ctx: Context, sacct: Accounting, lease: Lease, jobs: list[list[Row]], data: st.DataObject
) -> None:
    ann, clock = person(ctx), Clock(BEGIN)
    keeper = Bookkeeper(ctx, "main", lease, clock)
    sacct.rows = [Row(1, BEGIN - timedelta(days=900), 0, 5, 9, gpus=7)]  # an old job: ids are recycled
    known: dict[str, list[Row]] = {}
    for rows in jobs:
        job_id = released(ctx, ann, BEGIN + timedelta(seconds=rows[0].submit))
        number = job(ctx, job_id).slurm_job_id
        assert number is not None
        known[job_id] = [replace(row, job_id=number) for row in rows]
    for job_id, rows in sorted(known.items(), key=lambda item: item[1][-1].end or 0):
        blind = data.draw(st.booleans(), label="no requeue was seen")
        for count, row in enumerate(rows):
            last = row is rows[-1]
            clock.now = BEGIN + timedelta(seconds=(row.end or 0) + 60)
            late = data.draw(st.booleans(), label="slurmdbd is told late")
            if not late:
                sacct.rows.append(row)
            if last or not blind:
                columns: dict[str, object] = {"restarts": 0 if blind else count + (not last)}
                if row.start is not None:
                    columns["started_at"] = BEGIN + timedelta(seconds=row.start)
                if last:
                    columns["ended_at"] = BEGIN + timedelta(seconds=row.end or 0)
                seen(ctx, job_id, state=row.state.split()[0] if last else JobState.PENDING, **columns)
            keeper.tick()
            if late:
                sacct.rows.append(row)
    clock.now += timedelta(minutes=10)  # the same question is asked again at ever longer intervals
    keeper.tick()
    everything = [row for rows in known.values() for row in rows]
    assert charged(ctx, ann.tenant) == truth_of(everything)
    with ctx.db.read() as session:
        for month in ("2026-10", MONTH, "2026-12"):
            use = accounts.gpu_use(session, ann.tenant, month, END)
            assert (use.settled, use.reserved) == (truth_of(everything).get(month, 0), 0)
    asked = sacct.asked
    keeper.tick()
    assert sacct.asked == asked, "what is settled is not asked for again"


# ---- one at a time ------------------------------------------------------------------------------------


@pytest.fixture
def ann(ctx: Context) -> Principal:
    return person(ctx)


NOW = datetime(2026, 11, 10, 12, tzinfo=UTC)


def test_what_accounting_never_tells_is_charged_by_what_the_broker_saw(
    ctx: Context, sacct: Accounting, lease: Lease, ann: Principal
) -> None:
    clock = Clock(NOW)
    keeper, job_id = Bookkeeper(ctx, "main", lease, clock), released(ctx, ann, NOW)
    seen(ctx, job_id, state=JobState.FAILED, started_at=NOW, ended_at=NOW + timedelta(minutes=30))
    clock.now = NOW + timedelta(minutes=80)
    keeper.tick()
    assert charged(ctx, ann.tenant) == {}
    clock.now = NOW + timedelta(minutes=91)
    keeper.tick()
    assert charged(ctx, ann.tenant) == {MONTH: 2 * 1800}
    sacct.rows.append(Row(job(ctx, job_id).slurm_job_id or 0, NOW, 0, 0, 1700, gpus=2))
    keeper.tick()
    assert charged(ctx, ann.tenant) == {MONTH: 2 * 1800}


def test_a_job_that_accounting_takes_to_run_for_ever_is_charged_once(
    ctx: Context, sacct: Accounting, lease: Lease, ann: Principal
) -> None:
    clock = Clock(NOW)
    keeper, job_id = Bookkeeper(ctx, "main", lease, clock), released(ctx, ann, NOW)
    number = job(ctx, job_id).slurm_job_id or 0
    first = Row(number, NOW, 0, 0, 600, gpus=2, state="NODE_FAIL")
    sacct.rows += [first, Row(number, NOW, 700, 800, None, gpus=2, state="RUNNING")]
    began = NOW + timedelta(seconds=800)
    seen(
        ctx, job_id, state=JobState.FAILED, restarts=1, started_at=began, ended_at=began + timedelta(hours=1)
    )
    for clock.now in (NOW + timedelta(hours=4), NOW + timedelta(hours=5)):
        keeper.tick()
    assert charged(ctx, ann.tenant) == {MONTH: 2 * (600 + 3600)}


def test_a_job_that_slurm_starts_again_after_its_account_was_closed_is_charged_for_that_as_well(
    ctx: Context, sacct: Accounting, lease: Lease, ann: Principal
) -> None:
    keeper, job_id = Bookkeeper(ctx, "main", lease, Clock(NOW)), released(ctx, ann, NOW)
    number = job(ctx, job_id).slurm_job_id or 0
    sacct.rows.append(Row(number, NOW, 0, 0, 100, gpus=2, state="NODE_FAIL"))
    seen(ctx, job_id, state=JobState.NODE_FAIL, started_at=NOW, ended_at=NOW + timedelta(seconds=100))
    keeper.tick()
    assert charged(ctx, ann.tenant) == {MONTH: 200}
    again = NOW + timedelta(seconds=300)
    seen(ctx, job_id, state=JobState.RUNNING, restarts=1, started_at=again, ended_at=None)
    keeper.tick()
    with ctx.db.read() as session:
        assert accounts.gpu_use(session, ann.tenant, MONTH, NOW).reserved == 2 * 7200
    sacct.rows.append(Row(number, NOW, 200, 300, 350, gpus=2))
    seen(ctx, job_id, state=JobState.COMPLETED, ended_at=NOW + timedelta(seconds=350))
    keeper.tick()
    assert charged(ctx, ann.tenant) == {MONTH: 200 + 100}


def test_what_never_reached_slurm_gives_its_reservation_back(
    ctx: Context, sacct: Accounting, lease: Lease, ann: Principal
) -> None:
    job_id = released(ctx, ann, NOW)
    seen(ctx, job_id, slurm_job_id=None, state=JobState.CANCELLED, ended_at=NOW)
    Bookkeeper(ctx, "main", lease, Clock(NOW)).tick()
    with ctx.db.read() as session:
        assert session.get_one(ReservationRow, job_id).settled_at is not None
        assert accounts.gpu_use(session, ann.tenant, MONTH, NOW).total == 0
    assert sacct.asked == 0


def test_what_runs_over_the_end_of_a_month_is_reserved_in_both(
    ctx: Context, sacct: Accounting, lease: Lease, ann: Principal
) -> None:
    job_id = released(ctx, ann, END - timedelta(hours=1))
    seen(ctx, job_id, state=JobState.RUNNING, started_at=END - timedelta(minutes=30))
    Bookkeeper(ctx, "main", lease, Clock(END)).tick()
    with ctx.db.read() as session:
        assert accounts.gpu_use(session, ann.tenant, MONTH, END).reserved == 2 * 1800
        assert accounts.gpu_use(session, ann.tenant, month_of(END), END).reserved == 2 * 5400


def test_accounting_that_does_not_know_yet_is_asked_again_less_and_less_often(
    ctx: Context, sacct: Accounting, lease: Lease, ann: Principal
) -> None:
    clock = Clock(NOW)
    keeper, job_id = Bookkeeper(ctx, "main", lease, clock), released(ctx, ann, NOW)
    seen(ctx, job_id, state=JobState.FAILED, started_at=NOW, ended_at=NOW)
    for second in range(100):
        clock.now = NOW + timedelta(seconds=second)
        keeper.tick()
    assert sacct.asked == 7  # after 0, 1, 3, 7 … 63 s
    seen(ctx, job_id, state=JobState.RUNNING, ended_at=None, restarts=1)
    keeper.tick()
    assert sacct.asked == 8, "what has changed is asked at once"


# ---- waiting ------------------------------------------------------------------------------------------


def asked(ctx: Context, ann: Principal, gpu_count: int = 2) -> str:
    """A run of so many GPUs for two hours, submitted, with no hold left but perhaps the quota's; its id."""
    overrides = Overrides(all=ResourceChange(gpu_count=gpu_count))
    run_id = create_run(ctx, ann, RunRequest(pipeline="digits", overrides=overrides)).id
    with ctx.db.write() as session:
        run = session.get_one(RunRow, run_id)
        session.delete(session.get_one(RunHoldRow, (run_id, "submission")))
        run.phase = Phase.RELEASING
        reserve_or_hold(ctx, session, run, attempt_jobs(session, run_id, 1))
    return run_id


def holds(ctx: Context, run_id: str) -> list[str]:
    with ctx.db.read() as session:
        return list(session.scalars(select(RunHoldRow.kind).where(RunHoldRow.run_id == run_id)))


def events(ctx: Context, run_id: str) -> list[str]:
    with ctx.db.read() as session:
        return [event.type for event in events_after(session, run_id, 0)]


def set_hours(ctx: Context, tenant: str, hours: float) -> None:
    with ctx.db.write() as session:
        set_quota(session, SYSTEM, tenant, QuotaChange(gpu_hours_per_month=hours))


def test_runs_without_room_wait_and_the_oldest_that_fits_goes_on_first(
    ctx: Context, lease: Lease, ann: Principal
) -> None:
    set_hours(ctx, ann.tenant, 6)
    keeper = Bookkeeper(ctx, "main", lease)
    runs, waits = asked(ctx, ann), asked(ctx, ann, gpu_count=3)
    small, smaller = asked(ctx, ann, gpu_count=2), asked(ctx, ann, gpu_count=1)
    assert [holds(ctx, run) for run in (runs, waits, small, smaller)] == [[], ["quota"], ["quota"], []]
    assert events(ctx, waits)[-1] == "run_waits_for_quota"
    keeper.tick()
    assert [holds(ctx, run) for run in (waits, small)] == [["quota"], ["quota"]]
    with ctx.db.write() as session:  # what is over gives its room back
        for row in session.scalars(select(ReservationRow).where(ReservationRow.run_id == runs)):
            row.settled_at = utcnow()
    keeper.tick()
    assert [holds(ctx, run) for run in (waits, small)] == [["quota"], []], (
        "too large yet, but holds up nobody"
    )
    keeper.tick()
    set_hours(ctx, ann.tenant, 12)
    keeper.tick()
    assert holds(ctx, waits) == []
    with ctx.db.read() as session:
        assert session.get_one(RunRow, waits).gate == Gate.OPENING
        use = accounts.gpu_use(session, ann.tenant, month_of(utcnow()), utcnow())
    assert use.reserved == (3 + 2 + 1) * 7200


def test_what_has_ended_while_it_waited_takes_no_room(ctx: Context, lease: Lease, ann: Principal) -> None:
    set_hours(ctx, ann.tenant, 4)
    keeper = Bookkeeper(ctx, "main", lease)
    runs, ended = asked(ctx, ann), asked(ctx, ann)
    assert [holds(ctx, run) for run in (runs, ended)] == [[], ["quota"]]
    with ctx.db.write() as session:  # its jobs were ended in Slurm
        session.get_one(RunRow, ended).phase = Phase.DONE
        for row in session.scalars(select(ReservationRow).where(ReservationRow.run_id == runs)):
            row.settled_at = utcnow()
    keeper.tick()
    with ctx.db.read() as session:
        assert accounts.gpu_use(session, ann.tenant, month_of(utcnow()), utcnow()).reserved == 0


def test_a_new_month_lets_go_on_what_waited_for_the_old_one(
    ctx: Context, lease: Lease, ann: Principal
) -> None:
    set_hours(ctx, ann.tenant, 4)
    clock = Clock(utcnow())
    keeper, run_id = Bookkeeper(ctx, "main", lease, clock), asked(ctx, ann)
    with ctx.db.write() as session:
        for row in session.scalars(select(ReservationRow).where(ReservationRow.run_id == run_id)):
            row.settled_at = utcnow()
            session.add(
                ChargeRow(
                    cluster="main", slurm_job_id=next(NUMBERS), submitted_at=utcnow(), tenant=ann.tenant,
                    month=month_of(utcnow()), user_id=ann.user_id, run_id=run_id, job_id=row.job_id, gpus=2,
                    elapsed_s=7200, gpu_seconds=14400, source="sacct", charged_at=utcnow(),
                )
            )  # fmt: skip
    waits = asked(ctx, ann)
    keeper.tick()
    assert holds(ctx, waits) == ["quota"]
    clock.now = next_month(clock.now)
    keeper.tick()
    assert holds(ctx, waits) == []


def test_what_is_begun_at_the_end_of_a_month_takes_no_more_of_the_next_than_there_is(
    ctx: Context, ann: Principal
) -> None:
    set_hours(ctx, ann.tenant, 6)
    now = END - timedelta(minutes=1)

    def fits(name: str, gpus: int) -> bool:
        with ctx.db.write() as session:
            reason = accounts.reserve(
                session,
                ctx.settings.quotas,
                tenant=ann.tenant,
                user_id=ann.user_id,
                cluster="main",
                run_id=name,
                wants=[Want(f"{ann.tenant}-{name}", gpus, 7200)],
                now=now,
            )
            if reason is None:  # and it starts at once
                session.get_one(ReservationRow, f"{ann.tenant}-{name}").started_at = now
        return reason is None

    assert [fits("a", 2), fits("b", 2), fits("c", 1)] == [True, False, True]
    with ctx.db.read() as session:
        assert accounts.gpu_use(session, ann.tenant, MONTH, now).total == 3 * 60
        assert accounts.gpu_use(session, ann.tenant, month_of(END), END).total == 3 * 7140


def test_what_waits_for_a_decision_as_well_takes_no_room_yet(
    ctx: Context, lease: Lease, ann: Principal
) -> None:
    set_hours(ctx, ann.tenant, 4)
    first = asked(ctx, ann)
    waits = asked(ctx, ann)
    with ctx.db.write() as session:
        session.add(RunHoldRow(run_id=waits, kind="admin", reason="not today", since=utcnow()))
        for row in session.scalars(select(ReservationRow).where(ReservationRow.run_id == first)):
            row.settled_at = utcnow()
    Bookkeeper(ctx, "main", lease).tick()
    assert sorted(holds(ctx, waits)) == ["admin", "quota"]
    with ctx.db.read() as session:
        assert accounts.gpu_use(session, ann.tenant, month_of(utcnow()), utcnow()).total == 0


def test_a_tenants_admin_is_told_once_at_each_level_and_again_after_a_change_of_quota(
    ctx: Context, lease: Lease, ann: Principal
) -> None:
    def told() -> list[str]:
        query = select(NotificationRow).where(NotificationRow.tenant == ann.tenant)
        with ctx.db.read() as session:
            rows = session.scalars(query.order_by(NotificationRow.created_at, NotificationRow.kind))
            return [
                f"{row.kind}: {row.data['used']:g} of {row.data['limit']:g}"
                for row in rows
                if "quota" in row.kind
            ]

    set_hours(ctx, ann.tenant, 9)
    asked(ctx, ann, gpu_count=3)
    assert told() == []
    asked(ctx, ann, gpu_count=1)
    assert told() == ["quota_80: 8 of 9"]
    asked(ctx, ann)
    asked(ctx, ann)
    known = ["quota_80: 8 of 9", "quota_100: 8 of 9"]  # a run that needs four has no room any more
    assert told() == known
    set_hours(ctx, ann.tenant, 12)
    Bookkeeper(ctx, "main", lease).tick()
    assert told() == [*known, "quota_80: 12 of 12", "quota_100: 12 of 12"]
