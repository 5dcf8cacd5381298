"""A cluster of emulated nodes, on either database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api_support import Api, context
from tests.postgres import fresh_database
from tests.resources import NUMBER, World


@pytest.fixture
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    url = None
    if getattr(request, "param", "sqlite") == "postgres":
        url = fresh_database(request.getfixturevalue("postgres_url"), f"resources{next(NUMBER)}")
    with context(tmp_path / "data", url) as ctx:
        made = Api(ctx)
        with made.http:
            yield World(made, 12)
