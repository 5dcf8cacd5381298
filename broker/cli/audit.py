"""The audit trail: who changed what, as a list, as CSV, and whether it still is what was written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType

from broker.cli.files import save
from broker.cli.options import Json, Limit, api, examples, group
from broker.cli.output import emit, fields, table, when
from broker.cli.server import open_database

if TYPE_CHECKING:
    from broker.audit.sealing import Verification

app = group("audit", "Who changed what, from where, and when.")
_BROKEN = 1

Actor = Annotated[str | None, typer.Option("--actor", metavar="USER", help="Only what this account did.")]
Action = Annotated[
    str | None, typer.Option("--action", metavar="ACTION", help="Only this: `run.cancel`, or `run.*`.")
]
Object = Annotated[
    str | None,
    typer.Option(
        "--object", metavar="TYPE[/ID]", help="Only things of a type, or one: `run`, `run/run-7h2k`."
    ),
]
Tenant = Annotated[
    str | None, typer.Option("--tenant", metavar="NAME", help="Only what concerns this tenant.")
]
Since = Annotated[
    str | None, typer.Option("--since", metavar="TIME", help="From then on: `2026-11-01T00:00:00Z`.")
]
Until = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Before then.")]


@app.command(
    "list",
    epilog=examples(
        "broker audit list --actor kim --since 2026-11-01T00:00:00Z",
        "broker audit list --object run/run-7h2k --json",
    ),
)
def list_(
    ctx: typer.Context,
    actor: Actor = None,
    action: Action = None,
    object_: Object = None,
    tenant: Tenant = None,
    since: Since = None,
    until: Until = None,
    limit: Limit = 50,
    as_json: Json = False,
) -> None:
    """List changes, newest first."""
    wanted = _filters(actor, action, object_, tenant, since, until)
    with api(ctx) as client:
        items = list(client.pages("/audit", limit, **wanted))
    emit(items, lambda: _listed(items), as_json=as_json)


@app.command(
    epilog=examples(
        "broker audit export -o audit.csv --since 2026-11-01T00:00:00Z",
        "broker audit export --actor kim > kim.csv",
    )
)
def export(
    ctx: typer.Context,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="Where to; `-` is standard output.")
    ] = "-",
    actor: Actor = None,
    action: Action = None,
    object_: Object = None,
    tenant: Tenant = None,
    since: Since = None,
    until: Until = None,
    as_json: Json = False,
) -> None:
    """Write changes as CSV, oldest first; what a spreadsheet would take for a formula begins with `'`.

    With `--json` the answer says where it was written; the file is CSV all the same.
    """
    filters = _filters(actor, action, object_, tenant, since, until)
    save(ctx, "/audit/export", filters, output, as_json=as_json)


@app.command(
    epilog=examples(
        "broker audit verify", "broker audit verify --head 1204:9f2b…c1 --head 3310:07aa…5e --json"
    )
)
def verify(
    head: Annotated[
        list[str],
        typer.Option(
            "--head",
            metavar="NUMBER:HASH",
            help="A head that an earlier verification printed; may be repeated.",
        ),
    ] = [],  # noqa: B006 - Typer copies it
    as_json: Json = False,
) -> None:
    """Check on the broker's machine that nothing in the audit trail was changed, removed or inserted.

    Reads the database itself. A head that was kept elsewhere also proves that the trail was not computed anew
    and its end not cut off; the last head that this machine sealed is always compared. Exit code 1 names the
    first broken row, or says that the database no longer refuses changes.
    """
    from broker.audit import sealing

    with open_database() as (config, database):
        kept = sealing.kept_head(config.data_dir)
        known = [sealing.parse_head(text) for text in head]
        found = sealing.verify(database, [*known, *([kept] if kept else [])])
    broken = found.broken
    data = {
        "intact": broken is None,
        "guarded": found.guarded,
        "sealed": found.sealed,
        "unsealed": found.unsealed,
        "head": str(found.head) if found.sealed else None,
        "broken": broken
        and {
            "breach": str(broken.breach),
            "number": broken.number,
            "audit_id": broken.audit_id,
            "detail": broken.detail,
        },
    }
    emit(data, lambda: _verified(found), as_json=as_json)
    if broken or not found.guarded:
        raise typer.Exit(_BROKEN)


def _filters(
    actor: str | None,
    action: str | None,
    object_: str | None,
    tenant: str | None,
    since: str | None,
    until: str | None,
) -> dict[str, Any]:
    kind, _, name = (object_ or "").partition("/")
    return {
        "actor": actor,
        "action": action,
        "object_type": kind or None,
        "object_id": name or None,
        "tenant": tenant,
        "since": since,
        "until": until,
    }


def _listed(items: list[dict[str, Any]]) -> RenderableType:
    return table(
        ("AT", "WHO", "FROM", "ACTION", "OBJECT", "BEFORE → AFTER", "NOTE"),
        (
            (
                when(one["at"]),
                one["actor_name"],
                one["source_ip"],
                one["action"],
                f"{one['object_type']}/{one['object_id']}",
                _change(one["before"], one["after"]),
                one["note"],
            )
            for one in items
        ),
        empty="Nothing was changed, or nothing that these filters let through.",
    )


def _change(before: dict[str, Any] | None, after: dict[str, Any] | None) -> str:
    """Only what differs: `role: "viewer" → "researcher"`."""
    old, new = before or {}, after or {}
    differing = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ", ".join(
        f"{name}: {_short(old.get(name))} → {_short(new.get(name))}"
        if name in old
        else f"{name}: {_short(new[name])}"
        for name in differing
    )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"


def _verified(found: Verification) -> RenderableType:
    broken = found.broken
    pairs: list[tuple[str, Any]] = [
        ("audit trail", "BROKEN" if broken else "intact"),
        ("rows sealed", f"{found.sealed}"),
        ("not yet sealed", found.unsealed or None),
        (
            "guard",
            None if found.guarded else "MISSING: rows can be changed; `broker db upgrade` makes it again",
        ),
    ]
    if broken:
        pairs += [
            ("first broken", f"{broken.breach}: no. {broken.number or '–'} {broken.audit_id or ''}"),
            ("what", broken.detail),
            ("holds up to", str(found.head) if found.head.number else "nothing"),
        ]
    else:
        pairs.append(("head, to keep elsewhere", str(found.head) if found.sealed else None))
    return fields(pairs)
