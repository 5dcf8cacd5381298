"""Two tenants' jobs on either database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import delete

from broker.costs.tables import PriceRow
from broker.settings import CostSettings
from tests.accounting import two_tenants
from tests.api_support import Api, context
from tests.costs import made_jobs
from tests.postgres import database_of


@pytest.fixture(params=["sqlite", "postgres"])
def api(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Api]:
    url = database_of(request)
    with context(tmp_path / "data", url) as ctx:
        yield two_tenants(ctx, made_jobs())


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def jobs_once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The same for all tests of a module, which add no jobs that others count; see `no_prices`."""
    url = database_of(request)
    with context(tmp_path_factory.mktemp("costs") / "data", url) as ctx:
        yield two_tenants(ctx, made_jobs())


@pytest.fixture
def no_prices(jobs_once: Api) -> Api:
    """The jobs, without a price that an earlier test has entered, and with the usual currency."""
    jobs_once.ctx.settings.__dict__["costs"] = CostSettings()
    with jobs_once.ctx.db.write() as session:
        session.execute(delete(PriceRow))
    return jobs_once
