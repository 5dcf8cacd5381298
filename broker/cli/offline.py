"""What can be said about a spec on this machine alone: no server, no cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from broker.errors import InvalidRequest, Problem

if TYPE_CHECKING:
    from broker.compiler import ClusterProfile
    from broker.spec import Excess

_RUN_ID, _NOBODY = "RUN", "user"


@dataclass(frozen=True, slots=True)
class Inspection:
    """A valid spec at a glance. `defaults` are the largest resources over its components (WR-02)."""

    name: str
    components: int
    edges: int
    content_hash: str
    defaults: dict[str, Any]
    warnings: Sequence[Problem]
    needs_approval: Sequence[Excess]


def inspect(data: bytes) -> Inspection:
    """Read a spec; raises `InvalidSpec` with every problem. The thresholds are those configured here."""
    from broker.cli.configuration import load_settings
    from broker.spec import Thresholds, content_hash, default_resources, needs_approval, parse, warnings

    spec = parse(data)
    return Inspection(
        name=spec.name,
        components=len(spec.components),
        edges=len(spec.workflow),
        content_hash=content_hash(spec),
        defaults=default_resources(spec).model_dump(mode="json"),
        warnings=warnings(spec),
        needs_approval=needs_approval(spec, Thresholds.of(load_settings().approval)),
    )


def preview(data: bytes, *, cluster: str | None, overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    """`{"jobs": [{component, name, depends_on, sbatch_args, script}]}` in topological order."""
    from broker.compiler import RunIdentity, draft
    from broker.compiler import preview as shown
    from broker.spec import apply_overrides, parse, parse_overrides

    spec = parse(data)
    if overrides:
        spec = apply_overrides(spec, parse_overrides(overrides))
    identity = RunIdentity(run_id=_RUN_ID, number=0, attempt=1, tenant="default", user=_NOBODY)
    return shown(draft(spec, _profile(cluster), identity))


def _profile(cluster: str | None) -> ClusterProfile:
    from broker.cli.configuration import load_settings
    from broker.compiler import ClusterProfile

    settings = load_settings()
    if not settings.clusters and cluster is None:
        return ClusterProfile(name="cluster", env=settings.environment)
    from broker.context import profile_of

    name = settings.cluster_name(cluster)
    if name not in settings.clusters:
        known = ", ".join(settings.clusters) or "none is configured here"
        raise InvalidRequest(f"There is no cluster {name!r}; known: {known}")
    return profile_of(name, settings.clusters[name], settings.environment)
