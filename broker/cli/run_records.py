"""What a run leaves to be read: its logs, what was submitted, what happened, the files it made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Group
from rich.text import Text

from broker.cli import following, transfers
from broker.cli.client import Api
from broker.cli.options import Attempt, Interval, Json, RunId, api, examples
from broker.cli.output import emit, harmless, message, print_json_line, size, stdout, table, when
from broker.cli.pipelines import scripts


def register(run: typer.Typer) -> None:
    """Add the commands to `broker run`."""
    run.command(
        epilog=examples(
            "broker run logs run-7h2k trainer --follow",
            "broker run logs run-7h2k trainer --error --tail 4096",
            "broker run logs run-7h2k trainer --level warning --search cuda",
        )
    )(logs)
    run.command(epilog=examples("broker run script run-7h2k", "broker run script run-7h2k --json"))(script)
    run.command(epilog=examples("broker run events run-7h2k", "broker run events run-7h2k --follow --json"))(
        events
    )
    run.command(
        epilog=examples(
            "broker run outputs run-7h2k",
            "broker run outputs run-7h2k --download results/ --component trainer",
        )
    )(outputs)


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
        emit(chosen, lambda: files_table(chosen), as_json=as_json)
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


def files_table(files: list[dict[str, Any]]) -> Any:
    """Stored files, to be copied from."""
    return table(
        ("COMPONENT", "PATH!", "SIZE>", "SHA-256!"),
        ((file["component"], file["path"], size(file["size"]), file["sha256"]) for file in files),
        empty="Nothing is stored (yet).",
    )


def _fetched(one: transfers.Fetched) -> dict[str, Any]:
    return {"path": str(one.target), "size": one.size, "sha256": one.sha256, "already_there": one.present}
