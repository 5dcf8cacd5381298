"""SIGKILL at random moments of many runs, and what must be true when the dust has settled.

Each kill is aimed at a part (worker, API; or the leader of `broker up`, with which everything dies) and at a
moment: while a request is answered, a graph is submitted, its jobs are watched, its results are stored. A run
is started for it, the moment awaited by its event, and a random fraction of a second more. The part starts
again at once; earlier runs go on meanwhile. The seed is printed and gives the same choices again (not the
same microseconds: those are the machine's).
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import create_engine, text

from tests.harness import specs
from tests.harness.client import Client, Refused
from tests.harness.processes import until
from tests.harness.product import Broker, Part
from tests.harness.truth import (
    assert_each_job_once,
    assert_no_false_state,
    assert_nothing_left,
    assert_outputs_verified,
)

MOMENTS: dict[Part, tuple[str, ...]] = {
    "api": ("request",),
    "worker": ("submission", "submission", "tracking", "storing"),
    "up": ("request", "submission", "tracking", "storing"),
}
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill: of which part, aimed at which moment, and the phase in which the run was found after it."""

    part: Part
    aimed: str
    delay_s: float
    phase: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """A run and how it must end: its state, and per component the state where it is not COMPLETED."""

    run_id: str
    state: frozenset[str]
    components: tuple[str, ...]
    failing: dict[str, tuple[str, str | None]] = field(default_factory=dict)


class Campaign:
    """Kills parts of one broker. Use once: `strike` as often as wanted, then `settle`."""

    def __init__(self, broker: Broker, seed: int) -> None:
        self._broker, self._random = broker, random.Random(seed)
        self._engine = create_engine(broker.database_url)
        self.kills: list[Kill] = []
        self.wanted: list[Wanted] = []
        print(f"kills: seed {seed}", flush=True)

    def strike(self) -> Kill:
        """Start a run, kill a part at a random moment of it, start the part again."""
        part = self._random.choice(self._broker.mortal)
        aimed = self._random.choice(MOMENTS[part])
        kind = {"submission": self._wide, "storing": self._heavy}.get(aimed) or self._random.choice(
            (self._diamond, self._failing, self._cancelled)
        )
        spec, wanted = kind()
        run_id, delay = self._at(aimed, spec, part)
        self._broker.start(part)
        if kind == self._cancelled:
            self._cancel(run_id)
        self.wanted.append(Wanted(run_id, **wanted))
        self.kills.append(Kill(part, aimed, delay, self._phase(run_id)))
        print(f"kill {len(self.kills)}: {part}, {aimed} + {delay:.3f} s: {self.kills[-1].phase}", flush=True)
        return self.kills[-1]

    def _at(self, aimed: str, spec: Json, part: Part) -> tuple[str, float]:
        """Kill at that moment of a new run; the run's id and the random delay."""
        client = self._broker.client
        client.store(spec)
        request, answer = self._requested(spec["pipeline_id"])
        if aimed == "request":
            delay = self._random.uniform(0, 0.08)
        else:
            request.join()
            run_id = answer["id"]
            if aimed == "submission":
                journal = self._broker.cluster.run_dir(run_id) / "control/journal.1"
                until(journal.exists, 60, f"the submission of {run_id} has begun", step_s=0.002)
            elif aimed == "storing":
                until(lambda: self._phase(run_id) == "storing", 120, f"storing of {run_id} has begun", 0.005)
            else:
                client.wait_for(run_id, "job_started", 120)
            delay = self._random.uniform(0, {"submission": 0.5, "tracking": 1.0, "storing": 0.6}[aimed])
        time.sleep(delay)  # the random moment itself
        self._broker.kill(part)
        if request.is_alive() and part in ("api", "up"):
            self._broker.start(part)
        request.join()
        return answer["id"], delay

    def _requested(self, pipeline: str) -> tuple[threading.Thread, Json]:
        """Ask for a run beside us, with a key: it is asked again until there is an answer."""
        answer: Json = {}
        key = uuid.uuid4().hex

        def ask() -> None:
            answer.update(self._broker.client.request_run(pipeline, key=key))

        thread = threading.Thread(target=ask)
        thread.start()
        return thread, answer

    def _cancel(self, run_id: str) -> None:
        try:
            self._broker.client.post(f"/runs/{run_id}/cancel")
        except Refused as refused:
            assert refused.status == 409, refused  # it had ended already

    def _phase(self, run_id: str) -> str:
        """What was going on: the run's phase, or `storing` as soon as a job's results wait to be stored."""
        with self._engine.connect() as connection:
            pending = text("select count(*) from jobs where run_id = :id and storing = 'pending'")
            if connection.scalar(pending, {"id": run_id}):
                return "storing"
            return str(connection.scalar(text("select phase from runs where id = :id"), {"id": run_id}))

    # ---- runs ---------------------------------------------------------------------------------------

    def _diamond(self, mib: int = 1) -> tuple[Json, Json]:
        spec = specs.diamond(left=specs.output_of(mib), right=specs.output_of(mib), join=specs.model())
        return spec, {"state": frozenset({"succeeded"}), "components": ("load", "left", "right", "join")}

    def _heavy(self) -> tuple[Json, Json]:
        return self._diamond(mib=self._random.choice((24, 48)))

    def _failing(self) -> tuple[Json, Json]:
        spec = specs.diamond(left="echo broken >&2; exit 3")
        failing = {"left": ("FAILED", None), "join": ("UPSTREAM_FAILED", "left")}
        return spec, {"state": frozenset({"failed"}), "components": ("load", "right"), "failing": failing}

    def _wide(self) -> tuple[Json, Json]:
        names = [f"part-{number:02d}" for number in range(15)]
        parts = [specs.component(name) for name in names]
        edges = [("first", name) for name in names]
        spec = specs.pipeline([specs.component("first"), *parts], edges)
        return spec, {"state": frozenset({"succeeded"}), "components": ("first", *names)}

    def _cancelled(self) -> tuple[Json, Json]:
        return specs.diamond(), {"state": frozenset({"cancelled", "succeeded"}), "components": ()}

    # ---- afterwards ---------------------------------------------------------------------------------

    def settle(self, seconds: float = 300) -> str:
        """Wait for the end of every run and check all of it; a summary for people."""
        for wanted in self.wanted:
            self._check(wanted, self._broker.client.finish(wanted.run_id, seconds))
        jobs = assert_each_job_once(self._broker, self._all_runs())
        assert_nothing_left(self._broker)
        self._engine.dispose()
        return (
            f"{len(self.kills)} kills ({_counted(kill.part for kill in self.kills)}; in phase "
            f"{_counted(kill.phase for kill in self.kills)}), {len(self.wanted)} runs, "
            f"{jobs} Slurm jobs, each once"
        )

    def _check(self, wanted: Wanted, run: Json) -> None:
        assert run["state"] in wanted.state, (run["state"], run["error"], wanted)
        if run["state"] == "cancelled":
            return
        jobs = {job["component"]: job for job in run["jobs"]}
        for name, (state, culprit) in wanted.failing.items():
            assert (jobs[name]["state"], jobs[name]["culprit"]) == (state, culprit), jobs[name]
        for name in wanted.components:
            assert (jobs[name]["state"], jobs[name]["stored"]) == ("COMPLETED", "stored"), jobs[name]
        assert_no_false_state(self._broker, run["id"], failing=list(wanted.failing))
        assert_outputs_verified(self._broker, run["id"], wanted.components)

    def _all_runs(self) -> list[str]:
        """Every run the broker has: one for each request, although requests were repeated."""
        runs = [run["id"] for run in pages(self._broker.client, "/runs")]
        assert sorted(runs) == sorted(wanted.run_id for wanted in self.wanted), (
            "a request made two runs, or none"
        )
        return runs


def pages(client: Client, path: str) -> list[Json]:
    """Every item of a list."""
    items: list[Json] = []
    cursor: dict[str, str] = {}
    while True:
        page = client.get(path, limit=200, **cursor)
        items += page["items"]
        if page["next_cursor"] is None:
            return items
        cursor = {"cursor": page["next_cursor"]}


def _counted(words: Any) -> str:
    return ", ".join(f"{count} {word}" for word, count in Counter(words).most_common())
