"""`broker resources`: what the clusters have, what of it is free, and how that went over time."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Literal

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from broker.cli.fitting import BAR, Bar
from broker.cli.options import Json, api, examples
from broker.cli.output import emit, harmless, table, when
from broker.db import utcnow
from broker.errors import InvalidRequest


def register(app: typer.Typer) -> None:
    """Add `broker resources`."""
    app.command(
        epilog=examples(
            "broker resources",
            "broker resources --nodes --state Drain",
            "broker resources --days 7 --by gpu_type",
            "broker resources --json",
        )
    )(resources)


def resources(
    ctx: typer.Context,
    cluster: Annotated[str | None, typer.Option("--cluster", help="Only this cluster's.")] = None,
    nodes: Annotated[bool, typer.Option("--nodes", "-N", help="Each node of a cluster.")] = False,
    state: Annotated[
        Literal["Active", "Drain", "Down"] | None, typer.Option("--state", help="Only nodes in this state.")
    ] = None,
    days: Annotated[
        float | None,
        typer.Option("--days", min=0.01, max=3660, help="Show the use over so many days up to now."),
    ] = None,
    by: Annotated[
        Literal["cluster", "gpu_type", "partition", "tenant"] | None,
        typer.Option("--by", help="With `--days`: one series for each; else `cluster`."),
    ] = None,
    resource: Annotated[
        Literal["gpu", "cpu", "memory"] | None,
        typer.Option("--resource", help="With `--days`: of what; else `gpu`."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what is there, allocated, really used and idle: GPUs, CPUs, memory; nodes; use over time."""
    if days is None and (by or resource):
        raise InvalidRequest("--by and --resource split the use over time: name --days too")
    if days is not None and (nodes or state):
        raise InvalidRequest("--days shows the use over time, --nodes and --state what is now: leave one out")
    with api(ctx) as client:
        if days is not None:
            since = (utcnow() - timedelta(days=days)).isoformat()
            split = {"by": by or "cluster", "resource": resource or "gpu"}
            found = client.get("/resources/history", cluster=cluster, since=since, **split)
            emit(found, lambda: history_view(found), as_json=as_json)
        elif nodes or state:
            found = client.get("/resources/nodes", cluster=cluster, state=state, limit=5000)
            emit(found, lambda: nodes_view(found), as_json=as_json)
        else:
            found = client.get("/resources", cluster=cluster)
            emit(found, lambda: resources_view(found), as_json=as_json)


def resources_view(found: dict[str, Any]) -> RenderableType:
    """A table per cluster."""
    parts: list[RenderableType] = []
    for item in found["items"]:
        parts.append(Text(f"{harmless(item['cluster'])}, seen {item['age_s']:.0f} s ago", style="bold"))
        rows = [(gpu["type"] + (" (slice)" if gpu["slice"] else ""), gpu, 1) for gpu in item["gpus"]]
        rows += [(f"{shard['type']} shards", shard, 1) for shard in item["shards"]]
        rows += [("CPU", item["cpus"], 1), ("memory, GiB", item["memory_mib"], 1024)]
        parts.append(
            table(
                ("RESOURCE", "TOTAL>", "ALLOCATED>", "USED>", "IDLE>", "UNAVAILABLE>", "WHY", "ALLOCATED"),
                [_row(name, amount, unit) for name, amount, unit in rows],
                empty="no nodes",
            )
        )
    parts += [Text(f"{harmless(name)}: not looked at yet", style="yellow") for name in found["unseen"]]
    return Group(*parts)


def _row(name: str, amount: dict[str, Any], unit: int) -> list[Any]:
    why = [f"{amount[k] // unit} {k}" for k in ("reserved", "draining", "drained", "down") if amount[k]]
    numbers = [str(amount[key] // unit) for key in ("total", "allocated")]
    rest = [str(amount[key] // unit) for key in ("idle", "unavailable")]
    return [name, *numbers, used_text(amount, unit), *rest, ", ".join(why), _bar(amount)]


def used_text(amount: dict[str, Any], unit: int) -> str:
    """What was measured, and on how much of it all when not on all; `unknown` is not 0."""
    if amount["used"] is None:
        return "unknown"
    text = f"{amount['used'] / unit:.1f}"
    part = amount["measured"] < amount["total"]
    return f"{text} (of {amount['measured'] / unit:.0f} measured)" if part else text


def bar(amount: dict[str, Any], cells: int = BAR) -> str:
    """What is allocated (█), idle (·) and unavailable (x) as a bar.

    >>> bar({"total": 4, "allocated": 2, "idle": 1})
    '████████████······xxxxxx'
    """
    if not amount["total"]:
        return ""
    taken: int = round(cells * amount["allocated"] / amount["total"])
    free: int = min(cells - taken, round(cells * amount["idle"] / amount["total"]))
    return "█" * taken + "·" * free + "x" * (cells - taken - free)


def _bar(amount: dict[str, Any]) -> Bar:
    return Bar(lambda cells: bar(amount, cells))


def nodes_view(found: dict[str, Any]) -> RenderableType:
    """A row per node."""
    rows = []
    for node in found["items"]:
        have = node["resources"]
        gpus = ", ".join(f"{gpu['type']} {gpu['allocated']}/{gpu['total']}" for gpu in have["gpus"])
        jobs = [job["run_id"] or str(job["job_id"]) for job in node["jobs"]]
        others = node["other_jobs"]
        jobs += [f"{others} of others"] if others else []
        memory = have["memory_mib"]
        rows.append(
            [
                node["name"],
                node["state"],
                node["slurm_state"],
                gpus,
                f"{have['cpus']['allocated']}/{have['cpus']['total']}",
                f"{memory['allocated'] >> 10}/{memory['total'] >> 10}",
                ", ".join(jobs),
                node["reason"],
            ]
        )
    titles = ("NODE", "STATE", "SLURM", "GPUS", "CPUS>", "GIB>", "RUNS", "REASON")
    return table(titles, rows, empty="No node fits.")


def history_view(found: dict[str, Any]) -> RenderableType:
    """A row per span and name, with a bar; memory in GiB, as in the other tables."""
    unit, scale = ("GiB", 1024) if found["unit"] == "MiB" else (found["unit"], 1)
    rows = [
        [
            when(point["at"]),
            series["name"],
            f"{point['allocated'] / scale:.1f}",
            used_text(point, scale),
            f"{point['total'] / scale:.1f}" if point["total"] else "",
            _bar(point),
        ]
        for series in found["series"]
        for point in series["points"]
    ]
    titles = ("FROM", found["by"].upper(), f"ALLOCATED {unit}>", "USED>", "TOTAL>", "")
    return table(titles, rows, empty="Nothing was kept of this time.")
