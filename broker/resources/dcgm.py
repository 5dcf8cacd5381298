"""How busy GPUs really are, from a Prometheus that scrapes NVIDIA's dcgm-exporter.

`DCGM_FI_DEV_GPU_UTIL` (percent of the time that a kernel ran), `…_FB_USED` and `…_FB_FREE` (MiB) have one
series per GPU, with the node's name in `Hostname` and, where the exporter is told of jobs (its HPC job
mapping), the job's id in `hpc_job`. For slices (MIG) utilisation is not defined: DCGM gives none, or one of
the whole GPU with `GPU_I_ID`; such GPUs stay unknown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import httpx

from broker.errors import Unreachable
from broker.resources.usage import GpuUse, Source

UTIL, USED, FREE = "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_FB_FREE"
QUERY = f'{{__name__=~"{UTIL}|{USED}|{FREE}"}}'
TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Gpus:
    """One answer: (GPUs' worth of use, GPUs that have a series) by node, and jobs' GPUs by Slurm's job id."""

    nodes: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    jobs: Mapping[int, Sequence[GpuUse]] = field(default_factory=dict)


def ask(url: str, now: datetime) -> Gpus:
    """What Prometheus knows now, in one query; raises `Unreachable` when it does not answer."""
    try:
        answer = httpx.get(
            f"{url.rstrip('/')}/api/v1/query", params={"query": QUERY}, timeout=TIMEOUT_S, trust_env=False
        )
        answer.raise_for_status()
        document = answer.json()
        return Gpus(parse(document), parse_jobs(document, now))
    except (httpx.HTTPError, ValueError) as error:
        raise Unreachable(f"Prometheus at {url} did not tell {UTIL}: {error}") from error


def _series(document: Any) -> list[tuple[dict[str, Any], float]]:
    try:
        return [(item["metric"], float(item["value"][1])) for item in document["data"]["result"]]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"no instant vector: {error!r}") from error


def _valid(labels: Mapping[str, Any], percent: float) -> bool:
    return not labels.get("GPU_I_ID") and math.isfinite(percent) and 0 <= percent <= 100


def parse(document: Any) -> dict[str, tuple[float, int]]:
    """The answer of `/api/v1/query` (an instant vector): by node (GPUs' worth of use, GPUs it is of).

    A node counts only if all its series have a value.

    The same GPU may be scraped twice (two targets): of each UUID the busier series counts. Raises ValueError
    for what is no such answer.
    """
    nodes: dict[str, dict[str, float]] = {}
    unknown: set[str] = set()
    for labels, percent in _series(document):
        node = _node(labels)
        if not node or labels.get("__name__", UTIL) != UTIL:
            continue
        if not _valid(labels, percent):
            unknown.add(node)
            continue
        gpu = str(labels.get("UUID") or labels.get("gpu"))
        mine = nodes.setdefault(node, {})
        mine[gpu] = max(mine.get(gpu, 0.0), percent)
    known = {node: gpus.values() for node, gpus in nodes.items() if node not in unknown}
    return {node: (sum(percents) / 100, len(percents)) for node, percents in known.items()}


def parse_jobs(document: Any, now: datetime) -> dict[int, list[GpuUse]]:
    """The GPUs of each job that the series name; of a GPU that is scraped twice the busier series."""
    found: dict[tuple[int, str, str, str], dict[str, float]] = {}
    for labels, value in _series(document):
        job, name = str(labels.get("hpc_job") or ""), str(labels.get("__name__") or UTIL)
        if not (job.isdigit() and math.isfinite(value) and value >= 0):
            continue
        if name == UTIL and not _valid(labels, value):
            continue
        part = str(labels.get("GPU_I_ID") or "")
        gpu = f"{labels.get('gpu', '')}:{part}" if part else str(labels.get("gpu", ""))
        key = (int(job), _node(labels), gpu, str(labels.get("UUID") or ""))
        mine = found.setdefault(key, {})
        mine[name] = max(mine.get(name, 0.0), value)
    jobs: dict[int, list[GpuUse]] = {}
    for (job_id, node, gpu, uuid), values in sorted(found.items()):
        used, free = values.get(USED), values.get(FREE)
        jobs.setdefault(job_id, []).append(
            GpuUse(
                node=node,
                index=gpu,
                uuid=uuid,
                slice=":" in gpu,
                util=values.get(UTIL),
                memory_used=used,
                memory_total=None if used is None or free is None else used + free,
                temperature_c=None,
                power_w=None,
                source=Source.DCGM,
                at=now,
                memory_of=f"{uuid}/{gpu}",
            )
        )
    return jobs


def _node(labels: Mapping[str, Any]) -> str:
    return str(labels.get("Hostname", "")).partition(".")[0]
