"""A broker whose worker does only what a test tells it to, and what a run's owner can do in between."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from broker.hosts import Completed
from broker.runs.states import Gate, Phase
from broker.runs.submission import Submitter
from broker.runs.tables import RunRow
from broker.runs.tracking import Tracker
from tests.api_support import Api
from tests.harness.cluster import Cluster
from tests.harness.processes import until
from tests.harness.specs import WAIT, component, pipeline

LARGE = {"gpu_type": "A100", "gpu_count": 4}


@dataclass
class Desk:
    """A broker whose worker does nothing but what a test tells it to."""

    api: Api
    slurm: Cluster
    submitter: Submitter
    tracker: Tracker
    base: str
    tried: int = 0
    """What the owner's account has tried so far to get around an approval."""

    def ask(self, spec: dict[str, Any], **body: Any) -> str:
        assert self.api.store("kim", spec).status_code == 201
        body = {"pipeline": spec["pipeline_id"]} | body
        answer = self.api.call("POST", "/runs", "kim", json=body)
        assert answer.status_code == 201, answer.text
        run_id: str = answer.json()["id"]
        return run_id

    def held(self, spec: dict[str, Any]) -> str:
        """A run whose jobs wait in Slurm for somebody to decide."""
        run_id = self.ask(spec)
        self.submitter.advance(run_id)
        assert self.run(run_id).gate == Gate.CLOSED, self.shown(run_id)
        return run_id

    def approve(self, run_id: str) -> None:
        answer = self.api.call("POST", f"/approvals/{run_id}/approve", "root", json={})
        assert answer.status_code == 200, answer.text
        self.submitter.advance(run_id)

    def run(self, run_id: str) -> RunRow:
        with self.api.ctx.db.read() as session:
            return session.get_one(RunRow, run_id)

    def shown(self, run_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self.api.call("GET", f"/runs/{run_id}", "root").json()
        return found

    def ids(self, run_id: str) -> dict[str, int]:
        return {job["component"]: job["slurm_job_id"] for job in self.shown(run_id)["jobs"]}

    def jobs(self, run_id: str) -> dict[str, dict[str, str]]:
        """What scontrol shows of a run's jobs, by component."""
        shown = self.slurm.show_jobs()
        return {name: shown[number] for name, number in self.ids(run_id).items()}

    def job(self, run_id: str, name: str) -> dict[str, str]:
        return self.jobs(run_id)[name]

    def kim(self, *argv: str) -> bool:
        """A command as the owner's Unix account; whether it was taken."""
        self.tried += argv[0] in {"scontrol", "bash", "sh"}
        try:
            self.slurm.exec(*argv, user="kim")
        except AssertionError:
            return False
        return True

    def cancel(self, run_id: str) -> None:
        self.api.call("POST", f"/runs/{run_id}/cancel", "root")
        self.submitter.advance(run_id)

    def ended(self, run_id: str) -> dict[str, Any]:
        """The run once Slurm has ended what was given up of it."""

        def over() -> bool:
            self.tracker.tick()
            self.submitter.advance(run_id)
            return bool(self.run(run_id).phase == Phase.DONE)

        until(over, 60, "the run is over", 0.2)
        return self.shown(run_id)

    def go_on(self, run_id: str, name: str) -> None:
        """Let a component that waits for its test go on."""
        go = f"{self.base}/{run_id}/{name}/checkpoints/go"
        until(lambda: self.kim("test", "-d", str(Path(go).parent)), 30, f"{name} has begun", 0.1)
        assert self.kim("touch", go)


def chain(prepare: str = WAIT, **resources: Any) -> dict[str, Any]:
    """prepare → train; train asks for four GPUs."""
    train = component("train", "echo trained", resources=LARGE | resources)
    return pipeline([component("prepare", prepare), train], [("prepare", "train")])


def admin_held(job: dict[str, str]) -> bool:
    return (job["JobState"], job["Reason"], job["Priority"]) == ("PENDING", "JobHeldAdmin", "0")


def at_the_hold(desk: Desk, monkeypatch: pytest.MonkeyPatch, what: Callable[[Sequence[int]], object]) -> None:
    """Do something after the jobs came into being, right before they are held."""
    client = desk.api.ctx.slurm("main")
    hold = client.hold

    def late(ids: Sequence[int]) -> Any:
        monkeypatch.undo()
        what(ids)
        return hold(ids)

    monkeypatch.setattr(client, "hold", late)


def edit_on_the_way(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the owner's account change the staged script before sbatch reads it."""
    desk.tried += 1
    host = desk.api.ctx.host_for("main", "kim")
    run: Callable[..., Completed] = host.run

    def edited(argv: Sequence[str], *, stdin: Any = b"", **more: Any) -> Completed:
        data = stdin if isinstance(stdin, bytes) else b"".join(stdin)
        if data:
            data = _with_edited_scripts(data)
        return run(argv, stdin=data, **more)

    monkeypatch.setattr(host, "run", edited)


def _with_edited_scripts(archive: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(archive)) as old, tarfile.open(fileobj=out, mode="w") as new:
        for member in old:
            found = old.extractfile(member) if member.isfile() else None
            data = found.read() if found else b""
            if member.name.endswith("/job.sh"):
                data += b"# edited\n"
                member.size = len(data)
            new.addfile(member, io.BytesIO(data) if found else None)
    return out.getvalue()
