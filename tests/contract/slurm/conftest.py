"""Each release's answers about jobs in every state."""

from __future__ import annotations

import pytest

from tests.recordings import VERSIONS, Recordings, facts


@pytest.fixture(params=VERSIONS)
def recorded(request: pytest.FixtureRequest) -> Recordings:
    found = facts(request.param)
    return Recordings(request.param, found["ids"], found["names"])
