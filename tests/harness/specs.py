"""Pipeline specs to run: tiny containers that do what a test needs, each in well under a second."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Any

Json = dict[str, Any]
HELLO = {"registry": "registry.avatar.io/hello", "tag": "1.0"}
SMALL = {"memory": "64MB", "cpus": 1, "time": "10m"}

WAIT = 'until [ -e "$CHECKPOINT_DIR/go" ]; do sleep 0.1; done'
"""Shell: wait until the test opens the gate (`open_gate`), so that no test depends on how fast a job is."""


def component(name: str, script: str | None = None, *, order: int = 0, **more: Any) -> Json:
    """A component on the hello image; `script` is run by its shell instead of the image's own program."""
    made: Json = {
        "order": order,
        "name": name,
        "type": "custom",
        "image": dict(HELLO),
        "resources": {**SMALL, **more.pop("resources", {})},
    }
    if script is not None:
        made["command"] = ["sh", "-ec", script]
    return {**made, **more}


def pipeline(components: Sequence[Json], edges: Iterable[tuple[str, str]] = (), **more: Any) -> Json:
    """A spec with a name of its own."""
    return {
        "pipeline_id": f"t-{uuid.uuid4().hex[:12]}",
        "name": "test",
        "version": "1.0.0",
        "components": list(components),
        "workflow": [{"from": source, "to": target} for source, target in edges],
        **more,
    }


DIAMOND = (("load", "left"), ("load", "right"), ("left", "join"), ("right", "join"))


def diamond(**scripts: str | None) -> Json:
    """load → left, right → join, on the hello program or on the scripts given by component."""
    names = ("load", "left", "right", "join")
    return pipeline([component(name, scripts.get(name), order=i) for i, name in enumerate(names)], DIAMOND)


def model(metrics: str = '{"accuracy": 0.9}') -> str:
    """Shell: leave a model behind, with its metrics."""
    return (
        """cd "$OUTPUT_DIR"; printf 'weights of %s' "$RUN_ID" > best_model.bin; """
        f"echo '{metrics}' > metrics.json"
    )


def output_of(mib: int, name: str = "data.bin") -> str:
    """Shell: leave `mib` MiB of noise behind, and its SHA-256 in the log."""
    return (
        f'dd if=/dev/urandom of="$OUTPUT_DIR/{name}" bs=1M count={mib} 2>/dev/null; '
        f'cd "$OUTPUT_DIR"; sha256sum {name}'
    )
