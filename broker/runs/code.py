"""A component's code: from what the spec names to what exactly will run (DD-05).

git: the commit that a branch or tag names now. upload: the archive, brought to the cluster and compared with
its digest. path: a folder below an allow-listed root, by its real path and the digest of its tree.

All of it with the rights of the account that the run belongs to: its keys for git, its view of folders.
"""

from __future__ import annotations

import re

from broker.compiler import ResolvedCode, SubmissionExit, claim_argv, tree_digest_argv
from broker.compiler.names import CONTROL, run_dir
from broker.compiler.submission import LOCK_WAIT_S
from broker.context import Context
from broker.errors import CodeUnavailable, Unreachable
from broker.pipelines.tables import UploadRow
from broker.runs.accounts import foreign
from broker.runs.paths import allowed_path
from broker.runs.tables import RunRow
from broker.spec import GitCode, PathCode, PipelineSpec, UploadCode

_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
_GIT_ENVIRONMENT = (
    "GIT_TERMINAL_PROMPT=0",
    "GIT_ALLOW_PROTOCOL=https:ssh",
    "GIT_SSH_COMMAND=ssh -oBatchMode=yes",
)
_AWAY = ("Could not resolve host", "Connection refused", "timed out", "Failed to connect", "unable to access")
TREE_TIMEOUT_S = 600


def resolve_code(ctx: Context, run: RunRow, spec: PipelineSpec) -> dict[str, ResolvedCode]:
    """The exact code of every component of a run that has some.

    Raises `CodeUnavailable`, or `Unreachable` when a repository does not answer.
    """
    resolved: dict[str, ResolvedCode] = {}
    for component in spec.components:
        match component.code:
            case GitCode(url=url, ref=ref):
                resolved[component.name] = ResolvedCode("git", url, _commit(ctx, run, url, ref))
            case UploadCode(upload_id=upload_id):
                resolved[component.name] = _upload(ctx, run, upload_id)
            case PathCode(path=path):
                resolved[component.name] = _folder(ctx, run, path)
    return resolved


def _commit(ctx: Context, run: RunRow, url: str, ref: str) -> str:
    if _COMMIT.fullmatch(ref):
        return ref
    done = ctx.host_for(run.cluster, run.unix_account).run(
        ["env", *_GIT_ENVIRONMENT, "git", "ls-remote", "--", url, ref, f"{ref}^{{}}"],
        timeout=ctx.cluster(run.cluster).command_timeout_s,
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


def _upload(ctx: Context, run: RunRow, upload_id: str) -> ResolvedCode:
    with ctx.db.read() as session:
        row = session.get(UploadRow, upload_id)
    if row is None or row.stored_at is None or row.tenant != run.tenant:
        raise CodeUnavailable(f"There is no upload {upload_id!r}; send the archive with POST /uploads first")
    host = ctx.host_for(run.cluster, run.unix_account)
    place = _place_of_uploads(ctx, run)
    path = f"{place}/{row.object_sha256}"
    if host.stat(path) is None:
        host.mkdirs(place)
        host.write(path, ctx.objects.open_stream(row.object_key), sha256=row.object_sha256)
    return ResolvedCode("upload", path, f"sha256:{row.object_sha256}")


def _place_of_uploads(ctx: Context, run: RunRow) -> str:
    """The folder of uploaded archives: one for all runs of the service account, else within the run's own.

    A person's folder in the base path could be made by somebody else, before; a run's name is not known then.
    """
    profile = ctx.profile(run.cluster)
    if run.unix_account is None:
        return f"{profile.base_path.rstrip('/')}/.uploads"
    directory, host = run_dir(profile, run.id), ctx.host_for(run.cluster, run.unix_account)
    done = host.run(claim_argv(directory), timeout=2 * LOCK_WAIT_S, readonly=True)
    if done.rc == SubmissionExit.FOREIGN:
        raise foreign(directory)
    if done.rc != 0:
        raise Unreachable(f"{directory} can't be made: {done.complaint}")
    return f"{directory}/{CONTROL}"


def _folder(ctx: Context, run: RunRow, path: str) -> ResolvedCode:
    real = allowed_path(ctx, run.cluster, path, run.unix_account)
    if real is None:
        roots = ", ".join(ctx.cluster(run.cluster).code_roots) or "none (setting `code_roots`)"
        raise CodeUnavailable(
            f"{path} is not a folder below an allowed root of {run.cluster}; allowed: {roots}"
        )
    host = ctx.host_for(run.cluster, run.unix_account)
    done = host.run(tree_digest_argv(real), timeout=TREE_TIMEOUT_S, readonly=True)
    if done.rc != 0:
        raise CodeUnavailable(f"The folder {path} can't be read: {done.complaint}")
    return ResolvedCode("path", real, f"sha256:{done.stdout.split()[0].decode()}")
