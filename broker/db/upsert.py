"""Many rows in one go: inserted, or where the key is there, replaced or added to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any

from sqlalchemy import Dialect, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

Process = Callable[[Any], Any]


def upsert(
    session: Session, table: Table, rows: Sequence[Mapping[str, Any]], adding: Sequence[str] = ()
) -> None:
    """Insert rows of the same columns; where the key is there, replace the others, or add those of `adding`.

    The statement is made once and goes to the driver with plain parameters: of thousands of rows, putting
    each through SQLAlchemy costs more than storing it.
    """
    if not rows:
        return
    connection = session.connection()
    text, order, processes, positional = _prepared(connection.dialect, table, tuple(rows[0]), tuple(adding))
    values = itemgetter(*order)
    parameters: list[Any] = []
    for row in rows:
        made = list(values(row))
        for place, process in processes:
            made[place] = process(made[place])
        parameters.append(tuple(made) if positional else dict(zip(order, made, strict=True)))
    connection.exec_driver_sql(text, parameters)


@lru_cache(256)
def _prepared(
    dialect: Dialect, table: Table, columns: tuple[str, ...], adding: tuple[str, ...]
) -> tuple[str, Sequence[str], Sequence[tuple[int, Process]], bool]:
    """The statement, its parameters in order, what turns some of them (by place) into what the driver takes,
    and whether they go by place.
    """
    make = sqlite.insert if dialect.name == "sqlite" else postgresql.insert
    statement: Any = make(table)
    new, keys = statement.excluded, [column.name for column in table.primary_key.columns]
    names = adding or [name for name in columns if name not in keys]
    changes = {name: table.c[name] + new[name] if adding else new[name] for name in names}
    compiled = statement.on_conflict_do_update(index_elements=keys, set_=changes).compile(
        dialect=dialect, column_keys=list(columns)
    )
    order = compiled.positiontup if compiled.positional else columns
    found = [table.c[name].type.dialect_impl(dialect).bind_processor(dialect) for name in order]
    processes = [(place, process) for place, process in enumerate(found) if process is not None]
    return str(compiled), order, processes, bool(compiled.positional)
