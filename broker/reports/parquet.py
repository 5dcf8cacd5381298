"""Reports and the jobs behind them as Parquet: real column types, and in the file what the figures mean.

Every column has its title and definition (en, ko) as the field's metadata; the file's metadata `report`
(JSON) has period, scope, total, coverage and age. pyarrow is large: it is imported when a file is made.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime
from typing import TYPE_CHECKING, Any, Final, get_args

from broker.reports.measures import Value
from broker.reports.schemas import JobFacts, Line, MeasureView, ReportView

if TYPE_CHECKING:
    import pyarrow as pa

MEDIA_TYPE: Final = "application/vnd.apache.parquet"
"""As registered with IANA."""
_NUMBERS: Final = ("gpu_count", "size", "year")
"""Dimensions whose keys are whole numbers."""


def parquet_of(view: ReportView) -> bytes:
    """A report: a row per line, its key, its figures, and the coverage of those that need it.

    The total is no row, since readers add columns up: it stands in the metadata. The same report gives the
    same bytes.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [*_keys(view), *_figures(view), *_coverage(view)]
    schema = pa.schema([field for field, _ in columns], metadata={"report": _about(view)})
    table = pa.table([pa.array(values, field.type) for field, values in columns], schema=schema)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def jobs_parquet(pages: Iterable[Sequence[JobFacts]]) -> Iterator[bytes]:
    """Jobs, a row group per page: what was written is passed on, so memory does not grow."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            pa.field(name, _type_of(field.annotation), metadata={"definition": field.description or ""})
            for name, field in JobFacts.model_fields.items()
        ]
    )
    sink = _Passing()
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for page in pages:
            writer.write_table(pa.Table.from_pylist([dict(job) for job in page], schema))
            yield sink.taken()
    yield sink.taken()


class _Passing(io.RawIOBase):
    """A file that is written from its beginning to its end, and passed on as it grows."""

    def __init__(self) -> None:
        super().__init__()
        self._at, self._kept = 0, bytearray()

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def write(self, data: Any) -> int:
        piece = bytes(data)
        self._kept += piece
        self._at += len(piece)
        return len(piece)

    def taken(self) -> bytes:
        """What was written since the last time."""
        piece = bytes(self._kept)
        self._kept.clear()
        return piece


def _keys(view: ReportView) -> Iterator[tuple[pa.Field, list[Any]]]:
    import pyarrow as pa

    for name in view.by:
        texts = [line.key.get(name) for line in view.lines]
        if name == "day":
            yield (
                pa.field(name, pa.date32()),
                [None if text is None else date.fromisoformat(text) for text in texts],
            )
        elif name in _NUMBERS:
            yield pa.field(name, pa.int64()), [None if text is None else int(text) for text in texts]
        else:
            yield pa.field(name, pa.string()), texts


def _figures(view: ReportView) -> Iterator[tuple[pa.Field, list[Any]]]:
    import pyarrow as pa

    types = {"text": pa.string(), "date": pa.date32(), "time": pa.timestamp("us", "UTC"), "jobs": pa.int64()}
    for one in view.report.measures:
        if one.name in view.by:  # `reason`: readers refuse a file with two columns of a name
            continue
        field = pa.field(one.name, types.get(one.unit, pa.float64()), metadata=_meaning(one))
        yield field, [_read(one.unit, line.values[one.name]) for line in view.lines]


def _read(unit: str, value: Value) -> Any:
    """A figure as its column takes it."""
    if isinstance(value, str) and unit in ("date", "time"):
        return date.fromisoformat(value) if unit == "date" else datetime.fromisoformat(value)
    return round(value) if unit == "jobs" and isinstance(value, float) else value


def _coverage(view: ReportView) -> Iterator[tuple[pa.Field, list[Any]]]:
    import pyarrow as pa

    def count(line: Line, name: str, part: str) -> int | None:
        known = line.coverage.get(name)
        return None if known is None else getattr(known, part)

    for name, known in view.total.coverage.items():
        for part, meaning in (("with_data", "with the data for"), ("of", "that should have it, of")):
            about = {"definition": f"{known.counted} {meaning} {name}"}
            field = pa.field(f"{name}_{part}", pa.int64(), metadata=about)
            yield field, [count(line, name, part) for line in view.lines]


def _meaning(measure: MeasureView) -> Mapping[str, str]:
    return measure.model_dump(exclude={"name"})


def _about(view: ReportView) -> str:
    about = view.model_dump(mode="json", exclude={"lines"})
    return json.dumps(about, ensure_ascii=False, sort_keys=True)


def _type_of(annotation: Any) -> pa.DataType:
    """The column type of a field of `JobFacts`; every column may be null."""
    import pyarrow as pa

    kinds = {
        str: pa.string(),
        bool: pa.bool_(),
        int: pa.int64(),
        float: pa.float64(),
        datetime: pa.timestamp("us", "UTC"),
    }
    given = [one for one in get_args(annotation) if one is not type(None)] or [annotation]
    return kinds[given[0]]
