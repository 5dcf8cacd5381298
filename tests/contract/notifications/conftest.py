"""People who are told things, receivers and databases for the tests of this folder."""

import pytest

from tests.api_support import Api, context
from tests.postgres import database_of
from tests.receivers import web_server
from tests.telling import PEOPLE


@pytest.fixture
def api(tmp_path):
    with context(tmp_path / "data") as ctx:
        made = Api(ctx)
        made.ids = {name: made.add(name, role, tenant) for name, (role, tenant) in PEOPLE.items()}
        with made.http:
            yield made


@pytest.fixture
def receiver():
    with web_server() as made:
        yield made


@pytest.fixture(params=["sqlite", "postgres"])
def url(request):
    return database_of(request)
