"""Reading the audit trail over HTTP and with the command: filters, tenants, CSV."""

import csv
import io
import json
from datetime import timedelta

import pytest
from sqlalchemy import text

from broker.audit import record
from broker.audit.guard import create_guard, drop_guard
from broker.audit.reading import COLUMNS
from broker.audit.sealing import LEASE, seal
from broker.cli import main
from broker.db import leases, utcnow
from broker.identity import SYSTEM, Principal, Role
from tests.api_support import Api, context
from tests.http_server import serving

KIM = Principal("us-kim", "kim", Role.RESEARCHER, "team-a")
LEE = Principal("us-lee", "lee", Role.RESEARCHER, "team-b")
FORMULAS = ["=1+1", "+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "＝1", "\n=1"]


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    with context(tmp_path_factory.mktemp("audit")) as ctx:
        api = Api(ctx)
        api.add("root", Role.ADMIN)
        api.add("boss", Role.TENANT_ADMIN, "team-a")
        api.add("ann")
        with ctx.db.write() as session:
            record(session, KIM, "run.create", "run", "run-1", None, {"state": "queued"})
            record(session, KIM, "run.cancel", "run", "run-1", {"state": "queued"}, {"cancel": True})
            record(session, LEE, "run.cancel", "run", "run-2", None, None)
            record(session, SYSTEM, "run.hold", "run", "run-1", None, None, "slurm: ok", tenant="team-a")
            record(session, SYSTEM, "sync.apply", "cluster", "main", None, None)
            record(session, LEE, "runs.other", "run", "run-2", None, None)
        with api.http:
            yield api


def actions(api, who="root", **params):
    answer = api.call("GET", "/audit", who, params=params)
    assert answer.status_code == 200, answer.text
    items = answer.json()["items"]
    assert [row["id"] for row in items] == sorted((row["id"] for row in items), reverse=True)
    return sorted(row["action"] for row in items)  # ids of one millisecond are in no order


def exported(api, who="root", **params):
    answer = api.call("GET", "/audit/export", who, params=params)
    assert answer.status_code == 200 and answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(answer.content.decode("utf-8-sig"), newline="")))
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    return rows


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"actor": "kim"}, ["run.cancel", "run.create"]),
        ({"actor": "us-kim", "action": "run.create"}, ["run.create"]),
        ({"action": "run.cancel"}, ["run.cancel", "run.cancel"]),
        ({"action": "run.*", "actor": "lee"}, ["run.cancel"]),
        ({"object_type": "cluster", "object_id": "main"}, ["sync.apply"]),
        ({"object_type": "run", "object_id": "run-1"}, ["run.cancel", "run.create", "run.hold"]),
        ({"tenant": "team-b"}, ["run.cancel", "runs.other"]),
        ({"action": "run_cancel"}, []),
        ({"action": "%.*"}, []),
    ],
)
def test_filters_narrow_the_list_and_the_export_alike(api, params, expected):
    assert actions(api, **params) == expected
    assert sorted(row["action"] for row in exported(api, **params)) == expected


def test_a_range_of_time_includes_its_beginning_and_not_its_end(api):
    rows = api.call("GET", "/audit", "root", params={"object_id": "run-1"}).json()["items"]
    first, second, third = sorted(row["at"] for row in rows)
    assert actions(api, object_id="run-1", since=second) == ["run.cancel", "run.hold"]
    assert actions(api, object_id="run-1", since=first, until=third) == ["run.cancel", "run.create"]
    assert actions(api, since=(utcnow() + timedelta(hours=1)).isoformat()) == []


@pytest.mark.parametrize("read", [actions, exported])
def test_a_range_may_reach_to_either_end_of_time(api, read):
    everything = len(read(api, object_id="run-1"))
    ends = {"since": "0001-01-01T00:00:00Z", "until": "9999-12-31T23:59:59Z"}
    assert len(read(api, object_id="run-1", **ends)) == everything == 3
    assert read(api, until="0001-01-01T00:00:00Z") == read(api, since="9999-12-31T23:59:59Z") == []
    assert len(read(api, object_id="run-1", since="0001-01-01T00:00:00+09:00")) == 3


def test_pages_of_a_filtered_list_cover_it_once(api):
    seen, cursor = [], None
    while True:
        params = {"action": "run.*", "limit": 2} | ({"cursor": cursor} if cursor else {})
        page = api.call("GET", "/audit", "root", params=params).json()
        seen += [row["id"] for row in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == 4


def test_the_admin_of_a_tenant_reads_what_concerns_the_tenant_and_nothing_else(api):
    assert actions(api, "boss", object_type="run") == ["run.cancel", "run.create", "run.hold"]
    assert {row["tenant"] for row in exported(api, "boss")} == {"team-a"}
    assert actions(api, "boss", tenant="team-b") == [] == exported(api, "boss", tenant="team-b")
    assert actions(api, "boss", tenant="team-a") == actions(api, "boss")


@pytest.mark.parametrize("path", ["/audit", "/audit/export"])
def test_others_read_nothing(api, path):
    assert api.call("GET", path, "ann").status_code == 403
    assert api.call("GET", path).status_code == 401


def test_no_field_of_the_csv_is_a_formula_and_text_comes_through(api):
    with api.ctx.db.write() as session:
        for value in FORMULAS:
            record(session, KIM, value, "formula", value, None, {"값": value}, value)
        record(session, KIM, "x", "formula", 'a"b,c\nd', None, None, "한글")
    rows = exported(api, object_type="formula")
    assert len(rows) == len(FORMULAS) + 1 and set(rows[0]) == set(COLUMNS)
    *formulas, plain = sorted(rows, key=lambda row: row["note"] == "한글")
    assert {row["note"] for row in formulas} == {f"'{value}" for value in FORMULAS}
    for row in formulas:
        value = row["note"][1:]
        assert row["object_id"] == row["action"] == f"'{value}"
        assert not any(cell.startswith(tuple("=+-@\t\r\n＝")) for cell in row.values())
        assert json.loads(row["after"]) == {"값": value}
    assert (plain["object_id"], plain["note"]) == ('a"b,c\nd', "한글")


def test_an_export_of_many_pages_has_every_row_once_in_order(api):
    with api.ctx.db.write() as session:
        for _ in range(1234):
            record(session, KIM, "bulk", "bulk", "b", None, None)
    ids = [row["id"] for row in exported(api, object_type="bulk")]
    assert len(ids) == 1234 and ids == sorted(set(ids))


# ---- the command -------------------------------------------------------------------------------------


@pytest.fixture
def server(api, monkeypatch):
    with serving(api.app) as url:
        monkeypatch.setenv("BROKER_SERVER", url)
        monkeypatch.setenv("BROKER_TOKEN", api.tokens["root"])
        yield url


def test_the_command_lists_with_filters(server, capsys):
    assert main(["audit", "list", "--actor", "kim", "--object", "run/run-1", "--json"]) == 0
    assert {row["action"] for row in json.loads(capsys.readouterr().out)} == {"run.cancel", "run.create"}
    assert main(["audit", "list", "--object", "cluster"]) == 0
    assert "sync.apply" in capsys.readouterr().out
    assert main(["audit", "list", "--since", "yesterday"]) == 2
    assert "?since" in capsys.readouterr().err


def test_the_command_exports_to_a_file_and_to_standard_output(server, capfdbinary, tmp_path):
    target = tmp_path / "audit.csv"
    assert main(["audit", "export", "-o", str(target), "--actor", "lee", "--json"]) == 0
    assert json.loads(capfdbinary.readouterr().out) == {"path": str(target), "bytes": target.stat().st_size}
    assert main(["audit", "export", "--actor", "lee"]) == 0
    assert capfdbinary.readouterr().out == target.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["audit.csv"]


def test_an_export_that_fails_leaves_no_file(server, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("BROKER_TOKEN", "nonsense")
    assert main(["audit", "export", "-o", str(tmp_path / "audit.csv")]) == 77
    assert list(tmp_path.iterdir()) == []
    assert main(["audit", "export", "-o", str(tmp_path / "none" / "audit.csv")]) == 2
    assert main(["audit", "export", "--json"]) == 2


def test_verify_ends_with_1_and_names_the_first_broken_row(tmp_path, monkeypatch, capsys):
    with context(tmp_path) as ctx:
        with ctx.db.write() as session:
            for _ in range(3):
                record(session, KIM, "run.cancel", "run", "run-1", None, None)
        seal(ctx.db, leases.acquire(ctx.db, LEASE, "test", 3600), tmp_path)
        monkeypatch.setenv("BROKER_DATA_DIR", str(tmp_path))
        assert main(["audit", "verify", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert (told["intact"], told["guarded"], told["sealed"], told["broken"]) == (True, True, 3, None)
        assert main(["audit", "verify", "--head", told["head"]]) == 0
        assert told["head"] in capsys.readouterr().out
        assert main(["audit", "verify", "--head", "3:" + "0" * 64, "--json"]) == 1
        assert json.loads(capsys.readouterr().out)["broken"]["breach"] == "rewritten"
        with ctx.db.engine.execution_options(broker_write=True).begin() as connection:
            drop_guard(connection)
            changed = connection.execute(text("select audit_id from audit_seals where number = 2")).scalar()
            connection.execute(text("update audit set actor_name = 'eve' where id = :id"), {"id": changed})
            create_guard(connection)
        assert main(["audit", "verify"]) == 1
        shown = capsys.readouterr().out
        assert "BROKEN" in shown and f"changed: no. 2 {changed}" in shown
        assert main(["audit", "verify", "--json"]) == 1
        assert json.loads(capsys.readouterr().out)["broken"]["audit_id"] == changed
        assert main(["audit", "verify", "--head", "nonsense"]) == 2


def test_verify_ends_with_1_when_the_database_no_longer_refuses(tmp_path, monkeypatch, capsys):
    with context(tmp_path) as ctx:
        monkeypatch.setenv("BROKER_DATA_DIR", str(tmp_path))
        with ctx.db.engine.execution_options(broker_write=True).begin() as connection:
            drop_guard(connection)
        assert main(["audit", "verify"]) == 1
        assert "MISSING" in capsys.readouterr().out
