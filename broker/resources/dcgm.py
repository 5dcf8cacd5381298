"""How busy GPUs really are, from a Prometheus that scrapes NVIDIA's dcgm-exporter.

`DCGM_FI_DEV_GPU_UTIL` (percent of the time that a kernel ran) has one series per GPU, with the node's name in
`Hostname`. For slices (MIG) it is not defined: DCGM gives none, or one of the whole GPU with `GPU_I_ID`; such
GPUs stay unknown.
"""

from __future__ import annotations

import math
from typing import Any

import httpx

from broker.errors import Unreachable

QUERY = "DCGM_FI_DEV_GPU_UTIL"
TIMEOUT_S = 5.0


def ask(url: str) -> dict[str, float]:
    """GPUs' worth of use by node name; raises `Unreachable` when Prometheus does not answer."""
    try:
        answer = httpx.get(
            f"{url.rstrip('/')}/api/v1/query", params={"query": QUERY}, timeout=TIMEOUT_S, trust_env=False
        )
        answer.raise_for_status()
        return parse(answer.json())
    except (httpx.HTTPError, ValueError) as error:
        raise Unreachable(f"Prometheus at {url} did not tell {QUERY}: {error}") from error


def parse(document: Any) -> dict[str, float]:
    """The answer of `/api/v1/query` (an instant vector). A node counts only if all its series have a value.

    The same GPU may be scraped twice (two targets): of each UUID the busier series counts. Raises ValueError
    for what is no such answer.
    """
    try:
        series = [(item["metric"], float(item["value"][1])) for item in document["data"]["result"]]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"no instant vector: {error!r}") from error
    nodes: dict[str, dict[str, float]] = {}
    unknown: set[str] = set()
    for labels, percent in series:
        node = str(labels.get("Hostname", "")).partition(".")[0]
        if not node:
            continue
        if labels.get("GPU_I_ID") or not math.isfinite(percent) or not 0 <= percent <= 100:
            unknown.add(node)
            continue
        gpu = str(labels.get("UUID") or labels.get("gpu"))
        mine = nodes.setdefault(node, {})
        mine[gpu] = max(mine.get(gpu, 0.0), percent)
    return {node: sum(gpus.values()) / 100 for node, gpus in nodes.items() if node not in unknown}
