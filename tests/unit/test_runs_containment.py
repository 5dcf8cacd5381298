"""What is one run's own defect, and what is everybody's."""

from __future__ import annotations

import sqlite3

import psycopg
import pytest
from prometheus_client import REGISTRY
from sqlalchemy import exc

from broker.db.leases import LeaseLost
from broker.errors import Denied
from broker.runs.telemetry import contained


def defects() -> float:
    return REGISTRY.get_sample_value("broker_worker_defects_total") or 0.0


def database(kind: type[exc.DBAPIError], error: Exception) -> exc.DBAPIError:
    return kind("select 1", None, error)


@pytest.mark.parametrize(
    "error",
    [
        LeaseLost("main"),
        database(exc.OperationalError, psycopg.OperationalError("connection refused")),
        database(exc.OperationalError, psycopg.errors.AdminShutdown()),
        database(exc.OperationalError, psycopg.errors.TooManyConnections()),
        database(exc.OperationalError, sqlite3.OperationalError("database is locked")),
        database(exc.InterfaceError, psycopg.InterfaceError("connection already closed")),
        database(exc.InternalError, psycopg.errors.InFailedSqlTransaction()),
        exc.PendingRollbackError(),
        exc.TimeoutError("no connection left"),
    ],
)
def test_what_is_everybodys_is_raised_and_no_defect(error: Exception) -> None:
    before = defects()
    with pytest.raises(type(error)), contained("run_not_tracked", run_id="r"):
        raise error
    assert defects() == before


@pytest.mark.parametrize(
    "error",
    [
        ValueError("of one run"),
        database(exc.DataError, psycopg.errors.NumericValueOutOfRange()),
        database(exc.OperationalError, psycopg.errors.DeadlockDetected()),
        database(exc.OperationalError, psycopg.errors.ProgramLimitExceeded()),
        database(exc.IntegrityError, sqlite3.IntegrityError()),
    ],
)
def test_a_defect_of_one_run_is_counted_and_holds_up_nothing(error: Exception) -> None:
    before = defects()
    with contained("run_not_tracked", run_id="r"):
        raise error
    assert defects() == before + 1


def test_what_is_named_is_raised_as_well() -> None:
    with pytest.raises(Denied), contained("marker_not_read", but=(Denied,), run_id="r"):
        raise Denied("closed")
