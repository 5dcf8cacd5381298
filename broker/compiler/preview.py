"""What would be submitted, for people and programs to look at; also without a server or a cluster."""

from __future__ import annotations

from typing import Any

from broker.compiler.names import run_dir
from broker.compiler.plan import Plan, compile_run
from broker.compiler.profile import ClusterProfile, ResolvedCode, ResolvedImage, RunIdentity
from broker.spec.models import GitCode, PathCode, PipelineSpec

DRAFT_IDENTITY = RunIdentity("run-preview", 0, 1, "tenant", "user")


def preview(plan: Plan) -> dict[str, Any]:
    """Give the jobs in topological order, with everything sbatch is given but ids."""
    return {
        "jobs": [
            {
                "component": job.component,
                "name": job.name,
                "depends_on": list(job.depends_on),
                "sbatch_args": list(job.sbatch_args),
                "script": job.script,
            }
            for job in plan.jobs
        ]
    }


def draft(
    spec: PipelineSpec, profile: ClusterProfile | None = None, identity: RunIdentity = DRAFT_IDENTITY
) -> Plan:
    """Compile a spec as it is, with stand-ins for what only a cluster knows: digests, commits, run, keys."""
    profile = profile or ClusterProfile(name="preview")
    images = {c.image.reference: _draft_image(c.image.reference, profile) for c in spec.components}
    code: dict[str, ResolvedCode] = {}
    for component in spec.components:
        match component.code:
            case GitCode(url=url, ref=ref):
                code[component.name] = ResolvedCode("git", url, ref)
            case PathCode(path=path):
                code[component.name] = ResolvedCode("path", path, "sha256:unresolved")
            case None:
                pass
            case upload:
                place = f"{run_dir(profile, identity.run_id)}/upload-{upload.upload_id}"
                code[component.name] = ResolvedCode("upload", place, "sha256:unresolved")
    return compile_run(spec, profile, identity, images, code=code)


def _draft_image(reference: str, profile: ClusterProfile) -> ResolvedImage:
    if reference.startswith("/"):
        return ResolvedImage(reference, "unresolved")
    return ResolvedImage(f"{profile.image_dir}/{reference.replace('/', '_')}.sif", "unresolved")
