"""Train a classifier of handwritten digits, one step of a pipeline per call: `digits.py [ROLE] [--name …]`.

- `load` writes `train.npz`, `validation.npz`, `test.npz`: scikit-learn's 1,797 images (8×8), split 60:20:20.
- `preprocess` writes train and validation scaled to zero mean and unit variance, `scaler.joblib`, and
  hands on `test.npz` as it was.
- `train` writes `best_model.joblib`, of the epoch with the best validation accuracy; it takes raw pixels.
- `evaluate` judges that on `test.npz` and writes `confusion.csv` and `report.json`.

Without a role on the command line the name of the pipeline's component decides (`COMPONENT`), so that one
image serves every step.

A step finds its inputs in `INPUT_DIR/*/` and writes `metrics.json`. The rest is the broker's contract with a
container: parameters are `--name value` arguments, folders are `OUTPUT_DIR`, `LOG_DIR`, `CHECKPOINT_DIR`;
training resumes from its checkpoint when `RESUME` is set, reports to `PROGRESS_FILE`, and on SIGTERM, SIGUSR1
or SIGUSR2 stops after the epoch it is in, its checkpoint written (exit status 128 + signal). The same seed
gives the same model, interrupted or not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SPLITS = ("train", "validation", "test")
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
stop_signal: int | None = None  # the signal that asked us to stop


def _ask_to_stop(number: int, _frame: object) -> None:
    global stop_signal
    stop_signal = number


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write by rename: a reader sees the old content or the new, never half of one."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def report_progress(step: int, total: int, **values: float) -> None:
    """Tell the broker how far we are; it shows it and takes it as a sign of life."""
    if name := os.environ.get("PROGRESS_FILE"):
        write_json(Path(name), {"step": step, "total": total, **values})


def find_input(name: str) -> Path:
    """The one file `name` among the outputs of the upstream components."""
    root = Path(os.environ.get("INPUT_DIR", "inputs"))
    found = sorted(root.glob(f"*/{name}"))
    if len(found) != 1:
        there = ", ".join(str(path.relative_to(root)) for path in sorted(root.glob("*/*"))) or "nothing"
        raise SystemExit(
            f"digits: {name} should come from exactly one upstream component; {root} has {there}"
        )
    return found[0]


def read_split(path: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Images, shape (n, 64), and their digits, shape (n,)."""
    import numpy as np

    with np.load(path, allow_pickle=False) as data:
        return data["x"], data["y"]


def batches(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `range(count)`."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def load(options: argparse.Namespace) -> dict[str, Any]:
    """Write the data set, split so that every part has each digit in the same proportion."""
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    rest_x, test_x, rest_y, test_y = train_test_split(
        x, y, test_size=0.2, stratify=y, random_state=options.seed
    )
    train_x, validation_x, train_y, validation_y = train_test_split(
        rest_x, rest_y, test_size=0.25, stratify=rest_y, random_state=options.seed
    )
    parts = ((train_x, train_y), (validation_x, validation_y), (test_x, test_y))
    checksum = hashlib.sha256()
    for name, (part_x, part_y) in zip(SPLITS, parts, strict=True):
        np.savez_compressed(options.output_dir / f"{name}.npz", x=part_x, y=part_y)
        checksum.update(part_x.tobytes())
        checksum.update(part_y.tobytes())
        print(f"{name}: {len(part_y)} images")
    counts = {name: len(part_y) for name, (_, part_y) in zip(SPLITS, parts, strict=True)}
    return {**counts, "features": int(x.shape[1]), "classes": 10, "sha256": checksum.hexdigest()}


def preprocess(options: argparse.Namespace) -> dict[str, Any]:
    """Scale in batches, with the mean and deviation of the training part alone."""
    import joblib
    import numpy as np
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    x, y = read_split(find_input("train.npz"))
    for step, part in enumerate(parts := list(batches(len(x), options.batch_size)), start=1):
        scaler.partial_fit(x[part])
        report_progress(step, len(parts))
    for name, (raw, digits) in {
        "train": (x, y),
        "validation": read_split(find_input("validation.npz")),
    }.items():
        scaled = np.concatenate(
            [scaler.transform(raw[part]) for part in batches(len(raw), options.batch_size)]
        )
        np.savez_compressed(options.output_dir / f"{name}.npz", x=scaled, y=digits)
        print(f"{name}: {len(scaled)} images scaled in batches of {options.batch_size}")
    joblib.dump(scaler, options.output_dir / "scaler.joblib")
    shutil.copyfile(find_input("test.npz"), options.output_dir / "test.npz")
    return {"batches": len(parts), "batch_size": options.batch_size, "images": int(scaler.n_samples_seen_)}


class Training:
    """A classifier, what it has been through and its best epoch so far; these attributes are the checkpoint.

    The classifier's random state is among them, so a resumed training goes on as an unbroken one would.
    """

    def __init__(self, lr: float, batch_size: int, seed: int) -> None:
        import numpy as np
        from sklearn.neural_network import MLPClassifier

        self.classifier = MLPClassifier(
            hidden_layer_sizes=(64,),
            learning_rate_init=lr,
            batch_size=batch_size,
            random_state=np.random.RandomState(seed),
        )
        self.history: list[dict[str, float]] = []
        self.best_accuracy = -1.0
        self.best: Any = None

    def epoch(
        self,
        train: tuple[NDArray[np.float64], NDArray[np.int64]],
        validation: tuple[NDArray[np.float64], NDArray[np.int64]],
    ) -> dict[str, float]:
        """Pass once over the training part in mini-batches, then look at the validation part."""
        import copy

        self.classifier.partial_fit(*train, classes=range(10))
        accuracy = float(self.classifier.score(*validation))
        if accuracy > self.best_accuracy:
            self.best_accuracy, self.best = accuracy, copy.deepcopy(self.classifier)
        self.history.append({"loss": float(self.classifier.loss_), "accuracy": accuracy})
        return self.history[-1]

    @property
    def best_epoch(self) -> int:
        """Number of the first epoch with the best accuracy, counted from 1."""
        return 1 + [row["accuracy"] for row in self.history].index(self.best_accuracy)


def checkpoint_file() -> Path | None:
    """Where training leaves its state, or None when there is no folder for it."""
    folder = os.environ.get("CHECKPOINT_DIR")
    return Path(folder, "training.joblib") if folder else None


def save_checkpoint(training: Training) -> None:
    """Write the state by rename; a kill at any moment leaves the last whole one."""
    import joblib

    if path := checkpoint_file():
        part = path.with_name(path.name + ".part")
        joblib.dump(vars(training), part)
        part.replace(path)


def start_or_resume(options: argparse.Namespace) -> Training:
    """The training to go on with: the checkpoint's when `RESUME` is set and there is one, else a new one."""
    import joblib

    training = Training(options.lr, options.batch_size, options.seed)
    path = checkpoint_file()
    if os.environ.get("RESUME") and path and path.exists():
        vars(training).update(joblib.load(path))
        print(f"resumed from {path} after epoch {len(training.history)}")
    return training


def train(options: argparse.Namespace) -> dict[str, Any]:
    """Train for `--epochs`, each with a line of log, a checkpoint and a report of progress."""
    import joblib
    from sklearn.pipeline import make_pipeline

    train_part, validation_part = (read_split(find_input(f"{name}.npz")) for name in SPLITS[:2])
    training = start_or_resume(options)
    while len(training.history) < options.epochs:
        if stop_signal is not None:
            print(f"stopped by {signal.Signals(stop_signal).name} after epoch {len(training.history)}")
            raise SystemExit(128 + stop_signal)
        row = training.epoch(train_part, validation_part)
        done = len(training.history)
        save_checkpoint(training)
        report_progress(done, options.epochs, **row)
        print(f"epoch {done}/{options.epochs}: loss {row['loss']:.4f}, accuracy {row['accuracy']:.4f}")
    model = make_pipeline(joblib.load(find_input("scaler.joblib")), training.best)
    joblib.dump(model, options.output_dir / "best_model.joblib")
    shutil.copyfile(find_input("test.npz"), options.output_dir / "test.npz")
    lines = [
        f"{number},{row['loss']},{row['accuracy']}" for number, row in enumerate(training.history, start=1)
    ]
    (options.log_dir / "history.csv").write_text(
        "\n".join(["epoch,loss,accuracy", *lines]) + "\n", encoding="utf-8"
    )
    return {
        "final_accuracy": training.history[-1]["accuracy"],
        "final_loss": training.history[-1]["loss"],
        "best_accuracy": training.best_accuracy,
        "best_epoch": training.best_epoch,
        "epochs": len(training.history),
        "lr": options.lr,
        "batch_size": options.batch_size,
    }


def evaluate(options: argparse.Namespace) -> dict[str, Any]:
    """Judge the model on images that no earlier step learned from."""
    import joblib
    from sklearn.metrics import classification_report, confusion_matrix, log_loss

    model = joblib.load(find_input("best_model.joblib"))
    x, y = read_split(find_input("test.npz"))
    predicted = model.predict(x)
    matrix = confusion_matrix(y, predicted, labels=range(10))
    rows = [",".join(str(count) for count in row) for row in matrix]
    (options.output_dir / "confusion.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    write_json(options.output_dir / "report.json", classification_report(y, predicted, output_dict=True))
    metrics = {
        "accuracy": float((predicted == y).mean()),
        "log_loss": float(log_loss(y, model.predict_proba(x), labels=range(10))),
        "errors": int((predicted != y).sum()),
        "images": len(y),
    }
    print(f"accuracy {metrics['accuracy']:.4f}: {metrics['errors']} of {len(y)} digits misread")
    return metrics


ROLES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "load": load,
    "preprocess": preprocess,
    "train": train,
    "evaluate": evaluate,
}


COMPONENTS = {
    "data-loader": "load",
    "loader": "load",
    "preprocessor": "preprocess",
    "trainer": "train",
    "evaluator": "evaluate",
}


def role_of(arguments: list[str]) -> str:
    """The role: the first argument if it is one (it is taken off), else what the component is called."""
    if arguments and arguments[0] in ROLES:
        return arguments.pop(0)
    component = os.environ.get("COMPONENT", "")
    if component not in COMPONENTS:
        known = ", ".join(COMPONENTS)
        raise SystemExit(f"digits: name a role ({', '.join(ROLES)}) or the component one of: {known}")
    return COMPONENTS[component]


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; what is no parameter of ours is named and otherwise left alone."""
    role = role_of(arguments)

    def positive(kind: type[int] | type[float]) -> Callable[[str], float]:
        def convert(text: str) -> float:
            if (value := kind(text)) <= 0:
                raise argparse.ArgumentTypeError(f"{text} is not above 0")
            return value

        return convert

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.set_defaults(role=role)
    parser.add_argument("--output_dir", type=Path, default=Path(os.environ.get("OUTPUT_DIR", "outputs")))
    parser.add_argument("--log_dir", type=Path, default=Path(os.environ.get("LOG_DIR", "logs")))
    parser.add_argument("--batch_size", type=positive(int), default=32, help="images at once")
    parser.add_argument("--lr", type=positive(float), default=0.001, help="learning rate of Adam")
    parser.add_argument("--epochs", type=positive(int), default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the split and of the training")
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        print(f"digits: not used by {options.role}: {' '.join(unknown)}", file=sys.stderr)
    return options


def main() -> None:
    """Run one role; its metrics are written last, so that they stand for a whole result."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    options = parse(sys.argv[1:])
    if options.role == "train":
        for number in STOP_SIGNALS:
            signal.signal(number, _ask_to_stop)
    for folder in (options.output_dir, options.log_dir):
        folder.mkdir(parents=True, exist_ok=True)
    metrics = ROLES[options.role](options)
    write_json(options.output_dir / "metrics.json", metrics)


if __name__ == "__main__":
    main()
