"""Text that breaks things: what has broken shells, schedulers, templates, lists and terminals before."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

from tests.harness import specs

Json = dict[str, Any]
CANARY = f"pwned-{secrets.token_hex(6)}"
"""A file of this name anywhere means that text was executed."""
_TOUCH = f"touch /shared/ml-jobs/{CANARY} /tmp/{CANARY}"

TEXTS = {
    "newline": f"first\n#SBATCH --wrap='{_TOUCH}'\n{_TOUCH}\n",
    "carriage return": f"a\r\n{_TOUCH}\r",
    "quotes": f"""'"`'"; {_TOUCH}; echo '"\\""",
    "substitution": f"$({_TOUCH})`{_TOUCH}`${{IFS}}$'\\x41'",
    "operators": f"; {_TOUCH} & {_TOUCH} | {_TOUCH} && {_TOUCH} > /tmp/{CANARY} #",
    "directive": f"#SBATCH --wrap={_TOUCH}",
    "option": f"--wrap={_TOUCH}",
    "template": "{{ 7 * 7 }}{% for x in y %}{# no #}${7*7}<%= 7 %>",
    "pattern": "%j %A %x %N %% ~ * ? [a-z] {a,b} !! $0",
    "separators": "a|b\x1fc\x1ed,e=f:g;h\ti",
    "unicode": "한글 데이터 🚀 e\u0301 \u202egnp.exe\u202c \u2028\u2029 \ufeff ﷽",
    "controls": "\x01\x07\x08\x1b[31m\x1b]0;owned\x07\x7f\x85",
    "NUL": "before\0after",
    "lone surrogate": "\ud800",
    "nothing": "",
    "blanks": "   ",
    "dashes": "-rf --no-preserve-root /",
    "traversal": "../../../../../etc/passwd",
    "long": "A" * (1 << 20),
}

FIELDS: tuple[tuple[str | int, ...], ...] = (
    ("pipeline_id",),
    ("name",),
    ("version",),
    ("created_at",),
    ("test_run_ref",),
    ("env_vars", "VALUE"),
    ("storage", "type"),
    ("storage", "path"),
    ("workflow", 0, "from"),
    ("workflow", 0, "to"),
    *(
        ("components", 0, *place)
        for place in (
            ("name",),
            ("type",),
            ("signal",),
            ("image", "registry"),
            ("image", "tag"),
            ("resources", "gpu_type"),
            ("resources", "memory"),
            ("resources", "time"),
            ("params", "value"),
            ("params", "nested", 0, "deep"),
            ("args", 0),
            ("command", 0),
            ("command", 1),
            ("code",),
        )
    ),
    ("components", 1, "image", "sif"),
    ("components", 1, "code", "source"),
    ("components", 1, "code", "url"),
    ("components", 1, "code", "ref"),
    ("components", 1, "code", "entry_script"),
)
"""Every place in a spec where a person writes text, as a path into `full_spec`."""

KEYS: tuple[tuple[str | int, ...], ...] = (
    (),
    ("env_vars",),
    ("components", 0),
    ("components", 0, "params"),
    ("components", 0, "resources"),
    ("workflow", 0),
)
"""Objects into which a hostile *key* is put."""


def full_spec() -> Json:
    """A spec that uses every field."""
    first = specs.component(
        "first",
        params={"value": "x", "nested": [{"deep": "y"}]},
        args=["z"],
        command=["sh", "-c", "true"],
        signal="TERM",
        resources={"gpu_type": "A100", "gpu_count": 1},
    )
    second = specs.component("second")
    second["image"] = {"sif": "/shared/images/x.sif"}
    second["code"] = {"source": "git", "url": "https://h.org/r", "ref": "main", "entry_script": "train.py"}
    return specs.pipeline(
        [first, second],
        [("first", "second")],
        env_vars={"VALUE": "v"},
        storage={"type": "s3", "path": "/results"},
        created_at="2026-02-09T09:00:00Z",
    )


def with_text(place: Sequence[str | int], text: str) -> Json:
    """`full_spec` with `text` at that place."""
    spec = full_spec()
    target: Any = spec
    for step in place[:-1]:
        target = target[step]
    target[place[-1]] = text
    return spec


def with_key(place: Sequence[str | int], key: str) -> Json:
    """`full_spec` with a field called `key` in that object."""
    spec = full_spec()
    target: Any = spec
    for step in place:
        target = target[step]
    target[key] = "x"
    return spec


def text_at(spec: Json, place: Sequence[str | int]) -> Any:
    """What stands at that place."""
    found: Any = copy.copy(spec)
    for step in place:
        found = found[step]
    return found


def carried() -> Iterator[tuple[str, str]]:
    """The texts that can be carried into a program: no NUL, encodable, of a size that fits a command line."""
    for name, text in TEXTS.items():
        if name not in {"NUL", "lone surrogate"}:
            yield name, text[: 60 << 10]
