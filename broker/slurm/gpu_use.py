"""How busy a job's GPUs were, by what accounting says of it. Pure.

Two tell: jobstats, which leaves what its Prometheus saw in the job's AdminComment when the job ends
(github.com/PrincetonUniversity/jobstats), and slurmd, where NVML detected the GPUs (`gres/gpuutil` of
`TRESUsageInTot`, sacct(1)). Where neither does, nobody knows: that is no 0.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import io
import json
import math
import zlib
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

_JOBSTATS = "JS1:"
_MOST_BYTES = 1 << 20
_NO_JOBSTATS = (binascii.Error, zlib.error, OSError, EOFError, RecursionError, OverflowError)
"""What unpacking raises for a comment that was cut, or is somebody else's."""


class GpuSource(StrEnum):
    """Who measured how busy a job's GPUs were; the first of these that knows is believed."""

    JOBSTATS = "jobstats"
    MEASURED = "measured"
    """The broker itself, while the job ran: from Prometheus, or the sampler of the job's script."""
    SLURM = "slurm"


ORDER = tuple(GpuSource)


def best(*known: tuple[float | None, GpuSource | None]) -> tuple[float | None, GpuSource | None]:
    """Of several (per cent, source) the most trusted that is known; of one source the first."""
    sure = [(ORDER.index(source), util, source) for util, source in known if util is not None and source]
    return min(sure, key=lambda one: one[0])[1:] if sure else (None, None)


def by_accounting(comment: str, usage: Iterable[str], gpus: int) -> tuple[float | None, GpuSource | None]:
    """Per cent, the mean over the job's GPUs, and who says so; `usage`: the steps' `TRESUsageInTot`."""
    if not gpus:
        return None, None
    return best((jobstats(comment), GpuSource.JOBSTATS), (_of_slurm(usage, gpus), GpuSource.SLURM))


def jobstats(comment: str) -> float | None:
    """The mean utilisation of all GPUs in `JS1:…` (base64 of compressed JSON), per cent.

    It writes `JS1:None` and `JS1:Short` where it has nothing to say; a comment may also be somebody else's.
    """
    if not comment.startswith(_JOBSTATS):
        return None
    try:
        packed = base64.b64decode(comment.removeprefix(_JOBSTATS), validate=True)
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
            nodes: Mapping[str, Any] = json.loads(file.read(_MOST_BYTES))["nodes"]
        shares = [float(one) for node in nodes.values() for one in node.get("gpu_utilization", {}).values()]
    except (*_NO_JOBSTATS, ValueError, KeyError, TypeError, AttributeError):
        return None
    return _percent(sum(shares) / len(shares)) if shares else None


def _of_slurm(usage: Iterable[str], gpus: int) -> float | None:
    """slurmd adds up over the processes, and a process over the GPUs it uses: the total is shared out.

    Of several steps the busiest: they may run beside each other on GPUs of their own, or one after the other.
    """
    if not gpus:
        return None
    found = (entry(tres, "gres/gpuutil") for tres in usage if _sampled(tres))
    most = max((int(text) for text in found if text.isascii() and text.isdigit()), default=None)
    return None if most is None else _percent(min(most / gpus, 100.0))


def _sampled(tres: str) -> bool:
    """A step that ended before slurmd's first sample shows 0 for everything, memory as well."""
    return entry(tres, "mem") not in {"", "0"}


def entry(tres: str, name: str) -> str:
    """One entry of a usage TRES, `cpu=00:00:01,mem=8945664`; "" where there is none."""
    return f",{tres}".partition(f",{name}=")[2].partition(",")[0]


def _percent(value: float) -> float | None:
    """A share that can be: what is none (`NaN`, over 100 by more than rounding) is no measurement."""
    return round(value, 2) if math.isfinite(value) and 0 <= value <= 100.5 else None
