"""Receivers and databases for the tests of this folder."""

import pytest

from tests.postgres import fresh_database
from tests.receivers import web_server
from tests.telling import NUMBER


@pytest.fixture
def receiver():
    with web_server() as made:
        yield made


@pytest.fixture(params=["sqlite", "postgres"])
def url(request):
    if request.param == "sqlite":
        return None
    return fresh_database(request.getfixturevalue("postgres_url"), f"notify{next(NUMBER)}")
