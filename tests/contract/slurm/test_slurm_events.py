"""What slurmdbd said of nodes on 22.05, 24.11 and 26.05 (`record_events.py` asked)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from broker.errors import Unreachable
from broker.hosts import Completed
from broker.slurm.events import Lack, NodeEvent, NodeEvents, Reservations
from tests.recordings import VERSIONS, facts, parsed


@dataclass(frozen=True)
class Recorded:
    """One release's answers."""

    version: str
    times: dict[str, int]
    reason: str

    def parse(self, name: str) -> Any:
        return parsed(f"events/{name}", self.version)

    def events(self) -> dict[str, list[NodeEvent]]:
        found, bad = self.parse("node_events")
        assert bad == ()
        return {node: [one for one in found if one.node == node] for node in {one.node for one in found}}


@pytest.fixture(params=VERSIONS)
def recorded(request: pytest.FixtureRequest) -> Recorded:
    return Recorded(request.param, **facts(f"{request.param}/events"))


def test_what_the_cluster_has_is_registered_once_and_by_type(recorded: Recorded) -> None:
    [capacity] = recorded.events()[""]
    assert (capacity.lack, capacity.end_at, capacity.tres.cpus) == (Lack.CAPACITY, None, 320)
    assert dict(capacity.tres.gpu_types) == {"a100": 16, "v100": 8}


def test_down_is_told_from_drained_even_where_slurms_word_hides_it(recorded: Recorded) -> None:
    events, times = recorded.events(), recorded.times
    drained, down = events["a100-3"]
    assert (drained.lack, drained.state, down.lack, down.state) == (Lack.DRAINED, "DRAIN", Lack.DOWN, "DRAIN")
    assert abs(drained.start_at - times["drained_first"]) <= 2
    assert abs(down.start_at - times["then_down"]) <= 2 and drained.end_at == down.start_at
    assert (events["v100-2"][0].lack, events["v100-2"][0].state) == (Lack.DOWN, "DOWN*")
    [resumed] = events["v100-1"]
    assert resumed.lack is Lack.DOWN and resumed.end_at is not None and resumed.user == "root"


def test_a_node_that_is_drained_counts_from_the_end_of_its_last_job(recorded: Recorded) -> None:
    [event] = recorded.events()["a100-1"]
    assert event.lack is Lack.DRAINED and event.start_at >= recorded.times["drained_busy"] + 5


def test_a_reason_is_data_whatever_stands_in_it(recorded: Recorded) -> None:
    assert recorded.events()["a100-2"][0].reason == recorded.reason
    assert len(recorded.events()) == 6, "no reason made a node"


def test_what_goes_on_is_found_however_late_one_looks(recorded: Recorded) -> None:
    found, bad = recorded.parse("node_events_later")
    assert bad == () and {one.node for one in found if one.end_at is None} >= {"", "a100-2", "a100-3"}
    assert not any(one.reason == "psu" for one in found), "what had ended before is left out"


def test_maintenance_is_planned_and_other_reservations_are_not(recorded: Recorded) -> None:
    found, bad = recorded.parse("reservations")
    assert bad == ()
    by_name = {one.name: one for one in found}
    mnt, course = by_name["mnt"], by_name["course"]
    assert (mnt.lack, mnt.nodes, mnt.tres.cpus) == (Lack.PLANNED, "a100-4", 64)
    assert mnt.end_at is not None and abs(mnt.end_at - recorded.times["maintained"]) <= 2, "deleted early"
    assert course.lack is Lack.RESERVED and course.end_at == course.start_at + 1200
    assert course.unused_s == 0, "slurmdbd counts it by the hour"


def test_everybody_may_ask_and_silence_is_an_error(recorded: Recorded) -> None:
    assert recorded.parse("node_events_of_user") == recorded.parse("node_events")
    with pytest.raises(Unreachable):
        recorded.parse("node_events_no_database")


def test_a_line_that_is_no_row_before_the_first_one_is_told() -> None:
    done = Completed(0, b"what\nn1|100|Unknown|1|DOWN|cpu=4|root(0)|a|b\n0|1\n", b"")
    events, bad = NodeEvents("dev", 0).parse(done)
    assert bad == ("what",) and [event.reason for event in events] == ["a|b\n0|1"]
    assert NodeEvents("dev", 0).parse(Completed(0, b"\n", b"")) == ((), ())
    assert Reservations("dev", 0).parse(Completed(0, b"", b"")) == ((), ())
