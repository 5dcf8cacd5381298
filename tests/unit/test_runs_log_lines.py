"""Lines of logs: their ends, their levels, and which are wanted."""

from __future__ import annotations

from itertools import pairwise

import pytest

from broker.runs.log_lines import LINE_LIMIT, Level, Wanted, last_level, level_of, lines, whole_lines


@pytest.mark.parametrize(
    ("line", "level"),
    [
        (b"INFO:root:ready", Level.INFO),
        (b"2026-11-21 10:00:00,123 - trainer - WARNING - slow", Level.WARNING),
        (b"[rank0]: [ERROR] NCCL", Level.ERROR),
        (b"W1121 10:00:00.000000 1 x.cc:3] careful", Level.WARNING),
        (b'{"level": "error", "event": "x"}', Level.ERROR),
        (b"ts=1 level=debug msg=x", Level.DEBUG),
        (b"slurmstepd: error: Detected 1 oom_kill event", Level.ERROR),
        (b"Traceback (most recent call last):", Level.ERROR),
        (b"torch.cuda.OutOfMemoryError: CUDA out of memory", Level.ERROR),
        (b"/x/y.py:12: UserWarning: deprecated", Level.WARNING),
        (b"CRITICAL disk", Level.CRITICAL),
        (b"plain text about an information error rate", Level.INFO),
        (b"val_error 0.3", Level.INFO),
        (b"", Level.INFO),
        (b"\xff\xfe\x00", Level.INFO),
    ],
)
def test_levels(line: bytes, level: Level) -> None:
    assert level_of(line) is level
    if level.weight >= Level.WARNING.weight:
        assert not Wanted(Level.WARNING).skips(line)


def test_a_traceback_is_an_error_from_its_first_line_to_its_last() -> None:
    log = b"ok\nTraceback (most recent call last):\n  File x, line 1\n    f()\nValueError: no\nok\n"
    found = [line.data for line in lines(log, 0, Wanted(Level.ERROR))]
    assert found == [
        b"Traceback (most recent call last):",
        b"  File x, line 1",
        b"    f()",
        b"ValueError: no",
    ]


def test_offsets_lead_from_one_line_to_the_next_whatever_ends_them() -> None:
    log = "가\r\nb\rc\n\nd".encode()
    found = list(lines(log, 100, Wanted()))
    assert [line.data.decode() for line in found] == ["가", "b", "c", "", "d"]
    assert [line.offset for line in found] == [100, 105, 107, 109, 110]
    assert [line.next_offset for line in found] == [105, 107, 109, 110, 111]


def test_half_a_line_waits_and_half_of_a_cr_lf_too() -> None:
    assert whole_lines(b"a\nb", final=False) == 2
    assert whole_lines(b"a\r", final=False) == 0
    assert whole_lines(b"a\rb\r", final=False) == 2
    assert whole_lines(b"a\nb", final=True) == 3


def test_a_line_without_an_end_is_cut_up() -> None:
    data = b"x" * (3 * LINE_LIMIT + 5)
    assert whole_lines(data, final=False) == 3 * LINE_LIMIT
    found = list(lines(data + b"\n", 7, Wanted(text="X")))
    assert [len(line.data) for line in found] == [LINE_LIMIT] * 3 + [5]
    assert all(a.next_offset == b.offset for a, b in pairwise(found))
    assert found[-1].next_offset == 7 + len(data) + 1


def test_search_knows_no_case_and_no_patterns() -> None:
    log = b"CUDA (out) of memory\ncuda\n.*\n"
    assert [line.data for line in lines(log, 0, Wanted(text="cuda"))] == [b"CUDA (out) of memory", b"cuda"]
    assert [line.data for line in lines(log, 0, Wanted(text=".*"))] == [b".*"]
    assert Wanted(text="nothing").skips(log) and not Wanted(text="CuDa").skips(log)


def test_the_level_above_a_block_is_known_to_the_indented_lines_in_it() -> None:
    above = b"ERROR x\n  more\n"
    assert last_level(above, Level.INFO) is Level.ERROR
    assert last_level(b"  more\n", Level.ERROR) is Level.ERROR
    (line,) = lines(b"  still\n", 0, Wanted(Level.ERROR), last_level(above, Level.INFO))
    assert line.data == b"  still"
