"""Memory and time, as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.spec import Memory, QuantityError, format_time, parse_time
from broker.spec.limits import MAX_MEMORY_MIB, MAX_TIME_S


@pytest.mark.parametrize(
    ("text", "mib"),
    [("128GB", 131072), ("64 GiB", 65536), ("64g", 65536),
     ("1.5TB", 1572864), ("512MB", 512), ("512M", 512), ("0.5GB", 512)],
)  # fmt: skip
def test_memory_is_read_in_powers_of_1024(text: str, mib: int) -> None:
    assert Memory.parse(text).mib == mib


@pytest.mark.parametrize(
    "text", ["", "128", "GB", "128GBs", "-1GB", "1e3GB", "1.0001MB", "0MB", "１GB", "1GB\n", "9999999TB"]
)
def test_what_is_no_memory_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(QuantityError, match="128GB"):
        Memory.parse(text)


@given(st.integers(1, MAX_MEMORY_MIB))
def test_memory_reads_back_what_it_writes(mib: int) -> None:
    assert Memory.parse(str(Memory(mib))) == Memory(mib)


def test_memory_compares_by_size() -> None:
    assert Memory.parse("128GB") >= Memory.parse("131072MB") > Memory.parse("1GB")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("24h", 86400), ("90m", 5400), ("45s", 45), ("1d12h", 129600), ("1h30m", 5400), ("36:00:00", 129600),
     ("1-12:00:00", 129600), ("1-12", 129600), ("2-00:30", 174600)],
)  # fmt: skip
def test_time_is_read_in_units_and_in_slurms_forms(text: str, seconds: int) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "90", "90:00", "-1h", "1.5h", "soon", "0s", "9999d", "1h 30m", "٣h", "h", "12:60:00"]
)
def test_what_is_no_time_or_ambiguous_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(QuantityError, match="24h"):
        parse_time(text)


@given(st.integers(1, MAX_TIME_S))
def test_time_reads_back_what_it_writes(seconds: int) -> None:
    assert parse_time(format_time(seconds)) == seconds
