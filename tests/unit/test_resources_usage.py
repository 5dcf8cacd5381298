"""What a running job uses: parsers of what was recorded on real GPUs and of sstat, and who is believed."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.resources import dcgm
from broker.resources.gauge import SLICES, used_by_node
from broker.resources.nvidia_smi import MOST, parse_samples, parse_slices, use_of
from broker.resources.usage import CpuMeter, GpuUse, JobUse, Source, choose, slurm_use
from broker.runs.measured import MeasuredGpu
from broker.slurm import StepUsage

SAMPLES = Path(__file__).parents[1] / "samples/nvidia-smi"
NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def sample_of(name: str) -> str:
    return (SAMPLES / name).read_text(encoding="utf-8")


def gpu(source: Source, util: float | None, memory: float | None = None, **fields: Any) -> GpuUse:
    made = GpuUse("n1", "0", "GPU-0", False, util, memory, 80.0, None, None, source, NOW)
    return replace(made, **fields)


# nvidia-smi


def test_each_gpu_of_a_node_has_its_own_figures() -> None:
    samples = parse_samples(sample_of("two-gpus.csv"))
    found = use_of("n1", samples, [], samples[0].at, MINUTE)
    assert [(one.index, one.util, one.memory_used, one.memory_total) for one in found] == [
        ("0", 0.0, 20000.0, 24000.0),  # it holds memory and computes nothing: that is 0, and known
        ("1", 40.0, 15000.0, 24000.0),
    ]
    assert [(one.temperature_c, one.power_w) for one in found] == [(30.0, 20.5), (45.0, 120.25)]
    use = choose(found, 2)
    assert (use.gpu_util and use.gpu_util.value, use.gpu_memory_mib and use.gpu_memory_mib.value) == (
        20,
        35000,
    )


def test_units_and_what_is_not_available_are_understood() -> None:
    (sample,) = parse_samples(sample_of("units.csv"))
    assert (sample.util, sample.memory_used, sample.memory_total, sample.power_w) == (
        None,
        17000.0,
        140000.0,
        300.75,
    )
    assert sample.mig
    assert sample.at == datetime(2026, 4, 1, 8, 0, 7, 250000, tzinfo=UTC)


def test_of_slices_the_memory_is_known_and_the_utilisation_unknown_never_0() -> None:
    samples, slices = parse_samples(sample_of("slices.csv")), parse_slices(sample_of("slices.mig"))
    found = use_of("n1", samples, slices, samples[0].at, MINUTE)
    assert [(one.index, one.uuid[:8], one.slice) for one in found] == [
        ("0:4/0", "MIG-1111", True),  # slices 0 and 3 are another job's: CUDA_VISIBLE_DEVICES names 1 and 2
        ("0:5/0", "MIG-2222", True),
    ]
    assert {(one.util, one.memory_used, one.memory_total) for one in found} == {(None, 15.0, 20000.0)}
    use = choose(found, 2)
    assert use.gpu_util is None
    assert use.gpu_memory_mib is not None
    assert use.gpu_memory_mib.value == 30


def test_a_job_of_slices_has_no_part_in_the_whole_gpus_beside_them() -> None:
    """Where devices are not fenced, nvidia-smi shows a job what others have."""
    samples, slices = parse_samples(sample_of("slices.csv")), parse_slices(sample_of("slices.mig"))
    whole = replace(samples[-1], index="7", uuid="GPU-other", util=95.0, memory_used=7e4, mig=False)
    found = use_of("n1", [*samples, whole], slices, samples[0].at, MINUTE)
    assert [one.index for one in found] == ["0:4/0", "0:5/0"]
    unnamed = [replace(part, named=False) for part in slices]
    assert [one.index for one in use_of("n1", [*samples, whole], unnamed, whole.at, MINUTE)][-1] == "7"


def test_a_gpu_in_slices_whose_slices_were_not_seen_is_unknown() -> None:
    samples = parse_samples(sample_of("units.csv"))
    assert use_of("n1", samples, [], samples[0].at, MINUTE) == []


def test_compute_instances_of_one_gpu_instance_share_their_memory() -> None:
    text = sample_of("slices.mig").replace(">4</gpu_instance_id>", ">5</gpu_instance_id>")
    samples = parse_samples(sample_of("slices.csv"))
    use = choose(use_of("n1", samples, parse_slices(text), samples[0].at, MINUTE), 2)
    assert use.gpu_memory_mib is not None
    assert (len(use.gpus), use.gpu_memory_mib.value) == (2, 15)


def test_the_mean_over_the_last_lines_counts_and_an_old_file_tells_nothing() -> None:
    line = "2026/05/01 11:59:{:02}.000, 0, GPU-0, {}, 1, 100, 200, 40, 50.0, Disabled"
    text = "\n".join(line.format(second, util) for second, util in ((0, 90), (20, "[N/A]"), (40, 30)))
    (found,) = use_of("n1", parse_samples(text), [], NOW, MINUTE)
    assert (found.util, found.at) == (60.0, NOW - timedelta(seconds=20))
    assert use_of("n1", parse_samples(text), [], NOW + 5 * MINUTE, MINUTE) == []
    ahead = use_of("n1", parse_samples(text), [], NOW - MINUTE / 2, 2 * MINUTE)
    assert ahead[0].at == NOW - MINUTE / 2, "a node's clock may be ahead of ours"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Failed to initialize NVML: Driver/library version mismatch",
        "26/05/01 11:59:00.000, 0, GPU-0, 1, 1, 100, 200, 40, 50.0, Disabled",
        "2026/05/01 11:59:00.000, x, GPU-0, 1, 1, 100, 200, 40, 50.0, Disabled",
        "2026/05/01 11:59:00.000, ², GPU-0, 1, 1, 100, 200, 40, 50.0, Disabled",
        f"2026/05/01 11:59:00.000, {'9' * 5000}, GPU-0, 1, 1, 100, 200, 40, 50.0, Disabled",
        "2026/05/01 11:59:00.000, 0, GPU-0, 1, 1, 100, 200, 40, 50.0",
        '"2026/05/01 11:59:00.000, 0, GPU-0',
    ],
)
def test_a_line_that_is_none_costs_that_line(line: str) -> None:
    good = "2026/05/01 11:59:00.000, 0, GPU-0, 1, 1, 100, 200, 40, 50.0, Disabled"
    samples = parse_samples(f"{good}\n{line}\n{good}\n")
    assert [sample.util for sample in samples] == [1.0, 1.0]
    assert len(use_of("n1", samples, [], NOW, MINUTE)) == 1


def test_impossible_figures_are_unknown() -> None:
    line = "2026/05/01 11:59:00.000, 0, GPU-0, 4294967295, 1, [Unknown Error], nan, -3, 1e9, Disabled"
    (sample,) = parse_samples(line)
    assert (sample.util, sample.memory_used, sample.memory_total) == (None, None, None)
    assert (sample.temperature_c, sample.power_w) == (None, None)


@given(st.text(max_size=300))
def test_whatever_a_job_writes_nothing_breaks(text: str) -> None:
    parse_samples(text)
    for document in (text, f"# x\n{text}", f"# x\n<nvidia_smi_log>{text}"):
        try:
            parse_slices(document)
        except ValueError:
            continue


def test_what_a_job_writes_costs_neither_minutes_nor_gigabytes() -> None:
    began = time.process_time()
    unclosed = "# \n" + "GPU 0: " + "(UUID: GPU-" * (SLICES // 11)
    assert parse_slices(f"{unclosed}\n<nvidia_smi_log></nvidia_smi_log>") == []
    devices = "<mig_device></mig_device>" * (SLICES // 25)
    slices = parse_slices(f"# \n<nvidia_smi_log><gpu>{devices}</gpu></nvidia_smi_log>")
    lines = "\n".join(f"2026/05/01 12:00:00.000, {n}, , 1, 1, 1, 1, 1, 1, Enabled" for n in range(250))
    assert len(use_of("n1", parse_samples(lines), slices, NOW, MINUTE)) <= MOST
    assert time.process_time() - began < 20  # 1.4 s on a slow machine


def test_entities_are_not_expanded() -> None:
    bomb = '# \n<nvidia_smi_log><!DOCTYPE x [<!ENTITY a "aaaa">]><gpu><uuid>&a;</uuid></gpu></nvidia_smi_log>'
    with pytest.raises(ValueError, match="no list of slices"):
        parse_slices(bomb)


# Who is believed


def test_the_first_source_that_knows_all_gpus_is_believed() -> None:
    both = [gpu(Source.SAMPLER, 20.0, 5.0), gpu(Source.DCGM, 80.0)]
    use = choose(both, 1)
    assert use.gpu_util is not None and use.gpu_memory_mib is not None
    assert (use.gpu_util.value, use.gpu_util.source) == (80.0, Source.DCGM)
    assert (use.gpu_memory_mib.value, use.gpu_memory_mib.source) == (5.0, Source.SAMPLER)


def test_a_source_that_knows_more_of_the_gpus_comes_before_an_earlier_one() -> None:
    two = [gpu(Source.SAMPLER, 20.0), gpu(Source.SAMPLER, 40.0, index="1")]
    use = choose([gpu(Source.DCGM, 80.0), *two], 2)
    assert use.gpu_util is not None
    assert (use.gpu_util.value, use.gpu_util.source) == (30.0, Source.SAMPLER)


def test_what_slurm_gathers_is_one_figure_for_all_gpus_and_comes_last() -> None:
    steps = [StepUsage(1, "0", 5, 100.0, 280.0, 900.0), StepUsage(1, "batch", 1, 50.0, None, None)]
    memory, whole = slurm_use(NOW, steps, 4)
    assert memory is not None
    assert memory.value == 150.0
    use = choose(whole, 4)
    assert use.gpu_util is not None and use.gpu_memory_mib is not None
    assert (use.gpu_util.value, use.gpu_memory_mib.value, use.gpu_util.source) == (70.0, 900.0, Source.SLURM)
    assert slurm_use(NOW, steps, 0)[1] == []
    four = [gpu(Source.SAMPLER, 10.0, index=str(n)) for n in range(4)]
    chosen = choose([*whole, *four], 4).gpu_util
    assert chosen is not None
    assert chosen.source is Source.SAMPLER


def test_what_nobody_measured_is_unknown() -> None:
    assert choose([], 4) == JobUse()
    assert choose([gpu(Source.DCGM, None)], 1).gpu_util is None
    assert slurm_use(NOW, [StepUsage(1, "0", None, None, None, None)], 1) == (None, [])


def test_a_figure_is_as_old_as_its_oldest_part() -> None:
    use = choose([gpu(Source.DCGM, 1.0), gpu(Source.DCGM, 3.0, index="1", at=NOW - MINUTE)], 2)
    assert use.gpu_util is not None
    assert use.gpu_util.at == NOW - MINUTE


# CPU


def meter() -> CpuMeter:
    return CpuMeter(0, NOW - 10 * MINUTE)


def step(name: str, cpu_s: int | None) -> StepUsage:
    return StepUsage(1, name, cpu_s, None, None, None)


def cores(found: Any) -> float:
    return round(found.value, 3)


def test_cores_are_cpu_time_over_time_and_the_first_look_is_the_mean_since_the_start() -> None:
    mine = meter()
    first = mine.look(NOW, [step("batch", 600)])
    assert first is not None
    assert (cores(first), first.over_s) == (1.0, 600)
    second = mine.look(NOW + MINUTE, [step("batch", 840)])
    assert second is not None
    assert (cores(second), second.over_s) == (4.0, 60)


def test_a_step_that_begins_counts_from_0_and_one_that_ends_takes_nothing_away() -> None:
    mine = meter()
    mine.look(NOW, [step("batch", 600), step("0", 500)])
    assert cores(mine.look(NOW + MINUTE, [step("batch", 600), step("1", 120)])) == 2.0


def test_the_window_is_bounded() -> None:
    mine = meter()
    for n in range(20):
        found = mine.look(NOW + n * MINUTE, [step("batch", 600 + (60 * n if n < 10 else 600))])
    assert found is not None
    assert (cores(found), found.over_s <= 360) == (0.0, True)


def test_without_cpu_time_nothing_is_said() -> None:
    assert meter().look(NOW, [step("batch", None)]) is None
    assert meter().look(NOW, []) is None


# DCGM


def series(name: str, value: float, **labels: str) -> dict[str, Any]:
    return {"metric": {"__name__": name, "Hostname": "n1.example.org", **labels}, "value": [0, str(value)]}


def document(*result: dict[str, Any]) -> dict[str, Any]:
    return {"data": {"resultType": "vector", "result": list(result)}}


def test_dcgm_tells_the_gpus_of_each_job_by_its_label() -> None:
    found = dcgm.parse_jobs(
        document(
            series(dcgm.UTIL, 90, gpu="0", UUID="GPU-a", hpc_job="42"),
            series(dcgm.UTIL, 80, gpu="0", UUID="GPU-a", hpc_job="42", instance="another target"),
            series(dcgm.USED, 1000, gpu="0", UUID="GPU-a", hpc_job="42"),
            series(dcgm.FREE, 3000, gpu="0", UUID="GPU-a", hpc_job="42"),
            series(dcgm.UTIL, 10, gpu="1", UUID="GPU-b"),
            series(dcgm.UTIL, 55, gpu="2", UUID="GPU-c", hpc_job="43", GPU_I_ID="3"),
            series(dcgm.USED, 7, gpu="2", UUID="GPU-c", hpc_job="43", GPU_I_ID="3"),
        ),
        NOW,
    )
    assert found.keys() == {42, 43}
    (mine,) = found[42]
    assert (mine.node, mine.util, mine.memory_used, mine.memory_total) == ("n1", 90.0, 1000.0, 4000.0)
    (part,) = found[43]
    assert (part.util, part.memory_used, part.slice) == (None, 7.0, True)


def test_memory_series_do_not_count_as_utilisation_of_a_node() -> None:
    answer = document(
        series(dcgm.UTIL, 50, gpu="0", UUID="GPU-a"), series(dcgm.USED, 9e4, gpu="0", UUID="GPU-a")
    )
    assert dcgm.parse(answer) == {"n1": (0.5, 1)}


# Whole nodes, and what the warehouse takes


def test_a_nodes_gpus_count_as_far_as_their_jobs_measured_them() -> None:
    one = JobUse(gpus=(gpu(Source.SAMPLER, 50.0), gpu(Source.SAMPLER, None, index="1")))
    other = JobUse(gpus=(gpu(Source.SAMPLER, 100.0), gpu(Source.DCGM, 70.0, node="n2")))
    assert used_by_node([one, other, JobUse()]) == {"n1": (1.5, 2)}


@pytest.mark.parametrize(
    ("start", "end", "taken"),
    [(900, 2100, True), (900, None, True), (2001, 3000, False), (100, 999, False), (None, None, False)],
)
def test_a_mean_belongs_to_the_attempt_that_ran_then(start: int | None, end: int | None, taken: bool) -> None:
    assert (MeasuredGpu(37.5, 1000, 2000).of_attempt(start, end) == 37.5) is taken
