"""What gives way goes on from where it was: preemption by urgent work, and a node that dies.

Two runs train the digits classifier (`examples/digits`) with the same seed: one is preempted, the other one's
node loses power. Both must end with the very same losses, which they can only have if each went on exactly
where it was.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import DevCluster
from tests.harness.client import Client, of
from tests.harness.cluster import Cluster
from tests.harness.processes import until
from tests.harness.product import Broker
from tests.harness.specs import component, pipeline

pytestmark = pytest.mark.cluster

EPOCHS = 700
A_START_TAKES = {"inference": {"max_wall_s": 60}}
NOTICED_WITHIN_S = 30
WHOLE_V100 = {"gpu_type": "V100", "gpu_count": 1, "cpus": 32, "memory": "1GB", "time": "20m"}
BOTH_V100 = {"nodes": 2, "gpu_type": "V100", "gpu_count": 2, "cpus": 64, "memory": "2GB", "time": "20m"}
A100 = {"gpu_type": "A100", "gpu_count": 1, "cpus": 2, "memory": "1GB", "time": "20m"}
ENDS_IN_ITS_GRACE = """
ends() { echo '{"accuracy": 1}' > "$OUTPUT_DIR/metrics.json"; sleep 0.5 || :; exit 0; }
trap ends USR2
echo start >> "$CHECKPOINT_DIR/starts"
while :; do sleep 0.1 || :; done
"""
"""The trap is set before it says that it runs. Every process of the step gets the signal, so `sleep` dies
of it; and what ends within milliseconds of it is told as 140 (docs/spec.md, Ending).
"""

NOT_DONE_AT_ONCE = """
echo "start, RESUME=${RESUME:-}" >> "$CHECKPOINT_DIR/starts"
[ -n "${RESUME:-}" ] || exit 143
"""


def digits(resources: dict[str, Any]) -> dict[str, Any]:
    """Load, scale, train; the trainer asks for USR1."""
    steps = [
        component(
            name,
            order=order,
            image={"registry": f"registry.avatar.io/{image}", "tag": tag},
            params=params,
            resources={"memory": "1GB", **(resources if name == "trainer" else {})},
            **({"signal": "USR1"} if name == "trainer" else {}),
        )
        for order, (name, image, tag, params) in enumerate(
            (
                ("loader", "data-loader", "1.0", {}),
                ("preprocessor", "preprocessor", "2.1", {}),
                ("trainer", "llm-trainer", "3.1", {"epochs": EPOCHS, "batch_size": 256, "seed": 7}),
            )
        )
    ]
    return pipeline(steps, [("loader", "preprocessor"), ("preprocessor", "trainer")])


@dataclass(frozen=True)
class Story:
    """The runs, and what was seen while they were disturbed."""

    preempted: str
    on_dead_node: str
    finished_in_grace: str
    urgent: str
    longer_than_a_start: str
    noticed_s: float


@pytest.fixture(scope="module")
def broker(cluster: DevCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    settings = {"classes": A_START_TAKES}
    with Broker(
        tmp_path_factory.mktemp("broker"), Cluster(cluster.name), cluster_settings=settings
    ) as started:
        yield started


@pytest.fixture(scope="module")
def client(broker: Broker) -> Client:
    return broker.client


@pytest.fixture(scope="module")
def story(broker: Broker, client: Client) -> Story:
    finishing = component("finisher", ENDS_IN_ITS_GRACE, resources=WHOLE_V100, signal="USR2")
    preempted = client.start(digits(WHOLE_V100), priority_class="training")
    on_dead_node = client.start(digits(A100), priority_class="fine-tuning")
    longer = client.start(
        pipeline([component("longer", NOT_DONE_AT_ONCE, resources={"time": "2m"})]),
        priority_class="inference",
    )
    in_grace = client.start(pipeline([finishing]), priority_class="training")
    until((broker.cluster.run_dir(in_grace) / "finisher/checkpoints/starts").exists, 60, "the finisher runs")
    for run_id in (preempted, on_dead_node):
        # The image may have to be pulled and unpacked before: minutes on a busy machine, once per cluster.
        until(lambda run_id=run_id: epoch(broker, run_id) >= 20, 500, f"{run_id} trains", 0.1)

    begun = client.wait_for(on_dead_node, of("job_started", "trainer"))
    node = begun.data["nodes"]
    urgent = client.start(
        pipeline([component("answer", "hostname", resources=BOTH_V100)]), priority_class="urgent-inference"
    )
    with broker.cluster.failed_node(node):
        dead_at = time.monotonic()
        until(lambda: "DOWN" in node_state(broker, node), 60, f"{node} is down", 0.2)
        noticed_s = time.monotonic() - dead_at
        client.succeed(urgent, 180)
        for run_id in (preempted, on_dead_node, in_grace, longer):
            client.succeed(run_id, 240)
    return Story(preempted, on_dead_node, in_grace, urgent, longer, noticed_s)


def epoch(broker: Broker, run_id: str) -> int:
    """How far the first start of the trainer is."""
    file = broker.cluster.run_dir(run_id) / "trainer/1.0/logs/progress.json"
    try:
        return int(json.loads(file.read_text())["step"])
    except OSError:
        return 0


def node_state(broker: Broker, node: str) -> str:
    return broker.cluster.exec("scontrol", "-o", "show", "node", node)


def losses(broker: Broker, run_id: str) -> list[float]:
    """The loss of every epoch, as the last start of the trainer wrote it."""
    rows = (starts(broker, run_id)[-1] / "logs/history.csv").read_text().splitlines()[1:]
    return [float(row.split(",")[1]) for row in rows]


def starts(broker: Broker, run_id: str) -> list[Path]:
    """The folders of the trainer's starts, the last one last."""
    return sorted((broker.cluster.run_dir(run_id) / "trainer").glob("1.?"))


def last_epoch(start: Path) -> int:
    """The last epoch that one start of the trainer told of."""
    return int(re.findall(r"^epoch (\d+)/", (start / "logs/training.log").read_text(), re.MULTILINE)[-1])


def test_the_loss_goes_on_from_where_it_was_after_a_preemption_and_after_a_nodes_death(
    broker: Broker, story: Story
) -> None:
    for run_id in (story.preempted, story.on_dead_node):
        first, second = starts(broker, run_id)
        log = (second / "logs/training.log").read_text()
        resumed = int(log.partition("after epoch ")[2].split()[0])
        assert resumed >= 20, log[:200]
        # A power cut may come after an epoch's checkpoint and before its line of log.
        assert last_epoch(first) in (resumed, resumed - 1), "epochs were lost"
        assert f"epoch {resumed + 1}/{EPOCHS}" in log, "epochs were skipped"
        assert f"epoch {resumed}/{EPOCHS}" not in log, "epochs were repeated"
        assert len(losses(broker, run_id)) == EPOCHS
    assert losses(broker, story.preempted) == losses(broker, story.on_dead_node)


def test_the_preempted_program_had_the_signal_it_asked_for_and_time_to_answer(
    broker: Broker, story: Story
) -> None:
    log = (starts(broker, story.preempted)[0] / "logs/training.log").read_text()
    assert "stopped by SIGUSR1 after epoch" in log


def test_a_job_that_had_finished_in_its_grace_time_is_not_run_again(
    broker: Broker, client: Client, story: Story
) -> None:
    ran = broker.cluster.run_dir(story.finished_in_grace) / "finisher"
    assert (ran / "checkpoints/starts").read_text() == "start\n"
    job = client.jobs(story.finished_in_grace)["finisher"]
    assert (job["state"], job["restarts"], job["stored"]) == ("COMPLETED", 1, "stored")
    assert "nothing to do" in client.log(story.finished_in_grace, "finisher", stream="slurm")["text"]


def test_who_asked_for_more_time_than_one_start_may_take_is_started_again(
    broker: Broker, client: Client, story: Story
) -> None:
    ran = broker.cluster.run_dir(story.longer_than_a_start) / "longer"
    assert (ran / "checkpoints/starts").read_text() == "start, RESUME=\nstart, RESUME=1\n"
    job = client.jobs(story.longer_than_a_start)["longer"]
    assert (job["state"], job["attempt"]) == ("COMPLETED", 1)
    assert job["restarts"] >= 1  # more where Slurm sent it to the node that had just died: it never began
    assert "back to the queue" in client.log(story.longer_than_a_start, "longer", stream="slurm")["text"]


def test_slurm_knows_each_runs_class_and_who_gave_way_to_whom(
    broker: Broker, client: Client, story: Story
) -> None:
    numbers = {
        name: str(next(iter(client.jobs(run_id).values()))["slurm_job_id"])
        for name, run_id in (("urgent", story.urgent), ("grace", story.finished_in_grace))
    }
    shown = broker.cluster.exec(
        "sacct", "-n", "-P", "-X", "-D", "-j", ",".join(numbers.values()), "-o", "JobID,QOS,State"
    )
    rows = [line.split("|") for line in shown.splitlines()]
    assert [numbers["urgent"], "urgent-inference", "COMPLETED"] in rows
    assert [numbers["grace"], "training", "PREEMPTED"] in rows


def test_a_dead_node_is_noticed_within_half_a_minute(story: Story) -> None:
    assert story.noticed_s < NOTICED_WITHIN_S
