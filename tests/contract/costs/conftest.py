"""Two tenants' jobs on either database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.accounting import two_tenants
from tests.api_support import Api, context
from tests.costs import made_jobs
from tests.postgres import database_of


@pytest.fixture(params=["sqlite", "postgres"])
def api(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Api]:
    url = database_of(request)
    with context(tmp_path / "data", url) as ctx:
        yield two_tenants(ctx, made_jobs())
