"""Slurm's values as text: states, TRES, node lists, times, tables. Nothing here may raise on garbage."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.hosts import Completed
from broker.slurm import SlurmState, parse_quantity, parse_state, parse_tres
from broker.slurm.cluster import Nodes, Partitions, ReadConfig
from broker.slurm.nodelist import expand
from broker.slurm.queue import Accounting, AccountingJob, Queue, latest
from broker.slurm.text import duration_s, fresh_delimiter, key_values, moment, table
from broker.slurm.usage import RunningUsage, StepUsage
from broker.slurm.versions import OPTIONAL_FIELDS, REQUIRED_FIELDS, accounting_fields, parse_version

anything = st.text(st.characters(codec="utf-8"), max_size=300)
slurmish = st.text("[](),-:=+./*%|\x1f\n 0123456789abgpuresnodemK", max_size=80)


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("RUNNING", SlurmState.RUNNING),
        ("CANCELLED by 1000", SlurmState.CANCELLED),
        ("CANCELLED+", SlurmState.CANCELLED),
        ("OUT_OF_MEMORY", SlurmState.OUT_OF_MEMORY),
        ("OOM", SlurmState.OUT_OF_MEMORY),
        ("DL", SlurmState.DEADLINE),
        ("", SlurmState.UNKNOWN),
        ("SOMETHING_NEW", SlurmState.UNKNOWN),
    ],
)
def test_a_state_is_read_however_it_is_written(text: str, state: SlurmState) -> None:
    assert parse_state(text) is state


def test_every_state_is_active_or_finished_and_unknown_is_neither() -> None:
    for state in SlurmState:
        assert state.active + state.finished == (state is not SlurmState.UNKNOWN), state
        assert not (state.pending and state.finished), state


def test_only_completed_succeeded() -> None:
    assert [state for state in SlurmState if state.succeeded] == [SlurmState.COMPLETED]


def test_a_flag_that_hides_the_outcome_is_never_final() -> None:
    assert SlurmState.COMPLETING.active
    assert SlurmState.REQUEUED.active
    assert SlurmState.REQUEUE_HOLD.pending


@pytest.mark.parametrize(
    "text",
    [
        "billing=4,cpu=4,gres/gpu:a100=2,gres/gpu=2,mem=8G,node=1",
        "cpu=4,mem=8192M,node=1,billing=4,gres/gpu:a100=2",
        "CPU=4,mem=8388608K,node=1,billing=4,gres/gpu=2,gres/gpu:a100=2,",
    ],
)
def test_the_same_resources_are_read_from_each_dialect(text: str) -> None:
    tres = parse_tres(text)
    assert (tres.cpus, tres.memory_mib, tres.nodes, tres.billing, tres.gpus) == (4, 8192, 1, 4, 2)
    assert tres.gpu_types == {"a100": 2}


@pytest.mark.parametrize(
    ("text", "gpus", "types"),
    [
        ("gres:gpu:2", 2, {}),
        ("gres/gpu:2", 2, {}),
        ("gres/gpu:a100:2", 2, {"a100": 2}),
        ("gpu:a100:4(S:0-1)", 4, {"a100": 4}),
        ("gpu:a100:3(IDX:0-1,3)", 3, {"a100": 3}),
        ("gpu:a100:0(IDX:N/A)", 0, {"a100": 0}),
        ("gpu:a100:2(S:0),gpu:v100:1(S:1)", 3, {"a100": 2, "v100": 1}),
        ("gres/gpu", 1, {}),
        ("(null)", 0, {}),
        ("N/A", 0, {}),
        ("", 0, {}),
    ],
)
def test_gpus_are_counted_in_what_squeue_and_sinfo_print(text: str, gpus: int, types: dict[str, int]) -> None:
    assert parse_tres(text).gpus == gpus
    assert parse_tres(text).gpu_types == types


def test_memory_units_are_powers_of_1024_and_a_bare_number_is_mebibytes() -> None:
    assert parse_tres("mem=1.50T").memory_mib == 1536 * 1024
    assert parse_tres("mem=500").memory_mib == 500
    assert parse_quantity("2G") == 2**31
    with pytest.raises(ValueError, match="quantity"):
        parse_quantity("much")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a100-[1-4]", ("a100-1", "a100-2", "a100-3", "a100-4")),
        ("a100-1,v100-[01,03-04]", ("a100-1", "v100-01", "v100-03", "v100-04")),
        ("r[1-2]n[08-10]", ("r1n08", "r1n09", "r1n10", "r2n08", "r2n09", "r2n10")),
        ("login", ("login",)),
        ("None assigned", ()),
        ("(null)", ()),
        ("", ()),
        ("broken[1-", ("broken[1-",)),
        ("huge[1-999999999]", ("huge[1-999999999]",)),
        ("backwards[4-1]", ("backwards[4-1]",)),
    ],
)
def test_host_lists_expand_and_what_is_none_stands_for_itself(text: str, names: tuple[str, ...]) -> None:
    assert expand(text) == names


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1-02:03:04", 93784),
        ("02:03:04", 7384),
        ("03:04", 184),
        ("365-00:00:00", 31536000),
        ("UNLIMITED", None),
        ("Partition_Limit", None),
        ("", None),
    ],
)
def test_durations_are_seconds_and_no_limit_is_none(text: str, seconds: int | None) -> None:
    assert duration_s(text) == seconds


def test_times_are_utc_and_unknown_is_none() -> None:
    assert moment("1795248041") == datetime(2026, 11, 21, 8, 0, 41, tzinfo=UTC)
    assert [moment(text) for text in ("N/A", "Unknown", "None", "", "0")] == [None] * 5


@pytest.mark.parametrize(
    ("printed", "read"),
    [
        ("bad fan [root@1795296585]", "bad fan [root@2026-11-21T21:29:45Z]"),
        ("bad fan [root@2026-11-21T21:29:45]", "bad fan [root@2026-11-21T21:29:45]"),
        ("ticket [a@1795296585] open", "ticket [a@1795296585] open"),
    ],
)
def test_when_a_reason_was_set_is_written_as_a_time(printed: str, read: str) -> None:
    """Slurm appends seconds since 1970 where `SLURM_TIME_FORMAT` is `%s`; what people wrote stays."""
    line = f"NodeName=n1 State=IDLE+DRAIN CfgTRES=cpu=4 AllocTRES= Reason={printed}"
    (nodes, bad) = Nodes().parse(Completed(0, line.encode(), b""))
    assert [node.reason for node in nodes] == [read] and not bad


def test_a_reason_with_equal_signs_forges_no_field() -> None:
    row = key_values(
        "NodeName=n1 State=IDLE+DRAIN Reason=bad fan x=y State=IDLE Foo=1 [root@now]",
        ["NodeName", "State", "Reason"],
    )
    assert row == {
        "NodeName": "n1",
        "State": "IDLE+DRAIN",
        "Reason": "bad fan x=y State=IDLE Foo=1 [root@now]",
    }


def test_delimiters_differ_from_call_to_call_and_a_command_keeps_its_own() -> None:
    assert len({fresh_delimiter() for _ in range(50)}) > 40
    command = Queue()
    assert command.argv() == command.argv()
    assert "%" not in command.delimiter
    assert "," not in command.delimiter


def test_a_name_with_newlines_and_forged_columns_stays_one_name() -> None:
    name = "x\n2\x1fCOMPLETED\x1fme\n"
    rows, bad = table(f"1\x1fabcd{name}\n2\x1fabcdother\n", "\x1fabcd", 2, tuple)
    assert rows == [("1", name), ("2", "other")]
    assert bad == []


def test_a_bad_row_costs_one_row() -> None:
    def row(fields: object) -> int:
        return int(fields[0])  # type: ignore[index]

    rows, bad = table("1|a\nx|b\n3|c|d\n4|e\n", "|", 2, row)
    assert rows == [1, 4]
    assert bad == ["3|c|d", "x|b"]


def test_only_fields_that_this_sacct_has_are_asked_for() -> None:
    fields = accounting_fields(["JobID", "Restarts"])
    assert fields == (*REQUIRED_FIELDS, "Restarts", "JobName")
    assert set(accounting_fields([])) & set(OPTIONAL_FIELDS) == set()


def test_versions_are_compared_by_number() -> None:
    assert parse_version("slurm-wlm 22.05.8") == (22, 5, 8)
    assert str(parse_version("slurm 24.11.5")) == "24.11.5"
    assert parse_version("slurm 26.05.0-0rc1") == (26, 5, 0)
    assert parse_version("no release") is None


def _attempt(job_id: int, submit: int, state: SlurmState) -> AccountingJob:
    fields = accounting_fields([])
    row = dict.fromkeys(fields, "")
    row |= {
        "JobIDRaw": str(job_id),
        "JobID": str(job_id),
        "State": state,
        "Submit": str(submit),
        "ExitCode": "0:0",
    }
    command = Accounting(fields, ids=(job_id,))
    text = command.delimiter.join(row[name] for name in fields) + "\n"
    (job,), bad = command.parse(Completed(0, text.encode(), b""))
    assert not bad
    return job


def test_the_last_attempt_counts_and_an_older_job_with_a_recycled_id_does_not() -> None:
    now = 1_795_248_041
    recycled = _attempt(7, now - 86_400, SlurmState.COMPLETED)
    first, second = _attempt(8, now, SlurmState.REQUEUED), _attempt(8, now + 60, SlurmState.RUNNING)
    found = latest([second, recycled, first], since=datetime.fromtimestamp(now, UTC))
    assert [(job.job_id, job.state) for job in found] == [(8, SlurmState.RUNNING)]
    assert [job.state for job in latest([recycled])] == [SlurmState.COMPLETED]


@given(anything | slurmish)
def test_no_text_breaks_a_value(text: str) -> None:
    parse_state(text)
    parse_tres(text)
    expand(text)
    parse_version(text)
    key_values(text)


@given(st.lists(anything | slurmish, max_size=8), st.integers(0, 2))
def test_no_answer_breaks_a_table_and_nothing_is_lost_silently(parts: list[str], rc: int) -> None:
    queue, accounting = Queue(), Accounting(accounting_fields(["Restarts"]), ids=(1,))
    for command in (queue, accounting):
        text = command.delimiter.join(parts) + "\n"
        jobs, bad = command.parse(Completed(0, text.encode(), b""))  # type: ignore[attr-defined]
        assert jobs or bad or not text.strip("\n")
    nodes, bad = Nodes().parse(Completed(0, "\n".join(parts).encode(), b""))
    assert all(node.name is not None for node in nodes)
    Partitions().parse(Completed(0, "\n".join(parts).encode(), b""))
    ReadConfig().parse(Completed(0, b"ClusterName = c\n" + "\n".join(parts).encode(), b""))


def test_a_step_that_sstat_has_not_sampled_yet_is_unknown_not_idle() -> None:
    zero = b"nonsense\n7.0|1|00:00:00|0|cpu=00:00:00,mem=0,gres/gpuutil=0\n"
    busy = b"7.batch|2|1-00:00:01|1048576|cpu=1-00:00:02,mem=2097152,gres/gpuutil=150,gres/gpumem=1048576\n"
    bare = b"8.extern|2|00:00:03|1048576|\n"
    steps, bad = RunningUsage((7, 8)).parse(Completed(0, zero + busy + bare, b"sstat: error: x"))
    assert bad == ("nonsense",)
    assert steps == (
        StepUsage(7, "0", None, None, None, None),
        StepUsage(7, "batch", 86402, 2.0, 150, 1.0),
        StepUsage(8, "extern", 6, 2.0, None, None),
    )


def test_a_job_whose_steps_sstat_could_not_tell_in_time_is_unknown_not_small() -> None:
    """Jobs come one after the other, each with its steps: the limit cut the last one, or came after it."""
    told = b"".join(
        b"%d.%s|1|00:00:03|1048576|cpu=00:00:03,mem=1048576\n" % one
        for one in ((7, b"batch"), (7, b"0"), (8, b"batch"))
    )
    whole, _ = RunningUsage((7, 8)).parse(Completed(0, told, b""))
    assert [(one.job_id, one.step) for one in whole] == [(7, "batch"), (7, "0"), (8, "batch")]
    cut, _ = RunningUsage((7, 8)).parse(Completed(124, told, b""))
    assert [(one.job_id, one.step) for one in cut] == [(7, "batch"), (7, "0")]
