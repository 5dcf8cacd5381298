"""Adding up columns by key: hundreds of thousands of rows to the lines of a report. Pure.

A row's key is one number, made of the places of its labels among all labels of each dimension. Numbers group
fast, and their order is that of the labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import reduce
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from broker.accounting.packed import Day

Label = str | int
_KEY: Final = "key"
_BUCKET: Final = "bucket"


@dataclass(frozen=True, slots=True)
class Grouped:
    """Sums by key, in the order of the keys. `labels`: each dimension's, sorted; `columns`: sums by name, one
    per key; `counts`: of each histogram, jobs by (key, bucket).
    """

    labels: tuple[Sequence[Label], ...]
    keys: pa.Array
    columns: Mapping[str, pa.Array]
    counts: Mapping[str, pa.Table]

    def labels_of(self, key: int) -> tuple[Label, ...]:
        """What a key was made of."""
        found: list[Label] = []
        for labels in reversed(self.labels):
            key, place = divmod(key, len(labels))
            found.append(labels[place])
        return tuple(reversed(found))

    def histograms(self, keys: Sequence[int]) -> dict[int, dict[str, dict[str, int]]]:
        """The histograms of these keys, by name."""
        found: dict[int, dict[str, dict[str, int]]] = {key: {} for key in keys}
        for name, counts in self.counts.items():
            wanted = counts.filter(pc.is_in(counts[_KEY], pa.array(keys, pa.int64())))
            columns = (wanted[column].to_pylist() for column in (_KEY, _BUCKET, "jobs"))
            for key, bucket, jobs in zip(*columns, strict=True):
                found[key].setdefault(name, {})[str(bucket)] = jobs
        return found

    def quantiles(self, name: str, share: float) -> Any:
        """The bucket of each key's nearest-rank quantile (`histograms.quantile`); null where it has none."""
        rows = self.counts.get(name)
        if rows is None:
            return pa.nulls(len(self.keys), pa.int64())
        keys = rows.group_by(_KEY, use_threads=False).aggregate([("jobs", "sum")])
        whole, at = keys["jobs_sum"], pc.index_in(rows[_KEY], keys[_KEY])
        before = pc.subtract(pc.cumulative_sum(whole), whole)
        reached = pc.subtract(pc.cumulative_sum(rows["jobs"]), before.take(at))
        wanted = pc.max_element_wise(pc.ceil(pc.multiply(whole, share)), 1).take(at)
        there = pc.and_(
            pc.greater_equal(reached, wanted), pc.less(pc.subtract(reached, rows["jobs"]), wanted)
        )
        found = rows.filter(there)
        return found[_BUCKET].take(pc.index_in(self.keys, found[_KEY]))

    def totals(self) -> dict[str, int]:
        """The sums of all keys."""
        return {name: pc.sum(column).as_py() or 0 for name, column in self.columns.items()}

    def whole(self) -> dict[str, dict[str, int]]:
        """The histograms of all keys together, by name."""
        found = {}
        for name, counts in self.counts.items():
            by_bucket = counts.group_by(_BUCKET).aggregate([("jobs", "sum")]).to_pylist()
            found[name] = {str(row[_BUCKET]): row["jobs_sum"] for row in by_bucket}
        return found

    def filled(self) -> Grouped:
        """Without the keys whose sums are all 0."""
        if not self.columns:
            return self
        some = reduce(pc.or_, (pc.not_equal(column, 0) for column in self.columns.values()))
        columns = {name: column.filter(some) for name, column in self.columns.items()}
        return replace(self, keys=self.keys.filter(some), columns=columns)


def labelled(
    days: Iterable[Day], period: Mapping[str, Callable[[date], int]], *, cluster: bool
) -> pa.Table | None:
    """All days' rows in one table; None: there are none.

    With them stand what the rows of a day share: its place in each of `period`, and the `cluster`.
    """
    tables = []
    for day in days:
        table = day.columns
        for name, place in period.items():
            table = table.append_column(
                name, pa.repeat(pa.scalar(place(day.day), pa.int64()), table.num_rows)
            )
        if cluster:
            same = pa.repeat(pa.scalar(0, pa.int32()), table.num_rows)
            table = table.append_column("cluster", pa.DictionaryArray.from_arrays(same, [day.cluster]))
        tables.append(table)
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks() if tables else None


def group(
    table: pa.Table, by: Sequence[str], sums: Sequence[str], counts: Mapping[str, pa.Table] | None = None
) -> Grouped:
    """Add up `sums` by the columns of `by`. `counts` (each with the same columns, `bucket` and `jobs`): what
    histograms are made of; their keys are among the table's.
    """
    counts = counts or {}
    labels, keys = keyed(table, by)
    of_counts = {name: _zeros(part) for name, part in counts.items()}
    for name, values in zip(by, labels, strict=True):
        for histogram, part in counts.items():
            plain = _plain(part[name])
            places = pc.index_in(plain, pa.array(values, plain.type))
            of_counts[histogram] = _joined(of_counts[histogram], places, len(values))
    made = _added_up(pa.table({_KEY: keys, **{name: table[name] for name in sums}}), [_KEY], sums)
    histograms = {}
    for name, part in counts.items():
        parts = {_KEY: of_counts[name], _BUCKET: part[_BUCKET], "jobs": part["jobs"]}
        histograms[name] = _added_up(pa.table(parts), [_KEY, _BUCKET], ["jobs"])
    return Grouped(labels, made[_KEY], {name: made[name] for name in sums}, histograms)


def keyed(table: pa.Table, by: Sequence[str]) -> tuple[tuple[Sequence[Label], ...], Any]:
    """The labels of each dimension, and each row's key: in 64 bits, so of a few dimensions."""
    labels, keys = [], _zeros(table)
    for name in by:
        codes, values = coded(table[name])
        keys = _joined(keys, codes, len(values))
        labels.append(values)
    return tuple(labels), keys


def _added_up(table: pa.Table, by: list[str], sums: Sequence[str]) -> pa.Table:
    made = table.group_by(by).aggregate([(name, "sum") for name in sums])
    made = made.rename_columns([*by, *sums] if made.column_names[0] == by[0] else [*sums, *by])
    return made.sort_by([(name, "ascending") for name in by]).combine_chunks()


def _zeros(table: pa.Table) -> Any:
    return pa.repeat(pa.scalar(0, pa.int64()), table.num_rows)


def _joined(keys: Any, codes: Any, count: int) -> Any:
    return pc.add(pc.multiply(keys, max(count, 1)), codes)


def _plain(column: pa.ChunkedArray) -> Any:
    return column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column


def coded(column: pa.ChunkedArray) -> tuple[Any, list[Label]]:
    """Each row's place among the column's distinct values in order, and these values."""
    encoded = column.combine_chunks()
    encoded = encoded if pa.types.is_dictionary(encoded.type) else encoded.dictionary_encode()
    order = pc.sort_indices(encoded.dictionary)
    places = pc.sort_indices(order)  # the inverse of a permutation
    return pc.take(places, encoded.indices).cast(pa.int64()), encoded.dictionary.take(order).to_pylist()
