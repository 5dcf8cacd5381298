"""The queue: what waits, in which order and why; moving, holding and releasing runs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from broker.cli.client import Api
from broker.cli.options import Interval, Json, RunId, api, examples
from broker.cli.output import emit, fields, message, table, when
from broker.cli.runs import app as run_app
from broker.errors import InvalidRequest, SlurmRefused

LEVELS = ("high", "normal", "low")

Reason = Annotated[
    str,
    typer.Option("--reason", "-m", help="Why; shown to the person who waits, and kept in the audit trail."),
]
Wait = Annotated[bool, typer.Option("--wait", help="Wait until Slurm has followed, or refused.")]


def register(app: typer.Typer) -> None:
    """Add `broker queue`; `broker run priority|hold|release` belong to the runs."""
    app.command(
        epilog=examples("broker queue", "broker queue --components --lang ko", "broker queue --json")
    )(queue)


def queue(
    ctx: typer.Context,
    cluster: Annotated[str | None, typer.Option("--cluster", help="Only this cluster's.")] = None,
    components: Annotated[
        bool, typer.Option("--components", "-c", help="Each waiting component, not only each run.")
    ] = False,
    lang: Annotated[Literal["en", "ko"], typer.Option("--lang", help="Language of the reasons.")] = "en",
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=1000, help="Show at most this many.")
    ] = 200,
    as_json: Json = False,
) -> None:
    """List what waits, in the order in which Slurm would start it, and say why it waits."""
    with api(ctx) as client:
        found = client.get("/queue", cluster=cluster, limit=limit)
    emit(found, lambda: queue_view(found, lang, components=components), as_json=as_json)


@run_app.command(
    epilog=examples(
        "broker run priority run-7h2k high",
        "broker run priority run-7h2k 50000 --wait",
        "broker run priority run-7h2k --before run-6c1m",
        "broker run priority run-7h2k --scheduler",
        "broker run priority run-7h2k --json",
    )
)
def priority(
    ctx: typer.Context,
    run: RunId,
    place: Annotated[
        str | None, typer.Argument(metavar="LEVEL|NUMBER", help="`high`, `normal`, `low`, or a number.")
    ] = None,
    before: Annotated[
        str | None, typer.Option("--before", metavar="RUN", help="Just before this run.")
    ] = None,
    after: Annotated[str | None, typer.Option("--after", metavar="RUN", help="Just after this run.")] = None,
    scheduler: Annotated[
        bool, typer.Option("--scheduler", help="Give an explicit priority back to the scheduler.")
    ] = False,
    wait: Wait = False,
    interval: Interval = 0.5,
    as_json: Json = False,
) -> None:
    """Move all that waits of a run; without a place, show where it stands. What runs is never touched."""
    wanted = _wanted(place, before, after, scheduler=scheduler)
    with api(ctx) as client:
        found = client.put(f"/runs/{run}/priority", wanted) if wanted else client.get(f"/runs/{run}/priority")
        while wait and found["change"] is not None and found["change"]["state"] == "pending":
            time.sleep(interval)
            found = client.get(f"/runs/{run}/priority")
    if wait and found["change"] is not None and found["change"]["state"] == "failed":
        raise SlurmRefused(f"The run was not moved: {found['change']['message']}")
    emit(found, lambda: priority_view(found), as_json=as_json)
    if wanted and not as_json and found["change"]["state"] == "pending":
        message("The worker applies it at once, or when the run is released.", style="bright_black")


@run_app.command(epilog=examples('broker run hold run-7h2k --reason "maintenance until noon"'))
def hold(ctx: typer.Context, run: RunId, reason: Reason, as_json: Json = False) -> None:
    """Hold what waits of a run, as its owner can't undo; components that run already go on."""
    with api(ctx) as client:
        _held(client, "hold", run, reason, as_json=as_json)


@run_app.command(epilog=examples('broker run release run-7h2k --reason "done"'))
def release(ctx: typer.Context, run: RunId, reason: Reason, as_json: Json = False) -> None:
    """Lift an administrator's hold; an approval or a quota that is waited for goes on holding the run."""
    with api(ctx) as client:
        _held(client, "release", run, reason, as_json=as_json)


def _held(client: Api, action: str, run: str, reason: str, *, as_json: bool) -> None:
    found = client.post(f"/runs/{run}/{action}", {"reason": reason})
    held = ", ".join(found["holds"])
    emit(
        found,
        lambda: f"Run {run} is held by: {held}." if held else f"Run {run} is released.",
        as_json=as_json,
    )


def _wanted(
    place: str | None, before: str | None, after: str | None, *, scheduler: bool
) -> dict[str, Any] | None:
    """The wish, None for none; several are refused."""
    given: list[dict[str, Any]] = []
    if place is not None:
        if place not in LEVELS and not place.isdecimal():
            raise InvalidRequest(f"{place!r} is no place in the queue: write high, normal, low or a number")
        given.append({"level": place} if place in LEVELS else {"number": int(place)})
    given += [{name: run} for name, run in (("before", before), ("after", after)) if run is not None]
    given += [{"scheduler": True}] if scheduler else []
    if len(given) > 1:
        raise InvalidRequest("Give one place only: a level, a number, --before, --after or --scheduler")
    return given[0] if given else None


def queue_view(found: dict[str, Any], lang: str = "en", *, components: bool = False) -> RenderableType:
    """The queue, and how old what is shown is."""
    parts: list[RenderableType] = [table(_COLUMNS, _rows(found["items"], lang), empty="Nothing waits.")]
    if components:
        rows = [row for item in found["items"] for row in _component_rows(item, lang)]
        parts += [Text(""), table(_JOB_COLUMNS, rows, empty="")]
    if len(found["items"]) < found["total"]:
        parts.append(Text(f"{found['total'] - len(found['items'])} more; see --limit", style="bright_black"))
    parts += [Text(_age(source), style="bright_black") for source in found["sources"]]
    return Group(*parts)


_COLUMNS = ("#>", "RUN", "NAME", "CLASS", "LEVEL", "PRIORITY>", "ASKS FOR", "OWNER", "ASKED", "STARTS", "WHY")
_JOB_COLUMNS = ("#>", "RUN", "COMPONENT", "SLURM>", "PRIORITY>", "ASKS FOR", "STARTS", "WHY")


def _rows(items: Sequence[dict[str, Any]], lang: str) -> Iterator[tuple[Any, ...]]:
    for item in items:
        yield (
            item["position"],
            item["run_id"],
            item["name"],
            item["priority_class"],
            item["level_ko"] if lang == "ko" else item["level"],
            _number(item),
            item["resources"],
            item["owner"],
            when(item["requested_at"]),
            when(item["expected_start"]),
            item["why"][lang],
        )


def _component_rows(item: dict[str, Any], lang: str) -> Iterator[tuple[Any, ...]]:
    for job in item["jobs"]:
        yield (
            job["position"],
            item["run_id"],
            job["component"],
            job["slurm_job_id"],
            _number(job),
            job["resources"],
            when(job["expected_start"]),
            job["why"][lang],
        )


def _number(item: dict[str, Any]) -> str:
    """The priority; one that is explicit is marked, because age and fair share do not change it."""
    return "" if item["priority"] is None else f"{item['priority']}{' (frozen)' if item['frozen'] else ''}"


def _age(source: dict[str, Any]) -> str:
    if source["observed_at"] is None:
        return f"{source['cluster']}: not looked at yet"
    trouble = f"; {source['trouble']}" if source["trouble"] else ""
    return f"{source['cluster']}: as of {when(source['observed_at'])}, {source['age_s']:.0f} s ago{trouble}"


def priority_view(found: dict[str, Any]) -> RenderableType:
    """The level of a run and what became of the last wish, job by job."""
    change = found["change"] or {}
    head = fields(
        [
            ("run", found["run_id"]),
            ("level", found["level"]),
            ("wish", change.get("wish")),
            ("number", change.get("number")),
            ("beside", change.get("other_run_id")),
            ("state", change.get("state")),
            ("came of it", change.get("message")),
            ("asked by", change.get("asked_by")),
            ("asked", when(change.get("asked_at"))),
            ("applied", when(change.get("applied_at"))),
        ]
    )
    if not change.get("jobs"):
        return head
    rows = (
        (job["component"], job["slurm_job_id"], job["outcome"], *_shown(job["before"]), *_shown(job["after"]))
        for job in change["jobs"]
    )
    columns = ("COMPONENT", "SLURM>", "OUTCOME", "PRIORITY>", "NICE>", "NOW>", "NICE>")
    return Group(head, Text(""), table(columns, rows, empty=""))


def _shown(numbers: dict[str, int] | None) -> tuple[Any, Any]:
    return (numbers["priority"], numbers["nice"]) if numbers else (None, None)
