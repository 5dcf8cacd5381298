"""What must hold afterwards, asked of Slurm and of the stored bytes themselves, not of the broker."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import httpx

from tests.harness.client import Event, Json
from tests.harness.product import Broker


def assert_each_job_once(broker: Broker, run_ids: Iterable[str]) -> int:
    """No job lost, none submitted twice, none that the broker does not know; gives the number of jobs.

    Slurm's own list (squeue and sacct, by job name) is compared with what the broker shows of each attempt.
    """
    known: dict[str, int | None] = {}
    for run_id in run_ids:
        for attempt in range(1, broker.client.run(run_id)["attempt"] + 1):
            for job in broker.client.jobs(run_id, attempt=attempt).values():
                known[job["slurm_job_name"]] = job["slurm_job_id"]
    inside = broker.cluster.ids_by_name(broker.job_prefix)
    twice = {name: ids for name, ids in inside.items() if len(ids) > 1}
    assert not twice, f"submitted twice: {twice}"
    strangers = sorted(set(inside) - set(known))
    assert not strangers, f"in Slurm, unknown to the broker: {strangers}"
    wrong = {
        name: (number, inside.get(name))
        for name, number in known.items()
        if inside.get(name, []) != ([number] if number else [])
    }
    assert not wrong, f"the broker's id and Slurm's: {wrong}"
    return sum(number is not None for number in known.values())


def assert_nothing_left(broker: Broker) -> None:
    """Slurm has no job of this broker any more that it may still run."""
    live = [job for job in broker.cluster.jobs(broker.job_prefix) if job.live]
    assert not live, f"still there: {live}"


def assert_outputs_verified(broker: Broker, run_id: str, components: Iterable[str]) -> list[Json]:
    """Every file a component left on the cluster lies in the object store, byte by byte; gives the entries.

    The stored bytes are fetched over their presigned URLs and hashed here; so are the files on the shared
    file system, found by walking it rather than by asking the manifest.
    """
    entries = broker.client.outputs(run_id)
    for component in components:
        stored = {entry["path"]: entry for entry in entries if entry["component"] == component}
        on_disk = _left_by(broker, run_id, component)
        assert on_disk, f"{component} left nothing"
        missing = {f"outputs/{path}" for path in on_disk} - set(stored)
        assert not missing, f"{component}: not stored: {missing}"
        for path, file in on_disk.items():
            entry = stored[f"outputs/{path}"]
            truth = sha256_of_file(file)
            assert entry["sha256"] == truth, (component, path)
            assert sha256_of_url(entry["url"]) == truth, (component, path)
            assert entry["size"] == file.stat().st_size
    return entries


def _left_by(broker: Broker, run_id: str, component: str) -> dict[str, Path]:
    control = broker.cluster.run_dir(run_id) / "control" / component
    newest = max(control.glob("*/output_dir"), key=lambda path: int(path.parent.name))
    inside = newest.read_text().strip()
    folder = broker.cluster.shared / Path(inside).relative_to(broker.cluster.info["shared"])
    return {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}


def sha256_of_file(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def sha256_of_url(url: str) -> str:
    """Hex digest of what a presigned URL gives."""
    digest = hashlib.sha256()
    with httpx.stream("GET", url, timeout=120) as response:
        response.raise_for_status()
        for piece in response.iter_bytes():
            digest.update(piece)
    return digest.hexdigest()


def history(broker: Broker, run_id: str) -> list[Event]:
    """All events of a run."""
    found: list[Event] = []
    while page := broker.client.get(f"/runs/{run_id}/events", after=len(found)):
        found += [Event(entry["seq"], entry["type"], entry["data"]) for entry in page]
    return found


def assert_no_false_state(broker: Broker, run_id: str, failing: Sequence[str] = ()) -> None:
    """Nothing was ever said of the run that was not so: no failure but the expected ones, no end twice."""
    events = history(broker, run_id)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    for kind in ("job_failed", "job_unknown"):
        said = {event.data.get("component") for event in events if event.type == kind}
        assert said <= set(failing), f"{run_id}: {kind} of {said}"
    ends = [(event.type, event.data.get("component")) for event in events if event.type in ENDS]
    assert len(ends) == len(set(ends)), f"{run_id}: said twice: {ends}"


ENDS = {"job_completed", "job_stored", "run_finished", "model_ready"}
