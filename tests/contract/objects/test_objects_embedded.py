"""The embedded server: its directory, its guards, its life and death."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from broker.errors import BrokerError, ConfigurationError, Unreachable
from broker.objects import EmbeddedObjectStore, ObjectStore
from broker.objects.server import layout
from broker.objects.server.layout import SetupError

HTTP = httpx.Client(trust_env=False, timeout=30)
ORIGIN = "http://console.example:8080"
PART = 5 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[EmbeddedObjectStore]:
    embedded = EmbeddedObjectStore(tmp_path_factory.mktemp("objects") / "100% odd", cors_origins=[ORIGIN])
    embedded.start()
    yield embedded
    embedded.stop()


@pytest.fixture(scope="module")
def store(server) -> ObjectStore:
    made = ObjectStore(replace(server.start().config("models"), part_size=PART))
    made.ensure_bucket([ORIGIN])
    return made


def await_end(pid: int, seconds: float = 20) -> bool:
    """Whether the process ends in time."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    assert await_end(pid)


def listening_ports(pid: int) -> set[tuple[str, int]]:
    """Where a process listens, from proc(5)."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(link.readlink())
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = set()
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and fields[9] in inodes:
            address, port = fields[1].split(":")
            found.add((socket.inet_ntoa(bytes.fromhex(address)[::-1]), int(port, 16)))
    return found


# ── what it lets in ───────────────────────────────────────────────────────────────────────────────────


def test_everything_listens_on_loopback_only(server):
    assert {address for address, _ in listening_ports(server.pid)} == {"127.0.0.1"}
    assert len(listening_ports(server.pid)) == 4


def test_request_without_keys_is_refused(server, store):
    store.put_bytes("a/b", b"secret")
    url = server.start().url
    for method, path in (
        ("GET", "/"),
        ("GET", "/models"),
        ("GET", "/models/a/b"),
        ("PUT", "/models/a/b"),
        ("DELETE", "/models/a/b"),
        ("GET", "/info"),
        ("GET", "/auth/v1.0"),
        ("GET", "/v1/AUTH_s3/models/a/b"),
        ("PUT", "/v1/AUTH_s3/models/a/b"),
    ):
        answer = HTTP.request(method, url + path, headers={"X-Auth-Token": "x"})
        assert answer.status_code == 403, (method, path)
        assert b"secret" not in answer.content
    assert store.get_bytes("a/b", 10) == b"secret"


def test_back_ends_answer_nobody_without_the_token(server, store):
    store.put_bytes("a/b", b"secret")
    front = int(server.start().url.rsplit(":", 1)[1])
    backs = {port for _, port in listening_ports(server.pid)} - {front}
    assert len(backs) == 3
    for port in backs:
        for headers in ({}, {"X-Backend-Broker-Token": "0" * 64}, {"X-Backend-Broker-Token": ""}):
            for path in (
                "/d1/0/AUTH_s3",
                "/d1/0/AUTH_s3/models",
                "/d1/0/AUTH_s3/models/a/b",
                "/recon/version",
            ):
                answer = HTTP.get(f"http://127.0.0.1:{port}{path}", headers=headers)
                assert (answer.status_code, answer.content) == (403, b"")


def test_keys_and_data_are_readable_by_their_owner_alone(server):
    for path in (server.root, *server.root.rglob("*")):
        if path.is_file() and path.suffix == ".gz":  # the ring: which ports there are, no secret
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode & 0o077 == 0, (path, oct(mode))


def test_page_of_an_allowed_origin_may_upload_and_download(store):
    put = store.presign_put("cors", 60)
    asked = {"Origin": ORIGIN, "Access-Control-Request-Method": "PUT"}
    preflight = HTTP.options(put, headers=asked | {"Access-Control-Request-Headers": "content-type"})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == ORIGIN
    assert "PUT" in preflight.headers["access-control-allow-methods"]
    assert "content-type" in preflight.headers["access-control-allow-headers"]
    sent = HTTP.put(put, content=b"x", headers={"Origin": ORIGIN, "Content-Type": "text/plain"})
    got = HTTP.get(store.presign_get("cors", 60), headers={"Origin": ORIGIN})
    for answer in (sent, got):
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert "etag" in answer.headers["access-control-expose-headers"].lower()


def test_page_of_another_origin_is_not_let_in(store):
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "PUT"}
    answer = HTTP.options(store.presign_put("cors", 60), headers=asked)
    assert answer.status_code == 401
    assert "access-control-allow-origin" not in answer.headers


def test_deleting_a_large_object_frees_its_parts(server, store):
    def stored() -> int:
        return sum(file.stat().st_size for file in server.root.glob("data/**/*.data"))

    before = stored()
    store.upload_stream("large/one", [bytes(PART * 2 + 1)])
    assert stored() >= before + 2 * PART
    store.delete_prefix("large/")
    assert stored() == before


# ── its directory and port ────────────────────────────────────────────────────────────────────────────


def test_restart_keeps_keys_port_data_and_presigned_urls(tmp_path):
    first = EmbeddedObjectStore(tmp_path)
    endpoint = first.start()
    store = ObjectStore(endpoint.config("models"))
    store.ensure_bucket()
    store.put_bytes("kept", b"content")
    url = store.presign_get("kept", 600)
    first.stop()
    with pytest.raises(httpx.ConnectError):
        HTTP.get(url)
    with EmbeddedObjectStore(tmp_path) as again:
        assert again == endpoint
        assert HTTP.get(url).content == b"content"
        assert [found.key for found in store.list("")] == ["kept"]


def test_keys_lie_in_files_for_settings_that_name_files(server):
    endpoint = server.start()
    keys = json.loads((server.root / "keys.json").read_text())
    assert keys == {endpoint.access_key: endpoint.secret_key}
    assert endpoint.access_key_file.read_text() == endpoint.access_key
    assert endpoint.secret_key_file.read_text() == endpoint.secret_key
    assert endpoint.secret_key not in repr(endpoint)


def test_starting_twice_is_the_same_server(server):
    pid = server.pid
    assert server.start() == server.start()
    assert server.pid == pid


def test_second_server_on_one_directory_is_refused_by_name_of_the_first(server):
    with pytest.raises(ConfigurationError, match=f"process {server.pid}"):
        EmbeddedObjectStore(server.root).start()


def test_taken_port_is_named_with_the_remedy(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"{port}.*give another port"):
            EmbeddedObjectStore(tmp_path, port=port).start()
        (tmp_path / "port").write_text(str(port))
        with pytest.raises(ConfigurationError, match=f"{port}.*remove .*port"):
            EmbeddedObjectStore(tmp_path).start()


def test_lost_salt_is_an_error_and_not_an_empty_store(tmp_path):
    embedded = EmbeddedObjectStore(tmp_path)
    ObjectStore(embedded.start().config("models")).ensure_bucket()
    embedded.stop()
    (tmp_path / "salt").unlink()
    with pytest.raises(ConfigurationError, match="salt is missing"):
        EmbeddedObjectStore(tmp_path).start()


def test_file_system_without_extended_attributes_is_refused_with_the_remedy():
    with pytest.raises(SetupError, match="ext4, xfs or btrfs"):
        layout._check_xattrs(Path("/proc/self"))


def test_object_that_was_not_listed_in_time_is_listed_after_the_next_sweep(tmp_path):
    first = EmbeddedObjectStore(tmp_path)
    store = ObjectStore(first.start().config("models"))
    store.ensure_bucket()
    store.put_bytes("before", b"x")
    containers = tmp_path / "data/d1/containers"
    aside = containers.rename(tmp_path / "aside")
    store.put_bytes("unlisted", b"x")  # stored; its listing can't be told
    if containers.exists():
        containers.rename(tmp_path / "empty")
    aside.rename(containers)
    assert [found.key for found in store.list("")] == ["before"]
    first.stop()
    with EmbeddedObjectStore(tmp_path):  # sweeps at its start
        deadline = time.monotonic() + 30
        while len(keys := [found.key for found in store.list("")]) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert keys == ["before", "unlisted"]


# ── its life and death ────────────────────────────────────────────────────────────────────────────────

PARENT = """
import sys
from pathlib import Path
from broker.objects import EmbeddedObjectStore
store = EmbeddedObjectStore(Path(sys.argv[1]))
store.start()
print(store.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_server_dies_with_its_parent(tmp_path, how):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with parent:
        pid = int(parent.stdout.readline())
        parent.send_signal(how)
    assert await_end(pid)


def test_server_outlives_the_thread_that_started_it(tmp_path):
    embedded = EmbeddedObjectStore(tmp_path)
    thread = threading.Thread(target=embedded.start)
    thread.start()
    thread.join()
    try:
        assert not await_end(embedded.pid, 0.5)
        assert embedded.alive()
    finally:
        embedded.stop()


def test_interrupt_at_the_terminal_is_the_parents_to_handle(server):
    os.kill(server.pid, signal.SIGINT)
    assert server.alive()


def test_alive_says_what_is(tmp_path):
    embedded = EmbeddedObjectStore(tmp_path)
    assert not embedded.alive()
    embedded.start()
    assert embedded.alive()
    os.kill(embedded.pid, signal.SIGSTOP)
    assert not embedded.alive(timeout_s=0.5)
    os.kill(embedded.pid, signal.SIGCONT)
    assert embedded.alive(timeout_s=30)
    kill(embedded.pid)
    assert not embedded.alive()
    embedded.stop()
    with pytest.raises(ConfigurationError, match="make a new one"):
        embedded.start()


@contextmanager
def supervised(embedded: EmbeddedObjectStore, restarted: threading.Event) -> Iterator[None]:
    thread = threading.Thread(target=embedded.supervise, args=(lambda _endpoint: restarted.set(),))
    thread.start()
    try:
        yield
    finally:
        embedded.stop()
        thread.join(20)
    assert not thread.is_alive()


def test_supervised_server_comes_back_after_kill_9_with_its_data(tmp_path):
    embedded, restarted = EmbeddedObjectStore(tmp_path), threading.Event()
    store = ObjectStore(embedded.start().config("models"))
    store.ensure_bucket()
    store.put_bytes("kept", b"content")
    with supervised(embedded, restarted):
        for _ in range(2):
            pid = embedded.pid
            kill(pid)
            assert restarted.wait(30)
            restarted.clear()
            assert embedded.pid != pid
            assert store.get_bytes("kept", 10) == b"content"


class Watched(EmbeddedObjectStore):
    """Tells of a start that failed; starts only when it may."""

    def __init__(self, root):
        super().__init__(root)
        self.may, self.failed = threading.Event(), threading.Event()
        self.may.set()

    def start(self):
        assert self.may.wait(30)
        try:
            return super().start()
        except BrokerError:
            self.failed.set()
            raise


def test_supervisor_goes_on_when_a_restart_fails(tmp_path):
    embedded, restarted = Watched(tmp_path), threading.Event()
    embedded.start()
    port = int((tmp_path / "port").read_text())
    with supervised(embedded, restarted):
        embedded.may.clear()
        kill(embedded.pid)
        with socket.create_server(("127.0.0.1", port)):  # somebody else was faster
            embedded.may.set()
            assert embedded.failed.wait(30)
        assert restarted.wait(30)
        assert embedded.alive()


def test_store_stopped_for_good_is_unreachable(tmp_path):
    embedded = EmbeddedObjectStore(tmp_path)
    store = ObjectStore(replace(embedded.start().config("models"), max_attempts=1))
    embedded.stop()
    with pytest.raises(Unreachable):
        store.ensure_bucket()


def test_server_stands_alone_too(tmp_path):
    """As the compose service runs it: without a parent, ended by SIGTERM."""
    command = [sys.executable, "-m", "broker.objects.server", "--root", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            said = json.loads(process.stdout.readline())
            assert said["pid"] == process.pid
            assert HTTP.get(said["url"]).status_code == 403
        finally:
            process.terminate()
        assert process.wait(10) == 0
        assert process.stderr.read() == b""


def test_set_up_that_is_wrong_ends_with_one_line_and_status_78(tmp_path, server):
    command = [sys.executable, "-m", "broker.objects.server", "--root", str(server.root)]
    done = subprocess.run(command, capture_output=True, timeout=300, check=False)
    assert done.returncode == 78
    assert "already serves" in json.loads(done.stdout)["error"]
    assert done.stderr == b""
