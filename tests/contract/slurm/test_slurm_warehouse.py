"""What the warehouse reads against what sacct 22.05, 24.11 and 26.05 printed (`record_warehouse.py`)."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest

from broker.accounting.windows import Cursor, too_wide
from broker.errors import SlurmRefused, Unreachable
from broker.hosts import Completed
from broker.slurm.sacct import Answer, JobRecord, Window
from tests.recordings import VERSIONS, facts, read


@dataclass(frozen=True)
class Recorded:
    """One release's answers; `facts`: ids by label, and what was asked of the jobs."""

    version: str
    facts: dict[str, Any]

    def read(self, name: str) -> tuple[Window, Completed]:
        command, done = read(f"warehouse/{name}", self.version)
        assert isinstance(command, Window)
        return command, done

    def answer(self, name: str = "window") -> Answer:
        command, done = self.read(name)
        return command.parse(done)

    def attempts(self, label: str, name: str = "window") -> list[JobRecord]:
        number = self.facts["ids"][label]
        found = [job for job in self.answer(name).jobs if number in {job.job_id, job.array_id}]
        return sorted(found, key=lambda job: (job.submit_at, job.job_id))

    def one(self, label: str) -> JobRecord:
        (job,) = self.attempts(label)
        return job


@pytest.fixture(params=VERSIONS)
def recorded(request: pytest.FixtureRequest) -> Recorded:
    return Recorded(request.param, facts(f"{request.param}/warehouse"))


# label -> state, exit code, signal
ENDS = {
    "memory": ("COMPLETED", 0, 0),
    "done": ("COMPLETED", 0, 0),
    "failed": ("FAILED", 3, 0),
    "timeout": ("TIMEOUT", 0, 0),
    "cancelled": ("CANCELLED", 0, 0),
    "cancelled_held": ("CANCELLED", 0, 0),
    "blocker": ("RUNNING", 0, 0),
}


def test_every_row_is_understood_and_tells_how_its_job_ended(recorded: Recorded) -> None:
    answer = recorded.answer()
    assert answer.bad_rows == ()
    assert len({(job.job_id, job.submit_at) for job in answer.jobs}) == len(answer.jobs) == 20
    found = {label: recorded.one(label) for label in ENDS}
    assert {label: (job.state, job.exit_code, job.signal) for label, job in found.items()} == ENDS
    assert found["cancelled"].cancelled_by == 2000
    assert recorded.answer("before").jobs == ()
    assert len(recorded.answer("by_id").jobs) >= 20


def test_a_name_with_bars_and_lines_is_its_jobs_alone(recorded: Recorded) -> None:
    assert recorded.one("done").name == recorded.facts["name"]
    assert [job.name for job in recorded.answer().jobs].count(recorded.facts["name"]) == 1


def test_memory_is_bytes_and_300_mib_are_300_mib(recorded: Recorded) -> None:
    job = recorded.one("memory")
    assert job.max_rss_mib is not None
    assert 0 <= job.max_rss_mib - recorded.facts["memory_mib"] < 20, "the interpreter's own"
    assert (job.mem_in_tot_mib, job.mem_mib) == (job.max_rss_mib, 1024)


def test_what_ended_before_the_first_sample_has_no_memory_and_not_none_used(recorded: Recorded) -> None:
    for label in ("done", "failed"):
        job = recorded.one(label)
        assert (job.max_rss_mib, job.mem_in_tot_mib, job.energy_j, job.gpu_util) == (None, None, None, None)


def test_cpu_time_is_that_of_the_steps_and_partial_where_the_end_came_from_outside(
    recorded: Recorded,
) -> None:
    steps = recorded.one("steps")
    assert steps.total_cpu_s == 1
    names = [step["JobIDRaw"].partition(".")[2] for step in json.loads(steps.raw)["steps"]]
    assert names == ["batch", "0", "1"]
    assert not steps.cpu_partial
    assert recorded.one("timeout").cpu_partial and recorded.one("cancelled").cpu_partial


def test_both_attempts_of_a_requeued_job_are_there_with_steps_of_their_own(recorded: Recorded) -> None:
    first, second = recorded.attempts("requeued")
    assert (first.state, second.state) == ("REQUEUED", "RUNNING")
    assert first.start_at and first.end_at and second.start_at and second.end_at is None
    assert first.elapsed_s == first.end_at - first.start_at
    assert first.submit_at < second.submit_at < second.start_at
    assert [len(json.loads(one.raw)["steps"]) for one in (first, second)] == [1, 1]


def test_suspended_time_is_not_elapsed(recorded: Recorded) -> None:
    job = recorded.one("suspended")
    assert job.start_at and job.end_at
    assert 4 <= job.end_at - job.start_at - job.elapsed_s <= 8


def test_elements_of_arrays_are_counted_whether_they_ran_or_wait(recorded: Recorded) -> None:
    ran = recorded.attempts("array")
    assert sorted(job.array_task or "" for job in ran) == ["0", "1", "2", "3"]
    assert Counter(job.state for job in ran) == {"COMPLETED": 4}
    (waiting,) = recorded.attempts("waiting_array")
    assert (waiting.state, waiting.tasks, waiting.start_at) == ("PENDING", 10, None)


def test_gpus_are_counted_once_and_parts_of_a_heterogeneous_job_apart(recorded: Recorded) -> None:
    job = recorded.one("gpus")
    assert (job.gpu_count, job.gpu_type, job.cpus, job.billing, job.mem_mib) == (2, "a100", 4, 4, 100)
    assert (recorded.one("blocker").cpus, recorded.one("blocker").gpu_count) == (32, 4), "an exclusive node"
    first = recorded.one("het")
    other = next(job for job in recorded.answer().jobs if job.job_id == first.job_id + 1)
    assert (first.gpu_count, other.gpu_count, other.gpu_type) == (0, 1, "v100")
    assert (first.billing, other.billing) == (1, 1)
    assert (first.array_id, other.array_id) == (None, None)


def test_what_jobstats_left_is_read_back(recorded: Recorded) -> None:
    """22.05 takes an AdminComment from sacctmgr without a complaint, and forgets it."""
    job = recorded.one("gpus")
    wanted = (None, None) if recorded.version.startswith("22.05") else (70.25, "jobstats")
    assert (job.gpu_util, job.gpu_util_by) == wanted
    assert recorded.one("failed").gpu_util is None, "`JS1:Short` says nothing"


def test_a_job_cancelled_while_held_never_ran(recorded: Recorded) -> None:
    job = recorded.one("cancelled_held")
    assert (job.start_at, job.eligible_at, job.elapsed_s, job.gpu_count) == (None, None, 0, 0)
    assert job.end_at is not None


def test_a_range_that_slurmdbd_refuses_is_asked_for_in_halves(recorded: Recorded) -> None:
    with pytest.raises(SlurmRefused) as refusal:
        recorded.answer("too_wide")
    narrower = too_wide(Cursor(0, 0, window_s=4 * 86_400), refusal.value)
    assert narrower is not None
    assert narrower.window_s == 2 * 86_400
    assert len(recorded.answer("as_operator_too_wide").jobs) == 20, "Operators are not held to it"


def test_no_database_is_no_answer(recorded: Recorded) -> None:
    with pytest.raises(Unreachable):
        recorded.answer("no_database")
