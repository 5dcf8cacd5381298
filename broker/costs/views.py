"""Costs as the API shows them: items added up into lines and a total, each rounded once from exact sums."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

from sqlalchemy import select
from sqlalchemy.orm import Session

from broker.accounting.tables import AccountingJobRow
from broker.compiler import ClusterProfile
from broker.costs.columns import Costs
from broker.costs.corrections import Correction, corrections
from broker.costs.estimate import estimated
from broker.costs.pricing import (
    PARTS,
    PER_HOUR,
    Fate,
    Item,
    PriceBook,
    Resource,
    Use,
    digits_of,
    in_units,
    itemized,
    rounded,
)
from broker.costs.schemas import CorrectedPrice, CostEstimate, CostLine, CostView, JobCost, RunCost
from broker.costs.service import book_of, history_of
from broker.costs.usage import Pricing, costs, of_job
from broker.db import utcnow
from broker.reports.sources import read_up_to
from broker.reports.wanted import PERIODS, Scope, Wanted
from broker.runs.states import RunState
from broker.runs.tables import JobRow, RunRow
from broker.settings import CostSettings
from broker.spec.models import PipelineSpec

_DIGITS = 4
"""Of hours."""


def pricing_of(session: Session, settings: CostSettings) -> Pricing:
    """The prices that hold, what is not charged, and which prices were corrected: all as of one moment."""
    history = history_of(session, settings.currency)
    book = PriceBook(entry.price for entry in history if entry.withdrawn_at is None)
    return Pricing(book, settings.exempt_outcomes, corrections(history))


def view_costs(
    session: Session, wanted: Wanted, scope: Scope, settings: CostSettings, limit: int
) -> CostView:
    """Costs of a period by line: in the order of time where that is asked for, else the most first."""
    pricing, currency = pricing_of(session, settings), settings.currency
    found = costs(session, wanted, scope, pricing)
    lines, left_out, total, rounding = _of_costs(found, wanted, currency, limit)
    return CostView(
        currency=currency,
        since=wanted.since,
        until=wanted.until,
        by=wanted.by,
        filters=dict(wanted.filters),
        scope=str(scope),
        lines=lines,
        left_out=left_out,
        total=total,
        rounding=rounding,
        corrections=[told(one) for one in pricing.corrections(wanted)],
        sources=read_up_to(session),
    )


def told(correction: Correction) -> CorrectedPrice:
    """A correction as an answer shows it."""
    was, now = correction.was, correction.now
    return CorrectedPrice(
        price=was.id,
        resource=was.resource,
        **was.place._asdict(),
        held_from=was.valid_from,
        held_until=correction.until,
        was=was.amount,
        now=now and now.amount,
        corrected_by=now and now.id,
        at=correction.at,
        by=correction.by,
        why=correction.why,
    )


_Shown = tuple[list[CostLine], int, CostLine, Decimal | None]
"""The lines up to the limit, how many there are beyond, the total of all, and its rounding difference."""


def _of_costs(found: Costs | None, wanted: Wanted, currency: str, limit: int) -> _Shown:
    """There may be hundreds of thousands of lines: each is rounded, for the rounding difference is of all;
    only those that are shown become more than numbers.
    """
    if found is None:
        return [], 0, _line({}, [], currency), None
    amounts = in_units(found.amounts(Fate.OWN, Fate.FAULT), currency)
    order: Sequence[int] = range(len(found.lines))
    if not any(name in PERIODS for name in wanted.by):
        most = [-1 if one is None else one for one in amounts]  # none costs less than nothing
        order = sorted(order, key=most.__getitem__, reverse=True)
    shown = [found.lines[at] for at in order[:limit]]
    of_key = dict(by_line(found.items(shown)))
    lines = [
        _line(dict(zip(wanted.by, key, strict=True)), of_key[key], currency) for key in map(found.key, shown)
    ]
    total = _line({}, found.whole(), currency)
    added = Decimal(sum(one or 0 for one in amounts)).scaleb(-digits_of(currency))
    return lines, len(order) - len(shown), total, _rounding(total, added)


def by_line(found: Iterable[Item]) -> list[tuple[tuple[str, ...], list[Item]]]:
    """The items of each line, by its key."""
    lines: dict[tuple[str, ...], list[Item]] = {}
    for item in found:
        lines.setdefault(item.key, []).append(item)
    return sorted(lines.items(), key=lambda line: line[0])


def view_estimate(
    session: Session, spec: PipelineSpec, profile: ClusterProfile, settings: CostSettings
) -> CostEstimate:
    """What a run of a pipeline costs on a cluster if each component uses up its time limit once."""
    found = estimated(book_of(session, settings.currency), spec, profile, utcnow().date())
    line = _line({}, found or [], settings.currency)
    return CostEstimate(
        currency=settings.currency, amount=line.amount, hours=line.hours, unpriced=line.unpriced
    )


def view_run_cost(session: Session, run: RunRow, settings: CostSettings) -> RunCost:
    """What a run costs, attempt by attempt; raises nothing where accounting knows none of it yet."""
    pricing = pricing_of(session, settings)
    names = {job.name: job for job in session.scalars(select(JobRow).where(JobRow.run_id == run.id))}
    query = select(AccountingJobRow).where(AccountingJobRow.run_id == run.id)
    found = session.scalars(query.order_by(AccountingJobRow.submit_at, AccountingJobRow.job_id)).all()
    lines, priced, used = [], [], []
    for row in found:
        job = names.get(row.name)
        key = (job.component if job else "", f"{job.attempt}" if job else "", f"{row.job_id}", row.state)
        columns = {column.name: getattr(row, column.name) for column in row.__table__.columns}
        had = list(of_job(columns, key, pricing.exempt))
        own = itemized(pricing.book, had)
        line = _line(
            dict(zip(("component", "attempt", "job", "state"), key, strict=True)), own, settings.currency
        )
        times = {"started_at": _moment(row.start_at), "counted_to": _moment(row.counted_to)}
        lines.append(JobCost(**dict(line), **times))
        priced += own
        used += had
    total = _line({}, priced, settings.currency)
    submitted = {name for name, job in names.items() if job.submitted_at is not None}
    ended = RunState(run.state).final and all(row.end_at is not None for row in found)
    return RunCost(
        run_id=run.id,
        currency=settings.currency,
        complete=ended and submitted <= {row.name for row in found},
        jobs=lines,
        total=total,
        rounding=_rounding(total, sum((line.amount or Decimal() for line in lines), Decimal())),
        corrections=[told(one) for one in pricing.corrected if any(_touches(one, use) for use in used)],
        sources=read_up_to(session),
    )


def _touches(correction: Correction, use: Use) -> bool:
    """Whether the use of a day is of what a corrected price was for, there and then."""
    had = use.sums.get(correction.was.resource)
    return bool(had) and correction.touches(use.day, use.day + timedelta(days=1), use.place)


def _line(key: dict[str, str], found: Sequence[Item], currency: str) -> CostLine:
    costs: dict[Fate, int] = {}
    for item in found:
        if (parts := item.parts) is not None:
            costs[item.fate] = costs.get(item.fate, 0) + parts

    def charged(*fates: Fate) -> Decimal | None:
        known = [costs[one] for one in fates if one in costs]
        return rounded(Fraction(sum(known), PARTS), currency) if known else None

    amounts = {"amount": charged(Fate.OWN, Fate.FAULT), "faults": charged(Fate.FAULT)}
    return CostLine(key=key, **amounts, exempt=charged(Fate.EXEMPT), **_hours(found))


def _rounding(total: CostLine, added: Decimal) -> Decimal | None:
    """What the lines, each rounded by itself, fall short of the total."""
    return None if total.amount is None else total.amount - added


def _hours(parts: Iterable[Item]) -> dict[str, dict[str, float]]:
    """Hours by resource: those that are in the amount, and those that have no price."""
    sums: dict[str, dict[Resource, int]] = {"hours": {}, "unpriced": {}}
    for item in parts:
        if item.price is None or item.fate is not Fate.EXEMPT:
            of = sums["unpriced" if item.price is None else "hours"]
            of[item.resource] = of.get(item.resource, 0) + item.amount
    return {
        name: {one.value: round(amount / PER_HOUR[one], _DIGITS) for one, amount in of.items()}
        for name, of in sums.items()
    }


def _moment(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
