"""Daemons frozen and restarted under running work. Nothing may be lost or said falsely; all mends by itself.

Each function makes one fault that lasts `seconds` and returns a sentence about what was seen. The fault's
length is part of its definition; everything else waits for events.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from tests.harness import specs
from tests.harness.client import Event, of
from tests.harness.processes import kill_pid, until
from tests.harness.product import Broker
from tests.harness.truth import (
    assert_each_job_once,
    assert_no_false_state,
    assert_nothing_left,
    assert_outputs_verified,
    history,
)

WIDTH = 30


def slurmctld_paused_during_sbatch(broker: Broker, seconds: float) -> str:
    """slurmctld is frozen when some of a graph's sbatch calls have been answered and others not."""
    run_id = _wide(broker)
    journal = broker.cluster.run_dir(run_id) / "control/journal.1"
    until(
        lambda: journal.exists() and len(journal.read_text().splitlines()) > WIDTH // 4, 60, "sbatch", 0.002
    )
    with broker.cluster.frozen("slurmctld"):
        began = time.monotonic()
        before = len(journal.read_text().splitlines())
        assert before < WIDTH + 2, "the pause came after the last sbatch: it proves nothing"
        _last(began, seconds)
    _all_well(broker, [run_id])
    return (
        f"frozen after {before - 1} of {WIDTH + 1} sbatch calls, for {seconds:.0f} s; {_seen(broker, run_id)}"
    )


def slurmdbd_paused(broker: Broker, seconds: float) -> str:
    """Accounting is frozen while jobs are submitted, run and end; the API goes on answering."""
    before = _gated(broker)
    began = time.monotonic()
    with broker.cluster.paused("slurmdbd"):
        broker.open_gate(before, "load")
        during = broker.client.start(specs.diamond(join=specs.model()))
        slowest = 0.0
        while time.monotonic() - began < seconds:
            asked = time.monotonic()
            assert broker.client.run(before)["state"] not in {"failed", "cancelled"}
            slowest = max(slowest, time.monotonic() - asked)
            time.sleep(0.25)
    _all_well(broker, [before, during])
    return (
        f"frozen for {seconds:.0f} s; slowest read meanwhile {slowest * 1000:.0f} ms; {_seen(broker, during)}"
    )


def sshd_restarted(broker: Broker, seconds: float = 0.0) -> str:
    """sshd drops every connection: in the middle of a submission, of tracking and of a transfer."""
    wide = _wide(broker)
    journal = broker.cluster.run_dir(wide) / "control/journal.1"
    until(
        lambda: journal.exists() and len(journal.read_text().splitlines()) > WIDTH // 4, 60, "sbatch", 0.002
    )
    broker.cluster.restart("sshd")
    spec = specs.diamond(load=specs.WAIT, left=specs.output_of(96), join=specs.model())
    run_id = broker.client.start(spec)
    broker.client.wait_for(run_id, of("job_started", "load"))
    broker.cluster.restart("sshd")
    broker.open_gate(run_id, "load")
    broker.client.wait_for(run_id, of("job_completed", "left"))
    broker.cluster.restart("sshd")
    _all_well(broker, [wide, run_id])
    return f"restarted during submission, tracking and a transfer of 96 MiB; {_seen(broker, wide)}"


def object_store_down(broker: Broker, seconds: float) -> str:
    """The object store is killed before a run's results are stored, and comes back later."""
    assert broker.store is not None
    pid = broker.store.pid
    assert pid is not None
    run_id = _gated(broker)
    kill_pid(pid)
    began = time.monotonic()
    broker.open_gate(run_id, "load")
    trouble = broker.client.wait_for(run_id, "run_trouble", 120)
    _last(began, seconds)
    assert broker.client.run(run_id)["state"] == "running", "what is not stored is not yet a success"
    broker.store.start()
    _all_well(broker, [run_id])
    return f"down for {time.monotonic() - began:.0f} s; said meanwhile: {trouble.data['detail'][:90]!r}"


def _last(began: float, seconds: float) -> None:
    time.sleep(max(0.0, seconds - (time.monotonic() - began)))  # the fault's own length


def _wide(broker: Broker) -> str:
    names = [f"part-{number:02d}" for number in range(WIDTH)]
    parts = [specs.component(name, "true") for name in names]
    spec = specs.pipeline([*parts, specs.component("last", "true")], [(name, "last") for name in names])
    return broker.client.start(spec)


def _gated(broker: Broker) -> str:
    run_id = broker.client.start(specs.diamond(load=specs.WAIT, join=specs.model()))
    broker.client.wait_for(run_id, of("job_started", "load"))
    return run_id


def _all_well(broker: Broker, run_ids: Sequence[str]) -> None:
    for run_id in run_ids:
        run = broker.client.succeed(run_id, 300)
        assert run["attempt"] == 1, "nothing failed, so nothing was to be tried again"
        assert run["trouble"] is None
        assert_no_false_state(broker, run_id)
        assert_outputs_verified(broker, run_id, [job["component"] for job in run["jobs"]])
    assert_each_job_once(broker, [run["id"] for run in broker.client.get("/runs", limit=200)["items"]])
    assert_nothing_left(broker)


def _seen(broker: Broker, run_id: str) -> str:
    troubles: list[Event] = [event for event in history(broker, run_id) if event.type == "run_trouble"]
    return f"troubles told: {len(troubles)}" + "".join(
        f"; {event.data['detail'][:90]!r}" for event in troubles[:1]
    )
