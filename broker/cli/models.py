"""Result models: what there is, how good it is, the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.text import Text

from broker.cli import transfers
from broker.cli.options import Json, Limit, api, examples, group
from broker.cli.output import emit, fields, harmless, size, table, when

app = group("models", "Result models: versions, metrics, downloads.")

ModelId = Annotated[
    str, typer.Argument(metavar="MODEL", help="Id of a model version, as `broker models list` shows it.")
]


@app.command("list", epilog=examples("broker models list", "broker models list --run run-7h2k --json"))
def list_(
    ctx: typer.Context,
    run: Annotated[str | None, typer.Option("--run", metavar="RUN", help="Only what this run made.")] = None,
    limit: Limit = 30,
    as_json: Json = False,
) -> None:
    """List stored model versions, newest first."""
    with api(ctx) as client:
        items = list(client.pages("/models", limit, run=run))
    emit(items, lambda: models_table(items), as_json=as_json)


@app.command(epilog=examples("broker models show mv-7h2k"))
def show(ctx: typer.Context, model: ModelId, as_json: Json = False) -> None:
    """Show a model version: where it came from, how it was trained, its metrics and files."""
    with api(ctx) as client:
        found = client.get(f"/models/{model}")
    emit(found, lambda: _detail(found), as_json=as_json)


@app.command(
    epilog=examples(
        "broker models download mv-7h2k -o model/", "broker models download mv-7h2k --file best_model.joblib"
    )
)
def download(
    ctx: typer.Context,
    model: ModelId,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to put the files in.")
    ] = Path(),
    file: Annotated[str | None, typer.Option("--file", metavar="PATH", help="One file; else all.")] = None,
    as_json: Json = False,
) -> None:
    """Fetch a model version's files straight from the object store and check each one's SHA-256."""
    with api(ctx) as client:
        found = client.get(f"/models/{model}/download", file=file)
    fetched = transfers.fetch_all(
        [
            transfers.Download(one["url"], transfers.inside(output, one["path"]), one["size"], one["sha256"])
            for one in found["files"]
        ],
        quiet=as_json,
    )
    data = [{"path": str(one.target), "size": one.size, "sha256": one.sha256} for one in fetched]
    emit(
        data,
        lambda: Group(
            *(Text(harmless(str(one.target))) for one in fetched), Text(transfers.summary(fetched))
        ),
        as_json=as_json,
    )


def models_table(items: list[dict[str, Any]]) -> Any:
    """Model versions in a list."""
    return table(
        ("ID", "MODEL", "VERSION>", "STATE", "SIZE>", "METRICS", "WORKLOAD", "RUN", "CREATED"),
        (
            (
                item["id"],
                item["name"],
                item["version"],
                item["state"],
                size(item["size"]),
                metrics(item["metrics"]),
                item["workload"],
                item["run_id"],
                when(item["created_at"]),
            )
            for item in items
        ),
        empty="No models yet: a component that writes best_model.* into OUTPUT_DIR makes one.",
    )


def metrics(values: dict[str, Any] | None, most: int = 4) -> str:
    """The numbers among the metrics, on one line."""
    numbers = [(key, value) for key, value in (values or {}).items() if isinstance(value, int | float)]
    return " ".join(f"{key}={value:.4g}" for key, value in numbers[:most])


def _short(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def _detail(found: dict[str, Any]) -> Group:
    files = [("output", one) for one in found["artifacts"]] + [("log", one) for one in found["logs"]]
    return Group(
        fields(
            [
                ("model", f"{found['name']} version {found['version']}  ({found['id']})"),
                ("state", found["state"]),
                ("artifact", found["artifact"]),
                ("run", f"{found['run_id']} (no. {found['run_number']}), component {found['component']}"),
                ("workload", found["workload"]),
                ("owner", f"{found['owner']} ({found['tenant']})"),
                ("created", when(found["created_at"])),
                ("size", f"{size(found['size'])} in {found['files']} files"),
                ("metrics", metrics(found["metrics"], most=1000)),
                *((key.replace("_", " "), _short(value)) for key, value in found["training"].items()),
                ("manifest", f"{found['manifest_key']}  sha256 {found['manifest_sha256']}"),
            ]
        ),
        Text(""),
        table(
            ("KIND", "PATH!", "SIZE>", "SHA-256!"),
            ((kind, one["path"], size(one["size"]), one["sha256"]) for kind, one in files),
            empty="No files",
        ),
    )
