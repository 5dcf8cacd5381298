"""Requests above the thresholds: what waits for a decision, everything about one, the decision itself."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from broker.cli.client import Api
from broker.cli.options import Interval, Json, Limit, RunId, api, examples, group
from broker.cli.output import emit, fields, harmless, message, table, when
from broker.cli.run_views import because, needs

app = group("approvals", "Requests that somebody has to decide about: an admin, and never about their own.")

State = Literal["pending", "approved", "rejected", "all"]
_UNITS = {"gpu_count": "GPUs", "memory_mib": "MiB"}


@app.command(
    "list", epilog=examples("broker approvals list", "broker approvals list --state rejected --json")
)
def list_(
    ctx: typer.Context,
    state: Annotated[State, typer.Option("--state", help="`pending` waits for a decision now.")] = "pending",
    limit: Limit = 30,
    as_json: Json = False,
) -> None:
    """List requests, newest first: those that wait for a decision, unless told otherwise."""
    with api(ctx) as client:
        items = list(client.pages("/approvals", limit, state=None if state == "all" else state))
    emit(
        items,
        lambda: table(
            ("RUN", "NO>", "NAME", "REQUESTER", "TENANT", "APPROVAL", "BECAUSE OF", "ASKED", "UNTIL"),
            (
                (
                    one["run_id"],
                    one["number"],
                    one["name"],
                    one["requester"],
                    one["tenant"],
                    one["approval"],
                    "; ".join(map(because, one["needs_approval"])),
                    when(one["requested_at"]),
                    when(one["expires_at"]),
                )
                for one in items
            ),
            empty="Nothing waits for a decision" if state == "pending" else "No requests",
        ),
        as_json=as_json,
    )


@app.command(epilog=examples("broker approvals show run-7h2k", "broker approvals show run-7h2k --scripts"))
def show(
    ctx: typer.Context,
    run: RunId,
    scripts: Annotated[bool, typer.Option("--scripts", help="The batch scripts, too.")] = False,
    as_json: Json = False,
) -> None:
    """Show all there is to know before deciding: resources, requester, use, test run, what changed since."""
    with api(ctx) as client:
        found = client.get(f"/approvals/{run}")
    emit(found, lambda: review_view(found, scripts=scripts), as_json=as_json)


@app.command(
    epilog=examples(
        "broker approvals approve run-7h2k",
        'broker approvals approve run-7h2k --comment "until Friday" --wait',
        "broker approvals approve run-7h2k --plan-hash sha256:5f1c…    # exactly what was reviewed",
    )
)
def approve(
    ctx: typer.Context,
    run: RunId,
    comment: Annotated[str, typer.Option("--comment", "-m", help="What the requester reads.")] = "",
    plan_hash: Annotated[
        str | None, typer.Option("--plan-hash", metavar="HASH", help="Only if this is what would run.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until it is compiled: before, nothing can be approved.")
    ] = False,
    interval: Interval = 1.0,
    as_json: Json = False,
) -> None:
    """Let a run start, exactly as it was compiled."""
    body = {"comment": comment} | ({"plan_hash": plan_hash} if plan_hash else {})
    with api(ctx) as client:
        if wait:
            _await_plan(client, run, interval)
        found = client.post(f"/approvals/{run}/approve", body)
    emit(
        found,
        lambda: f"Run {run} is approved; Slurm may start it when nothing else holds it",
        as_json=as_json,
    )


@app.command(epilog=examples('broker approvals reject run-7h2k --comment "test it with 1 GPU first"'))
def reject(
    ctx: typer.Context,
    run: RunId,
    comment: Annotated[str, typer.Option("--comment", "-m", help="Why; the requester reads it.")],
    as_json: Json = False,
) -> None:
    """Reject a run for ever, saying why; nothing of it stays in Slurm."""
    with api(ctx) as client:
        found = client.post(f"/approvals/{run}/reject", {"comment": comment})
    emit(found, lambda: f"Run {run} is rejected", as_json=as_json)


def _await_plan(client: Api, run: str, interval: float) -> None:
    told = False
    while True:
        found = client.get(f"/approvals/{run}")
        if found["plan_hash"] is not None or not found["may_decide"]:
            return
        if not told:
            message(f"{run} is being compiled: its images and code are looked up")
            told = True
        time.sleep(interval)


def review_view(found: dict[str, Any], *, scripts: bool = False) -> RenderableType:
    """A review for a person."""
    parts: list[RenderableType] = [fields(_facts(found)), Text(""), _components(found)]
    if found["changes"] is not None:
        parts += [Text(""), Text("Since the test run", style="bold"), _changes(found["changes"])]
    if found["differences"]:
        parts += [Text(""), Text("Not released: Slurm holds something else", style="bold red")]
        parts += [Text(harmless(f"  {one}")) for one in found["differences"]]
    if found["decisions"]:
        parts += [Text(""), _decisions(found["decisions"])]
    for job in found["jobs"] if scripts else ():
        arguments = " ".join(job["sbatch_args"])
        parts += [Text(""), Text(harmless(f"# {job['component']}: sbatch {arguments}"), style="bold")]
        parts.append(Text("\n".join(map(harmless, job["script"].split("\n")))))
    return Group(*parts)


def _facts(found: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    run, who, usage, test = found["run"], found["requester"], found["tenant_usage"], found["test_run"]
    gpu = usage["gpu_hours"]
    yield "run", f"{run['id']}  no. {run['number']}  {run['name']}"
    yield "approval", run["approval"]
    yield "because of", "; ".join(map(because, run["needs_approval"]))
    yield "requester", f"{who['username']} ({who['role']}, {who['tenant']})"
    yield "earlier", f"{who['approved_before']} approved, {who['rejected_before']} rejected"
    yield "GPU hours", f"{gpu['used']} used and {gpu['reserved']} set aside of {gpu['limit']} this month"
    yield "asked", when(found["requested_at"])
    yield "until", when(found["expires_at"]) if found["expires_at"] else None
    yield "compiled", found["plan_hash"] or "not yet: images and code are looked up"
    if test is None:
        yield "test run", "none"
    else:
        took = "" if test["duration_s"] is None else f" after {test['duration_s']} s"
        yield "test run", f"{test['run_id']}  {test['state']}{took}"
        yield "measured", "; ".join(f"{name} {json.dumps(one)}" for name, one in test["metrics"].items())
        yield "its error", test["error"]
    yield "in the way", run["trouble"]
    yield "you", "may decide" if found["may_decide"] else found["why_not"]


def _components(found: dict[str, Any]) -> RenderableType:
    return table(
        ("COMPONENT", "ASKS FOR", "TIME>", "OVER THE THRESHOLD"),
        (
            (
                one["component"],
                needs(one),
                "" if one["time_s"] is None else f"{one['time_s']} s",
                Text(", ".join(_UNITS[name] for name in one["over"]), style="bold red"),
            )
            for one in found["components"]
        ),
        empty="No components",
    )


def _changes(changes: list[dict[str, Any]]) -> RenderableType:
    def shown(value: Any) -> str | None:
        return None if value is None else json.dumps(value, ensure_ascii=False)

    return table(
        ("WHAT", "TESTED", "REQUESTED"),
        ((one["pointer"], shown(one["tested"]), shown(one["requested"])) for one in changes),
        empty="Nothing has changed since it was tested",
    )


def _decisions(decisions: list[dict[str, Any]]) -> RenderableType:
    return table(
        ("DECISION", "ATTEMPT>", "BY", "AT", "COMMENT"),
        (
            (
                one["decision"],
                one["attempt"],
                one["decided_by"] or "the broker",
                when(one["decided_at"]),
                one["comment"],
            )
            for one in decisions
        ),
        empty="",
    )
