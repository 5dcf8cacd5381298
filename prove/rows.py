"""The rows of the proof: what is shown, how much is asked for, and the function that shows it.

A row's function returns what was measured, as a sentence, and raises `AssertionError` when it does not hold;
where the figure itself is what is asked for, it returns `Measured` with the verdict.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prove import accounting, fairness
from tests.harness import faults, timing
from tests.harness.cluster import ROOT, Cluster
from tests.harness.kills import Campaign
from tests.harness.large import assert_large_output_arrives
from tests.harness.long_logs import watch_long_log_of_a_run
from tests.harness.product import Broker
from tests.postgres import fresh_database, server


@dataclass(frozen=True, slots=True)
class Measured:
    """A figure, and whether it is what was asked for."""

    text: str
    holds: bool = True


@dataclass
class Stage:
    """Where the rows are shown: a cluster, a folder for brokers' data, and the seed of all chance."""

    cluster: Cluster
    home: Path
    seed: int
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def broker(self, **options: Any) -> Iterator[Broker]:
        """A fresh broker."""
        with Broker(Path(tempfile.mkdtemp(dir=self.home)), self.cluster, **options) as broker:
            yield broker


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    name: str
    what: str
    target: str
    show: Callable[[Stage], Measured]


COLD_LIMIT_S, WARM_LIMIT_S = 600, 90


def demo(stage: Stage) -> Measured:
    """`make demo` in a fresh clone with an empty home: cold, then warm."""
    with tempfile.TemporaryDirectory(prefix="fresh-machine-") as folder:
        clone, home = Path(folder, "repository"), Path(folder, "home")
        home.mkdir()
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "BROKER_"))}
        env = {**kept, "HOME": str(home), "SLURM_DEV_HOME": str(home / "slurm-dev")}
        env.pop("VIRTUAL_ENV", None)
        try:
            cold, shown = _timed_demo(clone, env)
            subprocess.run(["demo/down"], cwd=clone, env=env, check=True, capture_output=True)
            warm, _ = _timed_demo(clone, env)
        finally:
            subprocess.run(["demo/down"], cwd=clone, env=env, check=False, capture_output=True)
            down = ["slurm-dev/cluster", "down", "--name", "demo", "--purge"]
            subprocess.run(down, cwd=clone, env=env, check=False, capture_output=True)
    models = len(re.findall(r"\bREADY\b", shown))
    text = f"cold {cold:.0f} s, warm {warm:.0f} s; it ends by listing {models} stored models"
    return Measured(text, cold <= COLD_LIMIT_S and warm <= WARM_LIMIT_S and models >= 2)


def _timed_demo(clone: Path, env: dict[str, str]) -> tuple[float, str]:
    began = time.monotonic()
    done = subprocess.run(["make", "demo"], cwd=clone, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"make demo: {done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return time.monotonic() - began, done.stdout


def submit_ratio(stage: Stage) -> Measured:
    """The broker's whole cost of a submission against the same calls typed into ssh."""
    with stage.broker(cluster_settings=timing.CALM) as broker:
        ratio = timing.submission_ratio(broker)
    return Measured(str(ratio), ratio.median <= 2)


def thousand(stage: Stage) -> Measured:
    """A gate, a thousand components, one join."""
    with stage.broker(cluster_settings=timing.CALM) as broker:
        graph = timing.graph_rate(broker)
    return Measured(str(graph), graph.ratio >= 0.6)


def reads(stage: Stage) -> Measured:
    """Fifty readers of a live run."""
    with stage.broker() as broker:
        paced, closed = timing.reads_of_a_live_run(broker)
    limits = stage.cluster.exec("bash", "-c", "/usr/sbin/sshd -T -f /etc/ssh/sshd_config 2>/dev/null || true")
    sessions = re.search(r"^maxsessions (\d+)$", limits, re.MULTILINE)
    assert sessions is None or sessions[1] == "10", "sshd's MaxSessions is not the default"
    text = f"{paced}; closed loop: {closed}"
    return Measured(text, paced.p50_ms < 10 and paced.errors == 0)


def kills(stage: Stage) -> Measured:
    """Fifty kills: of worker and API on SQLite, of both on PostgreSQL, of the leader of `broker up`."""
    told = []
    with stage.broker() as broker:
        told.append(f"SQLite: {_campaign(broker, stage.seed, 20)}")
    with server() as url, stage.broker(database_url=fresh_database(url, "prove")) as broker:
        told.append(f"PostgreSQL: {_campaign(broker, stage.seed + 1, 12)}")
    with stage.broker(together=True) as broker:
        told.append(f"`broker up`, everything dies at once: {_campaign(broker, stage.seed + 2, 18)}")
    return Measured("; ".join(told))


def _campaign(broker: Broker, seed: int, count: int) -> str:
    campaign = Campaign(broker, seed)
    for _ in range(count):
        campaign.strike()
    return campaign.settle(600)


def fault(make: Callable[[Broker, float], str], seconds: float) -> Callable[[Stage], Measured]:
    """A row that makes one fault."""

    def show(stage: Stage) -> Measured:
        with stage.broker() as broker:
            return Measured(make(broker, seconds))

    return show


def large(stage: Stage) -> Measured:
    """One output of 1 GiB."""
    with stage.broker() as broker:
        return Measured(assert_large_output_arrives(broker, 1024))


def long_log(stage: Stage) -> Measured:
    """One log of 5 GB, over SSH while its program runs, then from the store."""
    with stage.broker(cluster_settings={"log_limit_mib": 8192}) as broker:
        return Measured(watch_long_log_of_a_run(broker, 5_000_000_000))


def fair_share(stage: Stage) -> Measured:
    """Two tenants, one greedy, on a small partition."""
    settings = {"partition": fairness.PARTITION, "poll_interval_s": 5.0}
    with stage.broker(cluster_settings=settings) as broker:
        text, holds = fairness.describe(fairness.queue_for_gpus(broker))
    return Measured(text, holds)


def told(figures: str, *tests: str, passed: str = "") -> Measured:
    """Run tests that print a line with `figures` in it, which is what was measured; `passed` ends it.

    Tests that passed without it showed nothing: they were skipped.
    """
    words = [sys.executable, "-m", "pytest", "-q", "-s", *tests]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [line.lstrip(".") for line in done.stdout.splitlines() if figures in line]
    if done.returncode:
        return Measured(f"a test failed: {' '.join(tests)}", holds=False)
    return Measured(f"{lines[0]}{passed}") if lines else Measured("the tests were skipped", holds=False)


def moved(stage: Stage) -> Measured:
    """The test that moves a run with 20 waiting jobs, on a cluster of its own."""
    return told("20 waiting jobs", "tests/cluster/test_queue.py", "-k", "twenty")


def access(stage: Stage) -> Measured:
    """The matrix of routes, roles and tenants."""
    return told("routes declared", "tests/contract/test_access_matrix.py", passed=": 0 leaks")


def approval(stage: Stage) -> Measured:
    """The tests of ways around an approval, on a cluster of their own."""
    return told("get around an approval", "tests/cluster/test_approval.py", passed=": 0 succeeded")


def accounting_read(stage: Stage) -> Measured:
    """A million jobs into SQLite, twice."""
    return Measured(*accounting.read_twice(stage.home))


def accounting_reports(stage: Stage) -> Measured:
    """Every report over a year of a million jobs."""
    return Measured(*accounting.report(stage.home))


def hostile(stage: Stage) -> Measured:
    """The tests of hostile text, on a cluster of their own."""
    words = [sys.executable, "-m", "pytest", "-q", "tests/cluster/test_hostile_text.py"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    summary = done.stdout.strip().splitlines()[-1]
    return Measured(re.sub(r" in [0-9.]+s.*", "", summary), done.returncode == 0)


ROWS = (
    Row("demo", "fresh machine → `make demo` ends with stored models", "≤ 10 min cold, ≤ 90 s warm", demo),
    Row(
        "submit",
        "submit a 4-component run over SSH, request → all ids stored, against the same four `sbatch` calls "
        "typed into one ssh session in the same minute",
        "ratio ≤ 2",
        submit_ratio,
    ),
    Row(
        "graph",
        "a 1,000-component graph with a 1,000-parent join",
        "accepted; ≥ 60 % of the rate of plain sbatch; edges right in `scontrol show job`",
        thousand,
    ),
    Row(
        "reads",
        "GET run while 50 clients each read once a second, sshd at its default `MaxSessions 10`",
        "p50 < 10 ms, no error; beside it the closed-loop rate",
        reads,
    ),
    Row(
        "kills",
        "broker killed (SIGKILL) at 50 random moments of submission, tracking and storing",
        "no job lost, none submitted twice, every run ends right",
        kills,
    ),
    Row(
        "slurmctld",
        "slurmctld paused 10 s during sbatch",
        "nothing lost, no false state, recovery by itself",
        fault(faults.slurmctld_paused_during_sbatch, 10),
    ),
    Row(
        "slurmdbd",
        "slurmdbd paused 2 min",
        "nothing lost, no false state, recovery by itself",
        fault(faults.slurmdbd_paused, 120),
    ),
    Row(
        "sshd",
        "sshd restarted",
        "nothing lost, no false state, recovery by itself",
        fault(faults.sshd_restarted, 0),
    ),
    Row(
        "store",
        "object store down 1 min",
        "nothing lost, no false state, recovery by itself",
        fault(faults.object_store_down, 60),
    ),
    Row(
        "fair-share",
        "two tenants with equal shares, one greedy, 200 short jobs, both queueing on a small partition, "
        "`PriorityCalcPeriod=1`",
        "ratio of GPU time within 10 % of the shares",
        fair_share,
    ),
    Row(
        "approval",
        "approval bypass attempts by the owner's Unix account",
        "0 of all tried succeed; each is a test",
        approval,
    ),
    Row(
        "access",
        "every route asked as every role about things of the own and of another tenant",
        "100 % of routes declared, 0 leaks",
        access,
    ),
    Row(
        "priority",
        "priority change on a run with 20 waiting jobs",
        "all 20 read back from Slurm, one audit row, ≤ 1 remote command",
        moved,
    ),
    Row(
        "long-log",
        "a log of 5 GB: tail, search, stream by level, a reader that stands still; running and stored",
        "everything found, API memory grows < 64 MiB",
        long_log,
    ),
    Row(
        "accounting",
        "ingest of 1,000,000 recorded jobs",
        "≥ 5,000 jobs/s of CPU time on SQLite, memory flat, a repeated ingest changes nothing",
        accounting_read,
    ),
    Row(
        "accounting",
        "any report over 1,000,000 jobs and a year",
        "< 1 s (PostgreSQL and SQLite)",
        accounting_reports,
    ),
    Row("large", "a 1 GiB output", "arrives checksummed, broker memory grows < 100 MB", large),
    Row(
        "hostile",
        "hostile text in every field (newlines, quotes, `$()`, `|`, `#SBATCH`, unicode, NUL, 1 MiB)",
        "refused with a clear error or carried as data; nothing executed, no list broken",
        hostile,
    ),
)
