"""Advice becomes a new version of a pipeline: the same document with other resources."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy.orm import Session

from broker.advice.rules import Resource
from broker.advice.schemas import ApplyRequest, Change, Choice, FindingView, PipelineAdvice
from broker.advice.views import advice_for_pipeline
from broker.audit import record
from broker.context import Context
from broker.errors import Conflict, InvalidRequest, Problem
from broker.identity import Principal
from broker.pipelines.service import Stored, check_owner, find_pipeline, get_version, store_parsed
from broker.spec import parse

Advised = Mapping[tuple[str, Resource], FindingView]


def apply_advice(
    ctx: Context, session: Session, principal: Principal, ref: str, request: ApplyRequest
) -> tuple[Stored, list[Change]]:
    """Store the newest version with the chosen advice as a new version, within the caller's transaction.

    Raises `NotFound`; `Denied` when the pipeline is another person's; `Conflict` when there is a newer
    version or the advice is not (any more) what was read; `InvalidRequest` for what nothing advises.
    """
    pipeline = find_pipeline(session, principal, ref, lock=True)
    check_owner(principal, pipeline)
    if pipeline.latest_version != request.version:
        raise Conflict(
            f"The newest version is {pipeline.latest_version}, not {request.version}: read its advice first"
        )
    sample_s = ctx.settings.accounting.sample_s
    advice = advice_for_pipeline(session, principal, pipeline.id, request.runs, sample_s)
    advised = {
        (one.component, finding.resource): finding
        for one in advice.components
        for finding in one.findings
        if finding.suggested is not None
    }
    chosen = _chosen(advised, request.choose)
    if not chosen:
        raise Conflict("Nothing is advised for this pipeline: there is nothing to apply")
    before = get_version(session, principal, pipeline.id)
    document = json.loads(before.spec)
    changes = [_change(document, advice, component, one) for (component, _), one in chosen.items()]
    text = json.dumps(document, indent=2, ensure_ascii=False)
    stored = store_parsed(session, principal, parse(text), text, pipeline.id)
    record(
        session,
        principal,
        "pipeline.advise",
        "pipeline",
        pipeline.id,
        {"number": before.number, "resources": {f"{one.pointer}": one.before for one in changes}},
        {"number": stored[1].number, "resources": {f"{one.pointer}": one.after for one in changes}},
        tenant=pipeline.tenant,
    )
    return stored, changes


def _chosen(advised: Advised, choose: Sequence[Choice] | None) -> Advised:
    """The advice to apply; all of it where nothing is chosen."""
    if choose is None:
        return advised
    if not choose:
        detail = "Nothing is chosen: name what to apply, or leave `choose` out to apply all that is advised"
        raise InvalidRequest(detail, problems=[Problem("/choose", "nothing_chosen", detail)])
    chosen: dict[tuple[str, Resource], FindingView] = {}
    problems = []
    for index, one in enumerate(choose):
        finding = advised.get((one.component, one.resource))
        if finding is None:
            detail = f"Nothing is advised for {one.component!r}, {one.resource}: leave it out"
            problems.append(Problem(f"/choose/{index}", "no_such_advice", detail))
        elif one.suggested not in (None, finding.suggested):
            raise Conflict(
                f"What is advised for {one.component!r}, {one.resource} has changed from {one.suggested} to "
                f"{finding.suggested} since you read it: read it again, then decide"
            )
        else:
            chosen[one.component, one.resource] = finding
    if problems:
        raise InvalidRequest(problems[0].detail, problems=problems)
    return chosen


def _change(document: Any, advice: PipelineAdvice, component: str, finding: FindingView) -> Change:
    """Write one resource into the document; a GPU type without GPUs goes."""
    place = next(one.pointer for one in advice.components if one.component == component)
    resources = next(one for one in document["components"] if one["name"] == component)["resources"]
    before, after = resources.get(finding.resource), finding.suggested
    assert after is not None
    resources[finding.resource] = after
    if finding.resource == "gpu_count" and not after:
        resources.pop("gpu_type", None)
    return Change(
        component=component,
        resource=finding.resource,
        pointer=f"{place}/{finding.resource}",
        before=before,
        after=after,
    )
