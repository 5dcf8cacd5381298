"""The GPU-hour ledger of a month against the truth from the rows of sacct."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from broker.context import Context
from broker.db.leases import Lease
from broker.identity import Principal
from broker.quotas import accounts
from broker.quotas.periods import bounds, month_of
from broker.quotas.tables import ChargeRow, ReservationRow
from broker.runs.ledger import Bookkeeper, reserve_or_hold
from broker.runs.schemas import RunRequest
from broker.runs.service import create_run
from broker.runs.states import JobState, Phase
from broker.runs.tables import JobRow, RunHoldRow, RunRow
from broker.runs.views import attempt_jobs
from tests.harness.sacct import Row
from tests.ledger import BEGIN, END, MONTH, NUMBERS, Accounting, Clock, person

LENGTH = int((END - BEGIN).total_seconds())

BACK = ["REQUEUED", "PREEMPTED", "NODE_FAIL"]

ENDS = ["COMPLETED", "FAILED", "TIMEOUT", "CANCELLED by 1000", "OUT_OF_MEMORY", "NODE_FAIL", "DEADLINE"]


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
