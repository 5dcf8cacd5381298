"""From a stored run to the plan that is submitted, and the plan as it is kept."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from broker.compiler import CompiledJob, Plan, ResolvedCode, ResolvedImage, compile_run
from broker.compiler.profile import DEFAULT_TIME_S
from broker.context import Context
from broker.identity.tables import UserRow
from broker.runs.code import resolve_code
from broker.runs.drift import start_limit_s
from broker.runs.expected import Usual
from broker.runs.images import images_at_hand, references, resolve_images
from broker.runs.priority import submission_nice
from broker.runs.service import effective_spec, run_identity, stored_spec
from broker.runs.states import JobState
from broker.runs.tables import JobRow, RunRow, SubmissionRow
from broker.runs.views import attempt_jobs, newest_jobs
from broker.spec import PipelineSpec


@dataclass(frozen=True, slots=True)
class Resolved:
    """What the names in a spec stood for when its run was first prepared: kept for every later attempt."""

    images: dict[str, ResolvedImage]
    code: dict[str, ResolvedCode]

    def document(self) -> dict[str, Any]:
        """As it is stored with the run."""
        return {
            "images": {name: asdict(image) for name, image in self.images.items()},
            "code": {name: asdict(code) for name, code in self.code.items()},
        }

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Resolved:
        """The inverse of `document`."""
        return cls(
            {name: ResolvedImage(**image) for name, image in document["images"].items()},
            {name: ResolvedCode(**code) for name, code in document["code"].items()},
        )


class NotAtHand(Exception):
    """Names in the spec have to be resolved on the cluster, which may take minutes."""


def make_plan(ctx: Context, run_id: str, *, at_hand: bool = False) -> tuple[Plan, Resolved]:
    """Compile the present attempt of a run. The first one resolves names, which may pull images.

    With `at_hand` the cluster is not asked: `NotAtHand` is raised where that would be needed.
    """
    with ctx.db.read() as session:
        run = session.get_one(RunRow, run_id)
        spec = effective_spec(stored_spec(session, run), run.overrides)
        username = session.scalar(select(UserRow.username).where(UserRow.id == run.owner_id)) or run.owner_id
        only = {job.component for job in attempt_jobs(session, run.id, run.attempt)}
        whole = len(only) == len(spec.components)
        outputs = {} if whole else _upstream_outputs(session, run, only)
        cluster, nice = run.cluster, submission_nice(run.priority, ctx.cluster(run.cluster).level_nice)
        identity = replace(run_identity(run, username), nice=nice)
        resolved = Resolved.of(run.resolved) if run.resolved else None
    if resolved is None:
        resolved = _resolved_at_hand(ctx, run, spec) if at_hand else None
    if resolved is None:
        if at_hand:
            raise NotAtHand
        images = resolve_images(ctx, cluster, references(spec), run.unix_account)
        resolved = Resolved(images, resolve_code(ctx, run, spec))
    plan = compile_run(
        spec,
        ctx.profile(cluster),
        identity,
        resolved.images,
        only=None if whole else only,
        upstream_outputs=outputs,
        code=resolved.code,
    )
    return plan, resolved


def _resolved_at_hand(ctx: Context, run: RunRow, spec: PipelineSpec) -> Resolved | None:
    if any(component.code is not None for component in spec.components):
        return None
    images = images_at_hand(ctx, run.cluster, references(spec), run.unix_account)
    return Resolved(images, {}) if images is not None else None


def _upstream_outputs(session: Session, run: RunRow, only: set[str]) -> dict[str, str]:
    """Where components that are not run again left their outputs (edges to them are satisfied)."""
    return {
        job.component: job.output_dir
        for job in newest_jobs(session, run.id)
        if job.component not in only and job.state == JobState.COMPLETED and job.output_dir
    }


def note_plan(jobs: Iterable[JobRow], plan: Plan, earlier: Mapping[str, Usual]) -> None:
    """Let the jobs of an attempt keep how long they usually take, and the limit of one start that their plan
    has.

    They were asked for earlier, perhaps before an administrator changed the limits of their class: by another
    limit than the plan's, what is as approved would look as if its owner had made it larger.
    """
    limits = {job.component: start_limit_s(job) for job in plan.jobs}
    for job in jobs:
        limit, whole = limits[job.component], job.resources.get("time_s") or DEFAULT_TIME_S
        kept = {name: value for name, value in job.resources.items() if name != "start_s"}
        job.resources = kept | ({"start_s": limit} if limit < whole else {})
        job.usual = earlier[job.component].model_dump() if job.component in earlier else None


def encode(plan: Plan) -> bytes:
    """A plan as it is stored: compressed JSON; `decode` gives it back unchanged."""
    document = {
        "run_dir": plan.run_dir,
        "plan_hash": plan.plan_hash,
        "jobs": [_job_document(job) for job in plan.jobs],
    }
    return zlib.compress(json.dumps(document, ensure_ascii=False).encode(errors="surrogatepass"))


def decode(data: bytes) -> Plan:
    """The inverse of `encode`."""
    document = json.loads(zlib.decompress(data).decode(errors="surrogatepass"))
    return Plan(
        run_dir=document["run_dir"],
        plan_hash=document["plan_hash"],
        jobs=tuple(_job_from(job) for job in document["jobs"]),
    )


def load_plan(session: Session, run_id: str, attempt: int) -> Plan | None:
    """The stored plan of an attempt; None as long as there is none."""
    row = session.get(SubmissionRow, (run_id, attempt))
    return decode(row.plan) if row else None


def _job_document(job: CompiledJob) -> dict[str, Any]:
    return {
        "component": job.component,
        "name": job.name,
        "depends_on": list(job.depends_on),
        "satisfied": [list(pair) for pair in job.satisfied],
        "sbatch_args": list(job.sbatch_args),
        "script": job.script,
        "script_path": job.script_path,
        "files": {path: data.decode() for path, data in job.files.items()},
    }


def _job_from(job: Mapping[str, Any]) -> CompiledJob:
    return CompiledJob(
        component=job["component"],
        name=job["name"],
        depends_on=tuple(job["depends_on"]),
        satisfied=tuple((component, path) for component, path in job["satisfied"]),
        sbatch_args=tuple(job["sbatch_args"]),
        script=job["script"],
        script_path=job["script_path"],
        files={path: text.encode() for path, text in job["files"].items()},
    )
