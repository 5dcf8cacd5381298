"""Downloads from a real HTTP server that breaks off, lies and expires."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from broker.cli import transfers
from broker.cli.transfers import Download, fetch, fetch_all, inside
from broker.errors import Denied, IntegrityError, InvalidRequest, TransferInterrupted

DATA = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(DATA).hexdigest()


class Store(ThreadingHTTPServer):
    """Serves `DATA` with ranges; cuts the first `cuts` answers short, or answers `status`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.cuts, self.status, self.data, self.ranges = 0, 200, DATA, list[str]()

    def download(self, target: Path, size: int = len(DATA), sha256: str = SHA256) -> Download:
        return Download(f"http://127.0.0.1:{self.server_address[1]}/x", target, size, sha256)


class Handler(BaseHTTPRequestHandler):
    server: Store

    def do_GET(self) -> None:
        store = self.server
        wanted = self.headers.get("Range", "")
        store.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-") or 0)
        body = store.data[start:]
        if store.status != 200:
            self.send_response(store.status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if store.cuts:
            store.cuts -= 1
            body = body[: len(body) // 3]
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def store() -> Iterator[Store]:
    with Store() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with httpx.Client() as client:
        yield client


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers._fetch.retry, "wait", lambda _state: 0.0)  # type: ignore[attr-defined]


def test_a_file_arrives_verified(store: Store, http: httpx.Client, tmp_path: Path) -> None:
    seen: list[int] = []
    fetched = fetch(http, store.download(tmp_path / "deep" / "f"), seen.append)
    assert fetched.target.read_bytes() == DATA and not fetched.present and sum(seen) == len(DATA)
    assert list(fetched.target.parent.iterdir()) == [fetched.target]


def test_a_transfer_that_breaks_off_goes_on_where_it_was(
    store: Store, http: httpx.Client, tmp_path: Path
) -> None:
    store.cuts = 2
    seen: list[int] = []
    fetched = fetch(http, store.download(tmp_path / "f"), seen.append)
    assert fetched.target.read_bytes() == DATA and sum(seen) == len(DATA)
    starts = [int(wanted.removeprefix("bytes=").removesuffix("-") or 0) for wanted in store.ranges]
    assert starts == sorted(starts) and len(starts) == 3 and starts[1] == len(DATA) // 3


def test_what_arrived_before_a_failure_is_kept_for_the_next_try(
    store: Store, http: httpx.Client, tmp_path: Path
) -> None:
    store.cuts = 100
    with pytest.raises(TransferInterrupted):
        fetch(http, store.download(tmp_path / "f"))
    kept = (tmp_path / "f.part").stat().st_size
    assert 0 < kept < len(DATA) and not (tmp_path / "f").exists()
    store.cuts, store.ranges = 0, []
    fetch(http, store.download(tmp_path / "f"))
    assert store.ranges == [f"bytes={kept}-"] and (tmp_path / "f").read_bytes() == DATA


def test_other_bytes_than_were_stored_are_never_put_in_place(
    store: Store, http: httpx.Client, tmp_path: Path
) -> None:
    store.data = DATA[:-1] + b"!"
    with pytest.raises(IntegrityError, match="nothing was kept"):
        fetch(http, store.download(tmp_path / "f"))
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_part_is_noticed_and_the_next_try_begins_anew(
    store: Store, http: httpx.Client, tmp_path: Path
) -> None:
    (tmp_path / "f.part").write_bytes(b"?" * 1000)
    with pytest.raises(IntegrityError):
        fetch(http, store.download(tmp_path / "f"))
    assert fetch(http, store.download(tmp_path / "f")).target.read_bytes() == DATA


def test_a_part_that_is_too_long_is_thrown_away(store: Store, http: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "f.part").write_bytes(DATA + b"more")
    seen: list[int] = []
    assert fetch(http, store.download(tmp_path / "f"), seen.append).target.read_bytes() == DATA
    assert sum(seen) == len(DATA)


def test_a_file_that_is_there_already_is_not_fetched(
    store: Store, http: httpx.Client, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(DATA)
    assert fetch(http, store.download(tmp_path / "f")).present and store.ranges == []
    (tmp_path / "f").write_bytes(DATA[:-1] + b"!")
    assert not fetch(http, store.download(tmp_path / "f")).present
    assert (tmp_path / "f").read_bytes() == DATA


def test_an_empty_file_is_a_file(store: Store, http: httpx.Client, tmp_path: Path) -> None:
    store.data = b""
    empty = store.download(tmp_path / "f", 0, hashlib.sha256(b"").hexdigest())
    assert fetch(http, empty).target.read_bytes() == b""


def test_an_expired_link_says_what_to_do(store: Store, http: httpx.Client, tmp_path: Path) -> None:
    store.status = 403
    with pytest.raises(Denied, match="run the command again"):
        fetch(http, store.download(tmp_path / "f"))


def test_a_store_that_is_busy_is_tried_again(store: Store, http: httpx.Client, tmp_path: Path) -> None:
    store.status = 503
    with pytest.raises(TransferInterrupted):
        fetch(http, store.download(tmp_path / "f"))
    assert len(store.ranges) == 4


def test_many_files_arrive_and_one_failure_is_told(store: Store, tmp_path: Path) -> None:
    good = [store.download(tmp_path / str(n)) for n in range(8)]
    assert len(fetch_all(good, quiet=True)) == 8
    with pytest.raises(IntegrityError):
        fetch_all([*good, store.download(tmp_path / "bad", sha256="0" * 64)], quiet=True)


def test_two_files_for_one_place_are_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="same name"):
        fetch_all([store.download(tmp_path / "f"), store.download(tmp_path / "f")], quiet=True)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "a\0b", ""])
def test_a_stored_name_never_leads_out_of_the_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        inside(tmp_path, name)


def test_an_absolute_part_does_not_replace_the_folder(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        inside(tmp_path, "component", "/etc/passwd")
    assert inside(tmp_path, "c", "a/b.txt") == tmp_path / "c" / "a" / "b.txt"
