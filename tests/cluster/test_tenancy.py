"""`broker cluster sync` against a real slurmdbd: what it makes, what it leaves, what an Operator can't do."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from broker.db.leases import acquire
from broker.errors import OutcomeUnknown
from broker.identity import SYSTEM, Role
from broker.slurm import SlurmClient
from broker.tenancy.service import apply_sync
from tests.api_support import Api, context
from tests.cluster.conftest import DevCluster
from tests.harness.cluster import Cluster

pytestmark = pytest.mark.cluster

TEAMS = ("sync-a", "sync-b")


@pytest.fixture(scope="module")
def slurm(cluster: DevCluster) -> Iterator[Cluster]:
    """The cluster, rid of what these tests make in it."""
    found = Cluster(cluster.name)
    _clean(found)
    yield found
    _clean(found)


def _clean(slurm: Cluster) -> None:
    delete = "sacctmgr -i delete account {} ; sacctmgr -nP show qos format=name | grep ^sync- | paste -sd,"
    found = slurm.exec("bash", "-c", delete.format(",".join(TEAMS))).splitlines()[-1]
    if found.startswith("sync-"):
        slurm.exec("sacctmgr", "-i", "delete", "qos", found)


@pytest.fixture
def api(slurm: Cluster, tmp_path: Path) -> Iterator[Api]:
    """A broker whose classes have a prefix, so that all of them are new to the cluster."""
    _clean(slurm)
    settings = slurm.settings(qos_prefix="sync-")
    with context(tmp_path, clusters={"main": settings}) as ctx:
        made = Api(ctx)
        made.add("root", Role.ADMIN)
        for name, fairshare in zip(TEAMS, (3, 1), strict=True):
            made.call("POST", "/tenants", "root", json={"name": name, "fairshare": fairshare})
        yield made


def told(slurm: Cluster, what: str, fields: str, *where: str) -> list[str]:
    """What sacctmgr says."""
    return slurm.exec("sacctmgr", "-nP", "show", what, *where, f"format={fields}").splitlines()


def plan(api: Api) -> dict[str, Any]:
    answer = api.call("GET", "/clusters/main/sync", "root")
    assert answer.status_code == 200, answer.text
    view: dict[str, Any] = answer.json()
    return view


def sync(api: Api, *adopt: str) -> dict[str, Any]:
    answer = api.call("POST", "/clusters/main/sync", "root", json={"adopt": list(adopt)})
    assert answer.status_code == 200, answer.text
    view: dict[str, Any] = answer.json()
    return view


def actions(view: dict[str, Any]) -> dict[str, str]:
    return {f"{line['kind']} {line['name']}": line["action"] for line in view["lines"]}


def as_administrator(slurm: Cluster, view: dict[str, Any]) -> None:
    """What `broker cluster sync --script | ssh root@login sh` does."""
    commands = [line["command"] for line in view["lines"] if line["action"] in {"create", "change"}]
    slurm.exec("bash", "-ec", "\n".join(commands))


def test_tenants_and_classes_come_into_being_once_and_an_operators_limits_are_told(
    api: Api, slurm: Cluster
) -> None:
    first = plan(api)
    assert {actions(first)[f"account {team}"] for team in TEAMS} == {"create"}
    assert sum(line["kind"] == "qos" and line["action"] == "create" for line in first["lines"]) == 8
    assert not [line for line in told(slurm, "qos", "Name") if line.startswith("sync-")], (
        "a plan changed things"
    )

    refused = [line for line in sync(api)["lines"] if line["result"] == "refused"]
    assert {line["kind"] for line in refused if "denied" in line["answer"]} == {"qos"}
    as_administrator(slurm, {"lines": refused})
    sync(api)
    done = plan(api)
    assert (done["to_do"], actions(done)["account default"]) == (0, "foreign")

    qos = told(slurm, "qos", "Name,Priority,GraceTime,Preempt,PreemptMode,MaxWall")
    assert "sync-training|100|00:02:00||requeue|1-00:00:00" in qos
    victims = ",".join(f"sync-{name}" for name in ("fine-tuning", "fine-tuning-approved", "training"))
    assert f"sync-urgent-inference|1000|00:00:00|{victims},sync-training-approved|cluster|" in qos
    shares = told(slurm, "assoc", "Account,User,Share", "cluster=dev", f"account={','.join(TEAMS)}")
    assert sorted(shares) == ["sync-a|broker|1", "sync-a||3", "sync-b|broker|1", "sync-b||1"]
    twins = told(slurm, "assoc", "QOS", "cluster=dev")
    assert not any("-approved" in line for line in twins), "a twin is granted to somebody"

    again = sync(api)
    assert not [line for line in again["lines"] if line["result"]], "a second time there is nothing to do"
    slurm.exec(
        *("sbatch", "--wait", "--account=sync-a", "--qos=sync-training", "--wrap=true", "-o", "/dev/null"),
        user="broker",
    )


def test_what_was_changed_by_hand_is_shown_and_left_until_it_is_named(api: Api, slurm: Cluster) -> None:
    as_administrator(slurm, plan(api))
    sync(api)
    slurm.exec("bash", "-c", "sacctmgr -i modify account where name=sync-a cluster=dev set fairshare=50")
    slurm.exec("bash", "-c", "sacctmgr -i modify qos where name=sync-training set MaxWall=60")
    slurm.exec("bash", "-c", "sacctmgr -i delete user where name=broker account=sync-b")

    seen = actions(sync(api))
    assert (seen["account sync-a"], seen["qos sync-training"]) == ("drift", "drift")
    assert seen["user sync-b/broker"] == "removed"
    assert told(slurm, "assoc", "Share", "cluster=dev", "account=sync-a", "user=") == ["50"]
    [difference] = next(line for line in plan(api)["lines"] if line["name"] == "sync-a")["differences"]
    assert difference == {"field": "Fairshare", "now": "50", "wanted": "3", "set_before": "3"}

    named = sync(api, "account sync-a", "sync-b/broker")
    assert actions(named)["qos sync-training"] == "drift"
    assert told(slurm, "assoc", "Share", "cluster=dev", "account=sync-a", "user=") == ["3"]
    assert "broker" in told(slurm, "assoc", "User", "cluster=dev", "account=sync-b")
    wrong = api.call("POST", "/clusters/main/sync", "root", json={"adopt": ["sync-z"]})
    assert (wrong.status_code, wrong.json()["errors"][0]["code"]) == (422, "unknown_object")


def test_a_change_here_reaches_slurm_and_leaves_an_audit_row_with_slurms_answer(
    api: Api, slurm: Cluster, cluster: DevCluster
) -> None:
    as_administrator(slurm, plan(api))
    sync(api)
    version = api.call("GET", "/tenants/sync-b", "root").headers["ETag"]
    changed = api.call(
        "PATCH",
        "/tenants/sync-b",
        "root",
        json={"fairshare": 9, "active": False},
        headers={"If-Match": version},
    )
    assert changed.status_code == 200, changed.text
    sync(api)
    assert told(slurm, "assoc", "Share,GrpSubmit", "cluster=dev", "account=sync-b", "user=") == ["9|0"]
    submit = ["sbatch", "--account=sync-b", "--qos=sync-training", "--wrap=true"]
    status, _out, why = cluster.exec(submit, user="broker")
    assert (status, "limit" in why) == (1, True), "a closed tenant still submits"

    rows = api.call("GET", "/audit?action=cluster.account.change", "root").json()["items"]
    assert (rows[0]["before"]["Fairshare"], rows[0]["after"]["Fairshare"]) == ("1", "9")
    assert rows[0]["after"]["object"] == "account sync-b"
    assert "Modified account associations" in rows[0]["note"]
    assert rows[0]["actor_name"] == "root"


def test_a_change_whose_end_nobody_saw_is_the_brokers_own_at_the_next_look(
    api: Api, slurm: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_administrator(slurm, plan(api))
    sync(api)
    real = SlurmClient.manage

    def dies_afterwards(client: SlurmClient, words: Sequence[str]) -> str:
        real(client, words)
        raise SystemExit("the broker was killed")

    def is_cut_off(client: SlurmClient, words: Sequence[str]) -> str:
        real(client, words)
        raise OutcomeUnknown("the connection broke")

    for way, fairshare in ((dies_afterwards, 21), (is_cut_off, 22)):
        change = {"fairshare": fairshare}
        assert api.call("PATCH", "/tenants/sync-a", "root", json=change).status_code == 200
        monkeypatch.setattr(SlurmClient, "manage", way)
        with contextlib.suppress(SystemExit):
            apply_sync(api.ctx, SYSTEM, "main")
        monkeypatch.undo()
        assert told(slurm, "assoc", "Share", "cluster=dev", "account=sync-a", "user=") == [str(fairshare)]
        assert actions(plan(api))["account sync-a"] == "same"
    assert api.call("PATCH", "/tenants/sync-a", "root", json={"fairshare": 3}).status_code == 200
    assert actions(plan(api))["account sync-a"] == "change", "what the broker set counts as somebody else's"


def test_two_at_once_are_refused(api: Api) -> None:
    assert acquire(api.ctx.db, "sync:main", "somebody", 60) is not None
    answer = api.call("POST", "/clusters/main/sync", "root", json={})
    assert (answer.status_code, "just now" in answer.json()["detail"]) == (409, True)


def test_only_admins_may_look_and_change(api: Api) -> None:
    api.add("kim")
    assert api.call("GET", "/clusters/main/sync", "kim").status_code == 403
    assert api.call("POST", "/clusters/main/sync", "kim", json={}).status_code == 403
    assert api.call("GET", "/clusters/nowhere/sync", "root").status_code == 404
    assert json.loads(api.call("GET", "/clusters/nowhere/sync", "root").text)["code"] == "not_found"
