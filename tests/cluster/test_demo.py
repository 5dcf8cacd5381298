"""`make demo` does what it says on a machine that has only the caches."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.conftest import control, state_home

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.cluster


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A cluster, a broker and credentials of our own: nobody's demonstration is touched. Nothing is left."""
    name = "demo-test"
    outside = {key: value for key, value in os.environ.items() if not key.startswith("BROKER_")}
    environment = {
        **outside,
        "SLURM_DEV_HOME": str(state_home()),
        "DEMO_CLUSTER": name,
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }
    control("down", "--purge", "--name", name)
    yield environment
    subprocess.run(
        [ROOT / "demo" / "down"], env=environment, check=True, stdin=subprocess.DEVNULL, timeout=180
    )
    control("down", "--purge", "--name", name)


def demo(environment: dict[str, str]) -> str:
    done = subprocess.run(
        [ROOT / "demo" / "run"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def test_the_demonstration_ends_with_verified_models_and_may_be_repeated(environment: dict[str, str]) -> None:
    first = demo(environment)
    assert len(re.findall(r"^mv-\S+ .*\bfinal_accuracy=0\.9", first, re.MULTILINE)) == 2
    counted = re.search(r"(\d+) objects .* none differ from their manifests", first)
    assert counted and int(counted[1]) > 50
    second = demo(environment)
    assert "is up already" in second
    assert len(re.findall(r"^mv-\S+ ", second, re.MULTILINE)) == 4
