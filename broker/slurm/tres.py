"""Trackable resources: `cpu=4,mem=8G,gres/gpu:a100=2` and the dialects of it that commands print."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}
_QUANTITY = re.compile(r"(\d{1,19}(?:\.\d{1,9})?)([KMGTP]?)[Bcn]?", re.IGNORECASE)
_EMPTY: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Tres:
    """Amounts of resources. `memory_mib` in MiB; `gpus` counts all types, `gpu_types` each by its name.

    A MIG slice counts as a GPU (Slurm does the same); `gres/shard` is in `other`, with everything else.
    """

    cpus: int = 0
    memory_mib: int = 0
    nodes: int = 0
    billing: int = 0
    gpus: int = 0
    gpu_types: Mapping[str, int] = field(default_factory=lambda: _EMPTY)
    other: Mapping[str, int] = field(default_factory=lambda: _EMPTY)


def parse_quantity(text: str, unit: str = "") -> int:
    """`8G`, `1.50T`, `16384`, as a whole number of ones (memory: bytes); `unit` is meant where none stands.

    Raises ValueError.
    """
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no quantity")
    return round(float(match[1]) * _UNITS[match[2].upper() or unit])


@lru_cache(4096)  # most jobs ask for what others ask for
def parse_tres(text: str) -> Tres:
    """Read `cpu=4,mem=8G,node=1,billing=4,gres/gpu=2,gres/gpu:a100=2` (sacct, scontrol) and
    `gres/gpu:a100:2`, `gres:gpu:2`, `gpu:a100:4(S:0-1)`, `gpu:a100:2(IDX:0-1)` (squeue, sinfo, scontrol).

    What can't be read is left out: a part that we don't know must not cost the job that has it.
    """
    amounts: dict[str, int] = {}
    for part in re.sub(r"\([^()]*\)", "", text).split(","):
        name, amount = _pair(part.strip())
        if not name:
            continue
        try:
            value = parse_quantity(amount, "M" if name == "mem" else "")
        except ValueError:
            continue
        amounts[name] = amounts.get(name, 0) + value
    gpu_types = {name[9:]: n for name, n in amounts.items() if name.startswith("gres/gpu:")}
    plain = {"cpu", "mem", "node", "billing", "gres/gpu"}
    return Tres(
        cpus=amounts.get("cpu", 0),
        memory_mib=amounts.get("mem", 0) >> 20,
        nodes=amounts.get("node", 0),
        billing=amounts.get("billing", 0),
        gpus=amounts.get("gres/gpu", sum(gpu_types.values())),
        gpu_types=gpu_types,
        other={k: v for k, v in amounts.items() if k not in plain and not k.startswith("gres/gpu:")},
    )


def _pair(part: str) -> tuple[str, str]:
    """(name as sacct writes it, amount). 22.05 writes `gres:gpu:2` where later ones write `gres/gpu:2`."""
    if "=" in part:
        name, _, amount = part.partition("=")
        return name.lower() if name.lower() in {"cpu", "mem", "node", "billing"} else name, amount
    name = part.removeprefix("gres/").removeprefix("gres:")
    head, _, amount = name.rpartition(":")
    if head:
        return f"gres/{head}", amount
    bare = amount != "(null)" and amount[:1].isalpha()  # `--gres=gpu` asks for one
    return (f"gres/{amount}", "1") if bare else ("", "")
