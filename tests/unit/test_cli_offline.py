"""`broker pipeline validate` and `script` on a file alone: no server, no cluster, no network."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from broker.cli import main

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "llm-finetune.json"


@pytest.fixture(autouse=True)
def _no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BROKER_CONFIG_FILE", raising=False)


def _spec(tmp_path: Path, **changes: object) -> str:
    spec = json.loads(EXAMPLE.read_text()) | changes
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(spec))
    return str(path)


def test_the_original_example_is_valid(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pipeline", "validate", str(EXAMPLE), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["valid"] and answer["problems"] == []
    assert answer["defaults"]["gpu_count"] == 4 and answer["defaults"]["memory"] == "128GB"
    assert answer["content_hash"].startswith("sha256:")


def test_every_problem_is_listed_with_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edges = [{"from": "data-loader", "to": "data-loader"}, {"from": "nobody", "to": "trainer"}]
    file = _spec(tmp_path, workflow=edges, version=7)
    assert main(["pipeline", "validate", file, "--json"]) == 2
    answer = json.loads(capsys.readouterr().out)
    assert not answer["valid"]
    places = [problem["pointer"] for problem in answer["problems"]]
    assert {"/version", "/workflow/1/from"} <= set(places) and any(
        p.startswith("/workflow/0") for p in places
    )
    assert all(problem["detail"] and problem["code"] for problem in answer["problems"])

    assert main(["pipeline", "validate", file]) == 2
    text = capsys.readouterr().out
    assert all(place in text for place in places)


def test_scripts_come_in_topological_order_with_their_edges(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pipeline", "script", str(EXAMPLE), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [job["component"] for job in answer["jobs"]] == [
        "data-loader",
        "preprocessor",
        "trainer",
        "evaluator",
    ]
    assert [job["depends_on"] for job in answer["jobs"]] == [
        [],
        ["data-loader"],
        ["preprocessor"],
        ["trainer"],
    ]
    for job in answer["jobs"]:
        assert set(job) == {"component", "name", "depends_on", "sbatch_args", "script"}
        assert job["script"].startswith("#!")
    assert "--gres=gpu:a100:4" in answer["jobs"][2]["sbatch_args"]


def test_a_script_follows_the_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pipeline", "script", str(EXAMPLE), "--set", "trainer.gpu_count=2", "--json"]) == 0
    trainer = json.loads(capsys.readouterr().out)["jobs"][2]
    assert "--gres=gpu:a100:2" in trainer["sbatch_args"]


def test_a_script_follows_the_clusters_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broker.toml").write_text(
        '[clusters.main]\nbase_path = "/lustre/jobs"\npartition = "batch"\n'
        'gpu_types = { A100 = "a100_80g" }\n'
    )
    assert main(["pipeline", "script", str(EXAMPLE), "--json"]) == 0
    words = json.loads(capsys.readouterr().out)["jobs"][2]["sbatch_args"]
    assert "--gres=gpu:a100_80g:4" in words and "--partition=batch" in words
    assert any(word.startswith("--output=/lustre/jobs/") for word in words)


def test_scripts_for_a_person_are_commands_to_paste(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pipeline", "script", str(EXAMPLE)]) == 0
    assert "sbatch --job-name=" in capsys.readouterr().out


def test_a_spec_may_come_on_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(EXAMPLE.read_bytes())))
    assert main(["pipeline", "validate", "-", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["valid"]


def test_a_file_that_is_not_there_is_one_clear_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pipeline", "validate", "nowhere.json"]) == 2
    assert "nowhere.json can't be read: No such file" in capsys.readouterr().err


def test_a_spec_that_is_none_gives_its_problems_to_script_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pipeline", "script", _spec(tmp_path, components=[]), "--json"]) == 2
    problem = json.loads(capsys.readouterr().err)
    assert problem["code"] == "invalid_spec" and problem["errors"]


def test_settings_that_are_wrong_are_all_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broker.toml").write_text('log_level = "loud"\n[clusters.main]\nssh_port = 0\n')
    assert main(["settings", "--json"]) == 78
    places = {entry["pointer"] for entry in json.loads(capsys.readouterr().err)["errors"]}
    assert places == {"/log_level", "/clusters/main/ssh_port"}


def test_shown_settings_hide_the_databases_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BROKER_DATABASE_URL", "postgresql+psycopg://broker:hush@db/broker")
    for words in (["settings"], ["settings", "--json"]):
        assert main(words) == 0
        shown = capsys.readouterr().out
        assert "hush" not in shown and "postgresql+psycopg://broker:***@db/broker" in shown


def test_what_a_command_of_this_machine_logs_is_no_part_of_its_answer(tmp_path: Path) -> None:
    program = """
import structlog
from broker.cli.configuration import load_settings
load_settings()
structlog.get_logger("broker.hosts").debug("remote_command")
structlog.get_logger("broker.hosts").warning("host_slow")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    assert "host_slow" in done.stderr and "remote_command" not in done.stderr
