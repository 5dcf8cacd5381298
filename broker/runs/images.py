"""Container images: from the name in a spec to a SIF file on the cluster, keyed by digest.

The login node asks the registry what a tag points at and pulls what is missing (`templates/pull_images.sh`);
nothing is pulled by the jobs. The cache is the service account's; all others read it. What a tag pointed at
is remembered for `image_refresh_s`, so that a run whose images are at hand costs no round trip.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import select

from broker.compiler import TEMPLATES, ResolvedImage
from broker.context import Context
from broker.db import utcnow
from broker.errors import ConfigurationError, ImageUnavailable, Unreachable
from broker.runs.paths import allowed_path
from broker.runs.tables import ImageRow
from broker.settings import ClusterSettings
from broker.spec import PipelineSpec

DOCKER_HUB = "registry-1.docker.io"


@dataclass(frozen=True, slots=True)
class ImageSource:
    """Where an image is pulled from, after mirrors: the four arguments of the pull script."""

    scheme: str
    registry: str
    repository: str
    tag: str


def image_source(reference: str, cluster: ClusterSettings) -> ImageSource:
    """What `registry/name:tag` means on a cluster (docker's rules for names without a registry).

    >>> image_source("python:3.12", ClusterSettings())
    ImageSource(scheme='https', registry='registry-1.docker.io', repository='library/python', tag='3.12')
    """
    name, tag = reference.split("@", 1) if "@" in reference else reference.rsplit(":", 1)
    first, _, rest = name.partition("/")
    has_registry = bool(rest) and ("." in first or ":" in first or first == "localhost")
    registry, repository = (first, rest) if has_registry else ("docker.io", name)
    registry = cluster.registry_mirrors.get(registry, registry)
    if registry == "docker.io":
        registry = DOCKER_HUB
        repository = repository if "/" in repository else f"library/{repository}"
    scheme = "http" if registry in cluster.insecure_registries else "https"
    return ImageSource(scheme, registry, repository, tag)


def references(spec: PipelineSpec) -> list[str]:
    """The distinct names of images that a spec uses: `registry:tag`, or the path of a `.sif` file."""
    return sorted({component.image.reference for component in spec.components})


def resolve_images(
    ctx: Context, cluster_name: str, names: Iterable[str], account: str | None
) -> dict[str, ResolvedImage]:
    """A SIF file for each name; pulls what is missing, which may take minutes.

    A file that is named by its path is looked at as `account`, and what was seen of it is for nobody else.
    Raises `ImageUnavailable` when a registry says no, `Unreachable` when it does not answer.
    """
    cluster = ctx.cluster(cluster_name)
    wanted = list(dict.fromkeys(names))
    shared = [name for name in wanted if account is None or not _is_path(name)]
    known = _fresh(ctx, cluster_name, shared, cluster.image_refresh_s)
    missing = [name for name in wanted if name not in known]
    if missing:
        found = _pull(ctx, cluster_name, cluster, missing, account)
        _remember(ctx, cluster_name, {name: found[name] for name in missing if name in shared})
        known |= {name: image for name, (image, _) in found.items()}
    return known


def images_at_hand(
    ctx: Context, cluster_name: str, names: Iterable[str], account: str | None
) -> dict[str, ResolvedImage] | None:
    """What `resolve_images` gives, if the cluster need not be asked; else None."""
    wanted = set(names)
    if account is not None and any(map(_is_path, wanted)):
        return None
    known = _fresh(ctx, cluster_name, list(wanted), ctx.cluster(cluster_name).image_refresh_s)
    return known if wanted == set(known) else None


def _fresh(ctx: Context, cluster: str, names: list[str], max_age_s: float) -> dict[str, ResolvedImage]:
    newest = utcnow() - timedelta(seconds=max_age_s)
    query = select(ImageRow).where(
        ImageRow.cluster == cluster, ImageRow.reference.in_(names), ImageRow.resolved_at > newest
    )
    with ctx.db.read() as session:
        return {
            row.reference: ResolvedImage(sif=row.sif, digest=row.digest) for row in session.scalars(query)
        }


def _is_path(name: str) -> bool:
    return name.startswith("/")


def _pull(
    ctx: Context, cluster_name: str, cluster: ClusterSettings, names: list[str], account: str | None
) -> dict[str, tuple[ResolvedImage, int]]:
    argv = ["env", f"PATH={cluster.path}", "bash", "-s", "--", cluster.image_dir]
    remote = [name for name in names if not _is_path(name)]
    for name in remote:
        source = image_source(name, cluster)
        argv += [source.scheme, source.registry, source.repository, source.tag]
    found = _local_images(ctx, cluster_name, cluster, list(filter(_is_path, names)), account)
    if remote:
        script = (TEMPLATES / "pull_images.sh").read_bytes()
        done = ctx.host(cluster_name).run(argv, stdin=script, timeout=cluster.pull_timeout_s, readonly=True)
        if done.rc != 0:
            raise ConfigurationError(f"Pulling images on {cluster_name} failed: {done.complaint}")
        found |= parse_pull(remote, done.stdout.decode(errors="replace"))
    return found


def _local_images(
    ctx: Context, cluster_name: str, cluster: ClusterSettings, paths: list[str], account: str | None
) -> dict[str, tuple[ResolvedImage, int]]:
    """`.sif` files that lie on the cluster already: below an allow-listed root, by their real path."""
    found: dict[str, tuple[ResolvedImage, int]] = {}
    host = ctx.host_for(cluster_name, account)
    for path in paths:
        target = allowed_path(ctx, cluster_name, path, account)
        stat = host.stat(target) if target is not None else None
        if target is None or stat is None:
            roots = ", ".join(cluster.code_roots) or "none (setting `code_roots`)"
            raise ImageUnavailable(f"{path} is not an image below an allowed root; allowed: {roots}")
        digest = host.sha256([target])[target]
        found[path] = (ResolvedImage(sif=target, digest=f"sha256:{digest}"), stat.size)
    return found


_VERDICTS = {"ok", "missing", "unreachable", "failed"}


def parse_pull(names: list[str], output: str) -> dict[str, tuple[ResolvedImage, int]]:
    """Read the pull script's answer, one line per name in order; what a login prints first is not ours."""
    lines = [line for line in output.splitlines() if line.partition(" ")[0] in _VERDICTS][-len(names) :]
    found: dict[str, tuple[ResolvedImage, int]] = {}
    for name, line in zip(names, lines, strict=False):
        verdict, _, rest = line.partition(" ")
        if verdict == "ok":
            digest, size, sif = rest.split(" ", 2)
            found[name] = (ResolvedImage(sif=sif, digest=digest), int(size))
        elif verdict == "unreachable":
            raise Unreachable(f"The registry of image {name} does not answer: {rest}", retry_after_s=10)
        else:
            raise ImageUnavailable(f"The image {name} can't be had ({verdict}): {rest}")
    if len(found) != len(names):
        raise Unreachable("The pull script ended early; it will be run again", retry_after_s=10)
    return found


def _remember(ctx: Context, cluster: str, found: Mapping[str, tuple[ResolvedImage, int]]) -> None:
    now = utcnow()
    with ctx.db.write() as session:
        for name, (image, size) in found.items():
            session.merge(
                ImageRow(
                    cluster=cluster,
                    reference=name,
                    digest=image.digest,
                    sif=image.sif,
                    size=size,
                    resolved_at=now,
                )
            )
