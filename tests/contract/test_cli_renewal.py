"""The command line keeps a login going over the life of its access tokens, against a real server."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from broker.cli import credentials
from broker.cli.client import Api as CliApi
from broker.cli.client import connect
from broker.cli.renewal import credential_of
from broker.errors import Unauthenticated
from broker.identity import Role
from tests.api_support import PASSWORD, Api, context
from tests.http_server import serving
from tests.serving import served


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in (credentials.SERVER_VARIABLE, credentials.TOKEN_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    with context(tmp_path / "data") as ctx:
        made = Api(ctx)
        made.add("root", Role.ADMIN)
        made.add("ann")
        with served(made) as port:
            yield f"http://127.0.0.1:{port}"


def log_in(server, username="ann"):
    with CliApi(server, token=None) as client:
        answer = client.post("/auth/login", {"username": username, "password": PASSWORD})
    credentials.store(server, credential_of(username, answer))
    return credentials.find(server)


def age(server, **changes):
    """The stored login as it is later."""
    credentials.store(server, replace(credentials.find(server), **changes))


def over():
    return datetime.now(UTC) - timedelta(seconds=1)


def test_token_that_is_over_is_renewed_and_kept(server):
    first = log_in(server)
    age(server, expires_at=over())
    with connect(server) as client:
        assert client.get("/auth/me")["username"] == "ann"
    second = credentials.find(server)
    assert second.token != first.token and second.refresh_token != first.refresh_token
    assert second.expires_at > datetime.now(UTC)


def test_token_that_the_server_refuses_is_renewed_once_and_the_request_repeated(server):
    log_in(server)
    age(server, token="not-a-token")
    with connect(server) as client:
        made = client.post("/keys", {"name": "ci"})
    assert made["key"].startswith("brk_")
    with connect(server) as client:
        assert len(client.get("/keys")["items"]) == 1


def test_command_that_comes_second_takes_what_the_first_one_stored(server):
    log_in(server)
    age(server, expires_at=over())
    clients = [connect(server) for _ in range(6)]  # all of them know the same refresh token
    with ThreadPoolExecutor(6) as pool:
        names = list(pool.map(lambda client: client.get("/auth/me")["username"], clients))
    assert names == ["ann"] * 6
    age(server, expires_at=over())
    with connect(server) as client:  # nobody used one twice: the login lives
        assert client.get("/auth/me")["username"] == "ann"


def test_login_that_has_ended_asks_for_a_new_one(server):
    log_in(server)
    with connect(server) as client:
        held = credentials.find(server).refresh_token
        client.post("/auth/logout", {"refresh_token": held})
    age(server, expires_at=over())
    with connect(server) as client, pytest.raises(Unauthenticated, match="has ended"):
        client.get("/auth/me")
    age(server, refresh_expires_at=over())
    with pytest.raises(Unauthenticated, match="ended at"):
        connect(server)


@pytest.mark.parametrize("status", [401, 429, 500, 503])
def test_logging_out_forgets_the_login_here_whatever_the_server_says(server, status):
    log_in(server)
    held = credentials.find(server)
    answer = Response(status_code=status, headers={"Retry-After": "0"})
    troubled = Starlette(routes=[Route("/api/v1/auth/logout", lambda _: answer, methods=["POST"])])
    with serving(troubled) as url:
        credentials.store(url, held)
        told = broker("--server", url, "logout")
        assert "Logged out" in told.stdout + told.stderr
        assert ("was not told" in told.stderr) == (status != 401)
        broker("--server", url, "whoami", status=77)


def broker(*words, status=0, **more):
    done = subprocess.run(
        [sys.executable, "-m", "broker.cli", *words], check=False, capture_output=True, text=True, **more
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done


def test_people_tenants_and_keys_by_command(server):
    broker("login", "--server", server, "--username", "root", "--password-stdin", input=PASSWORD + "\n")
    broker("tenant", "create", "team-a", "--display-name", "Team A", "--fairshare", "3")
    assert "team-a" in broker("tenant", "list").stdout
    assert "Team A" in broker("tenant", "show", "team-a").stdout
    broker("tenant", "change", "team-a", "--fairshare", "5")
    made = broker(
        "user", "create", "kim", "--tenant", "team-a", "--unix-account", "kim", "--role", "tenant_admin"
    )
    assert "team-a" in made.stdout
    assert broker("user", "list").stdout.count("kim") >= 1
    changed = broker(
        "user", "change", "kim", "--unix-account", "none", "--max-training-hours", "72", "--json"
    )
    assert '"unix_account": null' in changed.stdout and '"max_training_hours": 72' in changed.stdout
    broker("tenant", "close", "team-a")
    assert "closed" in broker("tenant", "show", "team-a").stdout
    broker("tenant", "open", "team-a")
    refused = broker("user", "create", "lee", "--tenant", "nowhere", status=2)
    assert "nowhere" in refused.stderr
    key = broker("key", "create", "nightly", "--scope", "runs:read", "--days", "7").stdout
    text = next(word for word in key.split() if word.startswith("brk_"))
    listed = broker("key", "list").stdout
    assert "nightly" in listed and "runs:read" in listed and text not in listed
    key_id = next(word for word in listed.split() if word.startswith("key-"))
    broker("key", "delete", key_id)
    assert "nightly" not in broker("key", "list").stdout
    broker("logout")
    broker("whoami", status=77)
