"""Advice for a run and for a pipeline, as the API shows it. Reads the database only."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.orm import Session

from broker.accounting.schemas import Source
from broker.advice.facts import Facts, Unread, asked_of, facts_of, last_runs, moment, specs_of
from broker.advice.rules import Attempt, Finding, advise
from broker.advice.schemas import (
    ComponentAdvice,
    FindingView,
    PipelineAdvice,
    RunAdvice,
    RunComponentAdvice,
    Saving,
    UnreadJob,
)
from broker.advice.texts import UNITS, for_sbatch, in_spec, sentence
from broker.errors import NotFound
from broker.identity import Principal
from broker.pipelines.service import find_pipeline, get_version
from broker.runs.service import effective_spec, stored_spec
from broker.runs.states import JobState
from broker.runs.views import find_run, newest_jobs
from broker.spec import Component, parse
from broker.spec.text import pointer

UNREAD = 20
"""Jobs missing in accounting that are named."""


def advice_for_pipeline(
    session: Session, principal: Principal, ref: str, runs: int, sample_s: int
) -> PipelineAdvice:
    """What the newest version of a pipeline should ask for; raises `NotFound`."""
    pipeline = find_pipeline(session, principal, ref)
    version = get_version(session, principal, pipeline.id)
    spec = parse(version.spec)
    looked = last_runs(session, principal, pipeline.id, runs)
    facts = facts_of(session, looked, specs_of(session, looked), like=spec)
    return PipelineAdvice(
        pipeline=pipeline.id,
        pipeline_id=pipeline.external_id,
        version=version.number,
        runs=len(looked),
        components=[
            ComponentAdvice(
                component=component.name,
                pointer=_place(index),
                findings=_findings(component, facts, sample_s),
            )
            for index, component in enumerate(spec.components)
        ],
        unread=_unread(facts),
        sources=_sources(facts),
    )


def advice_for_run(
    session: Session, principal: Principal, run_id: str, runs: int, sample_s: int
) -> RunAdvice:
    """What the components of a run should have asked for, by its own jobs and by the last runs'."""
    run = find_run(session, principal, run_id)
    spec = effective_spec(stored_spec(session, run), run.overrides)
    own = facts_of(session, [run], {run.pipeline_version_id: spec})
    states = {job.component: JobState(job.state) for job in newest_jobs(session, run.id)}
    try:
        over = advice_for_pipeline(session, principal, run.pipeline_id, runs, sample_s)
    except NotFound:  # it was taken out of the lists; its runs stay
        over = None
    others = {one.component: one.findings for one in over.components} if over else {}
    return RunAdvice(
        run=run.id,
        pipeline=run.pipeline_id,
        version=over.version if over else None,
        runs=over.runs if over else 0,
        components=[
            RunComponentAdvice(
                component=component.name,
                pointer=_place(index),
                findings=_findings(component, own, sample_s),
                state=states.get(component.name),
                over_last_runs=others.get(component.name, ()),
            )
            for index, component in enumerate(spec.components)
        ],
        unread=_unread(own),
        sources=_sources(own),
    )


def _place(index: int) -> str:
    return pointer(("components", index, "resources"))


def _findings(component: Component, facts: Facts, sample_s: int) -> list[FindingView]:
    asked, attempts = asked_of(component), facts.attempts.get(component.name, ())
    return [view_finding(one, asked.nodes, attempts) for one in advise(asked, attempts, sample_s)]


def view_finding(one: Finding, nodes: int, attempts: Sequence[Attempt]) -> FindingView:
    """A finding as it is shown; `attempts`: the jobs it is of."""
    en, ko = sentence(one)
    advised = one.suggested
    return FindingView(
        resource=one.resource,
        rule=one.rule,
        asked=None if one.asked is None else in_spec(one.resource, one.asked),
        suggested=None if advised is None else in_spec(one.resource, advised),
        sbatch=None if advised is None else for_sbatch(one.resource, advised, nodes),
        text=en,
        text_ko=ko,
        because={name: round(value, 4) for name, value in one.because.items()},
        jobs=one.jobs,
        measured=one.measured,
        confidence=one.confidence,
        saves=None if one.saves is None else Saving(amount=one.saves, unit=UNITS[one.resource]),
        overridden=sum(one.resource in job.overridden for job in attempts),
    )


def _unread(facts: Facts) -> list[UnreadJob]:
    read = {row.cluster: moment(row.read_to) for row in facts.cursors}
    return [_missing(one, read.get(one.cluster)) for one in facts.unread[:UNREAD]]


def _missing(one: Unread, read: datetime | None) -> UnreadJob:
    en = f"was read until {read:%Y-%m-%d %H:%M:%S} (UTC)" if read else "was never read yet"
    ko = f"{read:%Y-%m-%d %H:%M:%S}(UTC)까지 읽었습니다" if read else "아직 읽지 않았습니다"
    return UnreadJob(
        run=one.run_id,
        component=one.component,
        cluster=one.cluster,
        ended_at=one.ended_at,
        read_until=read,
        text=f"{one.component} of {one.run_id} is not in accounting yet: that of {one.cluster} {en}.",
        text_ko=f"{one.run_id}의 {one.component} 작업은 아직 회계에 없습니다. {one.cluster}의 회계는 {ko}.",
    )


def _sources(facts: Facts) -> list[Source]:
    return [
        Source(
            cluster=row.cluster,
            complete_until=moment(row.settled_to),
            read_until=moment(row.read_to),
            trouble=row.trouble is not None,
        )
        for row in facts.cursors
    ]
