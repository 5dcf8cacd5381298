"""`broker login --sso` against a real provider, with a browser here and with one elsewhere."""

import json
import re
import sys
import threading
import webbrowser

import httpx
import pytest

from broker.cli import main, sso
from tests.oidc_provider import Browser


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("BROKER_TOKEN", "BROKER_SERVER"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def browser_here(monkeypatch):
    """This machine's browser: signs on as `login`, in its own time. The pages it ended at."""
    pages, threads = [], []

    def with_login(login, before=lambda url: None):
        def opened(url):
            def go():
                before(url)
                pages.append(Browser().visit(url, login))

            threads.append(threading.Thread(target=go))
            threads[-1].start()
            return True

        monkeypatch.setattr(webbrowser, "get", object)
        monkeypatch.setattr(webbrowser, "open", opened)
        return pages

    yield with_login
    for thread in threads:
        thread.join(20)


def whoami(here, capsys):
    capsys.readouterr()
    assert main(["--server", here.url, "whoami", "--json"]) == 0
    return json.loads(capsys.readouterr().out)["username"]


def test_the_answer_comes_to_a_port_of_this_machine(here, browser_here, capsys):
    login = here.person()
    pages = browser_here(login)
    assert main(["login", "--sso", "--server", here.url, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["username"] == here.provider.people[login]["preferred_username"] == whoami(here, capsys)
    assert pages[0].status_code == 200 and "may close this window" in pages[0].text


def test_whatever_else_comes_to_the_port_is_refused(here, browser_here, capsys):
    answers = []

    def intrude(url):
        place = re.search(r"redirect_uri=http%3A%2F%2F127.0.0.1%3A(\d+)", url)[1]
        for query in ("", "?code=x", "?code=x&state=x", "?error=x&state="):
            answers.append(httpx.get(f"http://127.0.0.1:{place}/{query}", timeout=60).status_code)

    browser_here(here.person(), before=intrude)
    assert main(["login", "--sso", "--server", here.url]) == 0
    assert answers == [400] * 4


def test_why_somebody_is_refused_stands_on_the_terminal(here, browser_here, capsys):
    browser_here(here.person(groups=[]))
    assert main(["login", "--sso", "--server", here.url]) == 77
    assert "None of your groups" in capsys.readouterr().err


def test_nobody_comes(here, browser_here, monkeypatch, capsys):
    monkeypatch.setattr(sso, "PATIENCE_S", 0.05)
    monkeypatch.setattr(webbrowser, "get", object)
    monkeypatch.setattr(webbrowser, "open", lambda url: True)
    assert main(["login", "--sso", "--server", here.url]) == 69


class Person:
    """Standard input of somebody who opens the printed address on another machine and types the code."""

    def __init__(self, login, capsys):
        self.login, self.capsys = login, capsys

    def isatty(self):
        return False

    def readline(self):
        url = re.search(r"http\S+/auth/oidc/login\S+", self.capsys.readouterr().err)[0]
        page = Browser().visit(url, self.login)
        return re.search(r"<code>([^<]+)</code>", page.text)[1] + "\n"


@pytest.mark.parametrize("words", [["--no-browser"], []], ids=["asked for", "no browser here"])
def test_without_a_browser_the_code_is_typed(here, monkeypatch, capsys, words):
    def nothing():
        raise webbrowser.Error

    monkeypatch.setattr(webbrowser, "get", nothing)
    login = here.person()
    monkeypatch.setattr(sys, "stdin", Person(login, capsys))
    assert main(["login", "--sso", *words, "--server", here.url]) == 0
    assert whoami(here, capsys) == here.provider.people[login]["preferred_username"]


def test_a_broker_without_single_sign_on_says_what_to_do(tmp_path, capsys):
    from tests.api_support import Api, context
    from tests.http_server import serving

    with context(tmp_path / "other") as ctx, serving(Api(ctx).app) as url:
        assert main(["login", "--sso", "--server", url]) == 2
    assert "broker login --username" in capsys.readouterr().err
