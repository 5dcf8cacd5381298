"""People of a broker whose runs are each person's own, with their Unix accounts on the cluster."""

from __future__ import annotations

from dataclasses import dataclass

import broker.schema  # every table  # noqa: F401
from tests.cluster.conftest import DevCluster
from tests.harness.client import Client
from tests.harness.product import Broker

PASSWORD = "two staples and one battery 7"


@dataclass(frozen=True)
class People:
    """A broker whose runs belong to their people: kim and park have accounts, lee has none in it."""

    broker: Broker
    cluster: DevCluster
    kim: Client
    park: Client
    lee: Client
    base: str

    def sh(self, user: str, script: str, *words: str) -> tuple[int, str]:
        """A shell of that Unix user's: exit status and all it said."""
        status, out, err = self.cluster.exec(["sh", "-c", script, "sh", *words], user)
        return status, out + err

    def run_dir(self, run_id: str) -> str:
        return f"{self.base}/{run_id}"


def member(broker: Broker, name: str, account: str | None) -> Client:
    """A person of the broker's, logged in."""
    admin = broker.client
    admin.post("/users", {"username": name, "role": "researcher", "password": PASSWORD})
    if account is not None:
        answer = admin.send("PATCH", f"/users/{name}", json={"unix_account": account})
        assert answer.is_success, answer.text
    client = Client(broker.url)
    client.login(name, PASSWORD)
    client.change_password(PASSWORD, f"{PASSWORD} {name}")
    return client


def owners(cluster: DevCluster, folder: str) -> set[str]:
    """Who owns what lies in a folder, and the modes of the folder itself."""
    return set(cluster.ok("find", folder, "-printf", "%u:%g\n").split())
