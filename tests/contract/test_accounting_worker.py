"""The warehouse as the worker fills it, over a host with Slurm's programs, and commands that look after it.

Slurm is not here: its programs are scripts in a folder that is the cluster's PATH. `scontrol` and `sacct -e`
print what was recorded of a real one, `sacct` the rows of a file.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from broker.accounting.event_tables import AccountingEventRow, AccountingLookRow, AccountingShareRow
from broker.accounting.tables import AccountingCursorRow, AccountingJobRow
from broker.cli import main
from broker.context import Context
from broker.worker import loop
from tests.accounting_support import FIELDS, job
from tests.api_support import context
from tests.harness.processes import until
from tests.recordings import printed

SACCT = """#!{python}
import pathlib, sys
here, words = pathlib.Path(__file__).parent, sys.argv[1:]
if words == ["-e"]:
    print((here / "fields").read_text())
    raise SystemExit
if (here / "away").exists():
    print("sacct: error: slurm_persist_conn_open_without_init: failed to open persistent connection",
          file=sys.stderr)
    raise SystemExit(1)
delimiter = next(word for word in words if word.startswith("--delimiter=")).partition("=")[2]
assert words[words.index("-o") + 1].split(",") == {fields!r}, words
print((here / "rows").read_text().replace("\\x1f", delimiter), end="")
"""
WITHIN_S = 30.0


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name in ("config", "version", "accounting_fields", "shares", "events/node_events"):
        (folder / {"accounting_fields": "fields"}.get(name, Path(name).name)).write_text(printed(name))
    texts = {
        "sacct": SACCT.format(python=sys.executable, fields=list(FIELDS)),
        "scontrol": f'#!/bin/sh\n[ "$2" = config ] && exec cat {folder}/config\nexit 0\n',
        "sinfo": f"#!/bin/sh\ncat {folder}/version\n",
        "squeue": "#!/bin/sh\nexit 0\n",
        "sprio": "#!/bin/sh\nexit 0\n",
        "sshare": f"#!/bin/sh\ncat {folder}/shares\n",
        "sacctmgr": f'#!/bin/sh\n[ "$4" = event ] && exec cat {folder}/node_events\nexit 0\n',
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    now = int(time.time())
    rows = [job(7, submit=now - 9000, run=300), job(8, submit=now - 8000, run=300, User="lee")]
    (folder / "rows").write_text("".join("\x1f".join(row[name] for name in FIELDS) + "\n" for row in rows))
    return folder


@pytest.fixture
def ctx(programs: Path, tmp_path: Path) -> Iterator[Context]:
    path = f"{programs}:/usr/bin:/bin"
    with context(
        tmp_path / "data",
        clusters={"main": {"transport": "local", "path": path}},
        accounting={"interval_s": 0.2, "history_days": 1},
    ) as made:
        yield made


def cursor(ctx: Context) -> AccountingCursorRow | None:
    with ctx.db.read() as session:
        return session.get(AccountingCursorRow, "main")


@pytest.fixture
def working(ctx: Context) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=loop.run, args=(ctx, stop))
    thread.start()
    yield
    stop.set()
    thread.join(WITHIN_S)
    assert not thread.is_alive()


@pytest.mark.usefixtures("working")
def test_the_worker_reads_everybodys_jobs_and_goes_on_after_slurmdbd_was_away(
    ctx: Context, programs: Path
) -> None:
    until(lambda: (row := cursor(ctx)) and row.read_to > time.time() - 60, WITHIN_S, "the jobs are read")
    with ctx.db.read() as session:
        assert sorted(session.scalars(select(AccountingJobRow.unix_user))) == ["kim", "lee"]
    (programs / "away").touch()
    until(
        lambda: (row := cursor(ctx)) and "persistent connection" in (row.trouble or ""),
        WITHIN_S,
        "it is told",
    )
    (programs / "away").unlink()
    until(lambda: (row := cursor(ctx)) and row.trouble is None, WITHIN_S, "it is over")


@pytest.mark.usefixtures("working")
def test_the_worker_looks_at_nodes_and_fair_shares(ctx: Context) -> None:
    def looked() -> bool:
        with ctx.db.read() as session:
            looks = session.scalars(select(AccountingLookRow).where(AccountingLookRow.trouble.is_(None)))
            return {row.what for row in looks} == {"events", "shares"}

    until(looked, WITHIN_S, "nodes and shares are looked at")
    with ctx.db.read() as session:
        lacks = set(session.scalars(select(AccountingEventRow.lack)))
        accounts = set(session.scalars(select(AccountingShareRow.account)))
    assert lacks == {"capacity", "down", "drained"} and accounts >= {"default", "team-a"}


@pytest.mark.usefixtures("working")
def test_commands_show_how_far_it_was_read_and_make_the_sums_anew(
    ctx: Context, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    until(lambda: (row := cursor(ctx)) and row.read_to > time.time() - 60, WITHIN_S, "the jobs are read")
    monkeypatch.setenv("BROKER_DATA_DIR", str(ctx.settings.data_dir))
    monkeypatch.setenv("BROKER_CLUSTERS__MAIN__TRANSPORT", "local")
    capsys.readouterr()
    assert main(["accounting", "status", "--json"]) == 0
    (one,) = json.loads(capsys.readouterr().out)["items"]
    assert (one["cluster"], one["jobs"], one["open"], one["runaways"]) == ("main", 2, 0, 0)
    assert one["lag_s"] < 120
    assert main(["accounting", "rebuild", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"items": [{"cluster": "main", "jobs": 2, "renamed": 0}]}
    assert main(["accounting", "status"]) == 0
    assert "READ UP TO" in capsys.readouterr().out
    assert main(["accounting", "rebuild", "--cluster", "nowhere"]) != 0
    assert "no cluster 'nowhere'" in capsys.readouterr().err
