"""A database for the sums of a module, and parts of one fortnight."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.accounting import rebuild
from broker.context import Context
from tests.api_support import context
from tests.postgres import database_of


@pytest.fixture(params=["sqlite", "postgres"], scope="module")
def ctx(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    url = database_of(request)
    with context(Path(tmp_path_factory.mktemp("rebuild")), url) as made:
        yield made


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part has one fortnight: there are too few jobs here to fill any."""
    monkeypatch.setattr(rebuild, "MOST_JOBS", 0)
