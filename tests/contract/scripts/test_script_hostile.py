"""Hostile text in specs: refused, or data to the end."""

from __future__ import annotations

import json
import subprocess
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.compiler import (
    ClusterProfile,
    ResolvedImage,
    RunIdentity,
    compile_run,
    tree_digest_argv,
)
from broker.errors import InvalidSpec
from broker.spec import parse
from tests.job_site import Site, spec_of

SHARP = st.sampled_from(
    ["'", '"', "`", "$(", ")", "\n", "\r\n", "\\", "|", ";", "#SBATCH --hold\n", "${IFS}", "*", "!", " ",
     "\t", "%s", "{{ x }}", "{% raw %}", "-", "--", "=", ",", "\u202e", "한국", "\U0001f600", "\x01", "\x7f",
     "EOF\n", "\ud800", "\0"]
)  # fmt: skip

HOSTILE = st.lists(st.one_of(SHARP, st.text(max_size=5)), max_size=12).map("".join)

FIELDS: list[tuple[str | int, ...]] = [
    ("pipeline_id",), ("name",), ("version",), ("env_vars", "KEY"), ("storage", "path"), ("storage", "type"),
    ("test_run_ref",), ("created_at",), ("workflow", 0, "from"),
    *(("components", 0, *rest) for rest in [
        ("name",), ("image", "registry"), ("image", "tag"), ("resources", "gpu_type"),
        ("resources", "memory"), ("resources", "time"), ("params", "p"), ("args", 0), ("command", 0),
    ]),
]  # fmt: skip


def hostile_tree(place: tuple[str | int, ...], text: str) -> dict[str, Any]:
    common = {"order": 1, "type": "custom", "args": [""], "command": ["x"]}
    tree: dict[str, Any] = {
        "pipeline_id": "p",
        "name": "p",
        "version": "1",
        "env_vars": {},
        "storage": {"type": "s3", "path": "/x"},
        "components": [
            {
                **deepcopy(common),
                "name": name,
                "image": {"registry": "r/x", "tag": "1"},
                "resources": {"memory": "1GB", "gpu_count": 1},
                "params": {},
            }
            for name in "ab"
        ],
        "workflow": [{"from": "a", "to": "b"}],
    }
    *above, last = place
    target: Any = tree
    for part in above:
        target = target[part]
    target[last] = text
    return tree


@pytest.mark.parametrize("place", FIELDS, ids=lambda place: ".".join(map(str, place)))
@settings(max_examples=25)
@given(text=HOSTILE)
def test_hostile_text_is_refused_or_leaves_a_script_bash_can_read(
    place: tuple[str | int, ...], text: str
) -> None:
    try:
        spec = parse(hostile_tree(place, text))
    except InvalidSpec as error:
        assert all((p.pointer + p.detail).isprintable() for p in error.problems)
        return
    images = {c.image.reference: ResolvedImage("/x.sif", "d") for c in spec.components}
    plan = compile_run(spec, ClusterProfile(name="t"), RunIdentity("run-1", 1, 1, "t", "u"), images)
    script = plan.jobs[0].script
    assert "\r\n" not in script
    done = subprocess.run(["bash", "-n"], input=script.encode(), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    for job in plan.jobs:
        assert all(argument.isprintable() and argument.isascii() for argument in job.sbatch_args)


carried = HOSTILE.filter(lambda text: "\0" not in text and "\ud800" not in text)


@settings(max_examples=25)
@given(env=carried.filter(lambda text: "\r" not in text), value=carried, argument=carried)
def test_hostile_text_arrives_exactly_as_data(env: str, value: str, argument: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder))
        spec = spec_of(
            {"name": "a", "params": {"p": value, "deep": [{value: value}]}, "args": [argument]},
            env_vars={"KEY": env},
        )
        done = site.run(site.compile(spec)["a"])
        assert done.returncode == 0, done.stderr
        assert site.environment()["KEY"] == env
        words = site.arguments()
        assert words[5] == value
        assert json.loads(words[7]) == [{value: value}]
        assert words[8:] == [argument]
        params = (site.run_dir / "a/1.0/params.json").read_bytes()
        assert json.loads(params) == spec.components[0].params
        assert sorted(path.name for path in site.root.iterdir()) == ["bin", "dump", "jobs"]


def test_the_largest_text_is_carried(site: Site) -> None:
    text = "$(id)'" * 10_000
    site.run(site.compile(spec_of({"name": "a", "params": {"p": text}}, env_vars={"KEY": text}))["a"])
    assert site.environment()["KEY"] == text
    assert site.arguments()[-1] == text


@pytest.mark.parametrize(
    "name", ["BASH_ENV", "LD_PRELOAD", "PATH", "IFS", "SHELLOPTS", "PS4", "PROMPT_COMMAND", "ENV"]
)
def test_spec_variables_never_act_on_the_batch_shell(site: Site, name: str) -> None:
    job = site.compile(spec_of({"name": "a"}, env_vars={name: "/nowhere:$(touch /tmp/x)"}))["a"]
    done = site.run(job)
    assert (done.returncode, done.stderr) == (0, b"")
    assert site.environment()[name] == "/nowhere:$(touch /tmp/x)"
    assert site.dump["env"].get(name) != "/nowhere:$(touch /tmp/x)"


def test_a_folder_that_can_not_be_read_whole_has_no_digest(tmp_path: Path) -> None:
    done = subprocess.run(tree_digest_argv(str(tmp_path / "gone")), capture_output=True, check=False)
    assert done.returncode != 0
