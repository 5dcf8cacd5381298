"""A real, independent OpenID Connect provider for the tests: npm's `oidc-provider`, which is certified.

Its packages are pinned by `tests/contract/sso/provider/package-lock.json` and installed once, below the
user's cache folder. Where node or npm is missing the fixture fails: a test that did not run must not look
like one that passed.
"""

from __future__ import annotations

import fcntl
import hashlib
import html
import json
import os
import re
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx

from tests.harness.processes import free_port

SOURCE = Path(__file__).parent / "contract" / "sso" / "provider"
FILES = ("package.json", "package-lock.json", "provider.mjs")
CLIENT = "broker"


def installed() -> Path:
    """The folder with the provider and its packages; installs them at the first use."""
    digest = hashlib.sha256(b"".join((SOURCE / name).read_bytes() for name in FILES)).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slurm-job-broker"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"oidc-provider-{digest}"
    with (cache / ".oidc-provider.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            if shutil.which("node") is None or shutil.which("npm") is None:
                raise FileNotFoundError("node and npm are missing: apt-get install nodejs npm")
            draft = Path(tempfile.mkdtemp(dir=cache))
            for name in FILES:
                shutil.copy(SOURCE / name, draft / name)
            argv = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
            subprocess.run(argv, cwd=draft, check=True, timeout=300, stdout=subprocess.DEVNULL)
            draft.rename(folder)
    return folder


@dataclass
class IdentityProvider:
    """A provider that runs; `people` are its accounts: what is typed as login → claims."""

    issuer: str
    secret: str
    port: int
    file: Path
    redirect_uri: str
    people: dict[str, dict[str, Any]] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None

    def knows(self, login: str, **claims: Any) -> None:
        """Add or change somebody."""
        self.people[login] = claims
        self.file.write_text(json.dumps(self.people), encoding="utf-8")

    def start(self) -> None:
        """Run it, with new keys."""
        client = {
            "client_id": CLIENT,
            "client_secret": self.secret,
            "redirect_uris": [self.redirect_uri],
            "grant_types": ["authorization_code"],
            "response_types": ["code"],
        }
        given = {"issuer": self.issuer, "port": self.port, "client": client, "people": str(self.file)}
        argv = ["node", "provider.mjs", json.dumps(given)]
        self.process = subprocess.Popen(
            argv, cwd=installed(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip() == "ready":
                return
        raise RuntimeError(f"the provider ended with {self.process.wait()}")

    def stop(self) -> None:
        """End it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            if self.process.stdout is not None:
                self.process.stdout.close()
            self.process = None


@contextmanager
def identity_provider(folder: Path, redirect_uri: str) -> Iterator[IdentityProvider]:
    """A running provider that sends browsers back to `redirect_uri`."""
    port = free_port()
    made = IdentityProvider(
        f"http://127.0.0.1:{port}", secrets.token_hex(16), port, folder / "people.json", redirect_uri
    )
    made.start()
    try:
        yield made
    finally:
        made.stop()


class Browser:
    """Somebody's browser: keeps cookies, follows redirects, fills in the provider's forms."""

    def __init__(self) -> None:
        self.http = httpx.Client(follow_redirects=False, timeout=20)

    def close(self) -> None:
        """Forget every cookie."""
        self.http.close()

    def visit(
        self, url: str, login: str, stop_at: str | None = None, *, give_up: bool = False
    ) -> httpx.Response:
        """Go on until a page without a form, or until `stop_at` is where the browser is sent next.

        `give_up` follows the link by which people refuse.
        """
        response = self.http.get(url)
        for _ in range(30):
            if response.is_redirect:
                target = urljoin(str(response.url), response.headers["Location"])
                if stop_at is not None and target.startswith(stop_at):
                    return response
                response = self.http.get(target)
                continue
            form = re.search(r'<form[^>]* action="([^"]+)"', response.text)
            if response.status_code != 200 or form is None:
                return response
            if give_up and (link := re.search(r'href="([^"]+/abort)"', response.text)):
                response = self.http.get(urljoin(str(response.url), html.unescape(link[1])))
                continue
            fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', response.text))
            fields |= {"login": login, "password": "any"} if fields.get("prompt") == "login" else {}
            response = self.http.post(urljoin(str(response.url), html.unescape(form[1])), data=fields)
        raise AssertionError("the sign-on leads nowhere")
