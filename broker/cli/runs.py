"""Runs: ask for one, watch it, read its logs, fetch its results."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Group
from rich.text import Text

from broker.cli import advice, following, run_views, transfers, usage_views
from broker.cli.client import Api
from broker.cli.options import Interval, Json, Limit, RunId, VersionRef, api, examples, group, read_input
from broker.cli.output import (
    emit,
    harmless,
    message,
    print_json,
    print_json_line,
    size,
    stdout,
    table,
    when,
)
from broker.cli.overrides import parse_settings
from broker.cli.pipelines import Cluster, Set, scripts
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
Attempt = Annotated[int | None, typer.Option("--attempt", min=1, help="An earlier attempt; else the newest.")]


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


@app.command(epilog=examples("broker run show run-7h2k", "broker run show run-7h2k --watch"))
def show(
    ctx: typer.Context,
    run: RunId,
    attempt: Attempt = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Keep showing it until it ends.")] = False,
    interval: Interval = 1.0,
    as_json: Json = False,
) -> None:
    """Show a run and each of its components."""
    with api(ctx) as client:
        used: dict[str, Any] = {}
        if watch:
            with following.display() as shown:
                found = following.wait(client, run, interval_s=interval, show=shown)
        else:
            found = client.get(f"/runs/{run}", attempt=attempt)
            if not as_json and any(job["state"] == "RUNNING" for job in found["jobs"]):
                used = client.get(f"/runs/{run}/usage", attempt=attempt, points=1)
        ended = found["state"] in run_views.FINAL and not as_json
        next_time = advice.line_for(client, found) if ended else None
    emit(found, lambda: Group(run_views.run_view(found), *usage_views.live(used)), as_json=as_json)
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


@app.command(
    epilog=examples(
        "broker run logs run-7h2k trainer --follow",
        "broker run logs run-7h2k trainer --error --tail 4096",
        "broker run logs run-7h2k trainer --level warning --search cuda",
    )
)
def logs(
    ctx: typer.Context,
    run: RunId,
    component: Annotated[str, typer.Argument(help="A component of the run.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the log is complete.")] = False,
    error: Annotated[
        bool, typer.Option("--error", help="Only what the program wrote to standard error.")
    ] = False,
    slurm: Annotated[bool, typer.Option("--slurm", help="Slurm's own log of the job.")] = False,
    attempt: Attempt = None,
    tail: Annotated[
        int | None, typer.Option("--tail", min=1, metavar="BYTES", help="Begin this far from the end.")
    ] = None,
    level: Annotated[
        Literal["debug", "info", "warning", "error", "critical"] | None,
        typer.Option("--level", help="Only lines of this level or above."),
    ] = None,
    search: Annotated[
        str | None, typer.Option("--search", metavar="TEXT", help="Only lines with this text, in any case.")
    ] = None,
    interval: Interval = 1.0,
    as_json: Json = False,
) -> None:
    """Print a component's log, while it runs or afterwards (--json: one document for each piece)."""
    stream = "slurm" if slurm else "error" if error else "output"
    with api(ctx) as client:
        where = client, run, component, stream, attempt, -(tail or 0)
        if level or search:
            reader: following.LogReader = following.LineReader(*where, level=level, text=search)
        else:
            reader = following.LogReader(*where)
        start, printed = reader.offset, False

        def write(text: str) -> None:
            nonlocal printed
            printed = True
            if as_json:
                print_json_line(_piece(reader, text))
            else:
                following.write_log(text)

        following.follow_log(reader, interval, write, follow=follow)
    if not printed:
        if as_json:
            print_json_line(_piece(reader, ""))
        else:
            nothing = "The log is empty" if reader.offset == start else "No line of the log is like that"
            message(nothing + ("." if reader.complete else " so far."), style="bright_black")


@app.command(epilog=examples("broker run script run-7h2k", "broker run script run-7h2k --json"))
def script(ctx: typer.Context, run: RunId, attempt: Attempt = None, as_json: Json = False) -> None:
    """Show exactly what was submitted: each job's script, and the one that submitted them."""
    with api(ctx) as client:
        found = client.get(f"/runs/{run}/script", attempt=attempt)
    emit(
        found,
        lambda: Group(
            scripts(found["jobs"]),
            Text(f"── submission of attempt {found['attempt']}  {found['plan_hash']}", style="bold cyan"),
            Text(harmless(found["submission"])),
        ),
        as_json=as_json,
    )


@app.command(epilog=examples("broker run events run-7h2k", "broker run events run-7h2k --follow --json"))
def events(
    ctx: typer.Context,
    run: RunId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    interval: Interval = 1.0,
    as_json: Json = False,
) -> None:
    """List what happened to a run, in order (--json: one document a line)."""
    with api(ctx) as client:
        seen = _print_events(client, run, 0, as_json=as_json)
        if follow:

            def more(_before: dict[str, Any] | None, _now: dict[str, Any]) -> None:
                nonlocal seen
                seen = _print_events(client, run, seen, as_json=as_json)

            following.wait(client, run, interval_s=interval, show=more)


@app.command(
    epilog=examples(
        "broker run outputs run-7h2k", "broker run outputs run-7h2k --download results/ --component trainer"
    )
)
def outputs(
    ctx: typer.Context,
    run: RunId,
    download: Annotated[
        Path | None,
        typer.Option("--download", "-d", metavar="DIR", help="Fetch the files into this folder, verified."),
    ] = None,
    component: Annotated[str | None, typer.Option("--component", "-c", help="Only this component's.")] = None,
    attempt: Attempt = None,
    as_json: Json = False,
) -> None:
    """List the stored files of a run, or fetch them (DIR/COMPONENT/PATH) and check each one's SHA-256."""
    with api(ctx) as client:
        files = client.get(f"/runs/{run}/outputs", attempt=attempt)
    chosen = [file for file in files if component in (None, file["component"])]
    if download is None:
        emit(chosen, lambda: _files(chosen), as_json=as_json)
        return
    wanted = [
        transfers.Download(
            file["url"],
            transfers.inside(download, file["component"], file["path"]),
            file["size"],
            file["sha256"],
        )
        for file in chosen
    ]
    fetched = transfers.fetch_all(wanted, quiet=as_json)
    emit([_fetched(one) for one in fetched], lambda: transfers.summary(fetched), as_json=as_json)


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


def _piece(reader: following.LogReader, text: str) -> dict[str, Any]:
    return {
        "component": reader.component,
        "stream": reader.stream,
        "next_offset": reader.offset,
        "complete": reader.complete,
        "text": text,
    }


def _print_events(client: Api, run: str, seen: int, *, as_json: bool) -> int:
    while found := client.get(f"/runs/{run}/events", after=seen):
        for event in found:
            if as_json:
                print_json_line(event)
            else:
                data = ", ".join(
                    f"{key}={value}" for key, value in event["data"].items() if value is not None
                )
                stdout().print(
                    Text(f"{event['seq']:>4}  {when(event['at'])}  {event['type']:<22} {harmless(data)}")
                )
            seen = event["seq"]
    return seen


def _files(files: list[dict[str, Any]]) -> Any:
    return table(
        ("COMPONENT", "PATH", "SIZE>", "SHA-256"),
        ((file["component"], file["path"], size(file["size"]), file["sha256"]) for file in files),
        empty="Nothing is stored (yet).",
    )


def _fetched(one: transfers.Fetched) -> dict[str, Any]:
    return {"path": str(one.target), "size": one.size, "sha256": one.sha256, "already_there": one.present}
