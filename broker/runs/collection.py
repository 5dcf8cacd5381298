"""From a finished job to its results in the object store, verified, manifest last.

For every ended job that had started its logs are stored, and for one that completed its outputs too. Each
file is hashed where it lies, streamed, and compared; a file that is there already is not sent again, so a
collection that was cut short goes on where it was. The manifest is written last: what has no manifest is
not yet stored. Only then does the database say so.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from broker.compiler import ClusterProfile
from broker.compiler.names import log_dir, log_paths, output_dir
from broker.context import Context
from broker.db import utcnow
from broker.db.leases import Lease, LeaseLost
from broker.errors import BrokerError, IntegrityError, NotFound, OutcomeUnknown, Unreachable
from broker.hosts import FileEntry, Host
from broker.objects import Manifest, RefusedFile, StoredFile
from broker.objects.manifest import manifest_key, object_key, why_refused
from broker.runs import journal
from broker.runs.events import emit
from broker.runs.service import effective_spec, stored_spec
from broker.runs.settling import settle
from broker.runs.sightings import read_marker
from broker.runs.states import JobState, RunState
from broker.runs.submission import back_off
from broker.runs.tables import JobRow, RunRow
from broker.runs.telemetry import collecting, store_failed, stored
from broker.spec import PipelineSpec, canonical
from broker.text import unstorable

METRICS_LIMIT = 1 << 20
"""Bytes of `metrics.json` that are read into the database; the file itself is stored whatever its size."""

SIDE_BY_SIDE = 4
"""Uploads of small files at once: half of the channels that a connection has."""

PATIENCE = timedelta(days=1)
"""How long after a job's end storing its results is tried again while an admin has something to mend: keys
that the object store refuses, a bucket that is gone, files that can't be read. For what time mends there is
no limit."""

SMALL = 1 << 20
"""Bytes below which a file is small."""

OnStored = Callable[[Session, RunRow, JobRow, Manifest], None]


@dataclass(frozen=True, slots=True)
class Start:
    """The one start of a job whose results count: Slurm may have started it several times."""

    profile: ClusterProfile
    job: JobRow
    restart: int

    @property
    def _place(self) -> tuple[ClusterProfile, str, str, int, int]:
        return self.profile, self.job.run_id, self.job.component, self.job.attempt, self.restart

    @property
    def outputs(self) -> str:
        """The folder of its outputs."""
        return output_dir(*self._place)

    @property
    def logs(self) -> str:
        """The folder of its program's logs."""
        return log_dir(*self._place)

    @property
    def slurm_log(self) -> str:
        """What Slurm itself wrote."""
        return log_paths(*self._place).slurm


@dataclass(frozen=True, slots=True)
class Source:
    """A file on the cluster and what it is called in the manifest."""

    path: str
    name: str
    size: int
    log: bool


class Collector:
    """Stores the results of one cluster's jobs. `on_stored` is called in the transaction that says so."""

    def __init__(self, ctx: Context, cluster: str, lease: Lease, on_stored: OnStored) -> None:
        self._ctx, self._cluster, self._lease, self._on_stored = ctx, cluster, lease, on_stored
        self._log_limit = ctx.cluster(cluster).log_limit_mib << 20

    def collect(self, job_id: str) -> None:
        """Store one job's results; trouble that time mends is tried again, with back-off, for ever.

        What an admin mends has a day (`PATIENCE`), a checksum that differs five more tries.
        """
        with self._ctx.db.read() as session:
            job = session.get_one(JobRow, job_id)
            run = session.get_one(RunRow, job.run_id)
            spec = effective_spec(stored_spec(session, run), run.overrides)
        if job.storing != "pending":
            return
        with journal.concerning(run):
            self._collect(run, job, spec)

    def _collect(self, run: RunRow, job: JobRow, spec: PipelineSpec) -> None:
        try:
            with collecting():
                manifest, values, output_dir = self._store(run, job, spec)
            self._finish(job, manifest, values, output_dir, None)
        except BrokerError as error:
            if worth_trying_again(error, job.store_tries, utcnow() - (job.ended_at or utcnow())):
                self._later(job, error)
            else:
                self._finish(job, None, None, None, error)
        except (LeaseLost, SQLAlchemyError):
            raise
        except Exception:  # a defect of ours: it is tried again with back-off, and holds up nobody else
            self._later(job, BrokerError("The broker met a defect of its own here; see its log"))
            raise

    def _store(
        self, run: RunRow, job: JobRow, spec: PipelineSpec
    ) -> tuple[Manifest, dict[str, Any] | None, str]:
        host = self._ctx.host_for(self._cluster, run.unix_account)
        start = self._start_of(host, job)
        prefix = f"{results_prefix(run, spec)}/{job.component}/{job.attempt}.{start.restart}"
        sources, refused = self._survey(host, start, prefix, outputs=job.state == JobState.COMPLETED)
        digests = host.sha256([source.path for source in sources if self._whole(source)])
        stored = self._upload_all(host, sources, prefix, digests)
        stored.append(self._put_spec(prefix, spec))
        manifest = Manifest.build(
            run=run.id,
            component=job.component,
            attempt=job.attempt,
            restart=start.restart,
            files=stored,
            refused=refused,
            created_at=job.ended_at or utcnow(),
        )
        self._ctx.objects.put_bytes(
            manifest_key(prefix), manifest.canonical(), content_type="application/json"
        )
        return manifest, self._metrics(host, sources), start.outputs

    def _upload_all(
        self, host: Host, sources: Sequence[Source], prefix: str, digests: Mapping[str, str]
    ) -> list[StoredFile]:
        """Small files side by side, since each costs round trips; large ones one by one, since each costs
        memory (two parts).
        """

        def upload(source: Source) -> StoredFile:
            return self._upload(host, source, prefix, digests.get(source.path))

        small = [source for source in sources if source.size < SMALL]
        large = [source for source in sources if source.size >= SMALL]
        with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
            return [*pool.map(upload, small), *map(upload, large)]

    def _put_spec(self, prefix: str, spec: PipelineSpec) -> StoredFile:
        """The spec as it ran, overrides applied, beside what it made: the bucket explains itself."""
        key = object_key(prefix, "spec.json")
        done = self._ctx.objects.put_bytes(key, canonical(spec), content_type="application/json")
        return StoredFile(path="spec.json", size=done.size, sha256=done.sha256 or "", key=key)

    def _start_of(self, host: Host, job: JobRow) -> Start:
        """The start that counts: by the job's own marker, else (it was killed) its last restart."""
        marker = read_marker(host, self._ctx.profile(self._cluster), job)
        if job.state == JobState.COMPLETED and marker is None:
            raise Unreachable(f"The completion marker of {job.component} is not to be seen yet")
        restart = marker.restart if marker is not None else job.restarts
        return Start(self._ctx.profile(self._cluster), job, restart)

    def _survey(
        self, host: Host, start: Start, prefix: str, *, outputs: bool
    ) -> tuple[list[Source], list[RefusedFile]]:
        sources: list[Source] = []
        refused: list[RefusedFile] = []
        folders = [("outputs", start.outputs, False)] if outputs else []
        folders.append(("logs", start.logs, True))
        for label, folder, is_log in folders:
            if host.stat(folder) is None:
                continue
            for entry in host.walk(folder):
                name = f"{label}/{entry.path}"
                why = _unfit(entry) or why_refused(prefix, name)
                if why is not None:
                    refused.append(RefusedFile(path=name, why=why))
                elif entry.kind == "file":
                    sources.append(Source(f"{folder}/{entry.path}", name, entry.size, is_log))
        slurm_log = host.stat(start.slurm_log)
        if slurm_log is not None:
            sources.append(Source(start.slurm_log, "logs/slurm.log", slurm_log.size, log=True))
        return sources, refused

    def _whole(self, source: Source) -> bool:
        return not source.log or source.size <= self._log_limit

    def _upload(self, host: Host, source: Source, prefix: str, digest: str | None) -> StoredFile:
        key = object_key(prefix, source.name)
        if digest is None:  # a log above the cap: head and tail, the cut shown
            done = self._ctx.objects.upload_stream(key, clipped(host, source, self._log_limit))
            return StoredFile(path=source.name, size=done.size, sha256=done.sha256 or "", key=key)
        if not self._ctx.objects.already_stored(key, source.size, digest):
            self._ctx.objects.upload_stream(
                key, host.read(source.path), size_hint=source.size, expected_sha256=digest, resume=True
            )
        return StoredFile(path=source.name, size=source.size, sha256=digest, key=key)

    def _metrics(self, host: Host, sources: Sequence[Source]) -> dict[str, Any] | None:
        """`metrics.json`, if it is a JSON object of sane size (DD-10)."""
        found = next((s for s in sources if s.name == "outputs/metrics.json"), None)
        if found is None or found.size > METRICS_LIMIT:
            return None
        try:
            values = json.loads(b"".join(host.read(found.path, 0, METRICS_LIMIT)), parse_constant=str)
        except (ValueError, RecursionError):
            return None
        return values if isinstance(values, dict) and storable(values) else None

    def _finish(
        self,
        seen: JobRow,
        manifest: Manifest | None,
        values: dict[str, Any] | None,
        output_dir: str | None,
        error: BrokerError | None,
    ) -> None:
        with self._ctx.db.write() as session:
            run, job = self._locked(session, seen)
            if job.storing != "pending":
                return
            if manifest is None:
                job.storing, job.store_error = "failed", error.detail if error else "unknown"
                emit(session, run, "run_trouble", component=job.component, detail=job.store_error)
            else:
                if run.trouble == job.store_error:
                    run.trouble = None
                job.storing, job.store_error = "stored", None
                job.manifest_key = _manifest_key_of(manifest, run, job, session)
                job.manifest_sha256 = manifest.sha256
                job.stored_files, job.stored_bytes = manifest.totals.files, manifest.totals.bytes
                job.metrics, job.output_dir = values, output_dir
                emit(
                    session,
                    run,
                    "job_stored",
                    component=job.component,
                    files=manifest.totals.files,
                    bytes=manifest.totals.bytes,
                    refused=len(manifest.refused),
                    final_metrics=values,
                )
                stored(self._cluster, manifest.totals.bytes)
                if job.state == JobState.COMPLETED:
                    self._on_stored(session, run, job, manifest)
            journal.job_stored(run, job)
            if not RunState(run.state).final:
                settle(self._ctx, session, run)

    def _later(self, seen: JobRow, error: BrokerError) -> None:
        store_failed(self._cluster)
        with self._ctx.db.write() as session:
            run, job = self._locked(session, seen)
            job.store_next_try_at = utcnow() + back_off(job.store_tries)
            job.store_tries += 1
            run.trouble = error.detail
            if job.store_error != error.detail:
                job.store_error = error.detail
                emit(session, run, "run_trouble", component=job.component, detail=error.detail)

    def _locked(self, session: Session, seen: JobRow) -> tuple[RunRow, JobRow]:
        """The run, locked, then the job: what is read of a job under its run's lock is the newest."""
        self._lease.confirm(session)
        run = session.get_one(RunRow, seen.run_id, with_for_update=True)
        return run, session.get_one(JobRow, seen.id)


def worth_trying_again(error: BrokerError, tries: int, since_end: timedelta) -> bool:
    """Whether storing a job's results may yet succeed, `since_end` after the job's end and `tries` tries."""
    if isinstance(error, (Unreachable, OutcomeUnknown)):
        return True
    if isinstance(error, IntegrityError):
        return tries < 5  # a file may have been caught while it was still being flushed
    return since_end < PATIENCE


def results_prefix(run: RunRow, spec: PipelineSpec) -> str:
    """Where a run's results lie in the bucket: below the spec's `storage.path`, apart by tenant and run."""
    place = (spec.storage.path if spec.storage is not None else "/runs").strip("/")
    return f"{run.tenant}/{place}/{run.id}"


def _manifest_key_of(manifest: Manifest, run: RunRow, job: JobRow, session: Session) -> str:
    prefix = results_prefix(run, effective_spec(stored_spec(session, run), run.overrides))
    return manifest_key(f"{prefix}/{job.component}/{job.attempt}.{manifest.restart}")


def load_manifest(ctx: Context, job: JobRow) -> Manifest:
    """The manifest of a stored job, compared with the digest the database keeps of it."""
    if job.manifest_key is None:
        raise NotFound(f"Nothing is stored of {job.component} (attempt {job.attempt})")
    data = ctx.objects.get_bytes(job.manifest_key, 64 << 20)
    return Manifest.parse(data, job.manifest_sha256)


def storable(value: object) -> bool:
    """Whether a JSON value fits a database and can be shown again.

    No NUL, no lone surrogate, not nested too deeply (`broker.text`), no number beyond a double.
    """
    if next(unstorable(value), None) is not None:
        return False
    return all(abs(number) <= sys.float_info.max for number in _numbers(value))


def _numbers(value: object) -> Iterator[int | float]:
    match value:
        case int() | float():
            yield value
        case dict():
            for item in value.values():
                yield from _numbers(item)
        case list():
            for item in value:
                yield from _numbers(item)


def clipped(host: Host, source: Source, limit: int) -> Iterator[bytes]:
    """The head and the tail of a log that is longer than `limit` bytes, and a line that says so between."""
    half = limit // 2
    cut = source.size - 2 * half
    yield from host.read(source.path, 0, half)
    yield f"\n[… {cut} bytes were left out here: the log has {source.size} bytes …]\n".encode()
    yield from host.read(source.path, source.size - half, half)


def _unfit(entry: FileEntry) -> str | None:
    if entry.kind in {"file", "dir"}:
        return None
    return "a symbolic link is not followed" if entry.kind == "link" else "not a regular file"
