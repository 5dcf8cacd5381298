"""What a look at the nodes means: nothing counts twice, nothing that no job can get counts as idle."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.hosts import Completed
from broker.resources import dcgm
from broker.resources.snapshot import Amount, Amounts, NodeState, is_slice, state_of, summarize
from broker.slurm import Node
from broker.slurm.cluster import Nodes

RECORDINGS = Path(__file__).parents[1] / "contract/recordings"
STATES = (
    *("IDLE", "MIXED", "ALLOCATED", "DOWN", "UNKNOWN", "ERROR", "IDLE+DRAIN", "MIXED+DRAIN", "DOWN+DRAIN"),
    *("ALLOCATED+DRAIN", "IDLE+RESERVED", "MIXED+MAINT", "IDLE+NOT_RESPONDING", "IDLE+POWERED_DOWN"),
    *("IDLE+PLANNED", "MIXED+COMPLETING+DRAIN", "IDLE+INVALID_REG", "IDLE+DRAIN+RESERVED"),
)


def node(**fields: str) -> Node:
    """A node as `scontrol -o -d show node` of 24.11 writes it, with other fields."""
    row = {
        "NodeName": "n1",
        "CPUTot": "64",
        "CPULoad": "N/A",
        "Gres": "gpu:a100:4",
        "GresUsed": "gpu:a100:0(IDX:N/A)",
        "State": "IDLE",
        "Partitions": "gpu",
        "CfgTRES": "cpu=64,mem=512G,billing=64,gres/gpu=4,gres/gpu:a100=4",
        "AllocTRES": "",
    } | fields
    line = " ".join(f"{key}={value}" for key, value in row.items())
    nodes, bad = Nodes().parse(Completed(0, line.encode() + b"\n", b""))
    assert bad == ()
    return nodes[0]


def look(*nodes: Node, **gpu_use: tuple[float, int]) -> Amounts:
    return summarize(nodes, gpu_use, {}).cluster


def numbers(amount: Amount) -> dict[str, Any]:
    names = ("total", "allocated", "idle", "reserved", "draining", "drained", "down")
    return {name: getattr(amount, name) for name in names if getattr(amount, name)}


def every(amounts: Amounts) -> Iterator[Amount]:
    yield from (*amounts.gpus.values(), *amounts.shards.values(), amounts.cpus, amounts.memory_mib)
    yield amounts.all_gpus()


HALF = "cpu=16,mem=128G,gres/gpu=2,gres/gpu:a100=2"


def test_a_draining_nodes_free_part_is_not_idle() -> None:
    found = look(node(State="MIXED+DRAIN", AllocTRES=HALF))
    assert numbers(found.gpus["a100"]) == {"total": 4, "allocated": 2, "draining": 2}
    assert numbers(found.cpus) == {"total": 64, "allocated": 16, "draining": 48}
    assert found.memory_mib.idle == 0


def test_draining_drained_down_and_reserved_are_told_apart() -> None:
    found = look(
        node(State="MIXED+DRAIN", AllocTRES=HALF),
        node(State="IDLE+DRAIN"),
        node(State="DOWN+DRAIN+NOT_RESPONDING"),
        node(State="IDLE+RESERVED"),
        node(State="MIXED", AllocTRES=HALF),
    )
    assert numbers(found.gpus["a100"]) == {
        "total": 20,
        "allocated": 4,
        "idle": 2,
        "reserved": 4,
        "draining": 2,
        "drained": 4,
        "down": 4,
    }
    assert found.gpus["a100"].unavailable == 14


def test_on_a_node_that_is_down_nothing_runs() -> None:
    found = look(node(State="DOWN", AllocTRES=HALF, CPULoad="5.00", FreeMem="1"))
    assert numbers(found.gpus["a100"]) == {"total": 4, "down": 4}
    assert found.cpus.used is None and found.memory_mib.used is None


@pytest.mark.parametrize(
    ("slurm", "state"),
    [
        ("IDLE", NodeState.ACTIVE),
        ("ALLOCATED", NodeState.ACTIVE),
        ("IDLE~", NodeState.ACTIVE),
        ("IDLE+PLANNED", NodeState.ACTIVE),
        ("IDLE+RESERVED", NodeState.ACTIVE),
        ("MIXED+DRAIN", NodeState.DRAIN),
        ("IDLE+FAIL", NodeState.DRAIN),
        ("DOWN+DRAIN", NodeState.DOWN),
        ("IDLE*", NodeState.DOWN),
        ("IDLE+DRAIN+INVALID_REG", NodeState.DOWN),
    ],
)
def test_a_node_has_one_word_and_slurms_own(slurm: str, state: NodeState) -> None:
    assert state_of(node(State=slurm)) is state
    (row,) = summarize([node(State="MIXED+DRAIN", AllocTRES=HALF, Reason="bad fan")], {}, {}).nodes
    assert (row["slurm_state"], row["reason"]) == ("MIXED+DRAIN", "bad fan")


@given(st.lists(st.tuples(st.sampled_from(STATES), st.integers(0, 4), st.integers(0, 64)), max_size=12))
def test_every_amount_adds_up(rows: list[tuple[str, int, int]]) -> None:
    nodes = [
        node(State=state, AllocTRES=f"cpu={cpus},mem={cpus}G,gres/gpu={gpus},gres/gpu:a100={gpus}")
        for state, gpus, cpus in rows
    ]
    for amount in every(look(*nodes)):
        assert amount.total == amount.allocated + amount.idle + amount.unavailable
        assert amount.idle >= 0 and amount.unavailable >= 0


def test_a_node_in_two_partitions_counts_in_both_and_once_in_the_cluster() -> None:
    found = summarize([node(Partitions="gpu,a100")], {}, {})
    assert found.cluster.gpus["a100"].total == 4
    assert {name: part.gpus["a100"].total for name, part in found.partitions.items()} == {"gpu": 4, "a100": 4}


def test_slices_count_by_profile_and_are_called_slices() -> None:
    mig = node(
        Gres="gpu:a100_3g.20gb:2,gpu:a100_1g.5gb:7",
        GresUsed="gpu:a100_3g.20gb:1(IDX:0),gpu:a100_1g.5gb:0(IDX:N/A)",
        CfgTRES="cpu=64,mem=512G,gres/gpu=9,gres/gpu:a100_3g.20gb=2,gres/gpu:a100_1g.5gb=7",
        AllocTRES="cpu=1,mem=1G,gres/gpu=1,gres/gpu:a100_3g.20gb=1",
    )
    found = look(mig)
    assert numbers(found.gpus["a100_3g.20gb"]) == {"total": 2, "allocated": 1, "idle": 1}
    assert numbers(found.gpus["a100_1g.5gb"]) == {"total": 7, "idle": 7}
    assert found.all_gpus().total == 9
    assert [is_slice(name) for name in (*found.gpus, "1g.10gb", "a100", "h100")] == [True] * 3 + [False] * 2


def test_a_gpu_whose_shards_are_in_use_is_not_idle_and_shards_are_not_gpus() -> None:
    shared = node(
        Gres="gpu:a100:4,shard:a100:16",
        GresUsed="gpu:a100:1(IDX:0),shard:a100:5(-/4,4/4,1/4,0/4)",
        CfgTRES="cpu=64,mem=512G,gres/gpu=4,gres/gpu:a100=4,gres/shard=16",
        AllocTRES="cpu=8,mem=8G,gres/gpu=1,gres/gpu:a100=1,gres/shard=5",
        State="MIXED",
    )
    found = look(shared)
    assert numbers(found.gpus["a100"]) == {"total": 4, "allocated": 3, "idle": 1}
    assert found.gpus["a100"].shared == 2
    assert numbers(found.shards["a100"]) == {"total": 16, "allocated": 9, "idle": 7}
    assert found.all_gpus().total == 4


def test_types_that_accounting_does_not_track_come_from_the_inventory() -> None:
    found = look(
        node(
            CfgTRES="cpu=64,mem=512G,gres/gpu=4",
            AllocTRES="cpu=1,mem=1G,gres/gpu=3",
            GresUsed="gpu:a100:3(IDX:0-2)",
        )
    )
    assert numbers(found.gpus["a100"]) == {"total": 4, "allocated": 3, "idle": 1}
    untyped = look(node(Gres="gpu:2", GresUsed="gpu:1", CfgTRES="cpu=1,mem=1G,gres/gpu=2"))
    assert numbers(untyped.gpus["gpu"])["total"] == 2


def test_what_nobody_measured_is_unknown_and_not_zero() -> None:
    found = look(node())
    assert [amount.used for amount in every(found)] == [None] * 4
    measured = look(node(CPULoad="0.00", FreeMem="524288"), n1=(0.0, 4))
    assert [amount.used for amount in every(measured)] == [0.0] * 4


def test_use_says_on_how_much_it_was_measured() -> None:
    found = look(
        node(CPULoad="80.00"), node(NodeName="n2", CPULoad="1.50"), node(NodeName="n3"), n2=(1.25, 3)
    )
    assert (found.cpus.used, found.cpus.measured, found.cpus.total) == (65.5, 128, 192)
    assert (found.gpus["a100"].used, found.gpus["a100"].measured, found.gpus["a100"].source) == (
        1.25,
        3,
        "dcgm",
    )


@pytest.mark.parametrize("version", ["22.05.8", "24.11.5", "26.05.5"])
def test_a_recorded_cluster_adds_up(version: str) -> None:
    recorded = json.loads((RECORDINGS / version / "nodes.json").read_text())
    nodes, bad = Nodes().parse(Completed(0, recorded["stdout"].encode(), b""))
    assert bad == ()
    found = look(*nodes)
    a100, v100 = found.gpus["a100"], found.gpus["v100"]
    assert numbers(a100) == {"total": 16, "allocated": 2, "idle": 10, "drained": 4}
    assert (v100.total, v100.down, v100.idle) == (8, 4, 4)
    assert found.cpus.used is not None


def test_nodes_that_are_only_announced_are_not_there() -> None:
    assert look(node(State="FUTURE")).cpus.total == 0


def vector(*series: tuple[dict[str, str], str]) -> dict[str, Any]:
    """An answer of Prometheus' `/api/v1/query`, in the form of its documentation."""
    found = [{"metric": labels, "value": [1795251231.781, value]} for labels, value in series]
    return {"status": "success", "data": {"resultType": "vector", "result": found}}


def test_busy_gpus_add_up_by_node_and_the_same_gpu_counts_once() -> None:
    found = dcgm.parse(
        vector(
            ({"Hostname": "n1.example.org", "gpu": "0", "UUID": "GPU-a"}, "100"),
            ({"Hostname": "n1", "gpu": "1", "UUID": "GPU-b"}, "25"),
            ({"Hostname": "n1", "gpu": "1", "UUID": "GPU-b", "instance": "other"}, "20"),
            ({"Hostname": "n2", "gpu": "0", "UUID": "GPU-c"}, "0"),
        )
    )
    assert found == {"n1": (1.25, 2), "n2": (0.0, 1)}


def test_a_node_with_slices_or_without_a_value_is_unknown() -> None:
    found = dcgm.parse(
        vector(
            ({"Hostname": "n1", "UUID": "GPU-a", "GPU_I_ID": "1", "GPU_I_PROFILE": "1g.5gb"}, "7"),
            ({"Hostname": "n2", "UUID": "GPU-b"}, "NaN"),
            ({"Hostname": "n2", "UUID": "GPU-c"}, "3"),
            ({"instance": "no host"}, "3"),
        )
    )
    assert found == {}


@pytest.mark.parametrize("document", [{}, [], None, {"data": {"result": [{"metric": {}}]}}])
def test_what_is_no_answer_of_prometheus_is_refused(document: Any) -> None:
    with pytest.raises(ValueError, match="no instant vector"):
        dcgm.parse(document)
