"""Sending one stream to one key: in bounded memory, checksummed on the way, resumable.

The stream is cut into parts. What fits into one is a single PUT; more is a multipart upload. One part is
being filled while the one before it is being sent, so no more than two are ever held. Each body carries
its Content-MD5, the server's ETag is compared with it, and the SHA-256 of the whole stream with the one
taken at the source: only then is the upload completed, and only then does the object exist.

Resuming: with `resume`, a multipart upload of this key that was left unfinished is taken up. The source is
read again from its beginning, since the SHA-256 needs every byte, but a part whose MD5 is what the server
lists for it is not sent again.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

from broker.errors import BrokerError, IntegrityError, InvalidRequest, NotFound, TransferInterrupted
from broker.objects.config import MAX_PARTS
from broker.objects.faults import s3_errors
from broker.objects.names import SHA256_METADATA
from broker.objects.parts import composite_etag, is_composite, is_md5, split

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One object as it is stored. `size` in bytes; `sha256` (hex) where it is known: it is kept in the
    metadata `sha256`, which listings do not carry."""

    key: str
    size: int
    etag: str
    sha256: str | None = None
    content_type: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    last_modified: datetime | None = None


@dataclass(frozen=True, slots=True)
class Upload:
    """What to send where. `part_size` in bytes; `on_progress` is told the bytes stored so far."""

    client: S3Client
    bucket: str
    key: str
    part_size: int
    content_type: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    expected_sha256: str | None = None
    resume: bool = False
    on_progress: Progress | None = None

    def send(self, chunks: Iterator[bytes]) -> StoredObject:
        """Store the stream. Raises `IntegrityError`, and stores nothing, if it is not what was expected."""
        hasher = hashlib.sha256()
        parts = split(_hashed(chunks, hasher), self.part_size)
        first = next(parts, bytearray())
        second = next(parts, None) if len(first) == self.part_size else None
        if second is None:
            return self._put(first, hasher.hexdigest())
        ahead = chain([first, second], parts)
        del first, second  # the chain lets go of each part as it is taken
        return self._multipart(ahead, hasher)

    def describe(self, sha256: str | None) -> dict[str, Any]:
        """Headers of the object to be."""
        metadata = self.metadata | ({SHA256_METADATA: sha256} if sha256 else {})
        typed = {"ContentType": self.content_type} if self.content_type else {}
        return {"Bucket": self.bucket, "Key": self.key, "Metadata": metadata, **typed}

    def _put(self, body: bytearray, sha256: str) -> StoredObject:
        self._compare(sha256)
        digest = hashlib.md5(body, usedforsecurity=False)
        with s3_errors(f"store {self.key!r}"):
            answer = self.client.put_object(
                **self.describe(sha256), Body=cast(bytes, body), ContentMD5=_base64(digest.digest())
            )
        etag = answer["ETag"].strip('"')
        _same_md5(self.key, etag, digest.hexdigest(), answer.get("ServerSideEncryption"))
        if self.on_progress:
            self.on_progress(len(body))
        return self._stored(len(body), etag, sha256)

    def _multipart(self, parts: Iterator[bytearray], hasher: hashlib._Hash) -> StoredObject:
        multipart = _Multipart.begin(self)
        try:
            size = self._send_parts(multipart, parts)
            self._compare(hasher.hexdigest())
        except BaseException as error:
            # Parts of a broken-off transfer are worth keeping; parts of a wrong one are not.
            if not self.resume or isinstance(error, (IntegrityError, InvalidRequest)):
                with suppress(BrokerError):
                    multipart.abort()
            raise
        etag = multipart.complete()
        self._confirm(size)
        return self._stored(size, etag, hasher.hexdigest())

    def _send_parts(self, multipart: _Multipart, parts: Iterator[bytearray]) -> int:
        size = 0
        sending: Future[int] | None = None
        with ThreadPoolExecutor(1, thread_name_prefix="s3-part") as sender:
            for number, part in enumerate(parts, 1):
                if number > MAX_PARTS:
                    raise InvalidRequest(
                        f"{self.key!r} has more than {MAX_PARTS} parts of {self.part_size} bytes: "
                        "say its size beforehand, or raise s3.part_size_mib"
                    )
                if sending:
                    size += sending.result()
                    self._report(size)
                sending = sender.submit(multipart.put, number, part)
                del part
            if sending:
                size += sending.result()
                self._report(size)
        return size

    def _report(self, size: int) -> None:
        if self.on_progress:
            self.on_progress(size)

    def _compare(self, sha256: str) -> None:
        if self.expected_sha256 and sha256 != self.expected_sha256:
            raise IntegrityError(
                f"{self.key!r} arrived with SHA-256 {sha256}, but {self.expected_sha256} was expected: "
                "nothing was stored; the source changed or the transfer damaged it, so read it again"
            )

    def _confirm(self, size: int) -> None:
        """A finished multipart object is looked at once: its metadata stem from whoever began it."""
        with s3_errors(f"look at {self.key!r}"):
            head = self.client.head_object(Bucket=self.bucket, Key=self.key)
        if head["ContentLength"] != size:
            raise IntegrityError(f"{self.key!r} has {head['ContentLength']} bytes, but {size} were sent")
        if self.expected_sha256 and head["Metadata"].get(SHA256_METADATA) != self.expected_sha256:
            raise TransferInterrupted(
                f"The unfinished upload of {self.key!r} had been begun for another content; "
                "the next try starts afresh"
            )

    def _stored(self, size: int, etag: str, sha256: str) -> StoredObject:
        return StoredObject(
            key=self.key,
            size=size,
            etag=etag,
            sha256=sha256,
            content_type=self.content_type,
            metadata=dict(self.metadata),
        )


@dataclass(slots=True)
class _Multipart:
    """One multipart upload in progress. `listed`: parts that the server had when it was taken up."""

    upload: Upload
    upload_id: str
    listed: dict[int, tuple[str, int]]
    etags: dict[int, str] = field(default_factory=dict)
    md5s: dict[int, str] = field(default_factory=dict)

    @classmethod
    def begin(cls, upload: Upload) -> _Multipart:
        """Take up the newest unfinished one of this key, or create one."""
        if upload.resume:
            known = find_uploads(upload.client, upload.bucket, upload.key)
            mine = [found for found in known if found.key == upload.key]
            if mine:
                newest = max(mine, key=lambda found: found.initiated)
                listed = list_parts(upload.client, upload.bucket, upload.key, newest.upload_id)
                return cls(upload, newest.upload_id, listed)
        with s3_errors(f"begin the upload of {upload.key!r}"):
            answer = upload.client.create_multipart_upload(**upload.describe(upload.expected_sha256))
        return cls(upload, answer["UploadId"], {})

    @property
    def _address(self) -> dict[str, Any]:
        return {"Bucket": self.upload.bucket, "Key": self.upload.key, "UploadId": self.upload_id}

    def put(self, number: int, body: bytearray) -> int:
        """Send one part unless the server has it; its size in bytes."""
        digest = hashlib.md5(body, usedforsecurity=False)
        self.md5s[number] = digest.hexdigest()
        if self.listed.get(number) == (digest.hexdigest(), len(body)):
            self.etags[number] = digest.hexdigest()
            return len(body)
        with s3_errors(f"store part {number} of {self.upload.key!r}"):
            answer = self.upload.client.upload_part(
                **self._address,
                PartNumber=number,
                Body=cast(bytes, body),
                ContentMD5=_base64(digest.digest()),
            )
        etag = answer["ETag"].strip('"')
        _same_md5(self.upload.key, etag, digest.hexdigest(), answer.get("ServerSideEncryption"))
        self.etags[number] = etag
        return len(body)

    def complete(self) -> str:
        """Make the object of the parts; its ETag. A lost answer is found again in the object itself."""
        parts: list[CompletedPartTypeDef] = [
            {"PartNumber": number, "ETag": etag} for number, etag in sorted(self.etags.items())
        ]
        try:
            with s3_errors(f"complete {self.upload.key!r}"):
                answer = self.upload.client.complete_multipart_upload(
                    **self._address, MultipartUpload={"Parts": parts}
                )
            etag = answer["ETag"].strip('"')
        except NotFound:  # an earlier attempt of boto3 had completed it, or somebody aborted it
            with s3_errors(f"look at {self.upload.key!r}"):
                etag = self.upload.client.head_object(Bucket=self.upload.bucket, Key=self.upload.key)["ETag"]
            etag = etag.strip('"')
            if etag != composite_etag(self.md5s):
                raise
        if is_composite(etag) and self.etags == self.md5s and etag != composite_etag(self.md5s):
            raise IntegrityError(f"{self.upload.key!r} was put together wrongly: its ETag is {etag}")
        return etag

    def abort(self) -> None:
        """Let the server forget the parts."""
        with s3_errors(f"abort the upload of {self.upload.key!r}"):
            self.upload.client.abort_multipart_upload(**self._address)


@dataclass(frozen=True, slots=True)
class UnfinishedUpload:
    """A multipart upload that was neither completed nor aborted."""

    key: str
    upload_id: str
    initiated: datetime


def find_uploads(client: S3Client, bucket: str, prefix: str) -> list[UnfinishedUpload]:
    """Every unfinished multipart upload of keys that begin with `prefix`."""
    with s3_errors(f"list unfinished uploads below {prefix!r}"):
        pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix)
        return [
            UnfinishedUpload(found["Key"], found["UploadId"], found["Initiated"])
            for page in pages
            for found in page.get("Uploads", [])
        ]


def list_parts(client: S3Client, bucket: str, key: str, upload_id: str) -> dict[int, tuple[str, int]]:
    """Parts that the server holds: number → (ETag, size in bytes)."""
    with s3_errors(f"list the parts of {key!r}"):
        pages = client.get_paginator("list_parts").paginate(Bucket=bucket, Key=key, UploadId=upload_id)
        return {
            part["PartNumber"]: (part["ETag"].strip('"'), part["Size"])
            for page in pages
            for part in page.get("Parts", [])
        }


def _hashed(chunks: Iterator[bytes], hasher: hashlib._Hash) -> Iterator[bytes]:
    for chunk in chunks:
        hasher.update(chunk)
        yield chunk


def _same_md5(key: str, etag: str, md5: str, encryption: str | None) -> None:
    if is_md5(etag) and etag != md5 and not (encryption or "").startswith("aws:kms"):
        raise IntegrityError(f"The object store has {etag} for what was sent as {md5} ({key!r}): repeat it")


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode("ascii")
