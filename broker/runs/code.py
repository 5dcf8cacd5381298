"""A component's code: from what the spec names to what exactly will run (DD-05).

git: the commit that a branch or tag names now. upload: the archive, brought to the cluster and compared with
its digest. path: a folder below an allow-listed root, by its real path and the digest of its tree.
"""

from __future__ import annotations

import re

from broker.compiler import ResolvedCode, tree_digest_argv
from broker.context import Context
from broker.errors import CodeUnavailable, Unreachable
from broker.pipelines.tables import UploadRow
from broker.runs.paths import allowed_path
from broker.spec import GitCode, PathCode, PipelineSpec, UploadCode

_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_GIT_ENVIRONMENT = (
    "GIT_TERMINAL_PROMPT=0",
    "GIT_ALLOW_PROTOCOL=https:ssh",
    "GIT_SSH_COMMAND=ssh -oBatchMode=yes",
)
_AWAY = ("Could not resolve host", "Connection refused", "timed out", "Failed to connect", "unable to access")
TREE_TIMEOUT_S = 600


def resolve_code(ctx: Context, cluster: str, spec: PipelineSpec, tenant: str) -> dict[str, ResolvedCode]:
    """The exact code of every component that has some.

    Raises `CodeUnavailable`, or `Unreachable` when a repository does not answer.
    """
    resolved: dict[str, ResolvedCode] = {}
    for component in spec.components:
        match component.code:
            case GitCode(url=url, ref=ref):
                resolved[component.name] = ResolvedCode("git", url, _commit(ctx, cluster, url, ref))
            case UploadCode(upload_id=upload_id):
                resolved[component.name] = _upload(ctx, cluster, upload_id, tenant)
            case PathCode(path=path):
                resolved[component.name] = _folder(ctx, cluster, path)
    return resolved


def _commit(ctx: Context, cluster: str, url: str, ref: str) -> str:
    if _COMMIT.fullmatch(ref):
        return ref
    done = ctx.host(cluster).run(
        ["env", *_GIT_ENVIRONMENT, "git", "ls-remote", "--", url, ref, f"{ref}^{{}}"],
        timeout=ctx.cluster(cluster).command_timeout_s,
        readonly=True,
    )
    if done.rc != 0:
        if any(text in done.complaint for text in _AWAY):
            raise Unreachable(f"The repository {url} does not answer: {done.complaint}", retry_after_s=10)
        raise CodeUnavailable(f"The repository {url} can't be read: {done.complaint}")
    commit = named_commit(done.stdout.decode(errors="replace"), ref)
    if commit is None:
        raise CodeUnavailable(f"The repository {url} has no branch or tag {ref!r}")
    return commit


def named_commit(listing: str, ref: str) -> str | None:
    """The commit that a ref names in `git ls-remote`'s answer: a branch, else a tag (peeled if annotated).

    >>> named_commit("aa\\trefs/tags/v1\\nbb\\trefs/tags/v1^{}\\n", "v1")
    'bb'
    """
    found = {name: commit for commit, _, name in (line.partition("\t") for line in listing.splitlines())}
    wanted = (f"refs/heads/{ref}", f"refs/tags/{ref}^{{}}", f"refs/tags/{ref}", f"{ref}^{{}}", ref)
    return next((found[name] for name in wanted if name in found), None)


def _upload(ctx: Context, cluster: str, upload_id: str, tenant: str) -> ResolvedCode:
    with ctx.db.read() as session:
        row = session.get(UploadRow, upload_id)
    if row is None or row.stored_at is None or row.tenant != tenant:
        raise CodeUnavailable(f"There is no upload {upload_id!r}; send the archive with POST /uploads first")
    path = f"{ctx.cluster(cluster).base_path.rstrip('/')}/.uploads/{row.object_sha256}"
    host = ctx.host(cluster)
    if host.stat(path) is None:
        host.mkdirs(path.rpartition("/")[0])
        host.write(path, ctx.objects.open_stream(row.object_key), sha256=row.object_sha256)
    return ResolvedCode("upload", path, f"sha256:{row.object_sha256}")


def _folder(ctx: Context, cluster: str, path: str) -> ResolvedCode:
    real = allowed_path(ctx, cluster, path)
    if real is None:
        roots = ", ".join(ctx.cluster(cluster).code_roots) or "none (setting `code_roots`)"
        raise CodeUnavailable(f"{path} is not a folder below an allowed root of {cluster}; allowed: {roots}")
    done = ctx.host(cluster).run(tree_digest_argv(real), timeout=TREE_TIMEOUT_S, readonly=True)
    if done.rc != 0:
        raise CodeUnavailable(f"The folder {path} can't be read: {done.complaint}")
    return ResolvedCode("path", real, f"sha256:{done.stdout.split()[0].decode()}")
