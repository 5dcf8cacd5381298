"""The sums of a day as columns: what reports read instead of a million rows.

`accounting_days` and `accounting_waits` are the truth, row by row, as they are added to. A report over a year
needs a few columns of all of them: each day's rows are therefore kept once more as Arrow columns, compressed,
in `accounting_packed`. Whoever changes a day's sums marks its columns as stale in the same transaction
(`stale`); the worker packs anew (`pack`). A stale day is read row by row: slower, and just as right.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from datetime import date
from functools import lru_cache
from typing import Any, Final, NamedTuple

import pyarrow as pa
from sqlalchemy import ColumnElement, Integer, Select, Table, bindparam, delete, or_, select
from sqlalchemy.orm import Session

from broker.accounting.buckets import SUMS
from broker.accounting.tables import AccountingDayRow, AccountingPackedRow, AccountingWaitRow
from broker.db.upsert import upsert

_PACKED: Table = AccountingPackedRow.__table__  # type: ignore[assignment]
_DAYS: Table = AccountingDayRow.__table__  # type: ignore[assignment]
_WAITS: Table = AccountingWaitRow.__table__  # type: ignore[assignment]


class Part(NamedTuple):
    """Rows that are packed together: a table's, of this `kind` where it has several."""

    table: Table
    amounts: Sequence[str]
    kind: str | None = None


PARTS: Final[Mapping[str, Part]] = {
    "days": Part(_DAYS, SUMS),
    "waits": Part(_WAITS, ("jobs",), "wait"),
    "slowdowns": Part(_WAITS, ("jobs",), "slowdown"),
}
_SHARED: Final = ("cluster", "day", "kind")
COLUMNS: Final = {
    name: tuple(column.name for column in part.table.columns if column.name not in _SHARED)
    for name, part in PARTS.items()
}
"""What a part's columns are: all of its table's but those that all of its rows share."""
LAYOUT: Final = hashlib.blake2b(repr(sorted(COLUMNS.items())).encode(), digest_size=8).hexdigest()
"""What the columns are packed as; days packed before a column was added count as stale."""
_STALE: Final = ("cluster", "day", "layout")
_WRITE = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)
_TEXT: Final = pa.dictionary(pa.int32(), pa.string())


class Day(NamedTuple):
    """The columns of a cluster's day."""

    cluster: str
    day: date
    columns: pa.Table


def stale(session: Session, cluster: str, days: Iterable[date], lessened: Set[date] = frozenset()) -> None:
    """Mark days whose sums change in this transaction; of those `lessened`, something is taken away."""
    rows = [(cluster, day, "") for day in sorted(set(days))]
    upsert(session, _PACKED, _STALE, rows)
    upsert(session, _PACKED, (*_STALE, "lessened"), [(*row, True) for row in rows if row[1] in lessened])


def pack(session: Session, cluster: str, most: int) -> int:
    """Pack the cluster's stale days, `most` of them at most; how many were packed.

    The caller holds the cluster's accounting (`locks.exclusive`): nobody changes these sums meanwhile.
    """
    here = _PACKED.c.cluster == cluster, _PACKED.c.layout != LAYOUT
    query = select(_PACKED.c.day, _PACKED.c.lessened).where(*here)
    days = session.execute(query.order_by(_PACKED.c.day).limit(most)).all()
    for day, lessened in days:
        if lessened:
            drop_nothing(session, cluster, day)
        made = {part: _encoded(_of_rows(session, part, cluster, day, COLUMNS[part])) for part in PARTS}
        session.execute(
            _PACKED.update()
            .where(_PACKED.c.cluster == cluster, _PACKED.c.day == day)
            .values(layout=LAYOUT, lessened=False, **made)
        )
    return len(days)


def drop_nothing(session: Session, cluster: str, day: date) -> None:
    """Delete a day's rows that came to nothing: a job that waited began, or ended in another state. The
    caller holds the cluster's accounting.
    """
    for statement in _DROPS:
        session.execute(statement, {"of_cluster": cluster, "of_day": day})


def read(
    session: Session, part: str, names: Sequence[str], since: date, until: date, cluster: str | None = None
) -> Iterator[Day]:
    """The named columns of a cluster's, or every cluster's, days (`until` is not among them) with sums."""
    fields = [COLUMNS[part].index(name) for name in sorted(names, key=COLUMNS[part].index)]
    options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
    query = select(
        _PACKED.c.cluster,
        _PACKED.c.day,
        _PACKED.c[part].label("packed"),
        (_PACKED.c.layout == LAYOUT).label("fresh"),
    ).where(_PACKED.c.day >= since, _PACKED.c.day < until)
    if cluster is not None:
        query = query.where(_PACKED.c.cluster == cluster)
    for row in session.execute(query).all():
        if row.fresh:
            columns = pa.ipc.open_stream(row.packed, options=options).read_all()
        else:
            columns = _of_rows(session, part, row.cluster, row.day, names)
        if columns.num_rows:
            yield Day(row.cluster, row.day, columns)


def _of_rows(session: Session, part: str, cluster: str, day: date, names: Sequence[str]) -> pa.Table:
    """A day's columns out of its rows; what came to nothing (RUNNING of a job that ended) is left out."""
    chosen = [PARTS[part].table.c[name] for name in names]
    rows = session.execute(_rows_query(part, tuple(names)), {"of_cluster": cluster, "of_day": day}).all()
    values = list(zip(*rows, strict=True)) or [()] * len(chosen)
    return pa.table(
        {
            column.name: pa.array(of_column, pa.int64() if isinstance(column.type, Integer) else _TEXT)
            for column, of_column in zip(chosen, values, strict=True)
        }
    )


@lru_cache(64)
def _rows_query(part: str, names: tuple[str, ...]) -> Select[Any]:
    """Made once: it has dozens of columns, and every day is asked for by it."""
    table, amounts, kind = PARTS[part]
    some = or_(*(table.c[name] != 0 for name in amounts))
    query = select(*(table.c[name] for name in names)).where(*_of_day(table), some)
    return (query if kind is None else query.where(table.c.kind == kind)).order_by(*table.primary_key)


def _of_day(table: Table) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return table.c.cluster == bindparam("of_cluster"), table.c.day == bindparam("of_day")


_DROPS: Final = [
    delete(table).where(*_of_day(table), *(table.c[name] == 0 for name in amounts))
    for table, amounts in ((_DAYS, SUMS), (_WAITS, ("jobs",)))
]
"""What deletes a day's rows of nothing."""


def _encoded(columns: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, columns.schema, options=_WRITE) as stream:
        stream.write_table(columns)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]
