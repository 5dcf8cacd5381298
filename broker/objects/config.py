"""How to reach an S3 endpoint, and the boto3 client made of that."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

import boto3
from botocore.config import Config

from broker.errors import ConfigurationError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MIB = 1 << 20
MIN_PART_SIZE = 5 * MIB  # of every part but the last (Amazon S3 User Guide, "multipart upload limits")
MAX_PARTS = 10_000
MAX_OBJECT_SIZE = 5 << 40
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(frozen=True, slots=True)
class S3Config:
    """One bucket of one endpoint, and the keys to it.

    `public_url` is the endpoint as clients see it; presigned URLs are signed for it, since the signature
    covers the host. `part_size` is in bytes. `checksum` is when boto3 adds checksums of its own:
    `when_supported` makes other servers than Amazon's refuse requests; every body sent from here carries
    its MD5 or SHA-256 either way. `max_attempts` counts the first one.
    """

    endpoint_url: str | None
    bucket: str
    access_key: str
    secret_key: str = field(repr=False)
    region: str = "us-east-1"
    public_url: str | None = None
    addressing_style: Literal["path", "virtual", "auto"] = "path"
    part_size: int = 16 * MIB
    checksum: Literal["when_required", "when_supported"] = "when_required"
    connect_timeout_s: float = 5
    read_timeout_s: float = 60
    max_attempts: int = 4
    max_connections: int = 32

    def __post_init__(self) -> None:
        for name, url in (("endpoint_url", self.endpoint_url), ("public_url", self.public_url)):
            parts = urlsplit(url or "http://none")
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
                raise ConfigurationError(
                    f"s3.{name} is {url!r}: give a URL like https://s3.example.org:9000 (no query)"
                )
        if not _BUCKET.fullmatch(self.bucket) or ".." in self.bucket:
            raise ConfigurationError(
                f"s3.bucket is {self.bucket!r}: 3 to 63 of a-z, 0-9, '-' and '.', "
                "with a letter or digit at both ends"
            )
        if not MIN_PART_SIZE <= self.part_size <= 5 << 30:
            raise ConfigurationError(f"The part size is {self.part_size} bytes: S3 takes 5 MiB to 5 GiB")


def make_client(config: S3Config, endpoint_url: str | None) -> S3Client:
    """A client with time-outs and few retries; a thread-safe one, for all threads to share.

    A server that is away fails a call in a few seconds: it is the caller who knows how to wait longer.
    """
    session = boto3.session.Session(
        aws_access_key_id=config.access_key,
        aws_secret_access_key=config.secret_key,
        region_name=config.region,
    )
    return session.client(
        "s3",
        endpoint_url=endpoint_url,
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": config.addressing_style},
            connect_timeout=config.connect_timeout_s,
            read_timeout=config.read_timeout_s,
            retries={"mode": "standard", "total_max_attempts": config.max_attempts},
            max_pool_connections=config.max_connections,
            request_checksum_calculation=config.checksum,
            response_checksum_validation=config.checksum,
        ),
    )
