"""Quotas of tenants, what was used, and one's own limits."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from broker.cli.options import Json, Limit, api, examples, group
from broker.cli.output import amount, emit, fields, table, when
from broker.errors import InvalidRequest

app = group("quota", "What tenants may use, and what they have used. Only admins set quotas.")

Tenant = Annotated[str, typer.Argument(metavar="TENANT", help="Name of a tenant.")]
_METERS = (
    ("api_calls", "API calls today"),
    ("gpu_hours", "GPU hours this month"),
    ("upload_gb", "GiB uploaded"),
)
_NUMBERS = {
    "api_calls_per_day": "--api-calls",
    "gpu_hours_per_month": "--gpu-hours",
    "upload_gb_per_month": "--upload-gb",
    "max_gpus": "--max-gpus",
}


@app.command("list", epilog=examples("broker quota list", "broker quota list --json"))
def list_(ctx: typer.Context, limit: Limit = 100, as_json: Json = False) -> None:
    """List the quotas of the tenants you may see, and how much of each is used."""
    with api(ctx) as client:
        items = list(client.pages("/quotas", limit))
    emit(
        items,
        lambda: table(
            ("TENANT", *(title.upper() for _, title in _METERS)),
            ((one["tenant"], *(_meter(one[name]) for name, _ in _METERS)) for one in items),
            empty="No tenants",
        ),
        as_json=as_json,
    )


@app.command(epilog=examples("broker quota show team-a"))
def show(ctx: typer.Context, tenant: Tenant, as_json: Json = False) -> None:
    """Show one tenant's quota, and how much of it is used."""
    with api(ctx) as client:
        found = client.get(f"/tenants/{tenant}/quota")
    emit(found, lambda: fields(_facts(found)), as_json=as_json)


@app.command(
    epilog=examples(
        "broker quota set team-a --gpu-hours 500",
        "broker quota set team-a --api-calls 20000 --upload-gb 80 --max-gpus 16",
        "broker quota set team-a --default gpu-hours    # the setting's again",
    )
)
def set(
    ctx: typer.Context,
    tenant: Tenant,
    api_calls: Annotated[int | None, typer.Option("--api-calls", min=0, help="API calls a day.")] = None,
    gpu_hours: Annotated[float | None, typer.Option("--gpu-hours", min=0, help="GPU hours a month.")] = None,
    upload_gb: Annotated[
        float | None, typer.Option("--upload-gb", min=0, help="GiB uploaded a month.")
    ] = None,
    max_gpus: Annotated[int | None, typer.Option("--max-gpus", min=0, help="GPUs at once.")] = None,
    default: Annotated[
        list[str] | None,
        typer.Option("--default", metavar="NUMBER", help="Take away the tenant's own: `gpu-hours`, …"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Set a tenant's own quota; what is not named stays. It holds at once."""
    given = dict(zip(_NUMBERS, (api_calls, gpu_hours, upload_gb, max_gpus), strict=True))
    change: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    change |= {_number(name): None for name in default or ()}
    if not change:
        raise InvalidRequest("Nothing to set was named; see: broker quota set --help")
    with api(ctx) as client:
        before = client.get(f"/tenants/{tenant}/quota")
        tag = f'"{before["version"]}"'
        found = client.put(f"/tenants/{tenant}/quota", before["own"] | change, etag=tag)
    emit(found, lambda: fields(_facts(found)), as_json=as_json)


@app.command(epilog=examples("broker quota usage team-a", "broker quota usage team-a --month 2026-10 --json"))
def usage(
    ctx: typer.Context,
    tenant: Tenant,
    month: Annotated[
        str | None, typer.Option("--month", metavar="YYYY-MM", help="Month (UTC); the present one if unset.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a tenant used in a month, by person."""
    with api(ctx) as client:
        found = client.get(f"/tenants/{tenant}/usage", month=month)
    total = f"{tenant} in {found['month']}: {found['gpu_hours']} GPU hours"
    emit(
        found,
        lambda: table(
            ("USER", "GPU HOURS", "ATTEMPTS"),
            ((one["username"], one["gpu_hours"], one["attempts"]) for one in found["users"]),
            empty=total,
        ),
        as_json=as_json,
    )


def limits(ctx: typer.Context, as_json: Json = False) -> None:
    """Show how many runs you may still ask for, how long they may take, and your tenant's quota."""
    with api(ctx) as client:
        found = client.get("/limits")
    runs = (
        ("active_runs", "active runs"),
        ("runs_last_hour", "within an hour"),
        ("runs_today", "today (UTC)"),
    )
    pairs = [(title, f"{found[name]['used']} of {found[name]['limit']}") for name, title in runs]
    longest = ("longest run", f"{found['max_run_hours']:g} h")
    emit(found, lambda: fields([*pairs, longest, *_facts(found["tenant"])]), as_json=as_json)


def register(root: typer.Typer) -> None:
    """Add the commands."""
    root.add_typer(app)
    root.command(epilog=examples("broker limits"))(limits)


def _number(name: str) -> str:
    """The field that `--default NAME` means."""
    for field_, option in _NUMBERS.items():
        if option == f"--{name}":
            return field_
    known = ", ".join(option.removeprefix("--") for option in _NUMBERS.values())
    raise InvalidRequest(f"--default {name}: there is no such number; there are: {known}")


def _meter(meter: dict[str, Any]) -> str:
    reserved = f" + {amount(meter['reserved'])} set aside" if meter["reserved"] else ""
    return f"{amount(meter['used'])}{reserved} of {amount(meter['limit'])} ({meter['percent']:g} %)"


def _facts(quota: dict[str, Any]) -> list[tuple[str, Any]]:
    facts: list[tuple[str, Any]] = [("tenant", quota["tenant"])]
    for name, title in _METERS:
        facts.append((title, f"{_meter(quota[name])}, until {when(quota[name]['resets_at'])}"))
    return [*facts, ("GPUs at once", quota["max_gpus"])]
