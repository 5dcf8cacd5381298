"""The life of a run on a real cluster, through the REST API: from a spec to what lies in the object store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import httpx
import pytest

from tests.cluster.conftest import DevCluster
from tests.harness import specs
from tests.harness.client import Client, Refused, of
from tests.harness.cluster import Cluster
from tests.harness.processes import until
from tests.harness.product import Broker
from tests.harness.specs import WAIT, component, diamond, model, pipeline
from tests.harness.truth import (
    assert_each_job_once,
    assert_no_false_state,
    assert_nothing_left,
    assert_outputs_verified,
    sha256_of_url,
)
from tests.postgres import fresh_database

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def broker(cluster: DevCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    home = tmp_path_factory.mktemp("broker")
    with Broker(home, Cluster(cluster.name), approval={"gpu_count": 100}) as started:
        yield started


@pytest.fixture(scope="module")
def client(broker: Broker) -> Client:
    return broker.client


@dataclass(frozen=True)
class Slow:
    """Runs whose end takes a minute of Slurm's own time: started first, looked at last."""

    timeout: str
    node_failure: str


@pytest.fixture(scope="module", autouse=True)
def slow(broker: Broker) -> Iterator[Slow]:
    """One run that will exceed its minute; one whose node loses power while it runs, for the whole module."""
    v100 = {"gpu_type": "V100", "gpu_count": 1, "time": "1m"}
    endless = component("endless", WAIT, resources=v100)
    timeout = broker.client.start(pipeline([endless, component("after")], [("endless", "after")]))
    a100 = {"gpu_type": "A100", "gpu_count": 4}
    script = 'echo start $ATTEMPT >> "$CHECKPOINT_DIR/starts"; ' + WAIT + "; " + model()
    failing = broker.client.start(pipeline([component("train", script, resources=a100)]))
    started = broker.client.wait_for(failing, of("job_started", "train"))
    starts = broker.cluster.run_dir(failing) / "train/checkpoints/starts"
    until(starts.exists, 30, "the program has begun")
    with broker.cluster.failed_node(started.data["nodes"]):
        yield Slow(timeout, failing)


def test_a_diamond_ends_with_a_model_and_every_output_verified(broker: Broker, client: Client) -> None:
    run_id = client.start(diamond(join=model('{"accuracy": 0.93, "final_loss": 0.2}')))
    run = client.succeed(run_id)
    assert [job["state"] for job in run["jobs"]] == ["COMPLETED"] * 4
    assert_outputs_verified(broker, run_id, ("load", "left", "right", "join"))
    assert_no_false_state(broker, run_id)

    [version] = client.get("/models", run=run_id)["items"]
    assert version["metrics"] == {"accuracy": 0.93, "final_loss": 0.2}
    detail = client.get(f"/models/{version['id']}")
    assert detail["artifact"] == "outputs/best_model.bin"
    assert detail["spec"]["pipeline_id"] == client.get(f"/pipelines/{run['pipeline_id']}")["pipeline_id"]
    [file] = client.get(f"/models/{version['id']}/download", file=detail["artifact"])["files"]
    assert httpx.get(file["url"]).text == f"weights of {run_id}"
    assert sha256_of_url(file["url"]) == file["sha256"]


def test_jobs_and_files_are_the_service_accounts_and_closed_to_people(
    broker: Broker, client: Client, cluster: DevCluster
) -> None:
    run_id = client.start(pipeline([component("talk", f"echo said; {model()}")]))
    run = client.succeed(run_id)
    number, folder = str(run["jobs"][0]["slurm_job_id"]), f"{cluster.info['shared']}/ml-jobs/{run_id}"
    assert run["unix_account"] is None
    assert cluster.ok("sacct", "-n", "-X", "-P", "-j", number, "-o", "User") == "broker"
    assert set(cluster.ok("find", folder, "-printf", "%u:%g\n").split()) == {"broker:broker"}
    assert cluster.ok("stat", "-c", "%a", folder) == "700"
    assert client.log(run_id, "talk")["text"] == "said\n"
    for user in ("kim", "park"):
        status, _, trouble = cluster.exec(["find", folder, "-mindepth", "1"], user)
        assert status != 0
        assert "Permission denied" in trouble


def test_children_start_only_after_their_parents_and_read_their_outputs(
    broker: Broker, client: Client
) -> None:
    run_id = client.start(diamond())
    jobs = {job["component"]: job for job in client.succeed(run_id)["jobs"]}
    for parent, child in specs.DIAMOND:
        assert jobs[parent]["ended_at"] <= jobs[child]["started_at"], (parent, child)
    # hello lists the checksums of everything below INPUT_DIR: the join saw both branches
    inputs = next(
        entry
        for entry in client.outputs(run_id)
        if (entry["component"], entry["path"]) == ("join", "outputs/inputs.sha256")
    )
    listed = httpx.get(inputs["url"]).text
    assert "./left/inputs.sha256" in listed
    assert "./right/inputs.sha256" in listed


def test_slurm_gives_the_gpus_the_spec_asked_for(broker: Broker, client: Client) -> None:
    script = 'echo "devices ${CUDA_VISIBLE_DEVICES-none}"'
    asked = {"gpu_type": "V100", "gpu_count": 2, "memory": "2GB", "cpus": 3, "time": "7m"}
    spec = pipeline([component("train", script, resources=asked)], env_vars={"CUDA_VISIBLE_DEVICES": "all"})
    run_id = client.start(spec)
    number = client.succeed(run_id)["jobs"][0]["slurm_job_id"]
    fields = ("sacct", "-n", "-P", "-X", "-j", str(number), "-o", "AllocTRES,TimelimitRaw")
    tres, minutes = broker.cluster.exec(*fields).strip().split("|")
    assert "gres/gpu:v100=2" in tres
    assert "cpu=3" in tres
    assert "mem=2G" in tres
    assert minutes == "7"
    devices = client.log(run_id, "train")["text"].strip()
    assert devices.removeprefix("devices ") in {"0,1", "1,2", "2,3", "0,2", "0,3", "1,3"}, devices


def test_a_log_is_read_while_the_job_runs_and_afterwards(broker: Broker, client: Client) -> None:
    script = f"echo 첫째; echo trouble >&2; {WAIT}; echo second"
    run_id = client.start(pipeline([component("talker", script)]))
    client.wait_for(run_id, of("job_started", "talker"))
    until(lambda: "trouble" in client.log(run_id, "talker")["text"], 30, "both lines are in the log", 0.1)
    live = client.log(run_id, "talker")
    assert (live["source"], live["complete"]) == ("cluster", False)
    assert sorted(live["text"].split()) == ["trouble", "첫째"]
    assert client.log(run_id, "talker", offset=live["next_offset"])["text"] == ""
    broker.open_gate(run_id, "talker")
    client.succeed(run_id)
    rest = client.log(run_id, "talker", offset=live["next_offset"])
    assert (rest["text"], rest["source"], rest["complete"]) == ("second\n", "store", True)
    assert client.log(run_id, "talker", offset=-7)["text"] == "second\n"
    assert client.log(run_id, "talker", stream="error")["text"] == "trouble\n"
    assert "second" in client.log(run_id, "talker", stream="slurm")["text"]
    pieces, offset = "", 0
    while not (chunk := client.log(run_id, "talker", offset=offset, limit=5))["complete"]:
        pieces, offset = pieces + chunk["text"], chunk["next_offset"]
    assert pieces + chunk["text"] == client.log(run_id, "talker")["text"]


def test_a_failure_names_the_culprit_and_a_retry_goes_on_from_there(broker: Broker, client: Client) -> None:
    fails_once = 'if [ "$ATTEMPT" = 1 ]; then echo lost the data >&2; exit 3; fi; ls "$INPUT_DIR"'
    run_id = client.start(diamond(left=fails_once, join=f'ls "$INPUT_DIR" && {model()}'))
    run = client.finish(run_id)
    assert run["state"] == "failed"
    assert "left ended FAILED, exit status 3" in run["error"]
    jobs = {job["component"]: job for job in run["jobs"]}
    assert (jobs["left"]["state"], jobs["left"]["exit_code"]) == ("FAILED", 3)
    assert (jobs["join"]["state"], jobs["join"]["culprit"]) == ("UPSTREAM_FAILED", "left")
    assert jobs["right"]["state"] == "COMPLETED"
    assert client.log(run_id, "left", stream="error")["text"].startswith("lost the data\n")
    assert client.get("/models", run=run_id)["items"] == []
    until(lambda: not _live(broker, run), 30, "what can never run is ended in Slurm", 0.2)

    client.post(f"/runs/{run_id}/retry", {})
    again = client.succeed(run_id)
    attempts = {job["component"]: job["attempt"] for job in again["jobs"]}
    assert attempts == {"load": 1, "left": 2, "right": 1, "join": 2}
    assert client.log(run_id, "join")["text"].split() == ["left", "right"]
    assert len(client.get("/models", run=run_id)["items"]) == 1
    assert client.log(run_id, "left", attempt=1, stream="error")["text"].startswith("lost the data\n")
    assert_outputs_verified(broker, run_id, ("left", "join"))


def test_a_retry_of_a_run_that_succeeded_is_refused(client: Client) -> None:
    run_id = client.start(pipeline([component("only", "true")]))
    client.succeed(run_id)
    with pytest.raises(Refused) as refused:
        client.post(f"/runs/{run_id}/retry", {})
    assert refused.value.status == 409


def test_cancelling_ends_what_runs_and_what_waits_for_it(broker: Broker, client: Client) -> None:
    run_id = client.start(diamond(load=WAIT))
    client.wait_for(run_id, of("job_started", "load"))
    client.post(f"/runs/{run_id}/cancel")
    run = client.finish(run_id)
    assert run["state"] == "cancelled"
    assert {job["state"] for job in run["jobs"]} == {"CANCELLED"}
    assert _live(broker, run) == []


def test_cancelling_a_run_that_waits_for_resources_leaves_others_alone(
    broker: Broker, client: Client
) -> None:
    # three of the four nodes have power (`slow`), and its run may hold one
    all_gpus = {"gpu_type": "A100", "gpu_count": 8, "nodes": 2, "memory": "256MB", "cpus": 2}
    holder = client.start(pipeline([component("holder", WAIT, resources=all_gpus)]))
    client.wait_for(holder, of("job_started", "holder"))
    waiting = client.start(pipeline([component("waiting", "true", resources={**all_gpus, "time": "9m"})]))
    client.wait_for(waiting, "run_released")
    assert client.jobs(waiting)["waiting"]["state"] == "PENDING"
    client.post(f"/runs/{waiting}/cancel")
    assert client.finish(waiting)["state"] == "cancelled"
    broker.open_gate(holder, "holder")
    client.succeed(holder)


@pytest.mark.parametrize("after", ["run_requested", "run_prepared", "job_submitted"])
def test_cancelling_at_any_stage_of_submission_leaves_nothing_in_slurm(
    broker: Broker, client: Client, after: str
) -> None:
    names = [f"part-{number:02d}" for number in range(12)]
    run_id = client.start(pipeline([component(name) for name in names], pairwise(names)))
    client.wait_for(run_id, after)
    client.post(f"/runs/{run_id}/cancel")
    run = client.finish(run_id)
    assert run["state"] == "cancelled"
    assert _live(broker, run) == []


def test_a_program_that_exceeds_its_time_is_a_timeout(broker: Broker, client: Client, slow: Slow) -> None:
    run = client.finish(slow.timeout, 200)
    jobs = {job["component"]: job for job in run["jobs"]}
    assert run["state"] == "failed"
    assert (jobs["endless"]["state"], jobs["endless"]["failure_class"]) == ("TIMEOUT", "resource")
    assert (jobs["after"]["state"], jobs["after"]["culprit"]) == ("UPSTREAM_FAILED", "endless")
    assert "time" in run["error"]
    assert_told(client, slow.timeout, ["run_started", "run_timed_out"])


def test_a_run_survives_the_loss_of_its_node(broker: Broker, client: Client, slow: Slow) -> None:
    requeued = client.wait_for(slow.node_failure, "job_requeued", 120)
    client.wait_for(slow.node_failure, of("job_started", "train"), 200, after=requeued.seq)
    broker.open_gate(slow.node_failure, "train")
    run = client.succeed(slow.node_failure, 120)
    [job] = run["jobs"]
    assert job["restarts"] == 1
    assert (job["attempt"], run["attempt"]) == (1, 1)
    starts = broker.cluster.run_dir(slow.node_failure) / "train/checkpoints/starts"
    assert starts.read_text().splitlines() == ["start 1", "start 1"], "checkpoints outlive a requeue"
    assert len(client.get("/models", run=slow.node_failure)["items"]) == 1
    assert_outputs_verified(broker, slow.node_failure, ["train"])
    assert_no_false_state(broker, slow.node_failure)
    assert_told(client, slow.node_failure, ["run_started", "run_completed"])  # Slurm started it twice


def test_a_production_run_names_the_test_run_before_it(client: Client) -> None:
    spec = pipeline([component("only", "echo result")])
    trial = client.start(spec, kind="test")
    assert client.succeed(trial)["kind"] == "test"
    assert client.log(trial, "only")["text"] == "result\n"
    real = client.request_run(spec["pipeline_id"], test_run_ref=trial)
    assert (real["kind"], real["test_run_ref"]) == ("normal", trial)
    client.succeed(real["id"])
    for wrong in (real["id"], "run-nosuch"):
        with pytest.raises(Refused) as refused:
            client.request_run(spec["pipeline_id"], test_run_ref=wrong)
        assert refused.value.status == 422
        assert refused.value.problem["errors"][0]["pointer"] == "/test_run_ref"


def test_overrides_change_what_slurm_is_asked_for_and_nothing_else(broker: Broker, client: Client) -> None:
    spec = pipeline([component("one", "true"), component("two", "true")])
    client.store(spec)
    overrides = {"all": {"time": "11m"}, "components": {"two": {"memory": "1GB", "cpus": 2}}}
    run_id = client.request_run(spec["pipeline_id"], overrides=overrides)["id"]
    jobs = {job["component"]: job for job in client.succeed(run_id)["jobs"]}
    asked = {}
    for name in ("one", "two"):  # one by one: which of two independent jobs has the lower id is chance
        number = str(jobs[name]["slurm_job_id"])
        asked[name] = broker.cluster.exec(
            "sacct", "-n", "-P", "-X", "-j", number, "-o", "ReqTRES,TimelimitRaw"
        ).strip()
    assert "mem=64M" in asked["one"]
    assert "cpu=2" in asked["two"]
    assert "mem=1G" in asked["two"]
    assert all(row.endswith("|11") for row in asked.values())
    with pytest.raises(Refused) as refused:
        client.request_run(spec["pipeline_id"], overrides={"components": {"three": {"cpus": 1}}})
    assert refused.value.status == 422


def test_a_repeated_request_makes_one_run(client: Client) -> None:
    spec = pipeline([component("only", "true")])
    client.store(spec)
    first = client.request_run(spec["pipeline_id"], key="once-only")
    second = client.request_run(spec["pipeline_id"], key="once-only")
    assert second == first
    with pytest.raises(Refused) as refused:
        client.request_run(spec["pipeline_id"], key="once-only", kind="test")
    assert refused.value.status == 422
    client.succeed(first["id"])
    assert len(client.get("/runs", pipeline=spec["pipeline_id"])["items"]) == 1


def test_an_image_that_does_not_exist_fails_the_run_with_its_name(client: Client) -> None:
    missing = component("only", "true", image={"registry": "registry.avatar.io/no-such", "tag": "9.9"})
    run = client.finish(client.start(pipeline([missing])))
    assert (run["state"], run["error_code"]) == ("failed", "image_unavailable")
    assert "registry.avatar.io/no-such:9.9" in run["error"]


def test_what_slurm_refuses_fails_the_run_in_slurms_words_and_leaves_nothing(
    broker: Broker, client: Client
) -> None:
    impossible = component("big", "true", resources={"gpu_type": "H100", "gpu_count": 1})
    run = client.finish(client.start(pipeline([component("fine", "true"), impossible], [("fine", "big")])))
    assert (run["state"], run["error_code"]) == ("failed", "slurm_refused")
    assert "big" in run["error"]
    assert _live(broker, run) == []


def test_what_was_submitted_is_shown_exactly(broker: Broker, client: Client) -> None:
    run_id = client.start(pipeline([component("only", "true")]))
    client.succeed(run_id)
    shown = client.get(f"/runs/{run_id}/script")
    [job] = shown["jobs"]
    folder = broker.cluster.run_dir(run_id) / "control"
    assert (folder / "only/1/job.sh").read_text() == job["script"]
    assert (folder / "submit.1.sh").read_text() == shown["submission"]


def test_two_workers_on_postgresql_share_nothing_and_lose_nothing(
    cluster: DevCluster, postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("postgres")
    url = fresh_database(postgres_url, "life")
    with Broker(home, Cluster(cluster.name), database_url=url) as broker:
        spare = broker.start_spare_worker()
        first = broker.client.start(diamond(load=WAIT, join=model()))
        broker.client.wait_for(first, of("job_started", "load"))
        broker.kill("worker")
        broker.open_gate(first, "load")
        second = broker.client.start(diamond())
        broker.client.succeed(first)
        broker.client.succeed(second)
        assert spare.alive
        assert_outputs_verified(broker, first, ("load", "left", "right", "join"))
        assert_each_job_once(broker, [first, second])


def test_afterwards_every_job_was_in_slurm_once_and_nothing_is_left(broker: Broker, client: Client) -> None:
    runs = [run["id"] for run in client.get("/runs", limit=200)["items"]]
    assert assert_each_job_once(broker, runs) > 20
    assert_nothing_left(broker)


def _live(broker: Broker, run: dict[str, object]) -> list[str]:
    names = {job["slurm_job_name"] for job in run["jobs"]}  # type: ignore[attr-defined]
    return [job.name for job in broker.cluster.jobs(broker.job_prefix) if job.live and job.name in names]


def assert_told(client: Client, run_id: str, kinds: list[str]) -> None:
    """Whoever asked for the run was told exactly this, in this order; the worker tells within a second."""

    def told() -> list[str]:
        notices = client.get("/notifications", limit=200)["items"]
        mine = [one for one in notices if one["data"].get("run_id") == run_id]
        return [one["kind"] for one in sorted(mine, key=lambda one: one["seq"])]

    until(lambda: told() == kinds, 60, f"told {kinds}")
