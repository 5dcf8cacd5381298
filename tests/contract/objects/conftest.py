"""A real S3 server for the tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from broker.objects import EmbeddedObjectStore, ObjectStore, S3Config
from tests.object_store import PART


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[EmbeddedObjectStore]:
    embedded = EmbeddedObjectStore(tmp_path_factory.mktemp("objects"))
    embedded.start()
    yield embedded
    embedded.stop()


@pytest.fixture(scope="module")
def config(server) -> S3Config:
    return replace(server.start().config("models"), part_size=PART, max_attempts=2)


@pytest.fixture(scope="module")
def store(config) -> ObjectStore:
    made = ObjectStore(config)
    made.ensure_bucket()
    return made


@pytest.fixture
def key(request) -> str:
    return f"{request.node.originalname}/{os.urandom(4).hex()}"
