"""Runs: ask for one, watch it, end it, run it again."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Group

from broker.cli import advice, following, run_views, usage_views
from broker.cli.client import Api
from broker.cli.options import (
    Attempt,
    Interval,
    Json,
    Limit,
    RunId,
    VersionRef,
    api,
    examples,
    group,
    read_input,
)
from broker.cli.output import (
    emit,
    message,
    print_json,
    stdout,
)
from broker.cli.overrides import parse_settings
from broker.cli.pipelines import Cluster, Set
from broker.cli.report_words import Language
from broker.settings import PriorityClass

app = group("run", "Run pipelines, watch them, fetch what they made.")

RUN_NOT_SUCCEEDED = 1
"""Exit code of a command that waited for a run which then failed, or was cancelled or rejected."""
AUTO_KEY = "auto"

Wait = Annotated[bool, typer.Option("--wait", help="Wait for the end, with a picture of the run.")]
Follow = Annotated[
    bool, typer.Option("--follow", "-f", help="Wait for the end and print all logs meanwhile.")
]
Key = Annotated[
    str,
    typer.Option(
        "--idempotency-key",
        metavar="KEY",
        help="The same key asks for the same thing only once; `auto`: a new one, against lost answers.",
    ),
]


@app.command(
    epilog=examples(
        "broker run submit pipeline.json --follow",
        "broker run submit text-classifier --version 3 --set trainer.gpu_count=2 --set time=4h",
        "broker run submit text-classifier --test --wait --json",
        "broker run submit text-classifier --test-run run-7h2k",
        "broker run submit answers.json --class urgent-inference",
    )
)
def submit(
    ctx: typer.Context,
    pipeline: Annotated[
        str,
        typer.Argument(
            metavar="PIPELINE|FILE", help="A stored pipeline, or a spec's file (`-`: standard input)."
        ),
    ],
    version: VersionRef = "latest",
    test: Annotated[
        bool, typer.Option("--test", help="A test run: behaves exactly like a normal one.")
    ] = False,
    settings: Set = None,
    test_run: Annotated[
        str | None, typer.Option("--test-run", metavar="RUN", help="The test run this one builds on.")
    ] = None,
    priority_class: Annotated[
        PriorityClass | None,
        typer.Option("--class", help="Its kind of work: who comes first, who gives way; else training."),
    ] = None,
    priority: Annotated[
        Literal["high", "normal", "low"] | None,
        typer.Option("--priority", help="Its place among the runs of its class; else normal."),
    ] = None,
    cluster: Cluster = None,
    wait: Wait = False,
    follow: Follow = False,
    interval: Interval = 1.0,
    idempotency_key: Key = AUTO_KEY,
    as_json: Json = False,
) -> None:
    """Ask for a run of a stored pipeline, or of a spec's file (which is stored first).

    With --wait or --follow the exit code is 1 unless the run succeeds.
    """
    body: dict[str, Any] = {
        "kind": "test" if test else "normal",
        "cluster": cluster,
        "overrides": parse_settings(settings or []),
        "test_run_ref": test_run,
        "priority_class": priority_class,
        "priority": priority,
    }
    with api(ctx) as client:
        body |= _pipeline(client, pipeline, version)
        wanted = {name: value for name, value in body.items() if value is not None}
        run = client.post("/runs", wanted, key=_key(idempotency_key))
        if wait or follow:
            message(f"Run {run['id']} (no. {run['number']}) is {run['state']}.")
            _wait(client, run["id"], interval, None, follow=follow, as_json=as_json)
            return
    emit(run, lambda: run_views.run_view(run), as_json=as_json)
    if not as_json:
        message(f"Watch it: broker run wait {run['id']}", style="bright_black")


@app.command(
    "list", epilog=examples("broker run list --mine --state running", "broker run list --kind test --json")
)
def list_(
    ctx: typer.Context,
    state: Annotated[
        list[str] | None, typer.Option("--state", help="Only this state; may be repeated.")
    ] = None,
    pipeline: Annotated[str | None, typer.Option("--pipeline", help="Only runs of this pipeline.")] = None,
    kind: Annotated[Literal["normal", "test"] | None, typer.Option("--kind", help="Only this kind.")] = None,
    mine: Annotated[bool, typer.Option("--mine", help="Only your own.")] = False,
    limit: Limit = 30,
    as_json: Json = False,
) -> None:
    """List runs, newest first."""
    with api(ctx) as client:
        chosen = {"state": state or None, "pipeline": pipeline, "kind": kind, "mine": mine or None}
        items = list(client.pages("/runs", limit, **chosen))
    emit(items, lambda: run_views.summary_table(items), as_json=as_json)


@app.command(
    epilog=examples(
        "broker run show run-7h2k", "broker run show run-7h2k --watch", "broker run show run-7h2k --lang ko"
    )
)
def show(
    ctx: typer.Context,
    run: RunId,
    attempt: Attempt = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep showing it until it ends.")] = False,
    interval: Interval = 1.0,
    lang: Annotated[
        Language, typer.Option("--lang", help="Language of what is said of its expected end.")
    ] = "en",
    as_json: Json = False,
) -> None:
    """Show a run and each of its components, when it is likely to end, and what is not known about that."""
    with api(ctx) as client:
        used: dict[str, Any] = {}
        if watch:
            with following.display(lang) as shown:
                found = following.wait(client, run, interval_s=interval, show=shown)
        else:
            found = client.get(f"/runs/{run}", attempt=attempt)
            if not as_json and any(job["state"] == "RUNNING" for job in found["jobs"]):
                used = client.get(f"/runs/{run}/usage", attempt=attempt, points=1)
        ended = found["state"] in run_views.FINAL and not as_json
        next_time = advice.line_for(client, found) if ended else None
    emit(
        found,
        lambda: Group(run_views.run_view(found, lang=lang), *usage_views.live(used)),
        as_json=as_json,
    )
    if next_time:
        message(next_time, style="bright_black")


@app.command(epilog=examples("broker run wait run-7h2k", "broker run wait run-7h2k --timeout 3600 --json"))
def wait(
    ctx: typer.Context,
    run: RunId,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout", min=0, metavar="SECONDS", help="Give up waiting after this (exit code 69)."
        ),
    ] = None,
    follow: Follow = False,
    interval: Interval = 1.0,
    as_json: Json = False,
) -> None:
    """Wait until a run has ended. Exit code 0 if it succeeded, else 1, saying which component and why."""
    with api(ctx) as client:
        _wait(client, run, interval, timeout, follow=follow, as_json=as_json)


@app.command(epilog=examples("broker run usage run-7h2k", "broker run usage run-7h2k --json"))
def usage(
    ctx: typer.Context,
    run: RunId,
    attempt: Attempt = None,
    points: Annotated[
        int, typer.Option("--points", min=1, max=1000, help="Points of each history at most.")
    ] = 40,
    as_json: Json = False,
) -> None:
    """Show what a run's jobs really use: CPU, memory, GPUs, each with who measured it and how long ago."""
    with api(ctx) as client:
        found = client.get(f"/runs/{run}/usage", attempt=attempt, points=points)
    emit(found, lambda: usage_views.usage_view(found), as_json=as_json)


@app.command(epilog=examples("broker run cancel run-7h2k --wait"))
def cancel(
    ctx: typer.Context, run: RunId, wait: Wait = False, interval: Interval = 1.0, as_json: Json = False
) -> None:
    """Cancel a whole run: every job of it that waits or runs."""
    with api(ctx) as client:
        found = client.post(f"/runs/{run}/cancel")
        if wait:
            with following.display() as shown:
                found = following.wait(client, run, interval_s=interval, show=shown)
    told = (
        "is cancelled" if found["state"] == "cancelled" else f"will be cancelled; it is {found['state']} now"
    )
    if wait and found["state"] in run_views.FINAL:
        told = (
            f"had already {found['state']}"
            if found["state"] in ("succeeded", "failed")
            else f"is {found['state']}"
        )
    emit(found, lambda: f"Run {run} {told}.", as_json=as_json)


@app.command(
    epilog=examples("broker run retry run-7h2k", "broker run retry run-7h2k --component trainer --follow"),
)
def retry(
    ctx: typer.Context,
    run: RunId,
    component: Annotated[
        list[str] | None,
        typer.Option("--component", "-c", help="Run this one again; else what failed. May be repeated."),
    ] = None,
    wait: Wait = False,
    follow: Follow = False,
    interval: Interval = 1.0,
    idempotency_key: Key = AUTO_KEY,
    as_json: Json = False,
) -> None:
    """Run what failed, or the named components, and everything after it again, as a new attempt."""
    with api(ctx) as client:
        found = client.post(
            f"/runs/{run}/retry", {"components": component or None}, key=_key(idempotency_key)
        )
        if wait or follow:
            _wait(client, run, interval, None, follow=follow, as_json=as_json)
            return
    emit(found, lambda: run_views.run_view(found), as_json=as_json)


def _pipeline(client: Api, name: str, version: str) -> dict[str, Any]:
    """Which pipeline and version a run is of; a file is stored first."""
    if name == "-" or Path(name).is_file():
        stored = client.post("/pipelines", content=read_input(name))
        return {"pipeline": stored["pipeline"]["id"], "version": stored["version"]["number"]}
    return {"pipeline": name, "version": int(version) if version.isdecimal() else version}


def _key(wanted: str) -> str:
    return str(uuid.uuid4()) if wanted == AUTO_KEY else wanted


def _wait(
    client: Api, run: str, interval: float, timeout: float | None, *, follow: bool, as_json: bool
) -> None:
    if follow and not as_json:
        logs = following.RunLogs(client, run)
        found = following.wait(
            client, run, interval_s=interval, timeout_s=timeout, show=logs.show, each=logs.print_new
        )
    else:
        with following.display() as shown:
            found = following.wait(client, run, interval_s=interval, timeout_s=timeout, show=shown)
    if as_json:
        print_json(found)
    else:
        stdout().print(run_views.run_view(found))
    good = found["state"] == "succeeded"
    message(run_views.verdict(found), style="green" if good else "red")
    if not good:
        raise typer.Exit(RUN_NOT_SUCCEEDED)
