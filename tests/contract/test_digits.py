"""The sample component keeps the broker's contract with a container and does real work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest

PROGRAM = Path(__file__).resolve().parents[2] / "examples" / "digits" / "digits.py"


class Step:
    """One component's folders, laid out as the broker lays them out, and its process."""

    def __init__(self, root: Path, name: str, role: str | None, **inputs: Step) -> None:
        self.name, self.role = name, [role] if role else []
        self.folder = root / name
        self.outputs, self.logs = self.folder / "outputs", self.folder / "logs"
        self.progress = self.folder / "progress.json"
        for folder in ("inputs", "checkpoints", "outputs", "logs"):
            (self.folder / folder).mkdir(parents=True)
        for upstream, step in inputs.items():
            (self.folder / "inputs" / upstream).symlink_to(step.outputs)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        contract = {
            "COMPONENT": self.name,
            "INPUT_DIR": str(self.folder / "inputs"),
            "OUTPUT_DIR": str(self.outputs),
            "CHECKPOINT_DIR": str(self.folder / "checkpoints"),
            "PROGRESS_FILE": str(self.progress),
        }
        folders = ("--output_dir", str(self.outputs), "--log_dir", str(self.logs))
        return subprocess.Popen(
            [sys.executable, PROGRAM, *self.role, *folders, *arguments],
            env=os.environ | contract | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *arguments: str, **environment: str) -> str:
        process = self.start(*arguments, **environment)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        return output

    @property
    def metrics(self) -> dict[str, float]:
        metrics: dict[str, float] = json.loads((self.outputs / "metrics.json").read_text())
        return metrics


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Step:
    """The data set, loaded and scaled as the example spec asks (`batch_size` 128)."""
    root = tmp_path_factory.mktemp("prepared")
    loader = Step(root, "data-loader", None)  # as in the example: the component's name decides
    loader.run()
    assert loader.metrics["train"] + loader.metrics["validation"] + loader.metrics["test"] == 1797
    preprocessor = Step(root, "preprocessor", "preprocess", loader=loader)
    preprocessor.run("--batch_size", "128")
    return preprocessor


def test_a_component_of_another_name_must_say_its_role(tmp_path: Path) -> None:
    process = Step(tmp_path, "stage-one", None).start()
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "name a role" in output


def test_preprocessing_honours_batch_size_and_learns_nothing_from_the_test_part(prepared: Step) -> None:
    assert prepared.metrics == {"batches": 9, "batch_size": 128, "images": 1077}
    assert json.loads(prepared.progress.read_text()) == {"step": 9, "total": 9}
    with np.load(prepared.outputs / "train.npz") as scaled:
        assert np.allclose(scaled["x"].mean(axis=0), 0)
    with np.load(prepared.outputs / "test.npz") as untouched:
        assert untouched["x"].max() == 16


def test_the_example_parameters_give_a_model_that_reads_digits(prepared: Step, tmp_path: Path) -> None:
    trainer = Step(tmp_path, "trainer", "train", preprocessor=prepared)
    output = trainer.run("--lr", "0.001", "--epochs", "30")
    assert "epoch 30/30: loss" in output
    assert trainer.metrics["final_accuracy"] >= 0.95
    assert json.loads(trainer.progress.read_text())["step"] == 30
    assert len((trainer.logs / "history.csv").read_text().splitlines()) == 31

    evaluator = Step(tmp_path, "evaluator", "evaluate", trainer=trainer)
    evaluator.run()
    assert evaluator.metrics["accuracy"] >= 0.95
    confusion = np.loadtxt(evaluator.outputs / "confusion.csv", delimiter=",")
    assert confusion.sum() - np.trace(confusion) == evaluator.metrics["errors"]


def test_accuracy_comes_from_training(prepared: Step, tmp_path: Path) -> None:
    trainer = Step(tmp_path, "trainer", "train", preprocessor=prepared)
    trainer.run("--lr", "0.000001", "--epochs", "1")
    assert trainer.metrics["final_accuracy"] < 0.5


def stop_while_training(trainer: Step, number: signal.Signals) -> None:
    """Start a training without end and stop it after its second epoch."""
    with trainer.start("--epochs", "1000000") as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch 2/"):
                process.send_signal(number)
        assert process.wait() == 128 + number
    assert not (trainer.outputs / "metrics.json").exists()


def test_interrupted_training_resumes_to_the_same_model(prepared: Step, tmp_path: Path) -> None:
    unbroken = Step(tmp_path, "unbroken", "train", preprocessor=prepared)
    unbroken.run("--epochs", "60")
    broken = Step(tmp_path, "broken", "train", preprocessor=prepared)
    stop_while_training(broken, signal.SIGTERM)
    assert broken.run("--epochs", "60", RESUME="1").startswith("resumed from")
    assert broken.metrics == unbroken.metrics
    models = [joblib.load(step.outputs / "best_model.joblib") for step in (broken, unbroken)]
    images = np.random.default_rng(0).uniform(0, 16, (50, 64))
    assert np.array_equal(*(model.predict_proba(images) for model in models))


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_every_warning_signal_leaves_a_checkpoint(
    prepared: Step, tmp_path: Path, number: signal.Signals
) -> None:
    trainer = Step(tmp_path, "trainer", "train", preprocessor=prepared)
    stop_while_training(trainer, number)
    checkpoint = joblib.load(trainer.folder / "checkpoints" / "training.joblib")
    assert len(checkpoint["history"]) >= 2


def test_without_resume_a_checkpoint_is_left_alone(prepared: Step, tmp_path: Path) -> None:
    trainer = Step(tmp_path, "trainer", "train", preprocessor=prepared)
    trainer.run("--epochs", "2")
    assert "epoch 1/2" in trainer.run("--epochs", "2")


def test_a_missing_input_is_named_with_what_is_there(tmp_path: Path) -> None:
    loader = Step(tmp_path, "loader", "load")
    loader.run()
    process = Step(tmp_path, "evaluator", "evaluate", loader=loader).start()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "best_model.joblib should come from exactly one upstream component" in output
    assert "loader/train.npz" in output


def test_parameters_are_checked_and_foreign_ones_named(tmp_path: Path) -> None:
    process = Step(tmp_path, "trainer", "train").start("--lr", "0")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "--lr: 0 is not above 0" in output
    assert "not used by load: --nccl ring" in Step(tmp_path, "loader", "load").run("--nccl", "ring")
