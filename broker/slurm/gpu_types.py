"""Of which types the GPUs of a job are, and how many of each. Pure.

A job of nodes that differ may have GPUs of several types (`gres/gpu:a100=1,gres/gpu:v100=2`). It counts once,
under the type of most of its GPUs (of as many, the first by name); how many it has of each is kept as text
(`a100=1,v100=2`; a part without a name: nobody tells their type), so that every GPU counts as what it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

from broker.slurm.tres import Tres

MIXED: Final = "mixed"
"""GPUs of several types, and nobody tells how many of each."""
Types = Mapping[str, int]
"""How many of each type."""


def named(types: Types, count: int) -> tuple[str, str]:
    """The type of a job with `count` GPUs, and the text of all its types: "" where it has one.

    >>> named({"a100": 2}, 2), named({"a100": 1, "v100": 2}, 3), named({"a100": 1}, 3), named({}, 2)
    (('a100', ''), ('v100', 'a100=1,v100=2'), ('', '=2,a100=1'), ('', ''))
    """
    known = {name: n for name, n in types.items() if n and name}
    rest = count - sum(known.values())
    if rest < 0 and len(known) > 1:
        return MIXED, ""
    if rest > 0 and known:
        known[""] = rest
    if len(known) < 2:
        return next(iter(known), ""), ""
    most = min(known, key=lambda name: (-known[name], name))
    return most, ",".join(f"{name}={n}" for name, n in sorted(known.items()))


@lru_cache(4096)
def parts(gpu_type: str, gpu_types: str, count: int) -> Sequence[tuple[str, int]]:
    """How many GPUs a job has of each type, that of most of them first: `count` in all.

    >>> parts("v100", "a100=1,v100=2", 3), parts("a100", "", 4)
    ((('v100', 2), ('a100', 1)), (('a100', 4),))
    """
    if not gpu_types:
        return ((gpu_type, count),)
    pairs = (part.rpartition("=") for part in gpu_types.split(","))
    return tuple(sorted(((name, int(n)) for name, _, n in pairs), key=lambda one: one[0] != gpu_type))


def on_nodes(count: int, typed: Types, nodes: Sequence[Tres | None]) -> Types | None:
    """The types of `count` GPUs on these nodes (None: a node nobody knows), where accounting has named only
    those of `typed`. Empty: nobody tells. None: there are several types, and nobody tells how many of each.

    Either one type is left that they can be of; or the job has all GPUs of its nodes; or it has as many on
    each, which is what `--gres` and `--gpus-per-node` give.
    """
    having = [node for node in nodes if node is None or node.gpus]
    known = [node.gpu_types for node in having if node and sum(node.gpu_types.values()) == node.gpus]
    kinds = {kind for types in known for kind in types} - typed.keys()
    whole = Counter({kind: sum(types.get(kind, 0) for types in known) for kind in kinds})
    each, rest = divmod(count, max(len(having), 1))
    if len(known) < len(having) or not kinds:
        return None if len(kinds) > 1 and not typed else typed
    if len(kinds) == 1:
        return {**typed, kinds.pop(): count - sum(typed.values())}
    if typed:
        return typed
    if whole.total() == count:
        return whole
    if rest or any(len(types) > 1 or sum(types.values()) < each for types in known):
        return None
    return Counter({kind: each * sum(kind in types for types in known) for kind in kinds})
