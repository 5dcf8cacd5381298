"""Tables and migrations agree, and what must hold under many writers holds on both databases."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import func, inspect, select

from broker import schema
from broker.db import Database
from broker.errors import Conflict
from broker.identity import SYSTEM, Role
from broker.identity.schemas import UserChange
from broker.identity.service import change_user, ensure_first_admin, find_user
from broker.identity.tables import UserRow
from broker.runs.tables import RunRow
from tests.api_support import SPEC, Api, context, spec
from tests.postgres import fresh_database

NUMBER = iter(range(1000))


@pytest.fixture(params=["sqlite", "postgres"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.sqlite3'}"
    return fresh_database(request.getfixturevalue("postgres_url"), f"test{next(NUMBER)}")


@pytest.fixture
def db(url):
    database = Database(url)
    yield database
    database.close()


@pytest.fixture
def ctx(url, tmp_path):
    with context(tmp_path / "data", url) as made:
        yield made


def test_tables_and_migrations_agree(db):
    assert schema.pending(db)
    assert schema.upgrade(db) == (None, schema.head())
    assert not schema.pending(db)
    with db.engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        found = compare_metadata(MigrationContext.configure(connection, opts=options), schema.metadata)
        assert found == []
        assert set(schema.metadata.tables) | {"alembic_version"} == set(inspect(connection).get_table_names())


def conditions(db):
    """What each index of a part of a table is for, by its name, as the database tells it."""
    found = inspect(db.engine)
    indexes = [index for table in schema.metadata.tables for index in found.get_indexes(table)]
    where = f"{db.engine.dialect.name}_where"
    options = {index["name"]: index.get("dialect_options", {}) for index in indexes}
    return {name: str(of[where]) for name, of in options.items() if where in of}


def test_indexes_of_a_part_of_a_table_are_for_the_part_that_its_queries_name(db, request, tmp_path):
    """Alembic compares no conditions: with another one, an index is unused, or keeps out too much."""
    schema.upgrade(db)
    of_tables = f"sqlite:///{tmp_path / 'tables.sqlite3'}"
    if not db.is_sqlite:
        of_tables = fresh_database(request.getfixturevalue("postgres_url"), f"test{next(NUMBER)}")
    made = Database(of_tables)
    try:
        with made.engine.execution_options(broker_write=True).begin() as connection:
            schema.metadata.create_all(connection)
        assert "ix_accounting_jobs_lasting" in conditions(db)
        assert conditions(db) == conditions(made)
    finally:
        made.close()


def test_upgrade_again_changes_nothing(db):
    schema.upgrade(db)
    assert schema.upgrade(db) == (schema.head(), schema.head())


def test_the_last_migration_can_be_taken_back_and_made_again(db):
    schema.upgrade(db)
    made = schema.config()
    with db.engine.execution_options(broker_write=True).begin() as connection:
        made.attributes["connection"] = connection
        command.downgrade(made, "-1")
    assert "accounting_at" in {column["name"] for column in inspect(db.engine).get_columns("clusters")}
    before, after = schema.upgrade(db)
    assert before != after == schema.head()
    assert "accounting_at" not in {column["name"] for column in inspect(db.engine).get_columns("clusters")}


def test_many_processes_may_upgrade_at_once(url):
    def upgrade(_):
        database = Database(url)
        try:
            return schema.upgrade(database)
        finally:
            database.close()

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(upgrade, range(4)))
    assert sorted(results, key=str) == [(schema.head(), schema.head())] * 3 + [(None, schema.head())]


def test_first_admin_is_made_once_by_many(ctx):
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: ensure_first_admin(ctx.db, ctx.settings.data_dir), range(4)))
    (only,) = [one for one in made if one]
    assert only.path.read_text() == only.password + "\n"
    with ctx.db.read() as session:
        assert session.scalar(select(func.count()).select_from(UserRow)) == 1


def test_the_same_request_from_many_threads_makes_one_run(ctx):
    api = Api(ctx)
    api.add("ann")

    def ask(_):
        return api.call("POST", "/runs", "ann", {"Idempotency-Key": "race"}, json={"pipeline": "digits"})

    with api.http:
        api.store("ann")
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(16)))
    assert {answer.status_code for answer in answers} == {201}, [answer.text for answer in answers]
    assert len({answer.json()["id"] for answer in answers}) == 1
    with ctx.db.read() as session:
        assert session.scalar(select(func.count()).select_from(RunRow)) == 1


def test_first_runs_of_many_are_numbered_without_gap(ctx):
    api = Api(ctx)
    api.add("ann")
    with api.http:
        api.store("ann")
        with ThreadPoolExecutor(8) as pool:
            answers = list(
                pool.map(lambda _: api.call("POST", "/runs", "ann", json={"pipeline": "digits"}), range(12))
            )
    assert {answer.status_code for answer in answers} == {201}, [answer.text for answer in answers]
    assert sorted(answer.json()["number"] for answer in answers) == list(range(1, 13))


def test_versions_of_many_writers_are_numbered_without_gap(ctx):
    api = Api(ctx)
    api.add("ann")
    with api.http:
        api.store("ann")
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda n: api.store("ann", spec(name=f"name {n}")), range(12)))
    assert {answer.status_code for answer in answers} == {201}
    assert sorted(answer.json()["version"]["number"] for answer in answers) == list(range(2, 14))


def test_first_versions_of_many_writers_make_one_pipeline(ctx):
    api = Api(ctx)
    api.add("ann")
    with api.http, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: api.store("ann", SPEC), range(12)))
    assert {answer.status_code for answer in answers} <= {200, 201}, [answer.text for answer in answers]
    assert len({answer.json()["pipeline"]["id"] for answer in answers}) == 1
    assert [answer.status_code for answer in answers].count(201) == 1


def test_two_admins_who_demote_each_other_at_once_leave_one(ctx):
    api = Api(ctx)
    ids = [api.add("one", Role.ADMIN), api.add("two", Role.ADMIN)]
    barrier = threading.Barrier(2)

    def demote(user_id):
        barrier.wait(10)
        try:
            with ctx.db.write() as session:
                change_user(session, SYSTEM, find_user(session, user_id), UserChange(role=Role.VIEWER), None)
        except Conflict:
            return "refused"
        return "done"

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(demote, ids)) == ["done", "refused"]
