"""`python -m prove [--only NAME]… [--seed N]`: show every row, write `docs/proof/DATE.md`.

Exit status 1 when a row does not hold. With `--only` nothing is written unless `--write` is given.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from prove.rows import ROWS, Measured, Row, Stage
from tests.harness.cluster import ROOT, Cluster


@dataclass(frozen=True, slots=True)
class Shown:
    """A row and what came of it."""

    row: Row
    result: Measured
    seconds: float
    load: float


def show(row: Row, stage: Stage) -> Shown:
    """Show one row; a failure is a result, and is told."""
    print(f"\n=== {row.name}: {row.what} ({row.target})", flush=True)
    load, began = os.getloadavg()[0], time.monotonic()
    try:
        result = row.show(stage)
    except Exception as error:
        traceback.print_exc()
        lines = str(error).splitlines() or [type(error).__name__]
        result = Measured(f"FAILED: {lines[0][:300]}", holds=False)
    shown = Shown(row, result, time.monotonic() - began, load)
    print(
        f"=== {'holds' if result.holds else 'DOES NOT HOLD'}: {result.text} ({shown.seconds:.0f} s)",
        flush=True,
    )
    return shown


def report(shown: list[Shown], stage: Stage, version: str) -> str:
    """The report as Markdown."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    lines = [
        f"# Proof of {datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        "",
        f"Made by `make prove` on commit {commit}: {os.cpu_count()} CPUs, {memory} GiB, "
        f"Linux {platform.release()}, Python {platform.python_version()}, Slurm {version}, six nodes on one "
        f"machine. Seed {stage.seed} (`python -m prove --seed`). `load`: load average when the row began.",
        "",
        "| what | asked for | measured | holds | took | load |",
        "|---|---|---|---|---|---|",
    ]
    for one in shown:
        verdict = "yes" if one.result.holds else "**no**"
        lines.append(
            f"| {cell(one.row.what)} | {one.row.target} | {cell(one.result.text)} | {verdict} "
            f"| {one.seconds:.0f} s | {one.load:.1f} |"
        )
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    """Text as it stands in a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def main(arguments: list[str]) -> int:
    """Show the rows; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m prove", description=__doc__)
    parser.add_argument("--only", action="append", choices=[row.name for row in ROWS], help="repeatable")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--write", action="store_true", help="write the report of --only, too")
    options = parser.parse_args(arguments)
    cluster = Cluster("prove").up()
    try:
        with tempfile.TemporaryDirectory(prefix="broker-prove-") as home:
            stage = Stage(cluster, Path(home), options.seed)
            print(f"seed {stage.seed}", flush=True)
            shown = [show(row, stage) for row in ROWS if not options.only or row.name in options.only]
            text = report(shown, stage, cluster.info["slurm_version"])
    finally:
        cluster.control("down")
    print(f"\n{text}")
    if not options.only or options.write:
        folder = ROOT / "docs" / "proof"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}.md").write_text(text)
    return 0 if all(one.result.holds for one in shown) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
