"""Logs that are larger than any memory should be: made, and watched over HTTP in every way there is."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.harness.client import Json
from tests.harness.processes import peak_rss_mib, reset_peak, rss_mib, until
from tests.harness.product import Broker
from tests.harness.specs import WAIT, component, pipeline

GROWTH_LIMIT_MIB = 64
BLOCK = b"".join(
    b"2026-11-21 10:00:%02d INFO step %06d of 900000, loss 0.123\n" % (n % 60, n) for n in range(20_000)
)
NEEDLE = "ERROR the needle lies here"


def write_long_log(path: Path, mib: int) -> int:
    """A log of `mib` MiB of lines that nobody asks for, and one at its end that somebody does; its bytes."""
    with path.open("wb") as file:
        while file.tell() < mib << 20:
            file.write(BLOCK)
        file.write(f"{NEEDLE}\nINFO bye\n".encode())
        return file.tell()


@dataclass(frozen=True)
class Watched:
    """What it took: MiB that the server grew by, and how fast the log was looked through, MiB/s."""

    growth_mib: float
    search_mib_s: float
    filter_mib_s: float

    def __str__(self) -> str:
        return (
            f"the API grew by {self.growth_mib:.0f} MiB; search {self.search_mib_s:.0f} MiB/s, "
            f"stream by level {self.filter_mib_s:.0f} MiB/s"
        )


def watch_long_log(http: httpx.Client, logs: str, size: int, pid: int) -> Watched:
    """Tail, search, a filtered stream, and a reader that takes all lines and stands still; all must find.

    `logs`: the address of a component's logs, relative to the client's; `pid`: the server. What a server
    loads once does not count: a small round comes first.
    """
    _tail(http, logs)
    next(_stream(http, logs, offset=max(0, size - 4096)))
    reset_peak(pid)
    before, began = rss_mib(pid), time.perf_counter()
    _tail(http, logs)
    assert _search(http, logs) == [NEEDLE]
    searched = time.perf_counter()
    loud = (line["text"] for piece in _stream(http, logs, level="error") for line in piece["lines"])
    assert next(loud) == NEEDLE
    loud.close()
    filtered = time.perf_counter()
    _stand_still(http, logs)
    mib = size / 2**20
    growth = peak_rss_mib(pid) - before
    assert growth < GROWTH_LIMIT_MIB, f"the server grew by {growth:.0f} MiB over a log of {mib:.0f} MiB"
    return Watched(growth, mib / (searched - began), mib / (filtered - searched))


def watch_long_log_of_a_run(broker: Broker, size: int) -> str:
    """The same of a run whose program writes `size` bytes and waits; and once more when they are stored."""
    line = "2026-11-21 10:00:00 INFO step of many, loss 0.123"
    script = f"yes '{line}' | head -c {size}; echo; echo '{NEEDLE}'; echo 'INFO bye'; {WAIT}"
    run_id = broker.client.start(pipeline([component("talker", script)]))
    logs = f"/runs/{run_id}/components/talker/logs"

    def written() -> bool:
        return bool(broker.client.log(run_id, "talker", offset=-64)["text"].endswith("INFO bye\n"))

    until(written, 580, "the log is written", 1.0)
    pid, whole = broker.parts["api"].pid, int(broker.client.log(run_id, "talker", limit=1)["size"])
    told = [f"running: {watch_long_log(broker.client.http, logs, whole, pid)}"]
    broker.open_gate(run_id, "talker")
    broker.client.succeed(run_id, 1200)
    assert broker.client.log(run_id, "talker", limit=1)["source"] == "store"
    told.append(f"stored: {watch_long_log(broker.client.http, logs, whole, pid)}")
    return f"{whole / 1e9:.1f} GB; " + "; ".join(told)


def _tail(http: httpx.Client, logs: str) -> None:
    """The last bytes, raw and by line."""
    piece = _json(http.get(logs, params={"offset": -4096}))
    assert piece["text"].endswith(f"{NEEDLE}\nINFO bye\n")
    found = _json(http.get(f"{logs}/lines", params={"offset": -4096}))
    assert [line["text"] for line in found["lines"]][-2:] == [NEEDLE, "INFO bye"]


def _search(http: httpx.Client, logs: str) -> list[str]:
    """A word in all of it, as a client goes on from piece to piece."""
    place, found = 0, []
    while True:
        piece = _json(http.get(f"{logs}/lines", params={"offset": place, "q": "NEEDLE"}))
        found += [line["text"] for line in piece["lines"]]
        if piece["next_offset"] >= piece["size"]:
            return found
        assert piece["next_offset"] > place, "the search stands still"
        place = piece["next_offset"]


def _stream(http: httpx.Client, logs: str, **params: str | int) -> Iterator[Json]:
    """Pieces of a live stream, until the log is complete."""
    with http.stream("GET", f"{logs}/stream", params=params) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))


def _stand_still(http: httpx.Client, logs: str, seconds: float = 2.0) -> None:
    """Ask for every line, take the first piece, and then nothing: the server must wait, not read ahead."""
    with http.stream("GET", f"{logs}/stream") as answer:
        next(answer.iter_bytes())
        threading.Event().wait(seconds)  # the time that a server without back-pressure would fill memory in


def _json(answer: httpx.Response) -> Json:
    assert answer.status_code == 200, answer.text
    value: Json = answer.json()
    return value
