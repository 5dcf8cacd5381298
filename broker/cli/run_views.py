"""A run as a person sees it. Pure: a run's JSON in, something to print out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.text import Text

from broker.cli.output import amount, duration, fields, size, table, when
from broker.cli.report_words import Language

Json = Mapping[str, Any]

FINAL = frozenset({"succeeded", "failed", "cancelled", "rejected"})
_ENDED_WELL = "COMPLETED"
MANY = 40
"""Components that are shown one by one while waiting; of more only those that do something."""
_QUIET = frozenset({"INTENDED", "PENDING", "COMPLETED"})


def summary_table(items: Sequence[Json]) -> RenderableType:
    """Runs in a list."""
    return table(
        ("RUN", "NO>?", "NAME", "KIND?", "STATE=!", "DONE>", "OWNER?", "CLUSTER?", "CREATED", "TIME>"),
        (
            (
                item["id"],
                item["number"],
                item["name"],
                item["kind"],
                item["state"],
                f"{item['completed']}/{item['components']}",
                item["owner"],
                item["cluster"],
                when(item["created_at"]),
                duration(item["started_at"], item["ended_at"]) if item["started_at"] else "",
            )
            for item in items
        ),
        empty="No runs: broker run submit FILE",
    )


def run_view(
    run: Json, now: datetime | None = None, *, brief: bool = False, lang: Language = "en"
) -> RenderableType:
    """A run with its jobs; `brief` shows of a large run only the jobs that are not simply waiting or done."""
    jobs = run["jobs"]
    shown = [job for job in jobs if job["state"] not in _QUIET][:MANY] if brief and len(jobs) > MANY else jobs
    parts: list[RenderableType] = [fields(_facts(run, now, lang)), Text("")]
    parts.append(jobs_table(shown, now))
    if len(shown) < len(jobs):
        counts = Counter(job["state"] for job in jobs)
        parts.append(Text(f"{len(jobs)} components: " + ", ".join(f"{n} {s}" for s, n in counts.items())))
    return Group(*parts)


def _facts(run: Json, now: datetime | None, lang: Language) -> Iterator[tuple[str, Any]]:
    done = sum(job["state"] == _ENDED_WELL for job in run["jobs"])
    state = run["state"] if run["state"] in FINAL else f"{run['state']} ({run['phase']})"
    yield "run", f"{run['id']}  no. {run['number']}  {run['name']}"
    yield "state", run["state"] if run["state"] in FINAL else state
    yield "progress", f"{done} of {len(run['jobs'])} components completed"
    yield "pipeline", f"{run['pipeline_id']} version {run['pipeline_version']}"
    yield "cluster", run["cluster"]
    yield "owner", f"{run['owner']} ({run['tenant']})"
    yield (
        "kind",
        f"{run['kind']}" + (f", after test run {run['test_run_ref']}" if run["test_run_ref"] else ""),
    )
    yield "attempt", run["attempt"] if run["attempt"] > 1 else None
    if run["approval"] != "not_required":
        yield "approval", f"{run['approval']}: {'; '.join(map(because, run['needs_approval']))}"
    yield "held by", ", ".join(run["holds"])
    yield "created", when(run["created_at"])
    yield "time", duration(run["started_at"], run["ended_at"], now)
    if (end := run.get("expected_end")) is not None:
        yield "expected end", run_end(end, lang)
        yield "by way of", _route(end["path"]) if len(end["path"]) > 1 else None
    yield "seen", when(run["observed_at"])
    yield "in the way", run["trouble"]
    yield "error", run["error"]


def run_end(end: Json, lang: Language = "en") -> str:
    """When a run is likely to end, and what keeps more from being known."""
    kind = "between" if end["kind"] == "at_latest" and end["earliest"] else end["kind"]
    told = _RUN_ENDS[lang][kind].format(when(end["at"]), when(end["earliest"]))
    text = "text_ko" if lang == "ko" else "text"
    return " ".join([f"{told}.", *(gap[text] for gap in end["gaps"])])


_RUN_ENDS: Final = {
    "en": {
        "likely": "Likely {}",
        "not_before": "Not before {}",
        "at_latest": "By {} at the latest",
        "between": "Not before {1}, by {0} at the latest",
        "unknown": "Unknown",
    },
    "ko": {
        "likely": "{} 예상",
        "not_before": "빨라야 {}",
        "at_latest": "늦어도 {}",
        "between": "빨라야 {1}, 늦어도 {0}",
        "unknown": "알 수 없음",
    },
}
_STEPS = 8
"""Components of a way through the graph that are shown."""


def _route(path: Sequence[str]) -> str:
    shown = path if len(path) <= _STEPS else [*path[:3], "…", *path[-3:]]
    return " → ".join(shown)


def jobs_table(jobs: Sequence[Json], now: datetime | None = None) -> RenderableType:
    """The jobs of a run; `RESULTS` is what lies in the object store."""
    return table(
        ("COMPONENT", "STATE=", "SLURM>", "NODES?", "NEEDS?", "TIME>", "PROGRESS", "RESULTS?", "WHY!"),
        (
            (
                job["component"] + (f" #{job['attempt']}" if job["attempt"] > 1 else ""),
                job["state"],
                job["slurm_job_id"],
                job["nodes"],
                needs(job["resources"]),
                duration(job["started_at"], job["ended_at"], now),
                progress(job),
                _results(job),
                why(job),
            )
            for job in jobs
        ),
        empty="No components to show",
    )


def because(over: Json) -> str:
    """A component that reaches a threshold, as `trainer 8 GPUs (≥ 4)`."""
    unit = "GPUs" if over["resource"] == "gpu_count" else "MiB"
    return f"{over['component']} {over['requested']} {unit} (≥ {over['threshold']})"


def needs(resources: Json) -> str:
    """Requested resources, as `A100 x 4, 128 GiB`."""
    parts = []
    if resources.get("gpu_count"):
        parts.append(f"{resources.get('gpu_type') or 'GPU'} x {resources['gpu_count']}")
    elif resources.get("cpus"):
        parts.append(f"CPU x {resources['cpus']}")
    if resources.get("memory_mib"):
        parts.append(size(resources["memory_mib"] << 20).replace(".0 ", " "))
    return ", ".join(parts)


def progress(job: Json) -> str:
    """How far a job has come that has not ended, as `45 % (epoch 9/20), ends 2024-05-01 14:30`; or ""."""
    found = job.get("progress")
    if job["ended_at"]:
        return ""
    parts = []
    if found:
        steps = f"{amount(found['step'])}/{amount(found['total'])}"
        of = "" if found["unit"] == "percent" else f" ({found['unit']} {steps})"
        parts.append(f"{100 * found['fraction']:.0f} %{of}")
    end = job.get("expected_end")
    if end and end["at"]:
        kind = "waits" if end["kind"] == "not_before" and not end["more_starts"] else end["kind"]
        parts.append(_ENDS[kind].format(when(end["at"]), end["more_starts"]))
        if end["source"] == "history":
            parts[-1] += f" as its last {end['runs']} did"
        if end["enough_time"] is False:
            several = end["another_start"] or end["limit"] is None
            limit = f"its limit is {when(end['limit'])}"
            parts.append("the time it asked for is too short" if several else limit)
    return ", ".join(parts)


_ENDS = {
    "likely": "ends {}",
    "not_before": "not before {} (more starts: ≥ {})",
    "waits": "not before {}",
    "at_latest": "ends by {}",
    "this_start_at_latest": "this start ends by {}",
}


def _results(job: Json) -> str:
    if job["stored"] == "stored":
        return f"{job['stored_files']} files, {size(job['stored_bytes'])}"
    return {"none": "", "pending": "storing", "failed": "failed"}.get(job["stored"], str(job["stored"]))


def why(job: Json) -> str:
    """Why a job is where it is, in a phrase."""
    if job["state"] == "UPSTREAM_FAILED" and job["culprit"]:
        return f"{job['culprit']} failed"
    parts = ["" if job["state"] == _ENDED_WELL else job["reason"] or ""]
    if job.get("stalled_since") and not job["ended_at"]:
        parts.append(f"no sign of life since {when(job['heartbeat_at'])}")
    if (idle := job.get("gpu_idle")) and not job["ended_at"]:
        parts.append(f"{idle['gpus']} of {idle['of']} GPUs idle since {when(idle['since'])}")
    if job["signal"]:
        parts.append(f"signal {job['signal']}")
    elif job["exit_code"]:
        parts.append(f"exit code {job['exit_code']}")
    parts.append(job["store_error"] or "")
    return ", ".join(part for part in parts if part and part != "None")


def verdict(run: Json) -> str:
    """How a run that has ended ended: what failed, why, and what to do about it."""
    if run["state"] == "succeeded":
        return f"Run {run['id']} succeeded."
    lines = [f"Run {run['id']} {'was ' if run['state'] in ('cancelled', 'rejected') else ''}{run['state']}."]
    if run["error"]:
        lines.append(run["error"])
    culprits = [job for job in run["jobs"] if _is_culprit(job)]
    for job in culprits[:MANY]:
        reason = why(job)
        lines.append(
            f"  {job['component']}: {job['state']}" + (f" ({reason})" if reason else "") + _advice(job)
        )
    dragged = sum(job["state"] == "UPSTREAM_FAILED" for job in run["jobs"])
    if dragged:
        lines.append(f"  {dragged} component{'s' if dragged > 1 else ''} after that never started.")
    if culprits and run["state"] == "failed":
        lines.append(f"See the log: broker run logs {run['id']} {culprits[0]['component']}")
        lines.append(f"Run the failed part again: broker run retry {run['id']}")
    return "\n".join(lines)


def _is_culprit(job: Json) -> bool:
    return job["failure_class"] not in (None, "", "upstream", "cancelled") or job["stored"] == "failed"


_ADVICE = {
    "temporary": "; the cluster's fault: a retry may well succeed",
    "resource": "; it needs more than it asked for: raise memory or time",
}


def _advice(job: Json) -> str:
    return _ADVICE.get(job["failure_class"] or "", "")


def changes(before: Json | None, after: Json) -> list[str]:
    """What changed between two looks at a run, one sentence each (for logs and pipes)."""
    old = {job["component"]: job for job in before["jobs"]} if before else {}
    lines = []
    if before is None or (before["state"], before["phase"]) != (after["state"], after["phase"]):
        lines.append(f"run {after['id']}: {after['state']} ({after['phase']})")
    if after["trouble"] and (before is None or before["trouble"] != after["trouble"]):
        lines.append(f"run {after['id']}: in the way: {after['trouble']}")
    for job in after["jobs"]:
        was = old.get(job["component"])
        if was is None and job["state"] == "INTENDED":
            continue
        if was is None or (was["state"], was["attempt"]) != (job["state"], job["attempt"]):
            reason = why(job)
            number = f" [{job['slurm_job_id']}]" if job["slurm_job_id"] else ""
            lines.append(f"{job['component']}{number}: {job['state']}" + (f" ({reason})" if reason else ""))
        if (was["stored"] if was else "none") != job["stored"] and job["stored"] in ("stored", "failed"):
            lines.append(f"{job['component']}: results {_results(job)}")
    return lines
