"""Databases and people for the tests of this folder."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from broker.context import Context
from broker.db.leases import Lease
from broker.hosts import Host
from broker.identity import Principal
from broker.slurm import Capabilities, SlurmClient, Version
from broker.slurm.cluster import Config
from tests.api_support import context, worker_lease
from tests.harness.sacct import FIELDS
from tests.ledger import Accounting, person
from tests.postgres import fresh_database


@pytest.fixture(params=["sqlite", "postgresql"])
def ctx(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Context]:
    url = None
    if request.param == "postgresql":  # of its own: the worker's part looks at every tenant's runs
        url = fresh_database(request.getfixturevalue("postgres_url"), f"month-{secrets.token_hex(4)}")
    with context(tmp_path, url) as made:
        yield made


@pytest.fixture
def sacct(ctx: Context) -> Accounting:
    host = Accounting()
    client = SlurmClient(cast(Host, host))
    client._capabilities = Capabilities(Version(24, 11, 5), cast(Config, None), FIELDS, "broker")
    ctx._slurm["main"] = client
    return host


@pytest.fixture
def lease(ctx: Context) -> Lease:
    return worker_lease(ctx)


@pytest.fixture
def ann(ctx: Context) -> Principal:
    return person(ctx)
