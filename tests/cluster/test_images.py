"""Images come into the shared cache once, whole, and by what their tag points at."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from broker.errors import ImageUnavailable, Unreachable
from broker.runs.images import parse_pull

SCRIPT = Path(__file__).resolve().parents[2] / "templates" / "pull_images.sh"
pytestmark = pytest.mark.cluster


def puller(cluster, cache: str, *images: str) -> subprocess.Popen[str]:  # type: ignore[no-untyped-def]
    """The pull script on the login node, over ssh, as the broker runs it."""
    ssh = cluster.ssh
    return subprocess.Popen(
        [
            *("ssh", "-i", ssh.key, "-p", str(ssh.port), "-o", f"UserKnownHostsFile={ssh.known_hosts}"),
            *(f"{ssh.user}@{ssh.host}", "bash", "-s", "--", cache, *images),
        ],
        stdin=SCRIPT.open(),
        stdout=subprocess.PIPE,
        text=True,
    )


def answer(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return output


def hello(cluster) -> tuple[str, str, str, str]:  # type: ignore[no-untyped-def]
    return "http", cluster.registry, "hello", "1.0"


@pytest.fixture
def cache(cluster):  # type: ignore[no-untyped-def]
    path = cluster.ok("mktemp", "-d", "/shared/images/test.XXXXXX", user="broker")
    yield path
    cluster.ok("rm", "-rf", path, user="broker")


def test_two_runs_that_want_one_image_pull_it_once(cluster, cache: str) -> None:  # type: ignore[no-untyped-def]
    pulls = [puller(cluster, cache, *hello(cluster)) for _ in range(4)]
    found = [parse_pull(["hello"], answer(pull))["hello"] for pull in pulls]
    assert len({image.sif for image, _ in found}) == 1
    listing = cluster.ok("find", cache, "-name", "*.sif", "-printf", "%i %p\n").splitlines()
    assert len(listing) == 1
    again = parse_pull(["hello"], answer(puller(cluster, cache, *hello(cluster))))["hello"]
    assert again == found[0]
    assert cluster.ok("find", cache, "-name", "*.sif", "-printf", "%i %p\n").splitlines() == listing
    assert cluster.ok("find", f"{cache}/.work", "-name", "pull.*") == ""


def test_the_cache_can_be_read_by_people_but_not_written(cluster, cache: str) -> None:  # type: ignore[no-untyped-def]
    image, _ = parse_pull(["hello"], answer(puller(cluster, cache, *hello(cluster))))["hello"]
    assert cluster.ok("stat", "-c", "%a %U", image.sif) == "644 broker"


def test_a_tag_that_does_not_exist_is_an_error_and_leaves_nothing(cluster, cache: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ImageUnavailable, match="404"):
        parse_pull(["x"], answer(puller(cluster, cache, "http", cluster.registry, "hello", "no-such-tag")))
    assert cluster.ok("find", cache, "-type", "f", "-name", "*.sif") == ""


def test_a_registry_that_is_away_is_a_matter_of_time(cluster, cache: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(Unreachable):
        parse_pull(["x"], answer(puller(cluster, cache, "http", "127.0.0.1:1", "hello", "1.0")))
