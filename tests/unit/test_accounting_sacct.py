"""Reading sacct for the warehouse: each trap of accounting that lies in what is asked for, or in a row."""

from __future__ import annotations

import base64
import gzip
import json

import pytest

from broker.errors import BrokerError, Unreachable
from broker.hosts import Completed
from broker.slurm.gpu_use import GpuSource
from broker.slurm.sacct import JobRecord, Window, count_tasks, cpu_seconds
from broker.slurm.versions import Version
from tests.accounting_support import FIELDS, NOON, Row, answer, job, printed, step

NEW, OLD = Version(24, 11, 5), Version(22, 5, 8)


def one(*rows: Row) -> JobRecord:
    (record,) = answer(*rows).jobs
    return record


def test_all_attempts_are_asked_for_unclipped_with_steps_and_unrounded() -> None:
    words = Window(FIELDS, NEW, NOON, NOON + 3600).args()
    assert {"-D", "-a", "-P", "-n", "--noconvert", "--array"} <= set(words)
    assert not {"-X", "--allocations", "-T", "--truncate"} & set(words)
    assert words[words.index("-S") + 1] == "2026-11-10T12:00:00"
    assert words[words.index("-E") + 1] == "2026-11-10T13:00:00"
    assert "CA" in words[words.index("-s") + 1].split(",")


def test_22_05_has_no_option_array_and_is_told_not_to_shorten_what_waits() -> None:
    command = Window(FIELDS, OLD, NOON, NOON + 3600)
    assert "--array" not in command.args()
    assert "SLURM_BITSTR_LEN=0" in command.argv()[: command.argv().index("sacct")]


def test_time_zone_and_form_of_times_are_set_on_every_call() -> None:
    before = Window(FIELDS, NEW, NOON, NOON + 1).argv("/opt/slurm/bin")
    before = before[: before.index("sacct")]
    assert {"TZ=UTC", "SLURM_TIME_FORMAT=%s", "PATH=/opt/slurm/bin"} <= set(before)


@pytest.mark.parametrize("word", ["Unknown", "None", "N/A", ""])
def test_a_time_that_is_none_is_none(word: str) -> None:
    record = one(job(7, run=None, Start=word, End=word, State="PENDING"))
    assert (record.start_at, record.end_at, record.submit_at) == (None, None, NOON)


def test_each_attempt_of_a_requeued_job_is_one_with_its_own_steps() -> None:
    first = job(7, run=100, State="REQUEUED")
    second = job(7, submit=NOON + 500, run=200)
    records = answer(
        first, step(first, TotalCPU="00:10"), second, step(second, TotalCPU="00:20", MaxRSS="1048576")
    ).jobs
    assert [(r.submit_at - NOON, r.elapsed_s, r.total_cpu_s) for r in records] == [
        (0, 100, 10),
        (500, 200, 20),
    ]
    assert [r.start_at for r in records] == [NOON + 60, NOON + 560]
    assert [r.max_rss_mib for r in records] == [None, 1]


def test_use_comes_from_the_steps_and_identity_from_the_job() -> None:
    row = job(7, TotalCPU="00:00:00")
    record = one(
        row,
        step(row, "batch", MaxRSS="2097152", TotalCPU="01:00.500", TRESUsageInTot="cpu=00:01:00,mem=4194304"),
        step(row, "extern", MaxRSS="1024", TotalCPU="00:00:00", TRESUsageInTot="mem=1024"),
        step(row, "0", MaxRSS="3145728", TotalCPU="02:00", TRESUsageInTot="cpu=00:02:00,mem=10485760"),
    )
    assert (record.unix_user, record.qos, record.partition) == ("kim", "training", "gpu")
    assert (record.total_cpu_s, record.max_rss_mib, record.mem_in_tot_mib) == (180, 3, 10)


def test_memory_that_nobody_measured_is_no_data_and_not_nothing() -> None:
    row = job(7)
    record = one(row, step(row, MaxRSS="", TRESUsageInTot="", TotalCPU="00:01"))
    assert (record.max_rss_mib, record.mem_in_tot_mib, record.total_cpu_s) == (None, None, 1)
    assert one(job(8, TotalCPU="00:00:00")).total_cpu_s is None


@pytest.mark.parametrize("state", ["TIMEOUT", "CANCELLED by 1000", "OUT_OF_MEMORY", "NODE_FAIL", "PREEMPTED"])
def test_cpu_time_of_a_job_that_was_ended_is_known_to_be_partial(state: str) -> None:
    row = job(7, State=state)
    assert one(row, step(row, TotalCPU="00:01")).cpu_partial
    assert not one(job(7)).cpu_partial


def test_cpu_time_of_a_job_that_outlived_a_killed_step_is_partial_too() -> None:
    row = job(7)
    killed = step(row, "0", TotalCPU="00:01", State="CANCELLED by 1000")
    assert one(row, step(row, TotalCPU="00:02"), killed).cpu_partial
    assert not one(row, step(row, "0", TotalCPU="00:01", State="FAILED")).cpu_partial


def test_elements_that_wait_together_are_counted_one_by_one() -> None:
    waiting = job(7, run=None, State="PENDING", Start="Unknown", JobID="7_[8-5000]")
    assert one(waiting).tasks == 4993
    rows = [waiting | {"JobID": f"7_{task}"} for task in range(8, 28)]
    assert one(*rows).tasks == 20
    ran = answer(job(8, JobID="7_8"), job(7, JobID="7_5000")).jobs
    assert [(r.job_id, r.array_id, r.array_task, r.tasks) for r in ran] == [(8, 7, "8", 1), (7, 7, "5000", 1)]


@pytest.mark.parametrize(
    ("expression", "count"), [("[0-9:3]", 4), ("[1,3-4%2]", 3), ("17", 1), ("", 1), ("[1,...]", 1)]
)
def test_an_expression_of_elements_is_counted(expression: str, count: int) -> None:
    assert count_tasks(expression) == count


@pytest.mark.parametrize(
    ("tres", "gpus", "kind", "kinds"),
    [
        ("cpu=4,gres/gpu:a100=4,gres/gpu=4", 4, "a100", ""),
        ("cpu=4,gres/gpu=4", 4, "", ""),
        ("gres/gpu:nvidia_a100_1g.5gb=2,gres/gpu=2", 2, "nvidia_a100_1g.5gb", ""),
        ("gres/gpu:a100=1,gres/gpu:v100=2,gres/gpu=3", 3, "v100", "a100=1,v100=2"),
        ("gres/gpu:v100=1,gres/gpu:a100=1,gres/gpu=2", 2, "a100", "a100=1,v100=1"),
        ("gres/gpu:a100=2,gres/gpu=3", 3, "a100", "=1,a100=2"),
        ("gres/gpu:a100=2,gres/gpu:v100=2,gres/gpu=3", 3, "mixed", ""),
        ("gres/gpu:a100=2,gres/gpu:v100=1", 3, "a100", "a100=2,v100=1"),
        ("gres:gpu:(null):4", 4, "", ""),
        ("gres:gpu:a100:2(IDX:0,3),cpu=8", 2, "a100", ""),
        ("cpu=4", 0, "", ""),
    ],
)
def test_gpus_are_counted_once_however_they_are_written(tres: str, gpus: int, kind: str, kinds: str) -> None:
    record = one(job(7, AllocTRES=tres, ReqTRES="cpu=1,gres/gpu=64"))
    assert (record.gpu_count, record.gpu_type, record.gpu_types) == (gpus, kind, kinds)


def test_a_bad_row_costs_one_row_and_a_name_forges_none() -> None:
    broken, forging = job(8, Submit="garbage"), job(9, JobName="a|b\n10|10|root\nCOMPLETED\x1f1")
    found = answer(job(7), broken, forging, job(11))
    assert [r.job_id for r in found.jobs] == [7, 9, 11]
    assert found.jobs[1].name == "a|b\n10|10|root\nCOMPLETED\x1f1"
    assert len(found.bad_rows) == 1


def test_a_step_without_its_job_costs_itself() -> None:
    found = answer(step(job(6)), job(7))
    assert ([r.job_id for r in found.jobs], len(found.bad_rows)) == ([7], 1)


def test_the_state_is_the_first_word() -> None:
    record = one(job(7, State="CANCELLED by 1234"))
    assert (record.state, record.cancelled_by) == ("CANCELLED", 1234)
    assert one(job(7, State="SOMETHING_NEW")).state == "UNKNOWN"


def test_a_job_cancelled_before_it_began_has_no_start() -> None:
    record = one(job(7, run=0, State="CANCELLED by 0", NodeList="None assigned", AllocTRES=""))
    assert (record.start_at, record.end_at) == (None, NOON + 60)


def test_what_sacct_said_is_kept_word_by_word_where_it_said_anything() -> None:
    row = job(7, JobName='학습 "β" \\ \x01\t🚀\n{}', AdminComment="")
    raw = json.loads(one(row, step(row, TotalCPU="00:01", MaxRSS="")).raw)
    (kept,) = raw.pop("steps")
    assert raw == {name: value for name, value in row.items() if value}
    assert kept == {
        "JobIDRaw": "7.batch",
        "State": "COMPLETED",
        "ExitCode": "0:0",
        "ElapsedRaw": "3600",
        "TotalCPU": "00:01",
        "ConsumedEnergyRaw": "0",
    }


def test_energy_that_cannot_be_is_no_data() -> None:
    assert one(job(7, ConsumedEnergyRaw="3600000")).energy_j == 3_600_000
    assert one(job(7, ConsumedEnergyRaw="18446744073709551610")).energy_j is None
    assert one(job(7, ConsumedEnergyRaw="0")).energy_j is None


def test_several_partitions_of_one_request_are_one_job() -> None:
    (record,) = answer(job(7, run=None, State="PENDING", Partition="a,b")).jobs
    assert (record.partition, record.tasks) == ("a,b", 1)


BROKEN: tuple[object, ...] = (7, [], {"nodes": 3}, {"nodes": {"n": []}}, {"nodes": {"n": {}}})


DAMAGED = (
    gzip.compress(b"", mtime=0)[:10] + b"\xff" * 20,
    gzip.compress(b"[" * 100_000, mtime=0),
    gzip.compress(b"{}", mtime=0)[:12],
)


def packed(stats: object) -> str:
    return "JS1:" + base64.b64encode(gzip.compress(json.dumps(stats).encode(), mtime=0)).decode()


def test_gpu_use_is_read_from_jobstats_and_else_from_slurm() -> None:
    stats = {"nodes": {"n1": {"gpu_utilization": {"0": 90, "1": 50}}, "n2": {"gpu_utilization": {"0": 10}}}}
    row = job(7, AdminComment=packed(stats))
    busy = step(row, TRESUsageInTot="cpu=00:00:01,gres/gpumem=1,gres/gpuutil=170,mem=1048576")
    found = one(row, busy)
    assert (found.gpu_util, found.gpu_util_by) == (50, GpuSource.JOBSTATS)
    found = one(job(7), busy)
    assert (found.gpu_util, found.gpu_util_by) == (85, GpuSource.SLURM), "of two GPUs"


@pytest.mark.parametrize(
    "comment",
    ["JS1:None", "JS1:Short", "JS1:====", "JS1:" + base64.b64encode(b"not compressed").decode()]
    + [packed(stats) for stats in BROKEN]
    + [packed({"nodes": {"n": {"gpu_utilization": {"0": value}}}}) for value in ("x", None, 1e9, -1, 10**400)]
    + ["JS1:" + base64.b64encode(data).decode() for data in DAMAGED]
    + ["by hand: 100 %", ""],
)
def test_gpu_use_that_nobody_measured_is_unknown_and_never_0(comment: str) -> None:
    row = job(7, AdminComment=comment)
    found = one(row, step(row, TRESUsageInTot="cpu=00:00:00,gres/gpuutil=0,mem=0"))
    assert (found.gpu_util, found.gpu_util_by) == (None, None), "a step that ended before it was looked at"
    found = one(row, step(row, TRESUsageInTot="gres/gpuutil=0,mem=1048576"))
    assert (found.gpu_util, found.gpu_util_by) == (0, GpuSource.SLURM), "seen, and idle"


def test_memory_of_a_step_that_ended_before_it_was_looked_at_is_no_data() -> None:
    row = job(7)
    found = one(row, step(row, MaxRSS="0", TRESUsageInTot="cpu=00:00:00,energy=0,mem=0,vmem=0"))
    assert (found.max_rss_mib, found.mem_in_tot_mib) == (None, None)


def test_fewer_elements_that_wait_together_are_a_change() -> None:
    waiting = job(7, run=None, State="PENDING", Start="Unknown")
    rows = [waiting | {"JobID": f"7_{task}"} for task in range(8, 28)]
    assert one(*rows).digest != one(*rows[:-1]).digest


def test_part_of_an_answer_is_no_answer() -> None:
    command = Window(FIELDS, NEW, NOON, NOON + 1)
    some = printed([job(7)], command.delimiter).encode()
    with pytest.raises(Unreachable):
        command.parse(Completed(0, some, b"sacct: error: slurm_persist_conn_open: failed to connect\n"))
    with pytest.raises(BrokerError, match="Too wide of a date range"):
        command.parse(Completed(1, b"", b"sacct: error: Too wide of a date range in query\n"))


def test_cpu_time_has_days_and_fractions() -> None:
    assert cpu_seconds("1-02:03:04") == 93_784
    assert cpu_seconds("03:04.500") == 184.5
    assert cpu_seconds("INVALID") is None
