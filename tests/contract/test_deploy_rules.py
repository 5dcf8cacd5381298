"""The alarms of deploy/: each fires when it should and not otherwise, on metrics that exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.prometheus import program
from tests.promql import exposed, metrics_of

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
FILES = sorted((DEPLOY / "prometheus/rules").glob("*.yml"))
RULES: list[dict[str, Any]] = [
    rule
    for file in FILES
    for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
DCGM = {
    line.split(",")[0]
    for line in (DEPLOY / "dcgm-exporter/counters.csv").read_text().splitlines()
    if not line.startswith("#")
}

PROBES = {"vgpu_scheduler_latency_seconds"}
"""Series that a site's own probe would write: deploy/README.md says so."""


def promtool(*words: str | Path) -> None:
    done = subprocess.run([program("promtool"), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_accepts_the_example_and_every_rule() -> None:
    promtool("check", "config", DEPLOY / "prometheus/prometheus.yml")


def test_alarms_fire_when_they_should_and_not_otherwise() -> None:
    promtool("test", "rules", *sorted((DEPLOY / "prometheus/tests").glob("*.yml")))


def test_every_alarm_has_a_case_in_which_it_fires() -> None:
    cases = "".join(file.read_text() for file in (DEPLOY / "prometheus/tests").glob("*.yml"))
    fired = set(re.findall(r'ALERTS\{alertname="(\w+)",alertstate="firing"', cases))
    fired |= set(re.findall(r"alertname: (\w+)\n\s+exp_alerts:\n", cases))
    assert fired == {rule["alert"] for rule in RULES}


def test_no_alarm_is_there_twice() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(names) == len(set(names))  # to Alertmanager two of one name are one, with either text


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alarm_reads_what_exists_and_says_what_to_do(rule: dict[str, Any]) -> None:
    read = metrics_of(rule["expr"])
    assert read and read <= exposed() | DCGM | PROBES | {"up"}
    assert rule["labels"]["severity"] in {"info", "warning", "critical"}
    assert set(rule["annotations"]) == {"summary", "summary_ko", "remedy"}
    assert re.search("[가-힣]", rule["annotations"]["summary_ko"])


def test_thresholds_of_gpus_are_those_required() -> None:
    gpu = {rule["alert"]: (rule["expr"], rule.get("for"), rule["labels"]["severity"]) for rule in RULES}
    assert gpu["GpuUtilisationHigh"] == ("DCGM_FI_DEV_GPU_UTIL >= 90", "5m", "warning")
    assert gpu["GpuMemoryNearlyFull"][0].endswith(">= 0.95") and gpu["GpuMemoryNearlyFull"][1:] == (
        None,
        "critical",
    )
    assert gpu["GpuTooHot"] == ("DCGM_FI_DEV_GPU_TEMP >= 85", None, "critical")
    assert gpu["GpuPowerOverTdp"][1:] == (None, "warning")
    assert gpu["VgpuSchedulerSlow"] == ("vgpu_scheduler_latency_seconds >= 0.1", None, "warning")


def test_what_nobody_measures_by_itself_is_said() -> None:
    told = (DEPLOY / "README.md").read_text(encoding="utf-8")
    assert all(f"`{name}" in told for name in PROBES)


def test_the_names_in_an_expression_are_found() -> None:
    expression = (
        'histogram_quantile(0.9, sum by (le, a) (rate(x_bucket{a=~"b c"}[5m]))) / on (a) y:z > time() - w'
    )
    assert metrics_of(expression) == {"x_bucket", "y:z", "w"}
    assert metrics_of("sum(rate(a_total[5m])) by (b) or vector(0)") == {"a_total"}
