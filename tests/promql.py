"""The names in a PromQL expression, enough of its grammar to find every metric (lexer: prometheus/promql)."""

from __future__ import annotations

import re

from prometheus_client.metrics import MetricWrapperBase

from broker import metrics
from broker.api.backlog import Backlog

_NOT_METRICS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}


def metrics_of(expression: str) -> set[str]:
    """Every metric that an expression reads: identifiers that are no label, function, keyword or duration."""
    text = re.sub(r'"[^"]*"|\'[^\']*\'', "", expression)
    text = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", text)
    text = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", text)
    names = re.findall(r"(?<![\w.])([A-Za-z_:][\w:]*)(?!\w)(?!\s*\()", text)
    return {name for name in names if name.lower() not in _NOT_METRICS and not _aggregation(name, text)}


def _aggregation(name: str, text: str) -> bool:
    """`sum by (a) (…)`: without its clause the operator stands before a parenthesis."""
    return re.search(rf"\b{name}\s*\(", text) is not None


def exposed() -> set[str]:
    """Every series name that a broker can show."""
    counted = [metric for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase)]
    families = [*(family for metric in counted for family in metric.describe()), *Backlog.describe()]
    endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
    return {f"{family.name}{end}" for family in families for end in endings.get(family.type, [""])}
