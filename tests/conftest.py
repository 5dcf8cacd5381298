"""Fixtures for every test, and which tests share a process where several run them (`pytest -n 2`)."""

from __future__ import annotations

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.postgres import postgres_url

__all__ = ["postgres_url"]


class OneCluster(LoadScopeScheduling):
    """The tests of the real cluster in one process, which has it to itself; all others by module."""

    def _split_scope(self, nodeid: str) -> str:
        return "tests/cluster" if nodeid.startswith("tests/cluster/") else nodeid.split("::", 1)[0]


@pytest.hookimpl
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> OneCluster:
    """Asked for once, by the process that hands the tests out."""
    return OneCluster(config, log)
