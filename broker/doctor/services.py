"""The broker's own services: database and object store."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from broker import schema
from broker.checks import Check
from broker.context import s3_config
from broker.db import Database
from broker.errors import BrokerError, ConfigurationError
from broker.objects import EmbeddedObjectStore, ObjectStore, S3Config
from broker.objects.checks import check_store
from broker.settings import Settings, read_secret


def check_database(settings: Settings) -> list[Check]:
    """Does it answer, and are its tables current?"""
    database = Database(settings.sqlalchemy_url)
    try:
        database.ping()
        return database_checks(database.engine.dialect.name, schema.revision(database), schema.head())
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip().replace("\n", " ")
        return [Check("database", "fail", reason, "Check `database_url`, and that the server runs")]
    finally:
        database.close()


def database_checks(dialect: str, revision: str | None, head: str | None) -> list[Check]:
    """The findings about a database that answers."""
    checks = [Check("database", "ok", f"{dialect} answers")]
    if revision is None:
        detail = "the tables do not exist yet"
        return [*checks, Check("tables", "warn", detail, "broker db upgrade (`broker up` does it by itself)")]
    if revision != head:
        detail = f"revision {revision}, needed is {head}"
        return [*checks, Check("tables", "fail", detail, "broker db upgrade")]
    return [*checks, Check("tables", "ok", f"revision {revision}")]


def check_objects(settings: Settings) -> list[Check]:
    """Try the configured object store, or the embedded one, for real."""
    s3 = settings.s3
    try:
        with _store(settings) as store:
            return check_store(
                store, origins=s3.cors_origins, stale_after=timedelta(hours=s3.stale_upload_hours)
            )
    except BrokerError as error:
        return [Check("S3 endpoint", "fail", error.detail, "Mend `[s3]` in the settings")]


@contextmanager
def _store(settings: Settings) -> Iterator[ObjectStore]:
    if settings.s3.endpoint_url is not None:
        yield ObjectStore(s3_config(settings))
        return
    root = settings.data_dir / "objects"
    if running := _running(root, settings):
        yield ObjectStore(running)
        return
    with EmbeddedObjectStore(root, port=settings.s3.embedded_port) as endpoint:
        store = ObjectStore(endpoint.config(settings.s3.bucket))
        store.ensure_bucket(settings.s3.cors_origins)
        yield store


def _running(root: Path, settings: Settings) -> S3Config | None:
    """The embedded store that `broker up` runs below `root`, if one answers."""
    try:
        port = settings.s3.embedded_port or int((root / "port").read_text())
        with socket.create_connection(("127.0.0.1", port), timeout=2):
            return S3Config(
                endpoint_url=f"http://127.0.0.1:{port}",
                bucket=settings.s3.bucket,
                access_key=read_secret(root / "access_key"),
                secret_key=read_secret(root / "secret_key"),
                region=settings.s3.region,
            )
    except (OSError, ValueError, ConfigurationError):
        return None
