"""What the benchmarks measure: two things in the same minute on the same cluster, and their ratio."""

from __future__ import annotations

import json
import re
import shlex
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.harness import specs
from tests.harness.client import of
from tests.harness.cluster import ROOT, Cluster
from tests.harness.graphs import assert_edges_in_slurm, join_of
from tests.harness.product import Broker

READERS = Path(__file__).with_name("readers.py")
CALM = {"poll_interval_s": 2.0, "image_refresh_s": 600.0}
"""Settings of a cluster under measurement: images count as cached, and a poll seldom falls into a round."""


class Typist:
    """One warm `ssh` session, into which commands are typed one after the other as soon as each has answered.

    With a terminal, as when a person types; or without (`terminal=False`), the least that ssh can cost.
    """

    def __init__(self, cluster: Cluster, *, terminal: bool = True) -> None:
        self._ssh = subprocess.Popen(
            cluster.ssh_argv(terminal=terminal),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.type("cd /; echo 0")

    def type(self, line: str) -> int:
        """Type one line that answers with a number; that number."""
        assert self._ssh.stdin is not None
        assert self._ssh.stdout is not None
        self._ssh.stdin.write(line.encode() + b"\n")
        self._ssh.stdin.flush()
        while answer := self._ssh.stdout.readline():  # a terminal echoes and prompts, too
            if number := _NUMBER.search(answer):
                return int(number[1])
        raise AssertionError("the ssh session has ended")

    def close(self) -> None:
        """End the session."""
        self._ssh.kill()
        self._ssh.wait()


_NUMBER = re.compile(rb"(?:^|\r|\x1b\[\?2004l\r?)([0-9]+)\r?\n$")


@dataclass(frozen=True, slots=True)
class Ratio:
    """Seconds of the broker, of sbatch typed at a terminal, and of sbatch piped into ssh, round by round."""

    broker_s: tuple[float, ...]
    typed_s: tuple[float, ...]
    piped_s: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median of the rounds' ratios to what was typed."""
        return _ratio(self.broker_s, self.typed_s)

    def __str__(self) -> str:
        return (
            f"broker {_ms(self.broker_s)}, typed {_ms(self.typed_s)}: ratio {self.median:.2f}; "
            f"piped into ssh without a terminal: {_ms(self.piped_s)}, "
            f"ratio {_ratio(self.broker_s, self.piped_s):.2f} "
            f"(medians of {len(self.broker_s)} rounds)"
        )


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))


def _ms(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds) * 1000:.0f} ms"


def submission_ratio(broker: Broker, rounds: int = 11) -> Ratio:
    """Four components over SSH: request → all ids stored, against the same four sbatch calls typed into ssh.

    The plain calls are the very ones the broker made (same arguments, same scripts, held, with the same
    dependencies), under another name; each waits for the id it needs. Rounds alternate, nothing else runs
    meanwhile; the first round warms both up.
    """
    spec = specs.diamond(load=specs.WAIT)
    broker.client.store(spec)
    terminal, pipe = Typist(broker.cluster), Typist(broker.cluster, terminal=False)
    ours, typed, piped = [], [], []
    for _ in range(rounds + 1):
        run_id, seconds = timed_submission(broker, spec["pipeline_id"])
        ours.append(seconds)
        jobs = broker.client.get(f"/runs/{run_id}/script")["jobs"]
        broker.client.post(f"/runs/{run_id}/cancel")
        broker.client.finish(run_id)
        control = f"{broker.cluster.info['shared']}/ml-jobs/{run_id}/control"
        typed.append(_typed(terminal, control, jobs))
        piped.append(_typed(pipe, control, jobs))
        broker.cluster.cancel_by_prefix(BENCH)
    terminal.close()
    pipe.close()
    return Ratio(tuple(ours[1:]), tuple(typed[1:]), tuple(piped[1:]))


BENCH = "bench-"


def _typed(typist: Typist, control: str, jobs: Sequence[dict[str, Any]]) -> float:
    """Seconds for these jobs' sbatch calls, each typed when the one before has answered."""
    ids: dict[str, int] = {}
    began = time.perf_counter()
    for job in jobs:
        parents = ":".join(str(ids[name]) for name in job["depends_on"])
        after = [f"--dependency=afterok:{parents}"] if parents else []
        args = [word for word in job["sbatch_args"] if not word.startswith("--job-name")]
        words = ["sbatch", "--parsable", "--hold", f"--job-name={BENCH}{job['name']}", *after, *args]
        ids[job["component"]] = typist.type(shlex.join([*words, f"{control}/{job['component']}/1/job.sh"]))
    return time.perf_counter() - began


def timed_submission(broker: Broker, pipeline: str) -> tuple[str, float]:
    """Request a run; its id, and the seconds until every Slurm id is committed to the database.

    The database is looked at directly, once a millisecond: the API would add its own time.
    """
    with sqlite3.connect(f"file:{broker.data_dir / 'broker.sqlite3'}?mode=ro", uri=True) as db:
        began = time.perf_counter()
        run_id = broker.client.request_run(pipeline)["id"]
        stored = "select 1 from run_events where run_id = ? and type = 'job_submitted'"
        while not db.execute(stored, (run_id,)).fetchone():
            assert time.perf_counter() - began < 300, "never submitted"
            time.sleep(0.001)
        return run_id, time.perf_counter() - began


def sbatch_rate(cluster: Cluster, calls: int) -> float:
    """Jobs a second of a plain loop of sbatch calls (held, then cancelled) in one ssh session."""
    loop = (
        "cd /tmp; printf '#!/bin/sh\\ntrue\\n' > bench.sh; "
        f"for ((i = 0; i < {calls}; i++)); do sbatch --parsable --hold --job-name={BENCH}$i --mem=64M "
        f"--time=10 --output=/dev/null bench.sh > /dev/null || break; done; echo $i"
    )
    typist = Typist(cluster, terminal=False)
    began = time.perf_counter()
    assert typist.type(loop) == calls
    seconds = time.perf_counter() - began
    typist.close()
    cluster.cancel_by_prefix(BENCH)
    return calls / seconds


@dataclass(frozen=True, slots=True)
class Graph:
    """Submission of a thousand components, and plain sbatch in a loop before and after. Rates in jobs/s."""

    components: int
    broker_rate: float
    plain_rates: tuple[float, float]
    edges: int

    @property
    def ratio(self) -> float:
        return self.broker_rate / statistics.mean(self.plain_rates)

    def __str__(self) -> str:
        before, after = self.plain_rates
        return (
            f"{self.components} components, {self.edges} edges right in Slurm; request → ids "
            f"stored {self.broker_rate:.0f}/s, plain sbatch {before:.0f}/s before, {after:.0f}/s after: "
            f"{self.ratio:.0%}"
        )


def graph_rate(broker: Broker, parents: int = 1000) -> Graph:
    """A join of `parents` components, its edges checked in Slurm while they are all there; then cancelled."""
    broker.client.succeed(broker.client.start(specs.pipeline([specs.component("warm", "true")])))
    spec = join_of(parents)
    broker.client.store(spec)
    before = sbatch_rate(broker.cluster, 400)
    run_id, seconds = timed_submission(broker, spec["pipeline_id"])
    edges = assert_edges_in_slurm(broker, run_id)
    broker.client.post(f"/runs/{run_id}/cancel")
    assert broker.client.finish(run_id, 300)["state"] == "cancelled"
    after = sbatch_rate(broker.cluster, 400)
    components = len(spec["components"])
    return Graph(components, components / seconds, (before, after), edges)


@dataclass(frozen=True, slots=True)
class Reads:
    """Latencies of GET run in ms, the errors, and the rate."""

    p50_ms: float
    p99_ms: float
    errors: int
    requests: int
    rate: float

    def __str__(self) -> str:
        return (
            f"p50 {self.p50_ms:.1f} ms, p99 {self.p99_ms:.1f} ms, {self.errors} errors in {self.requests} "
            f"reads, {self.rate:.0f}/s"
        )


def read_latency(broker: Broker, run_id: str, *, clients: int, seconds: float, every_s: float) -> Reads:
    """`clients` readers in one other process; each reads once in `every_s` (0: again at once)."""
    words = [f"{broker.url}/api/v1/runs/{run_id}", str(clients), str(seconds), str(every_s)]
    done = subprocess.run(
        [sys.executable, str(READERS), *words],
        env={**broker.env, "TOKEN": broker.client.http.headers["Authorization"]},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=True,
    )
    return Reads(**json.loads(done.stdout))


def reads_of_a_live_run(broker: Broker, clients: int = 50, seconds: float = 30) -> tuple[Reads, Reads]:
    """GET of a run of four components that runs meanwhile: each client once a second; then a closed loop."""
    run_id = broker.client.start(specs.diamond(load=specs.WAIT))
    broker.client.wait_for(run_id, of("job_started", "load"))
    open_loop = read_latency(broker, run_id, clients=clients, seconds=seconds, every_s=1.0)
    closed_loop = read_latency(broker, run_id, clients=clients, seconds=seconds / 3, every_s=0.0)
    broker.open_gate(run_id, "load")
    broker.client.succeed(run_id)
    return open_loop, closed_loop
