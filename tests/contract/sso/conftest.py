"""A broker that trusts a real OpenID provider."""

import pytest

from tests.single_sign_on import world


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    with world(tmp_path_factory.mktemp("oidc")) as made:
        yield made
