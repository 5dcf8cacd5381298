"""Many rows in one go: inserted, or where the key is there, replaced or added to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

from sqlalchemy import Dialect, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from broker.db.types import Base

Process = Callable[[Any], Any]


class _Prepared(NamedTuple):
    """A statement; its parameters in order, and where each is among the given ones; what turns some of them
    (by place) into what the driver takes; whether they go by place.
    """

    text: str
    order: Sequence[str]
    arranged: Callable[[Sequence[Any]], tuple[Any, ...]]
    processes: Sequence[tuple[int, Process]]
    positional: bool


def upsert(
    session: Session,
    table: Table,
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    adding: Sequence[str] = (),
    ready: Sequence[str] = (),
) -> None:
    """Insert rows, each the values of `columns`; where the key is there, replace the others, or add those of
    `adding`. Values of `ready` are such as the driver takes already: JSON that is text.

    The statement is made once and goes to the driver with plain parameters: of thousands of rows, putting
    each through SQLAlchemy costs more than storing it.
    """
    connection = session.connection()
    made = _prepared(connection.dialect, table, tuple(columns), tuple(adding), tuple(ready))
    parameters: list[Any] = [made.arranged(row) for row in rows]
    if not parameters:
        return
    if made.processes:
        parameters = [_processed(row, made.processes) for row in parameters]
    if not made.positional:
        parameters = [dict(zip(made.order, row, strict=True)) for row in parameters]
    connection.exec_driver_sql(made.text, parameters)


def upsert_mappings(session: Session, table: type[Base], rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, all of the columns of the first, or replace what is there by their keys."""
    if rows:
        columns = tuple(rows[0])
        named: Table = table.__table__  # type: ignore[assignment]
        upsert(session, named, columns, map(itemgetter(*columns), rows))


def _processed(row: Sequence[Any], processes: Sequence[tuple[int, Process]]) -> tuple[Any, ...]:
    values = list(row)
    for place, process in processes:
        values[place] = process(values[place])
    return tuple(values)


@lru_cache(256)
def _prepared(
    dialect: Dialect, table: Table, columns: tuple[str, ...], adding: tuple[str, ...], ready: tuple[str, ...]
) -> _Prepared:
    make = sqlite.insert if dialect.name == "sqlite" else postgresql.insert
    statement: Any = make(table)
    new, keys = statement.excluded, [column.name for column in table.primary_key.columns]
    names = adding or [name for name in columns if name not in keys]
    changes = {name: table.c[name] + new[name] if adding else new[name] for name in names}
    compiled = statement.on_conflict_do_update(index_elements=keys, set_=changes).compile(
        dialect=dialect, column_keys=list(columns)
    )
    order = compiled.positiontup if compiled.positional else columns
    found = [
        None if name in ready else table.c[name].type.dialect_impl(dialect).bind_processor(dialect)
        for name in order
    ]
    return _Prepared(
        str(compiled),
        order,
        itemgetter(*map(columns.index, order)),
        [(place, process) for place, process in enumerate(found) if process is not None],
        bool(compiled.positional),
    )
