"""How far a program has come, from its progress file and from its log."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta

import pytest

from broker.runs.heartbeat import TAIL
from broker.runs.progress import FILE_LIMIT, Progress, Report, advance, read_file, read_log

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)


def report(fraction: float) -> Report:
    return Report(fraction * 100, 100, "step", fraction)


def after(*looks: tuple[float, float], restart: int = 0) -> Progress:
    """The progress after looks, each (minutes since noon, fraction)."""
    found: Progress | None = None
    for minutes, fraction in looks:
        found = advance(found, report(fraction), "file", NOW + timedelta(minutes=minutes), restart)
    assert found is not None
    return found


def test_the_progress_file_gives_step_total_and_figures() -> None:
    found = read_file(b'{"step": 3, "total": 30, "loss": 0.25, "phase": "warm-up", "ok": true}')
    assert found == Report(3, 30, "step", 0.1, {"loss": 0.25})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[1, 2]",
        b"null",
        b'{"step": 3}',
        b'{"step": 3, "total": 0}',
        b'{"step": -1, "total": 3}',
        b'{"step": "3", "total": "30"}',
        b'{"step": true, "total": 2}',
        b'{"step": NaN, "total": 3}',
        b'{"step": 1, "total": Infinity}',
        b'{"step": 1e300, "total": 1e301}',
        b'{"step": 1' + b"0" * 5000 + b', "total": 3}',
        b"[" * FILE_LIMIT,
        b'{"step": 1, "total": 2, "x": "' + b"x" * FILE_LIMIT + b'"}',
        b'{"step": 3, "tot',
        "\ud800".encode(errors="surrogatepass"),
    ],
)
def test_what_is_no_report_is_no_progress(data: bytes) -> None:
    assert read_file(data) is None


def test_figures_that_no_database_takes_are_left_out() -> None:
    found = read_file(json.dumps({"step": 1, "total": 2, "a\0b": 1, "x" * 65: 1, "y": 10**400}).encode())
    assert found is not None and found.values == {}


@pytest.mark.parametrize(
    ("text", "fraction"),
    [
        ("Epoch 3/30", 0.1),
        ("Epoch [3/30], Loss: 0.3", 0.1),
        ("epoch: 3 of 30", 0.1),
        ("global step 120/1000", 0.12),
        ("Iteration: [50/200]", 0.25),
        ("Train:  45%|████▌     | 450/1000 [00:10<00:12, 44.9it/s]", 0.45),
        ("x\r 10%|#   | 1/10 [00:01<?]\r 20%|##  | 2/10 [00:02<?]", 0.2),
        (" 12/48 [======>...] - loss: 0.3", 0.25),
        ("Progress: 45.5 %", 0.455),
        ("Epoch 1/4\nstep 10/10\nEpoch 2/4\nstep 5/10", 0.375),
        ("Epoch 1/1\nstep 5/10", 0.5),
        ("2024/01/02 epoch 31/12", None),
        ("loss 3/4 is 1/2 of it", None),
        ("epoch 3/0", None),
        ("", None),
    ],
)
def test_patterns_in_a_log(text: str, fraction: float | None) -> None:
    found = read_log(text)
    assert (found.fraction if found else None) == (None if fraction is None else pytest.approx(fraction))


@pytest.mark.parametrize("text", ["\n", "\r", "step ", "epoch\t", "done ", "1%|", "step 1 ", "epoch 1 of "])
@pytest.mark.parametrize("again", [" ", "\n", "", None])
def test_no_log_makes_the_worker_stand_still(text: str, again: str | None) -> None:
    """Patterns hold the interpreter: what a program prints must not stop all else that the worker does."""
    log = text * TAIL if again is None else text + (again or text) * TAIL
    began = time.process_time()
    assert read_log(log[-TAIL:]) is None and read_log(log[:TAIL]) is None
    assert time.process_time() - began < 3


def test_an_epoch_counts_although_its_line_has_left_the_end_of_the_log() -> None:
    known = read_log("Epoch 2/4\nstep 1/10")
    assert known is not None
    found = read_log("step 9/10", known.epoch)
    assert found is not None and found.fraction == pytest.approx(0.475)


def test_the_expected_end_follows_from_the_mean_speed_of_this_start() -> None:
    assert after((0, 0.1)).expected_end is None
    assert after((0, 0.1), (10, 0.3)).expected_end == NOW + timedelta(minutes=45)


def test_what_a_checkpoint_saved_does_not_count_as_speed() -> None:
    resumed = advance(after((0, 0.1), (10, 0.5)), report(0.5), "file", NOW + timedelta(hours=5), 1)
    assert (resumed.since_fraction, resumed.expected_end) == (0.5, None)
    later = advance(resumed, report(0.6), "file", NOW + timedelta(hours=6), 1)
    assert later.expected_end == NOW + timedelta(hours=10)


def test_within_one_start_nothing_goes_back() -> None:
    found = after((0, 0.1), (10, 0.5), (11, 0.0))
    assert (found.fraction, found.at) == (0.5, NOW + timedelta(minutes=10))
    assert after((0, 0.5), (10, 0.5)).at == NOW


def test_a_program_that_hardly_moves_ends_never_rather_than_in_the_year_9999() -> None:
    assert after((0, 0.0), (10**6, 1e-9)).expected_end is None


def test_progress_survives_the_database() -> None:
    found = after((0, 0.1), (10, 0.3))
    assert Progress.model_validate(json.loads(found.model_dump_json())) == found
