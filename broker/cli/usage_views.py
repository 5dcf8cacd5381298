"""What a run's jobs use, as a person sees it. Pure: JSON in, something to print out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from broker.cli.output import size, table, when

Json = Mapping[str, Any]

_BARS = "▁▂▃▄▅▆▇█"
_NAMES = {
    "cpu_cores": "CPUs",
    "memory_mib": "memory",
    "gpu_util": "GPU busy",
    "gpu_memory_mib": "GPU memory",
}
UNKNOWN = "unknown"


def usage_view(found: Json) -> RenderableType:
    """A row per job, a row per GPU, and how each figure went."""
    parts: list[RenderableType] = [_jobs(found["jobs"])]
    if any(job["gpus"] for job in found["jobs"]):
        parts += [Text(""), _gpus(found["jobs"])]
    if any(job["history"] for job in found["jobs"]):
        parts += [Text(""), _histories(found["jobs"])]
    return Group(*parts)


def live(found: Json) -> Iterator[RenderableType]:
    """Those jobs that were looked at a moment ago, for a run's page; nothing where there are none."""
    if jobs := [job for job in found.get("jobs", ()) if job["live"]]:
        yield Text("")
        yield _jobs(jobs)


def _jobs(jobs: Sequence[Json]) -> RenderableType:
    return table(
        ("COMPONENT", "STATE", "CPUS USED>", "MEMORY>", "GPU BUSY>", "GPU MEMORY>", "MEASURED BY", "SEEN"),
        [
            (
                job["component"] + (f" #{job['attempt']}" if job["attempt"] > 1 else ""),
                job["state"],
                _cores(job["cpu_cores"]),
                _memory(job["memory_mib"]),
                _percent(job) + _part(job) if job["gpus_allocated"] != 0 else "",
                _memory(job["gpu_memory_mib"]) + _part(job) if job["gpus_allocated"] != 0 else "",
                ", ".join(sorted(_sources(job))),
                when(job["taken_at"]) if job["taken_at"] else "never",
            )
            for job in jobs
        ],
        empty="No components to show",
    )


def _sources(job: Json) -> set[str]:
    figures = (job[name] for name in ("cpu_cores", "memory_mib", "gpu_util", "gpu_memory_mib"))
    return {str(figure["source"]) for figure in figures if figure}


def _cores(figure: Json | None) -> str:
    if figure is None:
        return UNKNOWN
    return f"{figure['used']:.1f}" + (f" of {figure['allocated']:g}" if figure["allocated"] else "")


def _memory(figure: Json | None) -> str:
    if figure is None:
        return UNKNOWN
    whole = f" of {size(figure['allocated'] * 2**20)}" if figure["allocated"] else ""
    return size(figure["used"] * 2**20) + whole


def _percent(job: Json) -> str:
    if job["gpu_util"] is None:
        return UNKNOWN
    mean = f" (mean {job['gpu_util_mean']:.0f} %)" if job["gpu_util_mean"] is not None else ""
    return f"{job['gpu_util']['used']:.0f} %{mean}"


def _part(job: Json) -> str:
    """Of how many of its GPUs the figures are, where not of all.

    >>> _part({"gpus_measured": 2, "gpus_allocated": 4})
    ' (of 2 of 4 GPUs)'
    """
    known, all_ = job["gpus_measured"], job["gpus_allocated"]
    return f" (of {known} of {all_} GPUs)" if known and known < all_ else ""


def _gpus(jobs: Sequence[Json]) -> RenderableType:
    return table(
        ("COMPONENT", "NODE", "GPU", "BUSY>", "MEMORY>", "TEMPERATURE>", "POWER>", "BY", "SEEN"),
        [
            (
                job["component"],
                gpu["node"],
                gpu["index"] + (" (slice)" if gpu["slice"] else ""),
                _value(gpu["util"], "%"),
                _memory({"used": gpu["memory_used"], "allocated": gpu["memory_total"]})
                if gpu["memory_used"] is not None
                else UNKNOWN,
                _value(gpu["temperature_c"], "°C"),
                _value(gpu["power_w"], "W"),
                gpu["source"],
                when(gpu["sampled_at"]),
            )
            for job in jobs
            for gpu in job["gpus"]
        ],
        empty="",
    )


def _value(value: float | None, unit: str) -> str:
    return UNKNOWN if value is None else f"{value:.0f} {unit}"


def _histories(jobs: Sequence[Json]) -> RenderableType:
    rows = [
        (job["component"], label, line, when(job["history"][0]["at"]))
        for job in jobs
        if job["history"]
        for name, label in _NAMES.items()
        if (line := bars([point[name] for point in job["history"]])).strip()
    ]
    return table(("COMPONENT", "OF", "OVER TIME", "FROM"), rows, empty="")


def bars(values: Sequence[float | None]) -> str:
    """A line of bars, the largest value the highest; a blank where nobody measured.

    >>> bars([0, 5, None, 10])
    '▁▅ █'
    """
    top = max((value for value in values if value is not None), default=0) or 1
    last = len(_BARS) - 1
    return "".join(" " if value is None else _BARS[round(last * value / top)] for value in values)
