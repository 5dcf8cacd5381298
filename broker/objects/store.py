"""One bucket, as the broker uses it: streams in and out, listings, presigned URLs, the reaper of leftovers.

Every method is safe to call from any thread. Errors are the broker's: `Unreachable` when the store did not
answer (everything here may be repeated), `NotFound`, `Denied`, `IntegrityError`, `InvalidRequest`,
`ConfigurationError`. No method waits longer than the client's time-outs and its few retries.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from io import BytesIO
from itertools import islice
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from broker.errors import IntegrityError, InvalidRequest, NotFound, Unreachable
from broker.objects.config import MAX_PARTS, MIB, S3Config, make_client
from broker.objects.faults import INTERRUPTIONS, error_code, s3_errors
from broker.objects.names import SHA256_METADATA, check_key, checked_metadata, content_disposition
from broker.objects.parts import Reader, chunks_of, part_size_for
from broker.objects.upload import (
    Progress,
    StoredObject,
    Upload,
    find_uploads,
    list_parts,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef, CORSRuleTypeDef

MAX_EXPIRES_S = 7 * 24 * 3600  # of a presigned URL, signature version 4
_DELETE_BATCH = 1000  # keys of one DeleteObjects
_REOPENINGS = 3  # of a download that breaks off, each counted anew once bytes have arrived
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ObjectStore:
    """The configured bucket. Making one contacts nobody."""

    def __init__(self, config: S3Config) -> None:
        self.config = config
        self._bucket_seen = False
        self._client: S3Client = make_client(config, config.endpoint_url)
        self._signer: S3Client = make_client(config, config.public_url) if config.public_url else self._client

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return self.config.bucket

    @property
    def client(self) -> S3Client:
        """The boto3 client, for what only the checks of an endpoint need."""
        return self._client

    # ── the bucket ────────────────────────────────────────────────────────────────────────────────────

    def ensure_bucket(self, cors_origins: Sequence[str] = ()) -> bool:
        """Create the bucket unless it is there. Whether the origins were set as its CORS rule.

        A server without a CORS rule per bucket (the embedded one has a rule for all) says so, and False is
        returned; `broker doctor` then tries what a browser would.
        """
        place: dict[str, Any] = {}
        if self.config.region != "us-east-1":  # S3 refuses to be told its default region
            place = {"CreateBucketConfiguration": {"LocationConstraint": self.config.region}}
        with s3_errors(f"create the bucket {self.bucket!r}"):
            try:
                self._client.head_bucket(Bucket=self.bucket)
            except ClientError as error:
                if error_code(error) != "404":
                    raise
                self._create_bucket(place)
        return bool(cors_origins) and self._set_cors(cors_origins)

    def _create_bucket(self, place: dict[str, Any]) -> None:
        try:
            self._client.create_bucket(Bucket=self.bucket, **place)
        except ClientError as error:
            if error_code(error) != "BucketAlreadyOwnedByYou":  # somebody was faster
                raise

    def _set_cors(self, origins: Sequence[str]) -> bool:
        rule: CORSRuleTypeDef = {
            "AllowedOrigins": list(origins),
            "AllowedMethods": ["GET", "HEAD", "PUT"],
            "AllowedHeaders": ["*"],
            "ExposeHeaders": ["ETag", "Content-Range", "Content-Length"],
            "MaxAgeSeconds": 3600,
        }
        with s3_errors(f"set the CORS rule of {self.bucket!r}"):
            try:
                self._client.put_bucket_cors(Bucket=self.bucket, CORSConfiguration={"CORSRules": [rule]})
            except ClientError as error:
                if error_code(error) not in ("NotImplemented", "MethodNotAllowed"):
                    raise
                return False
        return True

    # ── storing ───────────────────────────────────────────────────────────────────────────────────────

    def upload_stream(
        self,
        key: str,
        chunks: Iterable[bytes] | Reader,
        *,
        size_hint: int | None = None,
        content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
        expected_sha256: str | None = None,
        resume: bool = False,
        on_progress: Progress | None = None,
    ) -> StoredObject:
        """Store a stream of any length, two parts in memory at most.

        `chunks` begins at the first byte, also when resuming. `size_hint` (bytes) lets objects above
        10,000 parts take larger ones. `expected_sha256` (hex), taken at the source, is compared with what
        was sent before the object comes into being, and becomes its metadata `sha256`; without it a
        multipart object carries none. `resume` takes up an unfinished upload of this key (see `upload`);
        it needs `expected_sha256`. `on_progress` is called with the bytes stored so far.

        Raises `IntegrityError` when a checksum differs: nothing is stored then, and nothing left behind.
        """
        check_key(key)
        if expected_sha256 is not None and not _SHA256.fullmatch(expected_sha256):
            raise InvalidRequest(f"expected_sha256 is {expected_sha256!r}: 64 hexadecimal digits are needed")
        if resume and expected_sha256 is None:
            raise InvalidRequest("An upload is resumed only with expected_sha256: else its content is unsure")
        return Upload(
            client=self._client,
            bucket=self.bucket,
            key=key,
            part_size=part_size_for(size_hint, self.config.part_size),
            content_type=content_type,
            metadata=checked_metadata(metadata or {}),
            expected_sha256=expected_sha256,
            resume=resume,
            on_progress=on_progress,
        ).send(chunks_of(chunks))

    def put_bytes(
        self,
        key: str,
        data: bytes,
        *,
        content_type: str | None = None,
        metadata: Mapping[str, str] | None = None,
        expected_sha256: str | None = None,
    ) -> StoredObject:
        """Store what is in memory; its SHA-256 goes with it."""
        return self.upload_stream(
            key,
            BytesIO(data),
            size_hint=len(data),
            content_type=content_type,
            metadata=metadata,
            expected_sha256=expected_sha256 or hashlib.sha256(data).hexdigest(),
        )

    def already_stored(self, key: str, size: int, sha256: str) -> bool:
        """Whether this very content lies there, by its size and the SHA-256 it was stored with."""
        found = self.head(key)
        return found is not None and (found.size, found.sha256) == (size, sha256)

    # ── reading ───────────────────────────────────────────────────────────────────────────────────────

    def head(self, key: str) -> StoredObject | None:
        """The object without its content, or None. A bucket that is missing is `NotFound`, not None."""
        with s3_errors(f"look at {key!r}"):
            try:
                found = self._client.head_object(Bucket=self.bucket, Key=key)
            except ClientError as error:
                if error_code(error) not in ("404", "NoSuchKey"):
                    raise
                found = None
            if not self._bucket_seen:  # a HEAD has no body to tell a missing object from a missing bucket
                self._client.head_bucket(Bucket=self.bucket)
                self._bucket_seen = True
        if found is None:
            return None
        return StoredObject(
            key=key,
            size=found["ContentLength"],
            etag=found["ETag"].strip('"'),
            sha256=found["Metadata"].get(SHA256_METADATA),
            content_type=found.get("ContentType"),
            metadata=found["Metadata"],
            last_modified=found["LastModified"],
        )

    def get_bytes(self, key: str, max_bytes: int) -> bytes:
        """The whole content; `InvalidRequest` if it is more than `max_bytes`."""
        with s3_errors(f"read {key!r}"):
            answer = self._client.get_object(Bucket=self.bucket, Key=key)
            with answer["Body"] as body:
                if answer["ContentLength"] > max_bytes:
                    raise InvalidRequest(
                        f"{key!r} has {answer['ContentLength']} bytes, above {max_bytes}: stream it"
                    )
                return body.read()

    def open_stream(self, key: str, start: int = 0) -> Iterator[bytes]:
        """The content from byte `start` on, in pieces of 1 MiB at most.

        The object is asked for now (`NotFound` is raised here); a connection that breaks off later is
        opened again where it was, as long as the object has not changed.
        """
        body, etag, end = self._open(key, start, None)
        return self._stream(key, start, end, etag, body)

    def _open(self, key: str, start: int, etag: str | None) -> tuple[Any, str, int]:
        """The body from `start`, the object's ETag and size."""
        options: dict[str, Any] = {"IfMatch": etag} if etag else {}
        if start:
            options["Range"] = f"bytes={start}-"
        with s3_errors(f"read {key!r}"):
            try:
                answer = self._client.get_object(Bucket=self.bucket, Key=key, **options)
            except ClientError as error:
                if error_code(error) != "InvalidRange":
                    raise
                size = self._client.head_object(Bucket=self.bucket, Key=key)["ContentLength"]
                if start > size:
                    raise
                return BytesIO(), "", size
        return answer["Body"], answer["ETag"], start + answer["ContentLength"]

    def _stream(self, key: str, at: int, end: int, etag: str, body: Any) -> Iterator[bytes]:
        left = _REOPENINGS
        while True:
            broken = ""
            try:
                while chunk := body.read(MIB):
                    yield chunk
                    at += len(chunk)
                    left = _REOPENINGS
            except INTERRUPTIONS as error:
                broken = f": {error}"
            finally:
                body.close()
            if at >= end:
                return
            if left == 0:
                raise Unreachable(f"Reading {key!r} broke off at byte {at} of {end}{broken}")
            left -= 1
            body, etag, end = self._open(key, at, etag)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Every object whose key begins with `prefix`, in the order of their keys (without SHA-256)."""
        with s3_errors(f"list {prefix!r}"):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
            for page in pages:
                for found in page.get("Contents", []):
                    yield StoredObject(
                        key=found["Key"],
                        size=found["Size"],
                        etag=found["ETag"].strip('"'),
                        last_modified=found["LastModified"],
                    )

    def verify(self, key: str, sha256: str) -> int:
        """Read the object back and compare its SHA-256; its size in bytes. Raises `IntegrityError`."""
        hasher = hashlib.sha256()
        size = 0
        for chunk in self.open_stream(key):
            hasher.update(chunk)
            size += len(chunk)
        if hasher.hexdigest() != sha256:
            raise IntegrityError(f"{key!r} has SHA-256 {hasher.hexdigest()}, not {sha256}: store it again")
        return size

    # ── deleting ──────────────────────────────────────────────────────────────────────────────────────

    def delete_prefix(self, prefix: str) -> int:
        """Delete everything below a prefix, which ends in "/" so that `run-1/` spares `run-10/`; how many."""
        if len(prefix) < 2 or not prefix.endswith("/"):
            raise InvalidRequest(f"The prefix {prefix!r} is not deleted: it must be a folder, ending in '/'")
        keys = (found.key for found in self.list(prefix))
        deleted = 0
        while batch := list(islice(keys, _DELETE_BATCH)):
            with s3_errors(f"delete {len(batch)} objects below {prefix!r}"):
                answer = self._client.delete_objects(
                    Bucket=self.bucket, Delete={"Objects": [{"Key": key} for key in batch], "Quiet": True}
                )
            if errors := answer.get("Errors"):
                first = errors[0]
                raise Unreachable(
                    f"{len(errors)} objects below {prefix!r} were not deleted, {first.get('Key')!r} for one: "
                    f"{first.get('Code')} {first.get('Message')}"
                )
            deleted += len(batch)
        return deleted

    def abort_stale_uploads(self, older_than: timedelta, prefix: str = "") -> int:
        """Abort multipart uploads that were begun before `older_than` ago; how many. Run now and then."""
        limit = datetime.now(UTC) - older_than
        aborted = 0
        for found in find_uploads(self._client, self.bucket, prefix):
            if found.initiated >= limit:
                continue
            with suppress(NotFound):  # completed or aborted meanwhile
                self.abort_upload(found.key, found.upload_id)
                aborted += 1
        return aborted

    # ── for browsers and other clients: presigned URLs ────────────────────────────────────────────────

    def presign_get(self, key: str, expires_s: int, filename: str | None = None) -> str:
        """A URL that reads the object without keys for `expires_s` seconds; saved as `filename`."""
        check_key(key)
        saved = {"ResponseContentDisposition": content_disposition(filename)} if filename else {}
        return self._presign("get_object", {"Key": key, **saved}, expires_s)

    def presign_put(self, key: str, expires_s: int) -> str:
        """A URL that stores one body of up to 5 GiB."""
        check_key(key)
        return self._presign("put_object", {"Key": key}, expires_s)

    def create_upload(
        self, key: str, content_type: str | None = None, metadata: Mapping[str, str] | None = None
    ) -> str:
        """Begin a multipart upload that a client will feed; its id."""
        check_key(key)
        typed = {"ContentType": content_type} if content_type else {}
        described: dict[str, Any] = {"Metadata": checked_metadata(metadata or {}), **typed}
        with s3_errors(f"begin the upload of {key!r}"):
            answer = self._client.create_multipart_upload(Bucket=self.bucket, Key=key, **described)
        return answer["UploadId"]

    def presign_parts(
        self, key: str, upload_id: str, numbers: Iterable[int], expires_s: int
    ) -> dict[int, str]:
        """A URL for each part (1 to 10,000), PUT in any order; completing takes the answers' ETags."""
        urls: dict[int, str] = {}
        for number in numbers:
            if not 1 <= number <= MAX_PARTS:
                raise InvalidRequest(f"Part {number} is not possible: parts are numbered 1 to {MAX_PARTS}")
            part = {"Key": key, "UploadId": upload_id, "PartNumber": number}
            urls[number] = self._presign("upload_part", part, expires_s)
        return urls

    def parts_of(self, key: str, upload_id: str) -> dict[int, tuple[str, int]]:
        """Parts that arrived: number → (ETag, size in bytes); a client resumes by them."""
        return list_parts(self._client, self.bucket, key, upload_id)

    def complete_upload(self, key: str, upload_id: str, etags: Mapping[int, str]) -> StoredObject:
        """Make the object of its parts, part number → ETag."""
        parts: list[CompletedPartTypeDef] = [
            {"PartNumber": number, "ETag": etags[number]} for number in sorted(etags)
        ]
        with s3_errors(f"complete {key!r}"):
            self._client.complete_multipart_upload(
                Bucket=self.bucket,
                Key=key,
                UploadId=upload_id,
                MultipartUpload={"Parts": parts},
            )
        stored = self.head(key)
        if stored is None:
            raise NotFound(f"{key!r} was completed and is gone: somebody deleted it")
        return stored

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Throw away an unfinished upload and its parts."""
        with s3_errors(f"abort the upload of {key!r}"):
            self._client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload_id)

    def _presign(self, operation: str, parameters: dict[str, Any], expires_s: int) -> str:
        if not 1 <= expires_s <= MAX_EXPIRES_S:
            raise InvalidRequest(f"A presigned URL lives 1 to {MAX_EXPIRES_S} seconds, not {expires_s}")
        with s3_errors(f"presign {parameters.get('Key')!r}"):
            return self._signer.generate_presigned_url(
                operation, Params={"Bucket": self.bucket, **parameters}, ExpiresIn=expires_s
            )
