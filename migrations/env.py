"""Alembic's entry. `broker db upgrade` hands its connection over; the `alembic` command opens one itself."""

from typing import Any, Literal

from alembic import context
from sqlalchemy import DATETIME, Connection

from broker.db import Database
from broker.schema import metadata
from broker.settings import Settings


def render_item(kind: str, item: Any, _: Any) -> str | Literal[False]:
    """How a new revision writes a type: what SQLite calls DATETIME, PostgreSQL does not know."""
    return (
        "broker.db.types.UTCDateTime(timezone=True)" if kind == "type" and type(item) is DATETIME else False
    )


def run(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=metadata,
        compare_type=True,
        render_item=render_item,
        render_as_batch=connection.dialect.name == "sqlite",
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    database = Database(Settings().sqlalchemy_url)
    with database.engine.execution_options(broker_write=True).begin() as opened:
        run(opened)
    database.close()
