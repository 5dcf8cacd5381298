"""Jobs and files that are each person's own (`run_as: user`), beside those of the service account.

What a person may do is tried as that Unix user, on the cluster itself. The service account's way is that of
every other test here; that its files are its own is in test_life_of_a_run.py.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import broker.schema  # every table  # noqa: F401
from broker.context import build_context
from broker.db import leases
from broker.errors import Denied, InvalidRequest
from broker.hosts import PersonHost, SshConfig, SshHost
from broker.runs.cleanup import remove_run_files
from broker.settings import CONFIG_FILE_VARIABLE, Settings
from tests.cluster.conftest import DevCluster
from tests.cluster.test_doctor import Doctor, failed
from tests.harness.client import Refused, of
from tests.harness.cluster import Cluster
from tests.harness.processes import until
from tests.harness.product import Broker
from tests.harness.specs import WAIT, component, diamond, model, pipeline
from tests.harness.truth import assert_each_job_once, assert_nothing_left
from tests.people import People, member, owners

pytestmark = pytest.mark.cluster

SAYS = b'#!/bin/sh\necho "ran as $RUN_ID" > "$OUTPUT_DIR/said"\n'


@pytest.fixture(scope="module")
def people(cluster: DevCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    base = f"{cluster.info['shared']}/people-jobs"
    cluster.ok("install", "-d", "-m", "1777", base)
    own = {"run_as": "user", "base_path": base, "code_roots": [f"{cluster.info['shared']}/code"]}
    home = tmp_path_factory.mktemp("people")
    with Broker(home, Cluster(cluster.name), cluster_settings=own) as broker:
        kim, park = member(broker, "kim", "kim"), member(broker, "park", "park")
        lee = member(broker, "lee", None)
        yield People(broker, cluster, kim, park, lee, base)
        for client in (kim, park, lee):
            client.close()


@pytest.fixture(scope="module")
def kims(people: People) -> str:
    """A run of kim's that has ended well."""
    run_id = people.kim.start(diamond(load="echo loaded; echo trouble >&2", join=model('{"accuracy": 0.9}')))
    people.kim.succeed(run_id)
    return run_id


# ---- a life of one's own -----------------------------------------------------------------------------------


def test_jobs_files_logs_and_results_are_the_persons_own(people: People, kims: str) -> None:
    run = people.kim.run(kims)
    assert run["unix_account"] == "kim"
    ids = ",".join(str(job["slurm_job_id"]) for job in run["jobs"])
    assert set(people.cluster.ok("sacct", "-n", "-X", "-P", "-j", ids, "-o", "User").split()) == {"kim"}
    assert owners(people.cluster, people.run_dir(kims)) == {"kim:kim"}
    assert people.cluster.ok("stat", "-c", "%a", people.run_dir(kims)) == "700"
    assert people.kim.log(kims, "load")["text"] == "loaded\ntrouble\n"
    [version] = people.kim.get("/models", run=kims)["items"]
    assert version["metrics"] == {"accuracy": 0.9}
    assert {entry["component"] for entry in people.kim.outputs(kims)} == {"load", "left", "right", "join"}
    assert_each_job_once(people.broker, [kims])


def test_a_log_is_read_as_the_person_while_the_job_runs(people: People) -> None:
    run_id = people.kim.start(pipeline([component("talker", f"echo 첫째; {WAIT}; echo second")]))
    people.kim.wait_for(run_id, of("job_started", "talker"))
    until(lambda: people.kim.log(run_id, "talker")["text"] == "첫째\n", 30, "the first line is there", 0.1)
    assert people.kim.log(run_id, "talker")["source"] == "cluster"
    go = f"{people.run_dir(run_id)}/talker/checkpoints/go"
    assert people.sh("kim", 'touch "$1"', go) == (0, "")
    people.kim.succeed(run_id)
    assert people.kim.log(run_id, "talker")["text"] == "첫째\nsecond\n"


def test_a_failure_is_retried_and_a_run_is_cancelled_as_its_person(people: People) -> None:
    fails_once = 'if [ "$ATTEMPT" = 1 ]; then exit 3; fi'
    chain = pipeline([component("first", fails_once), component("second")], [("first", "second")])
    run_id = people.kim.start(chain)
    endless = people.kim.start(pipeline([component("endless", WAIT)]))
    assert people.kim.finish(run_id)["state"] == "failed"
    people.kim.post(f"/runs/{run_id}/retry", {})
    people.kim.wait_for(endless, of("job_started", "endless"))
    people.kim.post(f"/runs/{endless}/cancel")
    assert people.kim.finish(endless)["state"] == "cancelled"
    assert people.kim.succeed(run_id)["attempt"] == 2
    assert owners(people.cluster, people.run_dir(run_id)) == {"kim:kim"}
    assert_nothing_left(people.broker)


def test_uploaded_code_reaches_the_run_of_its_person_and_nobody_else(people: People) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        main = tarfile.TarInfo("main")
        main.mode, main.size = 0o755, len(SAYS)
        archive.addfile(main, io.BytesIO(SAYS))
    answer = people.kim.send("POST", "/uploads", files={"file": ("code.tar.gz", packed.getvalue())})
    assert answer.is_success, answer.text
    code = {"source": "upload", "upload_id": answer.json()["upload_id"], "entry_script": "main"}
    run_id = people.kim.start(pipeline([component("coded", code=code)]))
    people.kim.succeed(run_id)
    assert "outputs/said" in {entry["path"] for entry in people.kim.outputs(run_id)}
    assert owners(people.cluster, people.run_dir(run_id)) == {"kim:kim"}
    assert people.cluster.ok("ls", "-A", people.base).split().count(".uploads") == 0


def test_code_is_looked_at_with_the_rights_of_the_person_who_runs_it(people: People) -> None:
    shared = people.cluster.info["shared"]
    folder = f"{shared}/code/kims"
    people.cluster.ok("install", "-d", "-m", "755", f"{shared}/code")
    people.cluster.ok("install", "-d", "-o", "kim", "-m", "700", folder)
    put = 'printf %s "$2" > "$1/main" && chmod 755 "$1/main"'
    assert people.sh("kim", put, folder, SAYS.decode()) == (0, "")
    code = {"source": "path", "path": folder, "entry_script": "main"}
    mine = people.kim.start(pipeline([component("coded", code=code)]))
    theirs = people.park.start(pipeline([component("coded", code=code)]))
    people.kim.succeed(mine)
    refused = people.park.finish(theirs)
    assert (refused["state"], refused["error_code"]) == ("failed", "code_unavailable")


# ---- what one person can do to another ------------------------------------------------------------------

READINGS = {
    "list": 'ls -lA "$1"',
    "walk": 'find "$1" -mindepth 1 | grep .',
    "enter": 'cd "$1"',
    "the log": 'cat "$1/load/1.0/logs/training.log"',
    "the marker": 'cat "$1/control/load/1/status.json"',
    "the journal": 'cat "$1/control/journal.1"',
    "the script": 'cat "$1/control/load/1/job.sh"',
    "a copy": 'cp -r "$1" ~/stolen',
    "a hard link": 'ln "$1/control/journal.1" "${1%/*}/.stolen.$$"',
    "an archive": 'tar -cf ~/stolen.tar "$1"',
    "a link": 'ln -sfn "$1" ~/way && ls ~/way/',
    "attributes": 'stat "$1/control"',
    "the lock": 'exec 9<"$1/control/.lock"',
}
CHANGES = {
    "move it": 'mv "$1" "$1.gone"',
    "remove it": 'rm -rf "$1"',
    "open it": 'chmod 755 "$1"',
    "own it": 'chown park "$1"',
    "write in it": 'touch "$1/x"',
    "replace it": 'mkdir "$1"',
    "link over it": 'ln -sfT ~ "$1"',
}


@pytest.mark.parametrize("what", READINGS)
def test_nothing_of_anothers_run_can_be_read(people: People, kims: str, what: str) -> None:
    folder = people.run_dir(kims)
    assert people.sh("kim", READINGS[what], folder)[0] == 0, "the owner can: the attempt is a real one"
    for user in ("park", "broker"):
        status, said = people.sh(user, READINGS[what], folder)
        assert status != 0, said
        assert "loaded" not in said


@pytest.mark.parametrize("what", CHANGES)
def test_nothing_of_anothers_run_can_be_changed(people: People, kims: str, what: str) -> None:
    folder = people.run_dir(kims)
    looks = ("stat", "-c", "%i %U %a %Z", folder)
    before = people.cluster.ok(*looks)
    status, said = people.sh("park", CHANGES[what], folder)
    assert status != 0, said
    assert people.cluster.ok(*looks) == before


def test_a_job_of_anothers_reads_nothing_either(people: People, kims: str) -> None:
    """Inside a job, on a compute node, and through the API."""
    out = f"{people.base}/park-tries"
    script = f"#!/bin/sh\ncat {people.run_dir(kims)}/load/1.0/logs/training.log\n"
    status, said = people.sh("park", 'printf %s "$2" | sbatch --wait --mem=64M -t 1 -o "$1"', out, script)
    assert status != 0, said
    assert "Permission denied" in people.cluster.ok("cat", out)
    people.cluster.ok("rm", out)
    for path in (f"/runs/{kims}", f"/runs/{kims}/outputs", f"/runs/{kims}/components/load/logs"):
        with pytest.raises(Refused) as refused:
            people.park.get(path)
        assert refused.value.status == 404


def test_slurm_shows_the_script_of_a_job_to_nobody_else(people: People, kims: str) -> None:
    number = str(people.kim.jobs(kims)["load"]["slurm_job_id"])
    for show in ('scontrol write batch_script "$1" -', 'sacct -B -j "$1"'):
        assert "echo loaded" in people.sh("kim", show, number)[1]
        assert "loaded" not in people.sh("park", show, number)[1]


def test_a_link_that_a_person_leaves_leads_the_broker_nowhere_they_could_not_go(people: People) -> None:
    """A component that makes its log and an output point at the broker's own files."""
    secret = "/home/broker/secret"
    people.cluster.ok("install", "-o", "broker", "-m", "600", "/dev/null", secret)
    people.cluster.ok("sh", "-c", f"echo of the service account > {secret}")
    run_id = people.kim.start(pipeline([component("links", f"{WAIT}; true")]))
    people.kim.wait_for(run_id, of("job_started", "links"))
    home = f"{people.run_dir(run_id)}/links"
    link = 'ln -sf "$2" "$1/1.0/outputs/out"; ln -sf "$2" "$1/1.0/logs/error.log"; touch "$1/checkpoints/go"'
    until(lambda: people.sh("kim", 'test -e "$1/1.0/logs/error.log"', home)[0] == 0, 30, "the log is there")
    assert people.sh("kim", link, home, secret) == (0, "")
    with pytest.raises(Refused):
        people.kim.log(run_id, "links", stream="error")
    people.kim.succeed(run_id)
    assert "outputs/out" not in {entry["path"] for entry in people.kim.outputs(run_id)}
    people.cluster.ok("rm", secret)


# ---- lies and squatters ---------------------------------------------------------------------------------


@pytest.fixture
def resting(people: People) -> Iterator[People]:
    """The worker does not work: what a person does before it comes is done then."""
    people.broker.kill("worker")
    yield people
    if not people.broker.parts["worker"].alive:
        people.broker.start("worker")


@pytest.mark.parametrize("made", ['mkdir -m 777 "$1"', 'mkdir -m 700 "$1"', 'ln -s /home/kim "$1"'])
def test_a_folder_that_another_person_made_first_is_not_used(resting: People, made: str) -> None:
    spec = pipeline([component("only")])
    resting.kim.store(spec)
    run_id = resting.kim.request_run(spec["pipeline_id"])["id"]
    folder = resting.run_dir(run_id)
    assert resting.sh("park", made, folder) == (0, "")
    resting.broker.start("worker")
    run = resting.kim.finish(run_id)
    assert (run["state"], run["error_code"]) == ("failed", "denied")
    assert "made by somebody else" in run["error"]
    assert resting.cluster.exec(["find", f"{folder}/control", "-type", "f"])[1] == ""
    resting.cluster.ok("rm", "-rf", folder, "/home/kim/control")


def test_a_journal_that_names_anothers_job_has_nothing_of_it_touched(resting: People) -> None:
    """As an operator the broker could release it: it asks Slurm whose it is first."""
    spec = pipeline([component("only", order=1)])
    resting.kim.store(spec)
    run_id = resting.kim.request_run(spec["pipeline_id"])["id"]
    victim = resting.sh("park", "sbatch --parsable --hold --mem=64M -t 1 -o /dev/null --wrap true")[1].strip()
    forged = 'umask 077; mkdir -p "$1/control"; printf "# 1\\nonly %s\\n" "$2" > "$1/control/journal.1"'
    assert resting.sh("kim", forged, resting.run_dir(run_id), victim) == (0, "")
    resting.broker.start("worker")
    run = resting.kim.finish(run_id)
    assert (run["state"], run["error_code"]) == ("failed", "slurm_refused")
    assert f"Job {victim} is not" in run["error"]
    assert resting.cluster.ok("squeue", "-h", "-j", victim, "-o", "%T %r") == "PENDING JobHeldUser"
    resting.cluster.ok("scancel", victim)


def test_a_job_that_its_owner_renames_is_still_seen_to_its_end(people: People) -> None:
    run_id = people.kim.start(pipeline([component("shy", WAIT)]))
    people.kim.wait_for(run_id, of("job_started", "shy"))
    number = str(people.kim.jobs(run_id)["shy"]["slurm_job_id"])
    people.cluster.ok("scontrol", "update", f"JobId={number}", "JobName=somebody-else", user="kim")
    assert people.sh("kim", 'touch "$1"', f"{people.run_dir(run_id)}/shy/checkpoints/go") == (0, "")
    assert people.kim.succeed(run_id)["jobs"][0]["state"] == "COMPLETED"


# ---- who may be acted for -------------------------------------------------------------------------------


def test_without_an_account_a_run_is_refused_with_the_remedy(people: People) -> None:
    spec = pipeline([component("only")])
    people.lee.store(spec)
    with pytest.raises(Refused) as refused:
        people.lee.request_run(spec["pipeline_id"])
    assert refused.value.status == 403
    [problem] = refused.value.problem["errors"]
    assert (problem["pointer"], problem["code"]) == ("/cluster", "no_unix_account")
    assert "--unix-account" in problem["detail"]


def test_the_rule_makes_the_service_account_nobody_but_the_people(people: People) -> None:
    for user in ("kim", "park", "lee"):
        assert people.cluster.ok("sudo", "-n", "-u", user, "id", "-un", user="broker") == user
    for user in ("root", "#0", "#-1", "slurm", "munge", "mysql", "nobody", "%people"):
        status, out, _ = people.cluster.exec(["sudo", "-n", "-u", user, "id", "-un"], "broker")
        assert (status != 0, out) == (True, ""), user
    assert people.cluster.exec(["sudo", "-n", "id"], "broker")[0] != 0
    for user in ("kim", "park"):  # and only the service account may
        assert people.cluster.exec(["sudo", "-n", "-u", "lee", "id"], user)[0] != 0


def test_a_host_acts_for_people_and_nobody_else(people: People) -> None:
    ssh = people.cluster.ssh
    host = SshHost(SshConfig(ssh.host, ssh.port, ssh.user, Path(ssh.key), Path(ssh.known_hosts)))
    try:
        kim = PersonHost(host, "kim")
        assert kim.run(["id", "-un"], timeout=10).stdout == b"kim\n"
        noise = bytes(range(256)) * 4096
        kim.write("/home/kim/noise", noise)
        assert b"".join(kim.read("/home/kim/noise")) == noise
        with pytest.raises(Denied):
            list(host.read("/home/kim/noise"))
        strangers = {"broker": "service account", "daemon": "system account", "nosuch": "no Unix account"}
        for account, why in strangers.items():
            with pytest.raises(Denied, match=why):
                PersonHost(host, account).run(["id"], timeout=10)
        with pytest.raises(Denied, match="sudoers rule"):
            PersonHost(host, "nobody").run(["id"], timeout=10)
        for hostile in ("kim;id", "$(id)", "#0", "-i", "root", "kim\nroot"):
            with pytest.raises(InvalidRequest):
                PersonHost(host, hostile)
    finally:
        host.close()


def test_an_account_that_was_taken_away_runs_nothing_more(resting: People) -> None:
    broker = resting.broker
    guest = member(broker, "guest", "lee")
    spec = pipeline([component("only")])
    guest.store(spec)
    run_id = guest.request_run(spec["pipeline_id"])["id"]
    assert broker.client.send("PATCH", "/users/guest", json={"unix_account": None}).is_success
    broker.start("worker")
    run = guest.finish(run_id)
    assert (run["state"], run["error_code"]) == ("failed", "denied")
    assert resting.cluster.exec(["test", "-e", resting.run_dir(run_id)])[0] == 1
    guest.close()


def test_a_persons_files_are_removed_as_the_person(
    people: People, kims: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = people.kim.start(pipeline([component("only")]))
    people.kim.succeed(run_id)
    monkeypatch.setenv(CONFIG_FILE_VARIABLE, str(people.broker.config_file))
    ctx = build_context(Settings())
    try:
        lease = leases.acquire(ctx.db, "test", "test", 30)
        assert lease is not None
        remove_run_files(ctx, people.cluster.name, lease, run_id)
    finally:
        ctx.close()
    assert people.cluster.exec(["test", "-e", people.run_dir(run_id)])[0] == 1
    assert people.cluster.exec(["test", "-e", people.run_dir(kims)])[0] == 0


# ---- the doctor -----------------------------------------------------------------------------------------


def test_the_doctor_finds_nothing_to_mend_where_people_can_be_acted_for(
    people: People, tmp_path: Path
) -> None:
    checks = Doctor(people.cluster, tmp_path).checks(
        "--no-jobs", status=0, run_as="user", base_path=people.base
    )
    assert checks["sudo rule"]["detail"].endswith("the Unix group people, for nobody else")
    assert "Operator" in checks["Slurm rights"]["detail"]
    for name in ("group people", "base path for people", "acting as kim", "image cache for people"):
        assert checks[name]["status"] == "ok", checks[name]
    assert ".broker-doctor" not in people.cluster.ok("ls", "-A", people.base)


def test_the_doctor_names_what_would_let_people_reach_each_others_runs(
    people: People, tmp_path: Path
) -> None:
    doctor, base = Doctor(people.cluster, tmp_path), f"{people.base}-open"
    people.cluster.ok("install", "-d", "-o", "kim", "-m", "0777", base)
    checks = doctor.checks("--no-jobs", status=1, run_as="user", base_path=base)
    assert failed(checks) == {"base path", "base path for people"}
    people.cluster.ok("chown", "broker", base)
    people.cluster.ok("chmod", "0755", base)
    checks = doctor.checks("--no-jobs", status=1, run_as="user", base_path=base, image_dir=people.base)
    assert "acting as kim" in failed(checks)
    assert "image cache for people" in failed(checks)
    people.cluster.ok("rmdir", base)


def test_the_doctor_names_an_account_that_may_act_for_nobody(people: People, tmp_path: Path) -> None:
    kim = next(user for user in people.cluster.info["users"] if user["name"] == "kim")
    own = {"ssh_user": "kim", "ssh_key_file": kim["key"], "base_path": people.base, "image_dir": people.base}
    checks = Doctor(people.cluster, tmp_path).checks("--no-jobs", status=1, run_as="user", **own)
    assert failed(checks) == {"Slurm rights", "sudo rule"}
    assert "kim ALL=(%GROUP) NOPASSWD: ALL" in checks["sudo rule"]["remedy"]
