"""What waits on a real cluster, whoever it belongs to, and what the report says of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from broker.accounting.ingest import Ingester
from broker.reports.definitions import REPORTS
from broker.reports.schemas import Line
from broker.reports.views import view_report
from broker.reports.wanted import Scope, Wanted
from tests.api_support import context, worker_lease
from tests.cluster.conftest import DevCluster
from tests.harness.cluster import Cluster
from tests.harness.processes import until

pytestmark = pytest.mark.cluster

SBATCH = ("sbatch", "--parsable", "--output=/dev/null", "--chdir=/tmp", "--mem=50M", "--time=20")


def test_what_waits_is_shown_with_what_it_waits_for(cluster: DevCluster, tmp_path: Path) -> None:
    def submit(user: str, *words: str) -> str:
        return cluster.ok(*SBATCH, *words, "--wrap=sleep 600", user=user)

    first = submit("kim", "--gres=gpu:a100:1")
    held = submit("kim", "--hold", "--gres=gpu:a100:1")
    after = submit("lee", "--account=team-a", f"--dependency=afterok:{first}")
    later = submit("park", "--account=team-b", "--begin=now+1hour", "--cpus-per-task=2")
    many = submit("lee", "--account=team-a", "--gres=gpu:a100:4", "--array=1-200", "--requeue")
    waiting = f"squeue -h -t PD -o %i:%r -j {many}"
    try:
        until(lambda: "Resources" in cluster.ok("sh", "-c", waiting), 30, "the array waits", step_s=0.2)
        settings = Cluster(cluster.name).settings(account="default")
        with context(tmp_path, clusters={"main": settings}, accounting={"history_days": 1}) as ctx:
            lease = worker_lease(ctx)
            today = datetime.now(UTC).date()
            wanted = Wanted(REPORTS["waiting"], today, today + timedelta(days=1), ("job", "tenant", "user"))
            lines: dict[str, Line] = {}

            def accounted() -> bool:
                """Look; whether accounting knows since when the array could have run: it learns that late."""
                Ingester(ctx, "main", lease).tick()
                with ctx.db.read() as session:
                    view = view_report(session, wanted, Scope(), None)
                lines.clear()
                lines.update({line.key["job"]: line for line in view.lines})
                return _array(lines, many).values["to_eligible"] is not None

            until(accounted, 30, "accounting knows the array", step_s=0.5)
        assert lines[held].values["why"] == "Its owner's account holds it in Slurm, not through the broker."
        assert "another job" in _text(lines[after]) and "set time" in _text(lines[later])
        assert lines[after].key == {"job": after, "tenant": "team-a", "user": "main:lee"}
        array = _array(lines, many)
        assert "free" in _text(array) and str(array.values["asks_for"]).endswith("a100 x 4, 50MB, 20m")
        shown = cluster.ok("squeue", "-h", "-r", "-t", "PD", "-o", "%i", "-j", many).split()
        assert array.values["gpus"] == 4 * len(shown), "every element that waits"
        for job in (held, after, later):
            values = lines[job].values
            assert values["waited"] == values["to_eligible"] and values["since_eligible"] == 0
            assert 0 <= float(values["waited"] or 0) < 120
        before, since = (float(array.values[name] or 0) for name in ("to_eligible", "since_eligible"))
        assert before <= 2, "Slurm takes a moment"
        assert before + since == array.values["waited"]
    finally:
        cluster.ok("scancel", first, held, after, later, many)


def _text(line: Line) -> str:
    return str(line.values["why"])


def _array(lines: dict[str, Line], job_id: str) -> Line:
    return next(line for job, line in lines.items() if job.startswith(f"{job_id}_["))
