"""What tests of the object store share: content of any size, and the parts that were sent."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from broker.objects import ObjectStore

MIB = 1 << 20
PART = 5 * MIB
HTTP = httpx.Client(trust_env=False, timeout=30)


def content(size: int, seed: int = 0) -> bytes:
    block = hashlib.shake_256(str(seed).encode()).digest(MIB)
    return (block * (size // MIB + 1))[:size]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def pieces(data: bytes, size: int = 700_001) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


@contextmanager
def parts_sent(store: ObjectStore) -> Iterator[list[int]]:
    """Numbers of the parts that are really sent."""
    numbers: list[int] = []

    def note(params, **_kwargs):
        numbers.append(params["PartNumber"])

    event = "provide-client-params.s3.UploadPart"
    store.client.meta.events.register(event, note)
    try:
        yield numbers
    finally:
        store.client.meta.events.unregister(event, note)
