"""Many readers of one address, in a process of their own: `readers.py URL CLIENTS SECONDS EVERY_S`.

Prints JSON. Each reader has its own connection. `EVERY_S` 0 is a closed loop: the next request follows the
answer. The readers are plain sockets: a client library's own time would be most of what is measured.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import sys
import time
from urllib.parse import urlsplit


async def reader(
    url: str, every_s: float, deadline: float, latencies: list[float], errors: list[str]
) -> None:
    parts = urlsplit(url)
    head = (
        f"GET {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: {os.environ['TOKEN']}\r\n\r\n"
    )
    incoming, outgoing = await asyncio.open_connection(parts.hostname, parts.port)
    due = time.perf_counter() + random.random() * every_s
    while due < deadline:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        began = time.perf_counter()
        try:
            outgoing.write(head.encode())
            answer = await incoming.readuntil(b"\r\n\r\n")
            fields = dict(line.lower().split(b": ", 1) for line in answer.split(b"\r\n")[1:-2])
            await incoming.readexactly(int(fields[b"content-length"]))
            if not answer.startswith(b"HTTP/1.1 200"):
                errors.append(answer.split(b"\r\n", 1)[0].decode())
        except (OSError, asyncio.IncompleteReadError, KeyError) as error:
            errors.append(repr(error))
            incoming, outgoing = await asyncio.open_connection(parts.hostname, parts.port)
        latencies.append(time.perf_counter() - began)
        due = max(due + every_s, time.perf_counter())
    outgoing.close()


async def main() -> None:
    url, clients, seconds, every_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
    latencies: list[float] = []
    errors: list[str] = []
    began = time.perf_counter()
    deadline = began + seconds
    await asyncio.gather(*(reader(url, every_s, deadline, latencies, errors) for _ in range(clients)))
    cuts = statistics.quantiles(latencies, n=100)
    print(
        json.dumps(
            {
                "p50_ms": 1000 * cuts[49],
                "p99_ms": 1000 * cuts[98],
                "errors": len(errors),
                "requests": len(latencies),
                "rate": len(latencies) / (time.perf_counter() - began),
            }
        )
    )
    if errors:
        print(errors[:5], file=sys.stderr)


if __name__ == "__main__":
    asyncio.run(main())
