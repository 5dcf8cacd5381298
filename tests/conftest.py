"""Fixtures for every test, and which tests share a process where several run them (`pytest -n 2`)."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests.postgres import postgres_url

__all__ = ["postgres_url"]

# Hypothesis fails a test of which one example took 200 ms, or whose examples are made slowly: both tell of a
# machine that others use as well, nothing of what is tested. What fails is printed such that it can be
# repeated elsewhere.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("any machine")


class OneCluster(LoadScopeScheduling):
    """The tests of the real cluster in one process, which has it to itself; all others by module."""

    def _split_scope(self, nodeid: str) -> str:
        return "tests/cluster" if nodeid.startswith("tests/cluster/") else nodeid.split("::", 1)[0]


@pytest.hookimpl
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> OneCluster:
    """Asked for once, by the process that hands the tests out."""
    return OneCluster(config, log)
