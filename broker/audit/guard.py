"""Append-only by the database's own hand: triggers that refuse to change or remove what was written.

They stand against a mistake in the broker and against whoever has the broker's database account. Who owns the
tables can drop them; what such a hand does is found by the chain (`broker.audit.chain`).

A migration that recreates such a table (Alembic's batch mode on SQLite) loses its triggers, so every upgrade
ends with `ensure_guard`.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Connection, inspect

REFUSAL: Final = "the audit trail is append-only"
"""What the database says when it refuses."""

_TABLES: Final = {"audit": ("id",), "audit_seals": ("number", "audit_id")}
"""Guarded tables with their unique columns."""
_FUNCTION: Final = "broker_audit_refuse"
_ON_SQLITE: Final = {
    f"{table}_{name}" for table in _TABLES for name in ("no_update", "no_delete", "no_replace")
}
_ON_POSTGRES: Final = {f"{table}_{name}" for table in _TABLES for name in ("no_change", "no_truncate")}


def create_guard(bind: Connection) -> None:
    """Make the triggers; on PostgreSQL `truncate` is refused too. Repeating it is harmless."""
    drop_guard(bind)
    if bind.dialect.name == "sqlite":
        for table, unique in _TABLES.items():
            _guard_sqlite(bind, table, unique)
        return
    bind.exec_driver_sql(
        f"create function {_FUNCTION}() returns trigger language plpgsql as "
        f"$$ begin raise exception '{REFUSAL}' using errcode = 'integrity_constraint_violation'; end $$"
    )
    for table in _TABLES:
        bind.exec_driver_sql(
            f"create trigger {table}_no_change before update or delete on {table} "
            f"for each row execute function {_FUNCTION}()"
        )
        bind.exec_driver_sql(
            f"create trigger {table}_no_truncate before truncate on {table} "
            f"for each statement execute function {_FUNCTION}()"
        )


def is_guarded(bind: Connection) -> bool:
    """Whether every trigger is there and in force."""
    if bind.dialect.name == "sqlite":
        found = bind.exec_driver_sql("select name from sqlite_master where type = 'trigger'")
        return set(found.scalars()) >= _ON_SQLITE
    found = bind.exec_driver_sql("select tgname from pg_trigger where tgenabled in ('O', 'A')")
    return set(found.scalars()) >= _ON_POSTGRES


def ensure_guard(bind: Connection) -> None:
    """Make the triggers again if one is missing; does nothing at a revision that has no chain yet."""
    if inspect(bind).has_table("audit_seals") and not is_guarded(bind):
        create_guard(bind)


def drop_guard(bind: Connection) -> None:
    """Remove the triggers (for a migration that must alter the tables)."""
    if bind.dialect.name == "sqlite":
        for name in sorted(_ON_SQLITE):
            bind.exec_driver_sql(f"drop trigger if exists {name}")
    else:
        bind.exec_driver_sql(f"drop function if exists {_FUNCTION}() cascade")


def _guard_sqlite(bind: Connection, table: str, unique: tuple[str, ...]) -> None:
    for verb in ("update", "delete"):
        bind.exec_driver_sql(
            f"create trigger {table}_no_{verb} before {verb} on {table} "
            f"begin select raise(abort, '{REFUSAL}'); end"
        )
    # INSERT OR REPLACE removes the row in its way without firing a delete trigger (sqlite.org/lang_conflict)
    taken = " or ".join(f"{column} = new.{column}" for column in (*unique, "rowid"))
    bind.exec_driver_sql(
        f"create trigger {table}_no_replace before insert on {table} "  # noqa: S608 - our own names
        f"when exists (select 1 from {table} where {taken}) "
        f"begin select raise(abort, '{REFUSAL}'); end"
    )
