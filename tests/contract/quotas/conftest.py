"""Databases and people for the tests of this folder."""

from __future__ import annotations

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
from tests.postgres import database_of


@pytest.fixture(params=["sqlite", "postgresql"])
def ctx(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Context]:
    url = database_of(request)
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
