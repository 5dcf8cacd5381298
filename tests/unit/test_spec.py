"""What a spec may say, and that everything wrong with one is said at once, in the right place."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from broker.errors import InvalidSpec
from broker.spec import (
    Code,
    Memory,
    apply_overrides,
    canonical,
    content_hash,
    default_resources,
    parse,
    parse_overrides,
    warnings,
)
from broker.spec.document import MAX_DEPTH
from broker.spec.limits import MAX_COMPONENTS, MAX_DEPENDENCY_BYTES, MAX_DOCUMENT_BYTES, MAX_TEXT_BYTES

EXAMPLES = Path(__file__).parents[2] / "examples"
EXAMPLE = (EXAMPLES / "llm-finetune.json").read_bytes()


def document(**changes: Any) -> dict[str, Any]:
    return json.loads(EXAMPLE) | changes


def component(name: str = "a", **changes: Any) -> dict[str, Any]:
    return {
        "order": 1,
        "name": name,
        "type": "custom",
        "image": {"registry": "registry.example.org/team/tool", "tag": "1.0"},
        "resources": {"memory": "1GB"},
    } | changes


def pipeline(*components: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"pipeline_id": "P", "name": "P", "version": "1", "components": list(components)} | changes


def git(url: str, ref: str = "main") -> dict[str, Any]:
    return {"source": "git", "url": url, "ref": ref, "entry_script": "train.py"}


def problems(data: Any) -> dict[str, str]:
    """Pointer → code of everything that is wrong."""
    with pytest.raises(InvalidSpec) as caught:
        parse(data)
    assert caught.value.problems
    for problem in caught.value.problems:
        assert problem.detail
        assert problem.code in set(Code)
        json.dumps([problem.pointer, problem.detail], ensure_ascii=False).encode()
    return {problem.pointer: str(problem.code) for problem in caught.value.problems}


def sentence(data: Any, pointer: str) -> str:
    with pytest.raises(InvalidSpec) as caught:
        parse(data)
    return next(problem.detail for problem in caught.value.problems if problem.pointer == pointer)


def changed(path: str, value: Any) -> dict[str, Any]:
    """The example with one value replaced or added."""
    tree = document()
    *above, last = [int(part) if part.isdigit() else part for part in path.split("/")]
    place: Any = tree
    for part in above:
        place = place[part]
    place[last] = value
    return tree


def test_the_original_example_is_accepted_unchanged() -> None:
    spec = parse(EXAMPLE)
    assert spec.pipeline_id == "PL-A1B2C3"
    assert [c.name for c in spec.components] == ["data-loader", "preprocessor", "trainer", "evaluator"]
    trainer = spec.component("trainer")
    assert trainer.resources.memory == Memory(128 * 1024)
    assert (trainer.resources.gpu_type, trainer.resources.gpu_count) == ("A100", 4)
    assert trainer.params == {"lr": 0.001, "epochs": 30}
    assert spec.workflow[0].source == "data-loader"
    assert spec.created_at is not None


def test_every_example_is_a_valid_spec() -> None:
    examples = sorted(EXAMPLES.glob("*.json"))
    assert {"llm-finetune.json", "digits.json", "hello.json"} <= {path.name for path in examples}
    for path in examples:
        parse(path.read_bytes())


def test_text_bytes_and_mapping_give_the_same_spec() -> None:
    assert parse(EXAMPLE) == parse(EXAMPLE.decode()) == parse(document())


def test_the_trap_of_the_example_is_a_warning_not_an_error() -> None:
    (warning,) = warnings(parse(EXAMPLE))
    assert (warning.pointer, warning.code) == ("/env_vars/CUDA_VISIBLE_DEVICES", Code.RESERVED_VARIABLE)


@pytest.mark.parametrize(
    "name",
    ["SLURM_JOB_ID", "APPTAINER_BIND", "SINGULARITYENV_X", "OUTPUT_DIR", "NVIDIA_VISIBLE_DEVICES", "RESUME"],
)
def test_variables_of_slurm_apptainer_and_the_contract_are_reserved(name: str) -> None:
    assert [w.pointer for w in warnings(parse(pipeline(component(), env_vars={name: "x"})))] == [
        f"/env_vars/{name}"
    ]


def test_harmless_variables_are_not_reserved() -> None:
    assert (
        warnings(parse(pipeline(component(), env_vars={"LD_PRELOAD": "x", "PATH": "/x", "JOB_IDS": "1"})))
        == []
    )


def test_order_against_the_workflow_and_unused_gpu_types_are_warnings() -> None:
    spec = pipeline(
        component("a", order=2),
        component("b", order=1, resources={"memory": "1GB", "gpu_type": "A100"}),
        workflow=[{"from": "a", "to": "b"}],
    )
    assert [w.code for w in warnings(parse(spec))] == [Code.UNUSED_GPU_TYPE, Code.ORDER_CONTRADICTS_WORKFLOW]


@pytest.mark.parametrize(
    ("path", "value", "code"),
    [
        ("name", "", "too_short"),
        ("name", "a\nb", "forbidden_character"),
        ("name", "a\u202eb", "forbidden_character"),
        ("name", "x" * 200, "too_long"),
        ("pipeline_id", "a b", "bad_name"),
        ("version", True, "wrong_type"),
        ("version", "-1", "bad_name"),
        ("created_at", "yesterday", "bad_value"),
        ("created_at", "2026-02-09T09:00:00", "bad_value"),
        ("components", [], "too_short"),
        ("components", {}, "wrong_type"),
        ("components/0/name", "Data_Loader", "bad_name"),
        ("components/0/name", "control", "reserved_name"),
        ("components/0/order", True, "wrong_type"),
        ("components/0/order", -1, "out_of_range"),
        ("components/0/order", 1.5, "wrong_type"),
        ("components/0/type", "gardener", "not_allowed"),
        ("components/0/image/registry", "docker://x/y", "bad_image"),
        ("components/0/image/registry", "registry.example.org/Team/x", "bad_image"),
        ("components/0/image/tag", "a:b", "bad_image"),
        ("components/0/image", {"sif": "relative.sif"}, "bad_path"),
        ("components/0/resources/memory", "128 GBs", "bad_memory"),
        ("components/0/resources/memory", "-1GB", "bad_memory"),
        ("components/0/resources/memory", 128, "bad_memory"),
        ("components/0/resources/memory", "0GB", "bad_memory"),
        ("components/0/resources/memory", "99999999TB", "bad_memory"),
        ("components/0/resources/gpu_count", True, "wrong_type"),
        ("components/0/resources/gpu_count", -1, "out_of_range"),
        ("components/0/resources/gpu_type", "A100,ngpu", "bad_name"),
        ("components/0/resources/cpus", 0, "out_of_range"),
        ("components/0/resources/time", "soon", "bad_time"),
        ("components/0/resources/time", 60, "bad_time"),
        ("components/0/resources/time", "90:00", "bad_time"),
        ("components/0/resources/time", "0h", "bad_time"),
        ("components/0/resources/nodes", 2, "not_divisible"),
        ("components/0/params/output_dir", "/x", "reserved_name"),
        ("components/0/params/a b", 1, "bad_name"),
        ("components/0/params/big", "x" * (MAX_TEXT_BYTES + 1), "too_long"),
        ("components/0/params/huge", 1 << 64, "out_of_range"),
        ("components/0/params/nan", float("nan"), "not_a_number"),
        ("components/0/params/nul", "a\0b", "forbidden_character"),
        ("components/0/params/half", "\ud800", "forbidden_character"),
        ("components/0/command", [], "too_short"),
        ("components/0/command", "echo", "wrong_type"),
        ("components/0/args", ["a\0"], "forbidden_character"),
        ("components/0/signal", "KILL", "not_allowed"),
        ("components/0/code", {"source": "svn"}, "bad_value"),
        ("components/0/code", git("ext::sh -c id"), "bad_git_url"),
        ("components/0/code", git("-oProxyCommand=x"), "bad_git_url"),
        ("components/0/code", git("https://user:password@host/x"), "bad_git_url"),
        ("components/0/code", git("file:///etc"), "bad_git_url"),
        ("components/0/code", git("https://host/x", ref="--upload-pack=x"), "bad_name"),
        ("components/0/code", {"source": "upload", "upload_id": "u", "entry_script": "../x.py"}, "bad_path"),
        ("components/0/code", {"source": "upload", "upload_id": "u", "entry_script": "-c"}, "bad_path"),
        ("components/0/code", {"source": "path", "path": "/a/../b", "entry_script": "x.py"}, "bad_path"),
        ("env_vars/A-B", "x", "bad_name"),
        ("env_vars/1A", "x", "bad_name"),
        ("env_vars/A", 1, "wrong_type"),
        ("env_vars/A", "a\rb", "forbidden_character"),
        ("env_vars/TOKEN", {"secret_ref": "hf-token"}, "secret_ref_unsupported"),
        ("storage", {"type": "s3"}, "missing_field"),
        ("storage/path", "/a/../../etc", "bad_path"),
        ("storage/path", "relative", "bad_path"),
        ("test_run_ref", "a b", "bad_name"),
        ("workflow/0/from", "nobody", "unknown_component"),
        ("workflow/0/to", 3, "wrong_type"),
        ("workflow/0", {"from": "trainer", "to": "trainer"}, "self_loop"),
        ("workflow/1", {"from": "data-loader", "to": "preprocessor"}, "duplicate_edge"),
        ("components/1/name", "data-loader", "duplicate_name"),
    ],
)  # fmt: skip
def test_each_mistake_has_its_code_at_its_place(path: str, value: Any, code: str) -> None:
    found = problems(changed(path, value))
    assert code in found.values(), found
    places = [place for place, kind in found.items() if kind == code]
    assert any(
        place.startswith("/" + path) or ("/" + path).startswith(place.rsplit("/", 1)[0]) for place in places
    )


def test_everything_wrong_is_said_at_once() -> None:
    tree = changed("components/0/resources/memory", "128 GBs")
    tree["components"][1]["resources"]["gpu_count"] = True
    tree["components"][2]["imge"] = {}
    tree["workflow"].append({"from": "evaluator", "to": "trainer"})
    tree["workflow"].append({"from": "trainr", "to": "trainer"})
    del tree["version"]
    assert problems(tree) == {
        "/components/0/resources/memory": "bad_memory",
        "/components/1/resources/gpu_count": "wrong_type",
        "/components/2/imge": "unknown_field",
        "/version": "missing_field",
        "/workflow/3": "cycle",
        "/workflow/4/from": "unknown_component",
    }


def test_a_misspelt_field_or_component_is_guessed() -> None:
    tree = changed("components/0/resources/memroy", "1GB")
    tree["workflow"][0]["to"] = "preprocesor"
    assert 'did you mean "memory"?' in sentence(tree, "/components/0/resources/memroy")
    assert 'did you mean "preprocessor"?' in sentence(tree, "/workflow/0/to")


def test_a_cycle_is_shown_as_a_path() -> None:
    tree = pipeline(
        *[component(name) for name in "abcd"],
        workflow=[{"from": s, "to": t} for s, t in ("ab", "bc", "ca", "cd")],
    )
    assert problems(tree) == {"/workflow/2": "cycle"}
    assert "a → b → c → a" in sentence(tree, "/workflow/2")


def test_a_cycle_longer_than_slurm_looks_is_found() -> None:
    names = [f"c{i}" for i in range(14)]
    edges = [{"from": s, "to": t} for s, t in zip(names, [*names[1:], names[0]], strict=True)]
    assert set(problems(pipeline(*map(component, names), workflow=edges)).values()) == {"cycle"}


def test_two_separate_cycles_are_two_problems() -> None:
    edges = [{"from": s, "to": t} for s, t in ("ab", "ba", "cd", "dc")]
    assert len(problems(pipeline(*map(component, "abcd"), workflow=edges))) == 2


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "not_json"),
        ('{"a": ', "not_json"),
        ('{"pipeline_id": "a", "pipeline_id": "b"}', "duplicate_key"),
        ("[1]", "wrong_type"),
        ("null", "wrong_type"),
        ("[" * 200_000, "too_deep"),
        ('{"name":' * 40 + "1" + "}" * 40, "too_deep"),
        (b"\xff\xfe{}", "not_utf8"),
        ('{"version": NaN}', "not_a_number"),
        ('{"version": 1e999}', "out_of_range"),
        ('{"version": ' + "9" * 100_000 + "}", "out_of_range"),
        ('{"name": "' + "x" * MAX_DOCUMENT_BYTES + '"}', "too_large"),
        ("{" + ",".join(f'"k{i % 3}":1' for i in range(60_000)) + "}", "duplicate_key"),
    ],
    ids=range(13),
)
def test_documents_that_are_no_json_objects_are_refused(text: str | bytes, code: str) -> None:
    assert code in problems(text).values()


def test_bad_json_names_line_and_column() -> None:
    assert "line 2, column 7" in sentence('{\n "a": }', "")


def test_the_number_of_problems_is_bounded() -> None:
    found = problems(pipeline(*[component(f"BAD{i}") for i in range(500)]))
    assert len(found) == 101
    assert found[""] == "too_many_problems"


def test_lists_are_bounded() -> None:
    assert problems(pipeline(*[component() for _ in range(MAX_COMPONENTS + 1)])) != {}
    many = {f"V{i}": "" for i in range(1_001)}
    assert problems(pipeline(component(), env_vars=many)) == {"/env_vars": "too_large"}
    large = {f"V{i}": "x" * 60_000 for i in range(5)}
    assert problems(pipeline(component(), env_vars=large)) == {"/env_vars": "too_large"}


def test_the_largest_join_fits_slurms_dependency_string() -> None:
    digits_of_a_job_id = 10
    assert (
        len("--dependency=afterok") + (MAX_COMPONENTS - 1) * (1 + digits_of_a_job_id) < MAX_DEPENDENCY_BYTES
    )


def test_depth_is_counted_from_the_document() -> None:
    value: Any = 1
    for _ in range(MAX_DEPTH):
        value = [value]
    assert "too_deep" in problems(changed("components/0/params/deep", value)).values()


def test_the_content_hash_is_of_what_is_meant_not_of_how_it_is_written() -> None:
    tree = document()
    other = deepcopy(tree)
    other["components"].reverse()
    other["workflow"].reverse()
    other["components"][0]["resources"]["memory"] = "16 GiB"
    other["created_at"] = "2030-01-01T00:00:00Z"
    other["components"][0]["resources"]["nodes"] = 1
    assert content_hash(parse(other)) == content_hash(parse(tree))
    other["components"][0]["resources"]["memory"] = "17GB"
    assert content_hash(parse(other)) != content_hash(parse(tree))


def test_the_canonical_form_is_a_spec_again() -> None:
    spec = parse(EXAMPLE)
    assert re.fullmatch("sha256:[0-9a-f]{64}", content_hash(spec))
    assert canonical(parse(canonical(spec))) == canonical(spec)
    assert parse(spec.model_dump(mode="json", by_alias=True, exclude_none=True)) == spec


def test_specs_are_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parse(EXAMPLE).name = "other"  # type: ignore[misc]


def test_overrides_change_all_components_then_single_ones() -> None:
    overrides = parse_overrides(
        {"all": {"time": "2h"}, "components": {"trainer": {"gpu_count": 2, "memory": "64GB"}}}
    )
    spec = apply_overrides(parse(EXAMPLE), overrides)
    assert {c.resources.time for c in spec.components} == {7200}
    assert (
        spec.component("trainer").resources.gpu_count,
        str(spec.component("trainer").resources.memory),
    ) == (2, "64GB")
    assert spec.component("evaluator").resources.gpu_count == 1


def test_overrides_are_refused_with_pointers() -> None:
    spec = parse(pipeline(component("a", resources={"memory": "2GB", "nodes": 2})))
    cases = [
        ({"components": {"nobody": {"cpus": 1}}}, "/components/nobody", Code.UNKNOWN_COMPONENT),
        ({"components": {"a": {"gpu_count": 3}}}, "/components/0/resources/gpu_count", Code.NOT_DIVISIBLE),
        ({"all": {"cpu": 1}}, "/all/cpu", Code.UNKNOWN_FIELD),
        ({"all": {"memory": "much"}}, "/all/memory", Code.BAD_MEMORY),
    ]
    for data, pointer, code in cases:
        with pytest.raises(InvalidSpec) as caught:
            apply_overrides(spec, parse_overrides(data))
        assert [(p.pointer, p.code) for p in caught.value.problems] == [(pointer, code)]


def test_suggested_resources_are_the_maxima() -> None:
    suggested = default_resources(parse(EXAMPLE))
    assert (suggested.gpu_type, suggested.gpu_count, str(suggested.memory)) == ("A100", 4, "128GB")


def test_every_code_is_described() -> None:
    assert all(code.description.endswith(".") for code in Code)
