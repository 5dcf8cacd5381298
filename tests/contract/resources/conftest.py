"""A cluster of emulated nodes, on either database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api_support import Api, context
from tests.postgres import database_of
from tests.resources import World


@pytest.fixture
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    url = database_of(request)
    with context(tmp_path / "data", url) as ctx:
        made = Api(ctx)
        with made.http:
            yield World(made, 12)
