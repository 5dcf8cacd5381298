"""What a job's sampler wrote down: the output of `nvidia-smi` on its nodes.

`utilization.gpu` is the share of the last second or less in which a kernel ran, so a single line says
little: the mean over the lines since the last look is taken. On a GPU in slices (MIG) it is `[N/A]`, for the
slices too: unknown. Their memory stands in `nvidia-smi -q -x` alone, their names in `nvidia-smi -L`.

The files are the job's: what is no line of ours costs that line.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from statistics import fmean
from xml.etree import ElementTree

from broker.compiler.names import GPU_SAMPLE_FIELDS
from broker.resources.usage import GpuUse, Source

_COLUMNS = GPU_SAMPLE_FIELDS.count(",") + 1
_SLICE = re.compile(r"\s{1,9}MIG\s{1,9}\S{1,40}\s{1,9}Device\s{1,9}(\d{1,4}): \(UUID: (MIG-[^)]{1,80})\)")
_GPU = re.compile(r"GPU \d{1,4}: .{0,200}\(UUID: (GPU-[^)]{1,80})\)")
MOST = 256
"""GPUs and slices of one node at most (16 GPUs of 7 slices are 112): what names more is no list of them."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A line: one GPU at one moment. Memory in MiB; None: nvidia-smi does not know it."""

    at: datetime
    index: str
    uuid: str
    util: float | None
    memory_used: float | None
    memory_total: float | None
    temperature_c: float | None
    power_w: float | None
    mig: bool


@dataclass(frozen=True, slots=True)
class Slice:
    """An instance of a GPU (MIG). `uuid` "" where `-L` was not recorded; `named`: by CUDA_VISIBLE_DEVICES."""

    gpu: str
    uuid: str
    index: str
    instance: str
    compute: str
    memory_used: float | None
    memory_total: float | None
    named: bool = False


def parse_samples(text: str) -> list[Sample]:
    """Lines of `GPU_SAMPLE_FIELDS` (`csv,noheader`, with units or without), oldest first."""
    found = []
    for row in csv.reader(_lines(text), skipinitialspace=True):
        sample = _sample(row) if len(row) == _COLUMNS else None
        if sample is not None:
            found.append(sample)
    return found


def _lines(text: str) -> Iterator[str]:
    """Without quotes and NUL, which a foreign line may hold and csv would read across lines for."""
    return (line.replace('"', "").replace("\0", "") for line in text.splitlines())


def _sample(row: list[str]) -> Sample | None:
    when, index, uuid, util, _, used, total, temperature, power, mig = (field.strip() for field in row)
    try:
        at = datetime.strptime(when, "%Y/%m/%d %H:%M:%S.%f").replace(tzinfo=UTC)
    except ValueError:
        return None
    if re.fullmatch("[0-9]{1,4}", index) is None:
        return None
    return Sample(
        at,
        index,
        uuid,
        _share(util),
        _number(used),
        _number(total),
        _number(temperature),
        _number(power),
        mig == "Enabled",
    )


def _number(text: str) -> float | None:
    """`81559`, `81559 MiB`, `627.40 W`; None for `[N/A]`, `[Not Supported]`, `[Unknown Error]`."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)(?: [A-Za-z%/]+)?", text.strip())
    return float(match[1]) if match else None


def _share(text: str) -> float | None:
    value = _number(text)
    return value if value is not None and value <= 100 else None


def parse_slices(text: str) -> list[Slice]:
    """The slices of a node: a line `# CUDA_VISIBLE_DEVICES`, `nvidia-smi -L`, and parts of `-q -x`.

    Where the first line names slices, only those are the job's. Raises ValueError for what is no such file.
    """
    head, _, rest = text.partition("\n")
    listed, mark, document = rest.partition("<nvidia_smi_log>")
    if not head.startswith("#") or not mark or "<!" in document:  # no entities: nothing here needs any
        raise ValueError("no list of slices")
    try:
        tree = ElementTree.fromstring(mark + document)  # noqa: S314 - without a DTD there is nothing to expand
    except ElementTree.ParseError as error:
        raise ValueError(f"no XML of nvidia-smi: {error}") from error
    names = _names(listed)
    ours = {name.strip() for name in head[1:].split(",") if name.strip().startswith("MIG-")}
    found = [_slice(gpu, device, names) for gpu in tree.iter("gpu") for device in gpu.iter("mig_device")]
    return [replace(one, named=True) for one in found if one.uuid in ours] if ours else found


def _names(listed: str) -> dict[tuple[str, str], str]:
    """(UUID of the GPU, number of the slice on it) → UUID of the slice."""
    gpu, found = "", {}
    for line in listed.splitlines():
        if match := _GPU.match(line):
            gpu = match[1]
        elif match := _SLICE.match(line):
            found[gpu, match[1]] = match[2]
    return found


def _slice(gpu: ElementTree.Element, device: ElementTree.Element, names: dict[tuple[str, str], str]) -> Slice:
    uuid = gpu.findtext("uuid", "").strip()
    index = device.findtext("index", "").strip()
    memory = next((child for child in device if child.tag.endswith("fb_memory_usage")), device)
    return Slice(
        gpu=uuid,
        uuid=names.get((uuid, index), ""),
        index=index,
        instance=device.findtext("gpu_instance_id", "").strip(),
        compute=device.findtext("compute_instance_id", "").strip(),
        memory_used=_number(memory.findtext("used", "")),
        memory_total=_number(memory.findtext("total", "")),
    )


def use_of(
    node: str, samples: Iterable[Sample], slices: Iterable[Slice], now: datetime, window: timedelta
) -> list[GpuUse]:
    """What a node's GPUs did within `window` up to now; nothing where the last line is older.

    A GPU in slices is shown as its slices. What a node's clock has ahead of ours is taken for now.
    """
    recent: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.at >= now - window:
            recent.setdefault(sample.index, []).append(sample)
    parts = list(islice(slices, MOST))
    found: list[GpuUse] = []
    for index, mine in sorted(recent.items(), key=lambda item: int(item[0]))[:MOST]:
        last = mine[-1]
        if last.mig:
            found += [_of_slice(node, last, part, now) for part in parts if part.gpu == last.uuid]
            continue
        if any(part.named for part in parts):
            continue  # CUDA takes no whole GPU beside slices: where devices are not fenced, it is another's
        utils = [one.util for one in mine if one.util is not None]
        found.append(
            GpuUse(
                node,
                index,
                last.uuid,
                False,
                fmean(utils) if utils else None,
                last.memory_used,
                last.memory_total,
                last.temperature_c,
                last.power_w,
                Source.SAMPLER,
                min(last.at, now),
            )
        )
    return found[:MOST]


def _of_slice(node: str, gpu: Sample, part: Slice, now: datetime) -> GpuUse:
    return GpuUse(
        node,
        f"{gpu.index}:{part.instance}/{part.compute}",
        part.uuid,
        True,
        None,
        part.memory_used,
        part.memory_total,
        gpu.temperature_c,
        None,
        Source.SAMPLER,
        min(gpu.at, now),
        memory_of=f"{part.gpu}/{part.instance}",
    )
