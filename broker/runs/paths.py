"""Paths that people name on a cluster."""

from __future__ import annotations

from broker.context import Context


def allowed_path(ctx: Context, cluster: str, path: str, account: str | None) -> str | None:
    """The real path of what lies at `path`, if that is below an allow-listed root; else None.

    Roots are compared after links are resolved on the cluster, both sides: a link can't lead out. What the
    run's `account` may not see is not there.
    """
    settings = ctx.cluster(cluster)
    if not settings.code_roots:
        return None
    done = ctx.host_for(cluster, account).run(
        ["realpath", "-e", "--zero", "--", path, *settings.code_roots],
        timeout=settings.command_timeout_s,
        readonly=True,
    )
    if done.rc != 0:
        return None
    real, *roots = done.stdout.decode(errors="surrogateescape").rstrip("\0").split("\0")
    return real if any(real.startswith(root.rstrip("/") + "/") for root in roots) else None
