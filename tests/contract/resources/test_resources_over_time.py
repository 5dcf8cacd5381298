"""Use over time: means of looks, kept for days, by hour for a year, read fast."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

import pytest
from sqlalchemy import func, insert, select

from broker.db import utcnow
from broker.resources import samples
from broker.resources.samples import (
    DAY,
    HOUR,
    forget_samples,
    history,
    keep_samples,
    samples_of,
    step_for,
    tenants_amounts,
)
from broker.resources.snapshot import Amount, Amounts, Look
from broker.resources.tables import ResourceRow, SampleRow
from broker.settings import ResourceSettings
from tests.resources import START, World
from tests.timing import fastest

BOTH = pytest.mark.parametrize("world", ["sqlite", "postgres"], indirect=True)


@BOTH
def test_a_tenants_part_is_a_mean_over_all_looks_and_its_own_people_see_it(world: World) -> None:
    world.run_of("ann", 1)
    look = Look(amounts(8, 4), {}, ())
    with world.ctx.db.write() as session:
        for minute in range(4):
            have = [("red", 8, 4, 1024)] if minute % 2 else []
            at = START + timedelta(minutes=minute)
            keep_samples(session, list(samples_of("main", at, look, tenants_amounts(have))))
    span = {"since": START.isoformat(), "until": (START + timedelta(hours=1)).isoformat(), "step": "hour"}
    (series,) = world.get("/resources/history", "ann", by="tenant", **span)["series"]
    assert series["name"] == "red" and series["points"][0]["allocated"] == 4
    assert world.get("/resources/history", "bob", by="tenant", **span)["series"] == []
    assert world.get("/resources/history", "root", by="tenant", name="red", **span)["series"] == [series]
    assert (
        world.api.call("GET", "/resources/history", "bob", params={"by": "tenant", "name": "red"}).status_code
        == 404
    )


def amounts(total: int, allocated: int, used: float | None = None, measured: int = 0) -> Amounts:
    gpu = Amount(total=total, allocated=allocated, idle=total - allocated)
    gpu.measure(used, measured or total, "dcgm")
    return Amounts(gpus={"a100": gpu})


@BOTH
def test_hours_are_the_means_of_their_looks_and_unknown_use_does_not_lower_the_mean(world: World) -> None:
    with world.ctx.db.write() as session:
        for minute, used in enumerate([2.0, None, 4.0]):
            look = Look(amounts(8, minute * 4, used), {}, ())
            keep_samples(session, list(samples_of("main", START + timedelta(minutes=minute), look, {})))
    until = START + timedelta(days=1)
    with world.ctx.db.read() as session:
        raw = history(session, "main", "gpu_type", "gpu", START, until, 0)
        (hour,) = history(session, "main", "gpu_type", "gpu", START, until, HOUR)
        (day,) = history(session, "main", "cluster", "gpu", START, until, DAY)
        cpu = history(session, "main", "cluster", "cpu", START, until, HOUR)
    assert [point.used for point in raw] == [2.0, None, 4.0]
    assert (hour.name, hour.at, hour.total, hour.allocated, hour.used) == ("a100", START, 8, 4, 3.0)
    assert (day.at, day.allocated) == (START, 4)
    assert cpu[0].used is None


@BOTH
def test_use_over_time_says_on_how_much_it_was_measured(world: World) -> None:
    """Jobs' samplers on one node of many: 2 of the 4 GPUs that were looked at, not of 80."""
    with world.ctx.db.write() as session:
        for minute, (used, measured) in enumerate([(2.0, 4), (None, 0), (3.0, 6)]):
            look = Look(amounts(80, 40, used, measured), {}, ())
            keep_samples(session, list(samples_of("main", START + timedelta(minutes=minute), look, {})))
    span = {"since": START.isoformat(), "until": (START + timedelta(hours=1)).isoformat()}
    (raw,) = world.get("/resources/history", "ann", by="gpu_type", step="raw", **span)["series"]
    assert [(point["used"], point["measured"]) for point in raw["points"]] == [(2, 4), (None, 0), (3, 6)]
    (series,) = world.get("/resources/history", "ann", step="hour", **span)["series"]
    (point,) = series["points"]
    assert (point["used"], point["measured"], point["total"]) == (2.5, 5, 80)


@BOTH
def test_looks_are_kept_at_the_interval_and_forgotten_in_time(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.tick()
    world.tick()  # within the interval
    with world.ctx.db.write() as session:
        kept = select(func.count(func.distinct(SampleRow.at))).where(SampleRow.step_s == 0)
        assert session.scalar(kept) == 1
        row = session.get_one(ResourceRow, "main")
        row.sampled_at = utcnow() - timedelta(seconds=301)
    later = utcnow() + timedelta(seconds=1)  # the key of a look is its second
    monkeypatch.setattr("broker.resources.keeper.utcnow", lambda: later)
    world.tick()
    with world.ctx.db.write() as session:
        assert session.scalar(kept) == 2
        forget_samples(session, "main", ResourceSettings(), utcnow() + timedelta(days=8))
        assert session.scalar(kept) == 0
        hours = select(func.count()).select_from(SampleRow).where(SampleRow.step_s == HOUR)
        assert session.scalar(hours)
        forget_samples(session, "main", ResourceSettings(), utcnow() + timedelta(days=367))
        assert session.scalar(hours) == 0


def test_the_step_follows_the_period() -> None:
    now = START
    for days, step in ((1, 0), (7, HOUR), (31, HOUR), (366, DAY)):
        assert step_for(now - timedelta(days=days), now, now, 7) == step
    long_ago = now - timedelta(days=30)
    assert step_for(long_ago, long_ago + timedelta(days=1), now, 7) == HOUR


@BOTH
def test_a_year_by_hour_and_by_day_is_read_fast(world: World) -> None:
    names = {"gpu_type": 4, "partition": 6, "tenant": 10}
    begin = int(START.timestamp())
    plain = {
        "samples": 12,
        "total": 96,
        "allocated": 48,
        "idle": 36,
        "unavailable": 12,
        "measured": 0,
        "used": 0.0,
    }
    with world.ctx.db.write() as session:
        for scope, name in (
            ("cluster", ""),
            *((scope, f"{scope}-{n}") for scope, count in names.items() for n in range(count)),
        ):
            key = {"cluster": "main", "step_s": HOUR, "scope": scope, "resource": "gpu", "name": name}
            rows = [key | plain | {"at": begin + hour * HOUR} for hour in range(365 * 24)]
            session.execute(insert(SampleRow), rows)
    took = {}
    until = START + timedelta(days=365)
    for scope, name in (("cluster", None), ("gpu_type", None), ("tenant", "tenant-7"), ("partition", None)):
        with world.ctx.db.read() as session:
            ask = partial(history, session, "main", scope, "gpu", START, until, DAY, name)
            took[scope], found = fastest(ask)
        assert len(found) == 365 * (names.get(scope, 1) if name is None else 1)
        assert found[0].allocated == 4
    print("a year by day:", {scope: f"{seconds * 1000:.0f} ms" for scope, seconds in took.items()})
    assert max(took.values()) < 1.0


@pytest.mark.parametrize(
    ("query", "status", "pointer"),
    [
        ({"since": "2026-03-02T00:00:00Z", "until": "2026-03-01T00:00:00Z"}, 422, "/until"),
        ({"by": "gpu_type", "resource": "cpu"}, 422, "/resource"),
        ({"since": "2026-03-02"}, 422, "since"),
        ({"cluster": "nowhere"}, 404, ""),
    ],
)
def test_a_wrong_question_names_its_field(
    world: World, query: dict[str, str], status: int, pointer: str
) -> None:
    answer = world.api.call("GET", "/resources/history", "ann", params=query)
    assert answer.status_code == status
    assert pointer in answer.text


def test_nobody_gets_more_points_than_fit_into_an_answer(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "MOST_POINTS", 3)
    with world.ctx.db.write() as session:
        for minute in range(4):
            at = utcnow() - timedelta(minutes=1 + minute)
            keep_samples(session, list(samples_of("main", at, Look(amounts(8, 4), {}, ()), {})))
    raw = {"by": "cluster", "step": "raw"}
    answer = world.api.call("GET", "/resources/history", "ann", params=raw)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/since")
    assert "a longer step" in answer.json()["detail"]
    until = {"until": (utcnow() - timedelta(seconds=90)).isoformat()}
    (series,) = world.get("/resources/history", "ann", **raw, **until)["series"]
    assert len(series["points"]) == 3
