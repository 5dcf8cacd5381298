"""The audit trail on both databases: append-only, sealed once, and whatever was done to it is found."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from broker import schema
from broker.audit import record, sealing
from broker.audit.chain import LATE, Breach, Head, digest
from broker.audit.guard import REFUSAL, create_guard, drop_guard
from broker.audit.sealing import LEASE, kept_head, parse_head, seal, verify
from broker.audit.tables import AuditRow, SealRow
from broker.db import first_id, leases, utcnow
from broker.db.leases import LeaseLost
from broker.errors import InvalidRequest
from broker.identity import SYSTEM
from broker.worker import loop
from broker.worker.periodic import Periodic
from tests.api_support import context
from tests.postgres import database_of

NUMBER = iter(range(1000))


@pytest.fixture(params=["sqlite", "postgres"])
def ctx(request, tmp_path):
    url = database_of(request) or f"sqlite:///{tmp_path / 'trail.sqlite3'}"
    with context(tmp_path / "data", url, clusters={}) as made:
        yield made


@pytest.fixture
def lease(ctx):
    return leases.acquire(ctx.db, LEASE, "test", 600)


def write(ctx, count=1, **more):
    with ctx.db.write() as session:
        for _ in range(count):
            record(session, SYSTEM, "thing.change", "thing", "th-1", {"a": 1}, {"a": 2.5, "ko": "값"}, **more)


def sealed(ctx, lease, count=5):
    """A trail of `count` sealed rows."""
    write(ctx, count)
    assert seal(ctx.db, lease, ctx.settings.data_dir) == count


@contextmanager
def tampering(ctx):
    """A session of somebody who owns the tables: no triggers, no foreign keys."""
    with ctx.db.engine.execution_options(broker_write=True).connect() as connection:
        if ctx.db.is_sqlite:
            connection.connection.cursor().execute("PRAGMA foreign_keys=OFF")
            with connection.begin():
                drop_guard(connection)
                yield connection
                create_guard(connection)
            connection.connection.cursor().execute("PRAGMA foreign_keys=ON")
        else:
            with connection.begin():
                connection.execute(text("set local session_replication_role = replica"))
                yield connection


def rows(ctx):
    with ctx.db.read() as session:
        return session.scalars(select(AuditRow.id).order_by(AuditRow.id)).all()


def found(ctx, *known):
    broken = verify(ctx.db, known).broken
    assert broken is not None
    return broken.breach, broken.number


# ---- append-only -------------------------------------------------------------------------------------


REFUSED = (
    "update audit set note = 'x'",
    "update audit set note = note where id < 'b'",
    "delete from audit",
    "delete from audit where id like 'au-%'",
    "update audit_seals set hash = ''",
    "delete from audit_seals where number = 1",
    "insert into audit select * from audit where true on conflict (id) do update set note = 'x'",
)
REFUSED_BY_SQLITE = (
    "insert or replace into audit select * from audit",
    "replace into audit (rowid, id, at, actor_id, actor_name, action, object_type, object_id, note)"
    " select rowid, 'au-new', at, '', '', '', '', '', '' from audit",
    "insert or replace into audit_seals select number, audit_id, sealed_at, '' from audit_seals",
    "update or replace audit set note = 'x'",
)


def test_the_database_refuses_to_change_or_remove(ctx, lease):
    sealed(ctx, lease)
    statements = REFUSED_BY_SQLITE if ctx.db.is_sqlite else ("truncate audit, audit_seals",)
    for statement in (*REFUSED, *statements):
        with pytest.raises(DBAPIError, match=REFUSAL), ctx.db.write() as session:
            session.execute(text(statement))
    assert verify(ctx.db).broken is None and verify(ctx.db).sealed == 5


def test_the_guard_may_be_made_again_and_be_dropped(ctx):
    with ctx.db.engine.execution_options(broker_write=True).begin() as connection:
        create_guard(connection)
        create_guard(connection)
    write(ctx)
    with pytest.raises(DBAPIError, match=REFUSAL), ctx.db.write() as session:
        session.execute(text("delete from audit"))
    with ctx.db.engine.execution_options(broker_write=True).begin() as connection:
        drop_guard(connection)
        assert connection.execute(text("delete from audit")).rowcount == 1
        create_guard(connection)


def test_a_guard_that_somebody_dropped_is_missed_and_made_again_by_an_upgrade(ctx):
    assert verify(ctx.db).guarded
    with ctx.db.engine.execution_options(broker_write=True).begin() as connection:
        name = "audit_no_delete" if ctx.db.is_sqlite else "audit_no_change"
        connection.execute(text(f"drop trigger {name}" + ("" if ctx.db.is_sqlite else " on audit")))
    assert not verify(ctx.db).guarded
    schema.upgrade(ctx.db)
    assert verify(ctx.db).guarded


def test_a_guard_that_somebody_switched_off_is_missed(ctx):
    if ctx.db.is_sqlite:
        pytest.skip("SQLite can't switch a trigger off")
    with ctx.db.write() as session:
        session.execute(text("alter table audit disable trigger audit_no_change"))
    assert not verify(ctx.db).guarded


# ---- sealing -----------------------------------------------------------------------------------------


def test_rows_are_sealed_once_in_their_order(ctx, lease):
    write(ctx, 3)
    assert verify(ctx.db).unsealed == 3
    assert seal(ctx.db, lease, ctx.settings.data_dir) == 3
    assert seal(ctx.db, lease, ctx.settings.data_dir) == 0
    with ctx.db.read() as session:
        links = session.execute(select(SealRow.number, SealRow.audit_id).order_by(SealRow.number)).all()
    assert [tuple(link) for link in links] == list(enumerate(rows(ctx), 1))
    assert (verify(ctx.db).sealed, verify(ctx.db).unsealed) == (3, 0)


def test_more_rows_than_one_batch_are_sealed_in_one_call(ctx, lease):
    sealed(ctx, lease, 1203)
    assert verify(ctx.db).sealed == 1203 and verify(ctx.db).broken is None


def test_what_is_rolled_back_leaves_no_row_and_no_gap(ctx, lease):
    sealed(ctx, lease, 2)
    with pytest.raises(RuntimeError), ctx.db.write() as session:
        record(session, SYSTEM, "thing.change", "thing", "th-1", None, None)
        session.flush()
        raise RuntimeError
    sealed(ctx, lease, 2)
    assert verify(ctx.db).sealed == 4 and verify(ctx.db).broken is None


def test_a_transaction_that_commits_late_is_sealed_late(ctx, lease):
    if ctx.db.is_sqlite:
        pytest.skip("SQLite writes one transaction after the other")
    with ctx.db.write() as slow:
        record(slow, SYSTEM, "slow.change", "thing", "th-1", None, None)
        slow.flush()
        sealed(ctx, lease, 2)
    assert seal(ctx.db, lease, ctx.settings.data_dir) == 1
    assert verify(ctx.db).sealed == 3 and verify(ctx.db).broken is None


def test_a_sealer_that_lost_its_lease_seals_nothing(ctx, lease):
    leases.release(ctx.db, lease)
    assert leases.acquire(ctx.db, LEASE, "other", 600)
    write(ctx)
    with pytest.raises(LeaseLost):
        seal(ctx.db, lease, ctx.settings.data_dir)
    assert verify(ctx.db).sealed == 0


def test_sealing_while_many_write_leaves_a_whole_chain(ctx, lease):
    over = threading.Event()

    def keep_sealing():
        while not over.is_set():
            seal(ctx.db, lease, ctx.settings.data_dir)

    sealer = threading.Thread(target=keep_sealing)
    sealer.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: write(ctx), range(60)))
    over.set()
    sealer.join()
    seal(ctx.db, lease, ctx.settings.data_dir)
    assert (verify(ctx.db).sealed, verify(ctx.db).broken) == (60, None)


def test_the_periodic_task_seals_and_gives_its_lease_back(ctx):
    write(ctx, 3)
    done, stop = threading.Event(), threading.Event()

    def what(lease):
        seal(ctx.db, lease, ctx.settings.data_dir)
        done.set()

    thread = threading.Thread(target=Periodic(LEASE, 0.1, what).run, args=(ctx, "test", stop))
    thread.start()
    assert done.wait(20)
    stop.set()
    thread.join(20)
    assert not thread.is_alive() and verify(ctx.db).sealed == 3
    assert leases.acquire(ctx.db, LEASE, "next", 5)


def test_the_worker_seals(ctx, monkeypatch):
    sealed_some, stop, real = threading.Event(), threading.Event(), sealing.seal

    def seal_and_tell(*arguments):
        if real(*arguments):
            sealed_some.set()

    monkeypatch.setattr(sealing, "seal", seal_and_tell)
    write(ctx, 2)
    thread = threading.Thread(target=loop.run, args=(ctx, stop))
    thread.start()
    assert sealed_some.wait(30)
    stop.set()
    thread.join(30)
    assert not thread.is_alive() and verify(ctx.db).sealed >= 2


# ---- verifying ---------------------------------------------------------------------------------------


def test_an_empty_trail_is_whole(ctx):
    assert verify(ctx.db).broken is None


def test_a_changed_value_is_found(ctx, lease):
    sealed(ctx, lease)
    third = rows(ctx)[2]
    for column in ("note", "actor_name", "object_id", "source_ip", "tenant", "action", "before", "after"):
        statement = text(f"update audit set {column} = :value where id = :id")
        kept = text(f"select {column} from audit where id = :id")
        with tampering(ctx) as db:
            original = db.execute(kept, {"id": third}).scalar()
            db.execute(statement, {"value": '{"a": 3}', "id": third})
        broken = verify(ctx.db).broken
        assert (broken.breach, broken.number, broken.audit_id) == (Breach.CHANGED, 3, third), column
        with tampering(ctx) as db:
            original = json.dumps(original) if isinstance(original, dict) else original
            db.execute(statement, {"value": original, "id": third})
        assert verify(ctx.db).broken is None


def test_a_removed_row_is_found(ctx, lease):
    sealed(ctx, lease)
    with tampering(ctx) as db:
        db.execute(text("delete from audit where id = :id"), {"id": rows(ctx)[1]})
    assert found(ctx) == (Breach.REMOVED, 2)


def test_a_row_removed_with_its_seal_is_found(ctx, lease):
    sealed(ctx, lease)
    with tampering(ctx) as db:
        db.execute(text("delete from audit_seals where number = 2"))
        db.execute(text("delete from audit where id = :id"), {"id": rows(ctx)[1]})
    assert found(ctx) == (Breach.REMOVED, 2)


def test_an_end_that_was_cut_off_is_found_by_the_head_that_the_sealing_machine_kept(ctx, lease):
    sealed(ctx, lease)
    head = kept_head(ctx.settings.data_dir)
    assert head == verify(ctx.db).head
    with tampering(ctx) as db:
        db.execute(text("delete from audit_seals where number > 3"))
        db.execute(text("delete from audit where id >= :id"), {"id": rows(ctx)[3]})
    assert verify(ctx.db).broken is None
    assert found(ctx, head) == (Breach.CUT_OFF, 4)


def test_a_chain_computed_anew_is_found_by_the_head_that_was_kept(ctx, lease):
    sealed(ctx, lease)
    head = kept_head(ctx.settings.data_dir)
    with tampering(ctx) as db:
        db.execute(text("delete from audit_seals"))
        db.execute(text("update audit set note = 'x' where id = :id"), {"id": rows(ctx)[4]})
    seal(ctx.db, lease, ctx.settings.data_dir / "..")
    assert verify(ctx.db).broken is None
    assert found(ctx, head) == (Breach.REWRITTEN, 5)


def insert_old(ctx, at, audit_id):
    with ctx.db.write() as session:
        session.add(
            AuditRow(
                id=audit_id,
                at=at,
                actor_id="us-1",
                actor_name="eve",
                action="run.approve",
                object_type="run",
                object_id="run-1",
            )
        )


def test_a_row_inserted_into_the_past_is_never_sealed_and_is_found(ctx, lease):
    sealed(ctx, lease)
    before = utcnow() - LATE - timedelta(minutes=1)
    insert_old(ctx, before, first_id("au", before))
    assert seal(ctx.db, lease, ctx.settings.data_dir) == 0
    broken = verify(ctx.db).broken
    assert (broken.breach, broken.audit_id) == (Breach.INSERTED, first_id("au", before))


def test_a_row_with_a_time_of_the_past_and_an_id_of_now_is_found(ctx, lease):
    sealed(ctx, lease)
    insert_old(ctx, utcnow() - LATE - timedelta(minutes=1), first_id("au", utcnow()))
    assert seal(ctx.db, lease, ctx.settings.data_dir) == 1
    assert found(ctx) == (Breach.INSERTED, 6)


def test_a_row_inserted_with_a_forged_seal_is_found(ctx, lease):
    sealed(ctx, lease)
    with ctx.db.read() as session:
        second = session.get(SealRow, 2)
        fields = {c.key: getattr(session.get(AuditRow, second.audit_id), c.key) for c in AuditRow.__table__.c}
    with tampering(ctx) as db:
        db.execute(text("update audit_seals set number = number + 100 where number > 2"))
        db.execute(text("update audit_seals set number = number - 99 where number > 100"))
        forged = fields | {"id": rows(ctx)[1] + "x"}
        db.execute(AuditRow.__table__.insert().values(**forged))
        made = {"number": 3, "audit_id": forged["id"], "sealed_at": second.sealed_at}
        made["hash"] = digest(Head(2, second.hash), second.sealed_at, forged)
        db.execute(SealRow.__table__.insert().values(**made))
    assert found(ctx) == (Breach.CHANGED, 4)


@pytest.mark.parametrize("text_", ["", "5", "5:", "x:" + "0" * 64, "5:" + "0" * 63, "5:" + "G" * 64])
def test_what_is_no_head_is_refused(text_):
    with pytest.raises(InvalidRequest, match="is not the head of a chain"):
        parse_head(text_)
