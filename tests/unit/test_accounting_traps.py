"""The traps of accounting: remedies in how sacct is run, and the table that names a test of each trap."""

from __future__ import annotations

import ast
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.errors import Unreachable
from broker.hosts.local import LocalHost
from broker.slurm import SlurmClient
from broker.slurm.queue import ALL_STATES
from broker.slurm.sacct import Window
from broker.slurm.states import SlurmState, parse_state
from broker.slurm.versions import Version
from tests.accounting_support import FIELDS, NOON, job, printed

ROOT = Path(__file__).resolve().parents[2]
DELIMITER = "\x1ftest"
WINDOW = Window(FIELDS, Version(24, 11, 5), NOON, NOON + 60, delimiter=DELIMITER)


def slurm(folder: Path, sacct: str, timeout_s: float = 20) -> SlurmClient:
    """A client whose `sacct` is this shell script."""
    program = folder / "sacct"
    program.write_text(f"#!/bin/sh\n{sacct}\n")
    program.chmod(0o755)
    return SlurmClient(LocalHost(), timeout_s=timeout_s, path=f"{folder}:/usr/bin:/bin")


def test_one_query_is_in_flight_whoever_asks(tmp_path: Path) -> None:
    """`mkdir` fails where another sacct is running: slurmdbd scans its tables for each."""
    client = slurm(
        tmp_path, f"mkdir {tmp_path}/busy || touch {tmp_path}/two; sleep 0.1; rmdir {tmp_path}/busy"
    )
    threads = [threading.Thread(target=client.sacct, args=(WINDOW,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not (tmp_path / "two").exists()


def test_who_does_not_get_his_turn_is_told_so_and_asks_nothing(tmp_path: Path) -> None:
    client = slurm(tmp_path, f"echo >> {tmp_path}/asked; read line < {tmp_path}/gate", timeout_s=0.3)
    (tmp_path / "gate").write_text("")
    with client._one_sacct, pytest.raises(Unreachable, match="busy"):
        client.sacct(WINDOW)
    assert not (tmp_path / "asked").exists()


def test_sizes_are_asked_for_in_bytes_and_not_rounded(tmp_path: Path) -> None:
    """sacct prints 317220K for 324833280 where nobody asks it not to."""
    row = job(7)
    batch = row | {"JobIDRaw": "7.batch", "JobID": "7.batch"}
    texts = {}
    for name, rss in (("plain", "317220K"), ("raw", "324833280")):
        rows = [row, batch | {"MaxRSS": rss, "TRESUsageInTot": f"mem={rss}"}]
        (tmp_path / name).write_text(printed(rows, DELIMITER))
        texts[name] = tmp_path / name
    client = slurm(
        tmp_path, f'case "$*" in *--noconvert*) cat {texts["raw"]};; *) echo rounded >&2; exit 1;; esac'
    )
    (record,) = client.sacct(WINDOW).jobs
    assert (record.max_rss_mib, json.loads(record.raw)["steps"][0]["MaxRSS"]) == (310, "324833280")


def test_the_clock_and_its_form_are_the_same_whatever_the_account_sets(tmp_path: Path) -> None:
    rows = printed([job(7)], DELIMITER)
    (tmp_path / "rows").write_text(rows)
    check = '[ "$TZ" = UTC ] && [ "$SLURM_TIME_FORMAT" = %s ] && [ "$SLURM_BITSTR_LEN" = 0 ] || exit 1'
    client = slurm(tmp_path, f"{check}; cat {tmp_path}/rows")
    host = client._host
    assert isinstance(host, LocalHost)
    host._environment = {"TZ": "Asia/Seoul", "SLURM_TIME_FORMAT": "standard", "PATH": "/usr/bin:/bin"}
    (record,) = client.sacct(WINDOW).jobs
    assert record.submit_at == NOON


def test_every_state_a_job_can_end_in_is_asked_for() -> None:
    """With `-s` sacct leaves out jobs in states that are not named; flags (CG, CF, …) are never stored."""
    asked = {parse_state(code) for code in ALL_STATES.split(",")}
    stored = {state for state in SlurmState if state.finished} - {SlurmState.LAUNCH_FAILED}  # a step's alone
    assert stored <= asked
    assert {SlurmState.PENDING, SlurmState.RUNNING, SlurmState.SUSPENDED, SlurmState.REQUEUED} <= asked


# ---- the table --------------------------------------------------------------------------------------

_ROW = re.compile(r"^\| (\d+)\. ")
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def rows() -> Iterator[tuple[int, list[tuple[str, str]]]]:
    for line in (ROOT / "docs/accounting.md").read_text(encoding="utf-8").splitlines():
        if match := _ROW.match(line):
            yield int(match[1]), _TEST.findall(line)


def test_each_of_the_18_traps_has_a_remedy_and_tests_that_exist() -> None:
    table = dict(rows())
    assert sorted(table) == list(range(1, 19))
    for number, tests in table.items():
        assert tests, f"trap {number} names no test"
        for path, name in tests:
            tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
            names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert name in names, f"trap {number}: there is no {path}::{name}"
