"""Pipelines: specs in files, and specs that the broker stores."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.syntax import Syntax
from rich.text import Text

from broker.cli import offline, uploads
from broker.cli.options import (
    Json,
    Limit,
    PipelineRef,
    SpecFile,
    VersionRef,
    api,
    examples,
    group,
    read_input,
)
from broker.cli.output import (
    emit,
    fields,
    harmless,
    print_json,
    problems_table,
    stdout,
    table,
    when,
)
from broker.cli.overrides import parse_settings
from broker.cli.run_views import because
from broker.errors import InvalidSpec, Problem

app = group("pipeline", "Describe pipelines, check them, and store them as versions.")

Cluster = Annotated[
    str | None,
    typer.Option("--cluster", metavar="NAME", help="Cluster by name; the default one if left out."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="[COMPONENT.]FIELD=VALUE", help="Replace a resource; may be repeated."),
]


@app.command(
    epilog=examples(
        "broker pipeline validate pipeline.json", "cat pipeline.json | broker pipeline validate -"
    )
)
def validate(file: SpecFile, as_json: Json = False) -> None:
    """Check a spec, without a server: every problem at once, with its place. Exit code 2 if it has any."""
    try:
        found = offline.inspect(read_input(file))
    except InvalidSpec as error:
        if as_json:
            print_json({"valid": False, "problems": _entries(error.problems), "warnings": []})
        else:
            stdout().print(Group(_headline(file, len(error.problems)), problems_table(error.problems)))
        raise typer.Exit(error.exit_code) from None
    emit(
        {
            "valid": True,
            "problems": [],
            "warnings": _entries(found.warnings),
            "defaults": found.defaults,
            "content_hash": found.content_hash,
            "needs_approval": [asdict(over) for over in found.needs_approval],
        },
        lambda: Group(
            fields(
                [
                    ("valid", f"{found.name}, {found.components} components, {found.edges} edges"),
                    ("content", found.content_hash),
                    (
                        "largest",
                        " ".join(
                            f"{key}={value}" for key, value in found.defaults.items() if value is not None
                        ),
                    ),
                    ("approval", "; ".join(map(because, map(asdict, found.needs_approval))) or "not needed"),
                ]
            ),
            *(
                [Text("warnings", style="bold yellow"), problems_table(found.warnings)]
                if found.warnings
                else []
            ),
        ),
        as_json=as_json,
    )


@app.command(
    epilog=examples(
        "broker pipeline script pipeline.json",
        "broker pipeline script pipeline.json --set trainer.gpu_count=2 --json",
    )
)
def script(file: SpecFile, cluster: Cluster = None, settings: Set = None, as_json: Json = False) -> None:
    """Show the batch scripts a spec becomes, without a server.

    The cluster's settings are used if this machine has any (`broker settings`), else the defaults. Where only
    a server and the cluster know better (digests of images, commits of code) a placeholder stands.
    """
    overrides = parse_settings(settings or [])
    plan = offline.preview(read_input(file), cluster=cluster, overrides=overrides)
    emit(plan, lambda: scripts(plan["jobs"]), as_json=as_json)


@app.command(
    epilog=examples("broker pipeline create pipeline.json", "broker pipeline create - --json < pipeline.json")
)
def create(ctx: typer.Context, file: SpecFile, as_json: Json = False) -> None:
    """Store a spec as a new version of its pipeline; the same content again gives the version that has it."""
    data = read_input(file)
    with api(ctx) as client:
        answer = client.post("/pipelines", content=data)
    emit(answer, lambda: stored(answer), as_json=as_json)


@app.command(
    epilog=examples("broker pipeline upload src/", "broker pipeline upload code.tar.gz --json"),
)
def upload(
    ctx: typer.Context,
    source: Annotated[Path, typer.Argument(metavar="PATH", help="A .tar.gz or .zip archive, or a folder.")],
    as_json: Json = False,
) -> None:
    """Send code to the broker; name the `upload_id` in a component's `code`. Equal content is sent once."""
    with api(ctx) as client:
        answer = uploads.send(client, source, quiet=as_json)
    shown = ("upload_id", "files", "size", "sha256")
    emit(answer, lambda: fields([(name, answer[name]) for name in shown]), as_json=as_json)


@app.command("list", epilog=examples("broker pipeline list", "broker pipeline list --json"))
def list_(ctx: typer.Context, limit: Limit = 50, as_json: Json = False) -> None:
    """List the stored pipelines, newest first."""
    with api(ctx) as client:
        items = list(client.pages("/pipelines", limit))
    emit(
        items,
        lambda: table(
            ("ID", "PIPELINE", "NAME", "VERSION>", "OWNER", "UPDATED"),
            (
                (
                    item["id"],
                    item["pipeline_id"],
                    item["name"],
                    item["latest_version"],
                    item["owner"],
                    when(item["updated_at"]),
                )
                for item in items
            ),
            empty="No pipelines yet: broker pipeline create FILE",
        ),
        as_json=as_json,
    )


@app.command(
    epilog=examples("broker pipeline show pl-7h2k", "broker pipeline show text-classifier --version 3")
)
def show(
    ctx: typer.Context, pipeline: PipelineRef, version: VersionRef = "latest", as_json: Json = False
) -> None:
    """Show one version of a pipeline in full."""
    with api(ctx) as client:
        found = client.get(f"/pipelines/{pipeline}/versions/{version}")
    emit(found, lambda: _version(found), as_json=as_json)


@app.command(epilog=examples("broker pipeline versions text-classifier"))
def versions(ctx: typer.Context, pipeline: PipelineRef, limit: Limit = 50, as_json: Json = False) -> None:
    """List the versions of a pipeline, newest first."""
    with api(ctx) as client:
        items = list(client.pages(f"/pipelines/{pipeline}/versions", limit))
    emit(
        items,
        lambda: table(
            ("VERSION>", "SPEC'S OWN", "CONTENT", "CREATED"),
            (
                (item["number"], item["spec_version"], item["content_hash"], when(item["created_at"]))
                for item in items
            ),
            empty="No versions",
        ),
        as_json=as_json,
    )


@app.command("compile", epilog=examples("broker pipeline compile text-classifier --set trainer.time=2h"))
def compile_(
    ctx: typer.Context,
    pipeline: PipelineRef,
    version: VersionRef = "latest",
    cluster: Cluster = None,
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Show exactly what a run of a stored version would submit."""
    body: dict[str, Any] = {"cluster": cluster, "overrides": parse_settings(settings or [])}
    with api(ctx) as client:
        plan = client.post(
            f"/pipelines/{pipeline}/versions/{version}/compile",
            {key: value for key, value in body.items() if value is not None},
        )
    emit(plan, lambda: scripts(plan["jobs"]), as_json=as_json)


@app.command(epilog=examples("broker pipeline delete old-experiment"))
def delete(ctx: typer.Context, pipeline: PipelineRef, as_json: Json = False) -> None:
    """Take a pipeline out of the lists; its runs and their results stay."""
    with api(ctx) as client:
        client.delete(f"/pipelines/{pipeline}")
    emit({"deleted": pipeline}, lambda: f"Deleted {pipeline}.", as_json=as_json)


def stored(answer: dict[str, Any]) -> RenderableType:
    """What storing a spec gave, for a person."""
    pipeline, version = answer["pipeline"], answer["version"]
    news = "stored as a new version" if answer["created"] else "unchanged: this version has the same content"
    lines: list[RenderableType] = [
        fields(
            [
                ("pipeline", f"{pipeline['id']}  {pipeline['name']}"),
                ("version", f"{version['number']}  ({news})"),
                ("content", version["content_hash"]),
            ]
        )
    ]
    if warned := answer.get("warnings"):
        lines += [
            Text("warnings", style="bold yellow"),
            problems_table([Problem(**entry) for entry in warned]),
        ]
    return Group(*lines)


def scripts(jobs: list[dict[str, Any]]) -> RenderableType:
    """Batch scripts for a person: each with its command line."""
    parts: list[RenderableType] = []
    for job in jobs:
        after = ", ".join(job["depends_on"])
        parts.append(
            Text(
                f"── {harmless(job['component'])}" + (f"  after {after}" if after else ""), style="bold cyan"
            )
        )
        parts.append(Text(harmless(shlex.join(["sbatch", *job["sbatch_args"]])), style="bright_black"))
        parts.append(Syntax(job["script"], "bash", background_color="default", word_wrap=True))
    return Group(*parts)


def _version(found: dict[str, Any]) -> RenderableType:
    spec = found["spec"]
    rows = []
    for component in sorted(spec["components"], key=lambda one: (one.get("order", 0), one["name"])):
        needs = component.get("resources") or {}
        gpus = f"{needs.get('gpu_type') or 'GPU'} x {needs['gpu_count']}" if needs.get("gpu_count") else None
        image = (
            component["image"].get("sif") or f"{component['image']['registry']}:{component['image']['tag']}"
        )
        rows.append(
            (
                component["name"],
                component["type"],
                image,
                gpus,
                needs.get("memory"),
                needs.get("cpus"),
                needs.get("time"),
            )
        )
    return Group(
        fields(
            [
                ("pipeline", f"{spec['pipeline_id']}  {spec['name']}"),
                ("version", f"{found['number']}  (the spec's own: {found['spec_version']})"),
                ("content", found["content_hash"]),
                ("created", when(found["created_at"])),
                ("order", ", ".join(f"{edge['from']} → {edge['to']}" for edge in spec.get("workflow", []))),
                ("storage", (spec.get("storage") or {}).get("path")),
            ]
        ),
        Text(""),
        table(("COMPONENT", "TYPE", "IMAGE", "GPU", "MEMORY", "CPUS>", "TIME"), rows, empty="No components"),
    )


def _headline(file: str, count: int) -> Text:
    name = "standard input" if file == "-" else file
    return Text(f"{harmless(name)}: {count} problem{'s' if count != 1 else ''}", style="bold red")


def _entries(problems: Any) -> list[dict[str, str]]:
    return [{"pointer": one.pointer, "code": str(one.code), "detail": one.detail} for one in problems]
