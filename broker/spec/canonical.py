"""One form for specs that mean the same, and its hash."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from broker.spec.models import PipelineSpec


def canonical(spec: PipelineSpec) -> bytes:
    """Write the spec's content as canonical JSON, UTF-8.

    Keys sorted, no spaces, unset fields left out, quantities normalised, components by name and edges sorted
    (the order of these lists means nothing). `created_at` is left out: it is when, not what.
    """
    tree = spec.model_dump(mode="json", by_alias=True, exclude={"created_at"}, exclude_none=True)
    tree["components"].sort(key=lambda component: component["name"])
    tree["workflow"].sort(key=lambda edge: (edge["from"], edge["to"]))
    return canonical_json(tree)


def canonical_json(tree: Any) -> bytes:
    """Write a JSON tree in its one canonical form."""
    return json.dumps(
        tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def content_hash(spec: PipelineSpec) -> str:
    """Give `sha256:…` of the canonical form."""
    return digest(canonical(spec))


def digest(data: bytes) -> str:
    """Give `sha256:…` of bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
