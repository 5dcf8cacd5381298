"""A real S3 server, and a broker that exports reports to it."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.identity import Role
from broker.objects import EmbeddedObjectStore, ObjectStore
from broker.settings import ReportSettings
from tests.accounting import at, job, keep
from tests.api_support import Api, context
from tests.exports import BOTH, READ, Place
from tests.postgres import fresh_database

NUMBER = itertools.count()


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedObjectStore]:
    embedded = EmbeddedObjectStore(tmp_path_factory.mktemp("objects"))
    embedded.start()
    yield embedded
    embedded.stop()


@pytest.fixture
def place(request: pytest.FixtureRequest, server: EmbeddedObjectStore, tmp_path: Path) -> Iterator[Place]:
    objects = ObjectStore(replace(server.start().config("models"), max_attempts=2))
    objects.ensure_bucket()
    prefix = f"reports/{hashlib.sha256(request.node.name.encode()).hexdigest()[:8]}"
    given: dict[str, Any] = dict(getattr(request, "param", {}))
    url = None
    if given.pop("postgres", False):
        url = fresh_database(request.getfixturevalue("postgres_url"), f"exports{next(NUMBER)}")
    settings = {"exports": {"monthly": BOTH}, "prefix": prefix} | given
    with context(tmp_path / "data", url, objects=objects, reports=ReportSettings(**settings)) as ctx:
        api = Api(ctx)
        api.add("root", Role.ADMIN)
        api.add("boss", Role.TENANT_ADMIN, "team-a")
        made = Place(api, objects)
        made.add(1)
        made.add(2, user="bob", tenant="team-b")
        yield made


@pytest.fixture
def summer(place: Place) -> Iterator[Place]:
    """Jobs of July and September as well."""
    with place.ctx.db.write() as session:
        for number, day in ((21, "2026-07-20"), (22, "2026-09-03")):
            keep(session, job(number, at(f"{day}T10:00")), read_to=READ)
    yield place
