"""An approval can't be got around: every way that the owner's own Unix account has is tried on real Slurm.

Runs belong to their people here (`run_as: user`), so kim owns the jobs, the batch scripts and the folder.
The worker's steps are taken by hand: what somebody does between two of them is done at exactly that moment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from broker.identity import Role
from broker.runs.states import Gate, JobState, Phase
from broker.runs.submission import Submitter
from broker.runs.tables import JobRow, RunRow
from broker.runs.tracking import Tracker
from tests.api_support import Api, context, worker_lease
from tests.approving import LARGE, Desk, admin_held, at_the_hold, chain, edit_on_the_way
from tests.cluster.conftest import DevCluster
from tests.harness.client import Client, Refused
from tests.harness.cluster import Cluster
from tests.harness.processes import until
from tests.harness.product import Broker
from tests.harness.specs import WAIT, component, pipeline

pytestmark = pytest.mark.cluster

CLASSES = ("training", "fine-tuning", "inference", "urgent-inference")
PASSWORD = "two staples and one battery 7"
OPERATIONS = Path(__file__).resolve().parents[2] / "docs" / "operations.md"


@pytest.fixture(scope="module")
def slurm(cluster: DevCluster) -> Iterator[Cluster]:
    """The cluster as `broker cluster sync` wants it where people submit as themselves; reset afterwards."""
    found = Cluster(cluster.name)
    accounts = "sacctmgr -nP show account format=account | grep -v ^root | paste -sd,"
    before = (
        f"sacctmgr -i modify qos {','.join(CLASSES)} set MaxTRESPerJob=gres/gpu=-1,mem=-1; "
        f"for a in $({accounts} | tr , ' '); do sacctmgr -i modify account $a set GrpTRESRunMins=gres/gpu=-1 "
        f"QOS=normal,{','.join(CLASSES)} DefaultQOS=-1; done"
    )
    found.exec("install", "-d", "-m", "1777", f"{found.info['shared']}/gate-jobs")
    found.exec("bash", "-c", before)
    yield found
    found.exec("bash", "-c", before)


@pytest.fixture(scope="module")
def desk(slurm: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    base = f"{slurm.info['shared']}/gate-jobs"
    settings = slurm.settings(run_as="user", base_path=base)
    with context(tmp_path_factory.mktemp("desk"), clusters={"main": settings}) as ctx:
        api = Api(ctx)
        api.add("root", Role.ADMIN)
        for name in ("kim", "park"):
            api.add(name)
            assert api.call("PATCH", f"/users/{name}", "root", json={"unix_account": name}).is_success
        for team in ("team-a", "team-b"):  # kim has an association there, too
            api.call("POST", "/tenants", "root", json={"name": team})
        plan = api.call("GET", "/clusters/main/sync", "root").json()
        slurm.exec("bash", "-ec", "\n".join(line["command"] for line in plan["lines"] if line["command"]))
        lease = worker_lease(ctx)
        made = Desk(api, slurm, Submitter(ctx, "main", lease), Tracker(ctx, "main", lease), base)
        yield made
        print(f"\n{made.tried} attempts to get around an approval")
        slurm.exec("scancel", "-u", "kim")


# ---- where the jobs are the service account's ------------------------------------------------------------


def test_an_approved_run_ends_well_and_running_it_again_needs_no_second_decision(
    cluster: DevCluster, tmp_path: Path
) -> None:
    """First of all: the other tests put thresholds on the QOS, which belong to `run_as: user`."""
    with Broker(tmp_path, Cluster(cluster.name)) as broker:
        broker.client.post("/users", {"username": "kim", "role": "researcher", "password": PASSWORD})
        kim = Client(broker.url)
        kim.login("kim", PASSWORD)
        kim.change_password(PASSWORD, f"{PASSWORD} again")
        fails_once = 'if [ "$ATTEMPT" = 1 ]; then exit 3; fi'
        run_id = kim.start(pipeline([component("train", fails_once, resources=LARGE)]))
        kim.wait_for(run_id, "hold_confirmed")
        number = str(kim.jobs(run_id)["train"]["slurm_job_id"])
        assert cluster.exec(["scontrol", "release", number], "kim")[0] != 0
        with pytest.raises(Refused) as refused:
            kim.post(f"/approvals/{run_id}/approve", {})
        assert refused.value.status == 403
        approved = broker.client.post(f"/approvals/{run_id}/approve", {"comment": "go ahead"})
        assert approved["run"]["approval"] == "approved"
        assert kim.finish(run_id)["state"] == "failed"
        kim.post(f"/runs/{run_id}/retry", {})
        run = kim.succeed(run_id)
        assert (run["attempt"], run["approval"], run["holds"]) == (2, "approved", [])
        assert "approval_kept" in {event["type"] for event in kim.get(f"/runs/{run_id}/events")}
        kim.close()


# ---- while it waits -------------------------------------------------------------------------------------

LET_GO = (
    "release {}",
    "update JobId={} Priority=4294967295",
    "update JobId={} Priority=1000",
    "update JobId={} Nice=-100",
    "update JobId={} StartTime=now",
    "update JobId={} EligibleTime=now",
    "update JobId={} ResetAccrueTime",
    "top {}",
    "resume {}",
    "requeue {}",
    "requeuehold {}",
    "uhold {}",
    "hold {}",
    "release {}",  # after a hold of one's own
    "suspend {}",
    "release JobName={name}",
)


def test_the_owner_can_start_nothing_that_waits_for_a_decision(desk: Desk) -> None:
    run_id = desk.held(chain())
    jobs = desk.jobs(run_id)
    assert {job["UserId"] for job in jobs.values()} == {"kim(2001)"}
    for name, number in desk.ids(run_id).items():
        look = f"; squeue -h -t all -j {number} -o '%T %r %Q'"
        tries = [f"scontrol {one.format(number, name=jobs[name]['JobName'])} 2>/dev/null" for one in LET_GO]
        desk.tried += len(tries)
        seen = desk.slurm.exec("bash", "-c", "\n".join(one + look for one in tries), user="kim").splitlines()
        assert list(zip(tries, seen, strict=True)) == [(one, "PENDING JobHeldAdmin 0") for one in tries]
    desk.kim("scontrol", "update", f"JobId={desk.ids(run_id)['train']}", "Dependency=")
    assert admin_held(desk.job(run_id, "train"))
    assert not desk.kim("scontrol", "update", f"JobId={desk.ids(run_id)['train']}", "QOS=training-approved")
    desk.cancel(run_id)


def test_a_hold_that_an_administrator_lifts_in_slurm_is_put_back(desk: Desk) -> None:
    run_id = desk.held(pipeline([component("train", "true", resources=LARGE)]))
    number = str(desk.ids(run_id)["train"])
    desk.slurm.exec("scontrol", "release", number)
    desk.tracker.tick()
    assert desk.run(run_id).gate == Gate.CLOSING
    desk.submitter.advance(run_id)
    assert desk.run(run_id).gate == Gate.CLOSED and admin_held(desk.job(run_id, "train"))
    desk.cancel(run_id)


def test_what_the_owner_changed_is_not_released_and_what_was_put_right_is(desk: Desk) -> None:
    run_id = desk.held(chain(time="20m"))
    train = f"JobId={desk.ids(run_id)['train']}"
    assert desk.kim("scontrol", "update", train, "MinMemoryNode=200000", "TimeLimit=10", "Features=a100")
    desk.approve(run_id)
    refused = desk.shown(run_id)
    assert (refused["approval"], refused["state"], refused["holds"]) == (
        "pending", "pending_approval", ["approval"],
    )  # fmt: skip
    review = desk.api.call("GET", f"/approvals/{run_id}", "root").json()
    assert review["differences"] == [
        "train: memory (MB) is 200000, not 64",
        "train: time limit (s) is 600, not 1200",
        "train: features is a100, not unset",
    ]
    assert "memory (MB) is 200000" in refused["trouble"]
    assert all(admin_held(job) for job in desk.jobs(run_id).values())

    desk.slurm.exec("scontrol", "update", train, "MinMemoryNode=64", "TimeLimit=20", "Features=")
    desk.approve(run_id)
    released = desk.shown(run_id)
    assert (released["approval"], released["phase"], released["holds"]) == ("approved", "active", []), (
        released
    )
    until(lambda: desk.job(run_id, "prepare")["JobState"] == "RUNNING", 30, "prepare runs", 0.1)
    assert desk.job(run_id, "train")["QOS"] == "training-approved"
    desk.go_on(run_id, "prepare")
    until(lambda: desk.job(run_id, "train")["JobState"] == "COMPLETED", 60, "train ran as approved", 0.2)


# ---- around the broker ----------------------------------------------------------------------------------


def test_what_is_large_does_not_start_by_direct_submission_in_any_way(desk: Desk) -> None:
    ways = desk.slurm.exec("sacctmgr", "-nP", "show", "assoc", "user=kim", "format=account,qos")
    granted = [
        (account, qos)
        for line in ways.split()
        for account, _, all_ in [line.partition("|")]
        for qos in all_.split(",")
    ]
    assert {qos for _, qos in granted} == set(CLASSES)  # and none that ends in -approved
    large = (
        "--gres=gpu:4", "--gres=gpu:a100:4", "--gpus=5", "--nodes=2 --gpus-per-node=2", "--mem=130G",
        "--nodes=2 --mem=70G", "--ntasks=4 --gpus-per-task=1", "--mem-per-cpu=40G --ntasks=4",
        "--exclusive --partition=a100", "--mem=0",
    )  # fmt: skip
    common = "--parsable --chdir=/tmp --output=/dev/null --job-name=direct --wrap='sleep 60'"
    lines = [
        f"sbatch --account={account} --qos={qos} {asked} {common} || true"
        for account, qos in granted
        for asked in large
    ]
    for name in CLASSES:
        assert not desk.kim("bash", "-c", f"sbatch --qos={name}-approved {common}")
    desk.tried += len(lines)
    submitted = desk.slurm.exec("bash", "-c", "\n".join(lines), user="kim", timeout=120).split()
    assert len(submitted) >= len(lines) // 2  # some ask for what no node has; the others are in the queue

    ids = ",".join(submitted)

    def looked_at() -> bool:
        reasons = desk.slurm.exec("squeue", "-h", "-j", ids, "-t", "all", "-o", "%T %r").splitlines()
        assert not [line for line in reasons if not line.startswith("PENDING")], reasons
        return all("QOSMax" in line for line in reasons)

    until(looked_at, 60, "the scheduler has refused each by its QOS", 0.5)
    desk.slurm.exec("scancel", "-n", "direct")


def test_a_small_job_that_is_made_large_after_its_release_does_not_start(desk: Desk) -> None:
    small = component("train", "echo trained", resources={"gpu_type": "A100", "gpu_count": 1})
    run_id = desk.ask(pipeline([component("prepare", WAIT), small], [("prepare", "train")]))
    desk.submitter.advance(run_id)
    assert desk.shown(run_id)["approval"] == "not_required"
    train = f"JobId={desk.ids(run_id)['train']}"
    assert desk.kim("scontrol", "update", train, "TRESPerNode=gres/gpu:a100:4", "MinMemoryNode=200000")
    desk.go_on(run_id, "prepare")
    until(lambda: "QOSMax" in desk.job(run_id, "train")["Reason"], 60, "its QOS stops it", 0.3)
    desk.cancel(run_id)


def test_a_release_in_the_window_before_the_hold_starts_nothing_large(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = desk.ask(pipeline([component("train", "true", resources=LARGE)]))
    at_the_hold(desk, monkeypatch, lambda ids: desk.kim("scontrol", "release", *map(str, ids)))
    desk.submitter.advance(run_id)
    assert desk.run(run_id).gate == Gate.CLOSED and admin_held(desk.job(run_id, "train"))
    desk.cancel(run_id)


def test_a_run_of_which_something_was_started_before_the_decision_is_ended(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = desk.ask(chain())

    def release(ids: Sequence[int]) -> None:
        assert desk.kim("scontrol", "release", *map(str, ids))
        until(lambda: desk.slurm.show_jobs()[ids[0]]["JobState"] == "RUNNING", 30, "prepare runs", 0.1)

    at_the_hold(desk, monkeypatch, release)
    desk.submitter.advance(run_id)
    over = desk.shown(run_id)
    assert over["state"] == "failed" and "prepare was started before the run was approved" in over["error"]
    assert desk.job(run_id, "train")["JobState"] == "CANCELLED"
    assert desk.job(run_id, "train")["StartTime"] == desk.job(run_id, "train")["EndTime"]


def test_what_the_owner_makes_larger_after_its_approval_is_ended_before_it_starts(desk: Desk) -> None:
    run_id = desk.held(chain())
    desk.approve(run_id)
    until(lambda: desk.job(run_id, "prepare")["JobState"] == "RUNNING", 30, "prepare runs", 0.1)
    train = f"JobId={desk.ids(run_id)['train']}"
    assert desk.kim("scontrol", "update", train, "MinMemoryNode=200000")
    desk.tracker.tick()
    job = desk.job(run_id, "train")
    assert (job["JobState"], job["RunTime"]) == ("CANCELLED", "00:00:00")
    desk.go_on(run_id, "prepare")
    error = desk.shown(run_id)["error"]
    assert "train: memory (MB) is 200000, not 64" in error and "Retry" in error


def test_what_was_made_larger_and_starts_before_the_next_look_is_ended_by_it(desk: Desk) -> None:
    spec = chain()
    spec["components"][1]["command"] = ["sh", "-ec", WAIT]
    run_id = desk.held(spec)
    desk.approve(run_id)
    until(lambda: desk.job(run_id, "prepare")["JobState"] == "RUNNING", 30, "prepare runs", 0.1)
    assert desk.kim("scontrol", "update", f"JobId={desk.ids(run_id)['train']}", "MinMemoryNode=200000")
    desk.go_on(run_id, "prepare")
    until(lambda: desk.job(run_id, "train")["JobState"] == "RUNNING", 30, "train runs", 0.1)

    def ended() -> bool:
        desk.tracker.tick()
        return desk.job(run_id, "train")["JobState"] in {"CANCELLED", "COMPLETING"}

    until(ended, 30, "accounting confirms what was asked for, and it is ended", 0.2)
    assert "train: memory (MB) is 200000, not 64" in desk.shown(run_id)["error"]


def test_an_edited_run_directory_changes_nothing_that_slurm_has_already(desk: Desk) -> None:
    run_id = desk.held(chain(prepare="echo prepared"))
    control = f"{desk.base}/{run_id}/control"
    for name in ("prepare", "train"):
        script = f"{control}/{name}/1/job.sh"
        assert desk.kim("sh", "-c", f"echo 'touch /tmp/edited' > {script}")
        number = str(desk.ids(run_id)[name])
        assert "edited" not in desk.slurm.exec("scontrol", "write", "batch_script", number, "-")
    desk.approve(run_id)
    assert desk.shown(run_id)["approval"] == "approved"
    until(lambda: desk.job(run_id, "train")["JobState"] == "COMPLETED", 60, "it ran as approved", 0.2)
    assert not desk.kim("test", "-e", "/tmp/edited")


def test_a_script_that_is_edited_while_it_is_submitted_is_never_released(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = desk.ask(pipeline([component("train", "true", resources=LARGE)]))
    edit_on_the_way(desk, monkeypatch)
    desk.submitter.advance(run_id)
    assert "edited" in desk.slurm.exec(
        "scontrol", "write", "batch_script", str(desk.ids(run_id)["train"]), "-"
    )
    desk.approve(run_id)
    review = desk.api.call("GET", f"/approvals/{run_id}", "root").json()
    assert review["differences"] == ["train: another batch script"]
    assert admin_held(desk.job(run_id, "train"))
    desk.cancel(run_id)


def test_a_script_that_is_edited_on_the_way_fails_a_run_that_needs_no_approval(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = desk.ask(pipeline([component("small", "true")]))
    edit_on_the_way(desk, monkeypatch)
    desk.submitter.advance(run_id)
    over = desk.shown(run_id)
    assert over["state"] == "failed" and "another batch script" in over["error"]
    assert desk.job(run_id, "small")["JobState"] == "CANCELLED"


def test_another_job_of_ones_own_is_not_released_in_a_small_runs_name(desk: Desk) -> None:
    """The name is the owner's to change, and so is what the submission script answers."""
    large = desk.held(pipeline([component("train", "true", resources=LARGE)]))
    small = desk.ask(pipeline([component("train", "true")]))
    desk.submitter.advance(small)
    with desk.api.ctx.db.write() as session:  # as if kim's edited script had named the other job
        job = session.query(JobRow).filter_by(run_id=small).one()
        name, job.slurm_job_id = job.name, desk.ids(large)["train"]
        run = session.get_one(RunRow, small)
        run.phase, job.state, job.started_at, job.ended_at = Phase.RELEASING, JobState.PENDING, None, None
    assert desk.kim("scontrol", "update", f"JobId={desk.ids(large)['train']}", f"JobName={name}")
    desk.submitter.advance(small)
    assert desk.shown(small)["state"] == "failed"
    assert desk.job(large, "train")["JobState"] == "CANCELLED"  # kim's own, and never started
    desk.cancel(large)


# ---- the end --------------------------------------------------------------------------------------------


def test_a_rejected_run_leaves_nothing_in_slurm(desk: Desk) -> None:
    run_id = desk.held(chain())
    answer = desk.api.call("POST", f"/approvals/{run_id}/reject", "root", json={"comment": "use 2 GPUs"})
    assert answer.status_code == 200, answer.text
    desk.submitter.advance(run_id)
    over = desk.ended(run_id)
    assert (over["state"], over["approval"], over["error"]) == ("rejected", "rejected", "use 2 GPUs")
    assert {job["JobState"] for job in desk.jobs(run_id).values()} == {"CANCELLED"}
    assert all(job["RunTime"] == "00:00:00" for job in desk.jobs(run_id).values())


# ---- what a site can add --------------------------------------------------------------------------------


@pytest.fixture
def guarded(desk: Desk) -> Iterator[None]:
    """The cluster with the `job_submit.lua` that the operations page shows."""
    (script,) = re.findall(r"```lua\n(.*?)```", OPERATIONS.read_text(encoding="utf-8"), re.DOTALL)
    uid = desk.slurm.exec("id", "-u", "broker").strip()
    put = "cp slurm.conf slurm.conf.before; echo JobSubmitPlugins=lua >> slurm.conf"
    desk.slurm.exec("bash", "-ec", f'cd /etc/slurm; printf %s "$1" > job_submit.lua; {put}', "bash",
                    script.replace("BROKER_UID", uid))  # fmt: skip
    desk.slurm.restart("slurmctld")
    yield
    desk.slurm.exec("bash", "-ec", "mv /etc/slurm/slurm.conf.before /etc/slurm/slurm.conf")
    desk.slurm.restart("slurmctld")


def test_slurm_itself_can_refuse_changes_of_what_was_approved(desk: Desk, guarded: None) -> None:
    run_id = desk.held(chain())
    desk.approve(run_id)
    assert desk.shown(run_id)["approval"] == "approved"
    train = f"JobId={desk.ids(run_id)['train']}"
    for change in ("MinMemoryNode=200000", "TimeLimit=60", "NumNodes=2", "QOS=training", "Nice=0"):
        assert not desk.kim("scontrol", "update", train, change)
    assert desk.job(run_id, "train")["QOS"] == "training-approved"
    desk.cancel(run_id)
