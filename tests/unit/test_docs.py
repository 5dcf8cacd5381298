"""Documentation that can't drift: what exists stands in it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from prometheus_client.metrics import MetricWrapperBase

from broker import metrics
from broker.api.backlog import Backlog
from broker.runs.events import EVENT_TYPES
from broker.runs.states import RUN_STATE_KO, FailureClass, JobState, Phase, RunState

ROOT = Path(__file__).resolve().parents[2]
STATES = (ROOT / "docs/states.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*RunState, *Phase, *JobState, *FailureClass, *EVENT_TYPES])
def test_every_state_phase_and_event_is_documented(name: str) -> None:
    assert f"`{name}`" in STATES


def test_every_state_of_a_run_is_documented_in_korean() -> None:
    for state, korean in RUN_STATE_KO.items():
        assert f"| `{state}` | {korean} |" in STATES


def test_every_dependency_is_pinned_and_documented() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    page = (ROOT / "docs/dependencies.md").read_text(encoding="utf-8")
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        name, _, version = requirement.partition("==")
        assert version, f"{requirement} is not pinned"
        assert re.search(rf"\b{re.escape(name.split('[')[0])}\b", page), (
            f"{name} is not in docs/dependencies.md"
        )


def test_every_metric_is_documented() -> None:
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    counted = [metric for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase)]
    assert len(counted) > 20
    families = [family for metric in counted for family in metric.describe()]
    for family in [*families, *Backlog.describe()]:
        name = family.name + ("_total" if family.type == "counter" else "")
        assert f"| `{name}` | {family.type} |" in page


def test_every_target_of_the_makefile_explains_itself() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = set(re.findall(r"^\.PHONY: (\w+)", makefile, re.MULTILINE)) - {"system"}
    explained = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    assert phony <= explained


@pytest.mark.parametrize("page", sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/*.md")))
def test_links_of_the_documentation_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"
