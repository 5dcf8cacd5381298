"""What `broker doctor` asks of whatever S3 endpoint is configured, before anyone trusts it with results.

Everything is tried for real, below a prefix of its own that is deleted afterwards. The first checks are
conditions of the others: where the endpoint, the keys or the bucket fail, the list ends there.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import httpx
from botocore.exceptions import ClientError

from broker.checks import Check, Status
from broker.errors import BrokerError, Denied, NotFound, Unreachable
from broker.objects.config import MIN_PART_SIZE
from broker.objects.faults import error_code, s3_errors
from broker.objects.store import ObjectStore
from broker.objects.upload import find_uploads

_SKEW_WARN_S = 60.0
_SKEW_FAIL_S = 900.0  # S3 refuses signatures that are 15 minutes off
_HTTP_TIMEOUT_S = 30.0
_CONTENT = b"0123456789" * 100

_Finding = tuple[Status, str, str]  # of one check: how it went, what was found, the remedy


@dataclass(frozen=True, slots=True)
class _Probe:
    """What every check needs. `prefix` is ours alone."""

    store: ObjectStore
    prefix: str
    origins: Sequence[str]
    stale_after: timedelta

    def key(self, name: str) -> str:
        return f"{self.prefix}{name}"

    def get(self, url: str, headers: dict[str, str] | None = None) -> httpx.Response:
        return httpx.get(url, headers=headers, timeout=_HTTP_TIMEOUT_S, trust_env=False)


def check_store(
    store: ObjectStore, *, origins: Sequence[str] = (), stale_after: timedelta = timedelta(hours=24)
) -> list[Check]:
    """Try the store. `origins` are the web origins that must be let in; uploads unfinished for longer than
    `stale_after` are reported."""
    checks = _conditions(store)
    if any(check.status == "fail" for check in checks):
        return checks
    probe = _Probe(store, f"broker-doctor/{secrets.token_hex(8)}/", origins, stale_after)
    try:
        return checks + [_tried(name, check, probe) for name, check in _CHECKS]
    finally:
        with suppress(BrokerError):
            store.delete_prefix(probe.prefix)


def _conditions(store: ObjectStore) -> list[Check]:
    """Endpoint, keys, bucket, clock: of one request."""
    endpoint = store.config.endpoint_url or "Amazon S3"
    try:
        with s3_errors(f"look at the bucket {store.bucket!r}"):
            answer = store.client.head_bucket(Bucket=store.bucket)
    except Unreachable as error:
        return [Check("S3 endpoint", "fail", str(error), "Check s3.endpoint_url, the network and the server")]
    except Denied as error:
        remedy = "Check s3.access_key_file and s3.secret_key_file, the bucket's policy and both clocks"
        return [_answers(endpoint), Check("S3 keys", "fail", str(error), remedy)]
    except NotFound:
        remedy = f"Create it: aws --endpoint-url {endpoint} s3 mb s3://{store.bucket} (or check s3.bucket)"
        return [
            _answers(endpoint),
            Check("S3 keys", "ok", "accepted"),
            Check("S3 bucket", "fail", f"There is no bucket {store.bucket!r}", remedy),
        ]
    except BrokerError as error:
        return [Check("S3 endpoint", "fail", str(error), "Check s3.endpoint_url and s3.region")]
    headers = answer["ResponseMetadata"]["HTTPHeaders"]
    return [
        _answers(endpoint),
        Check("S3 keys", "ok", "accepted"),
        Check("S3 bucket", "ok", f"{store.bucket!r} is there"),
        clock_check(headers.get("date"), datetime.now(UTC)),
    ]


def _answers(endpoint: str) -> Check:
    return Check("S3 endpoint", "ok", f"{endpoint} answers")


def clock_check(date_header: str | None, now: datetime) -> Check:
    """The difference between the server's clock (its Date header, to the second) and ours. Pure."""
    if not date_header:
        return Check("S3 clock", "warn", "The server does not tell its time", "Compare the clocks by hand")
    skew = (parsedate_to_datetime(date_header) - now).total_seconds()
    detail = f"The server's clock differs by {skew:+.0f} s"
    if abs(skew) < _SKEW_WARN_S:
        return Check("S3 clock", "ok", detail)
    status: Status = "fail" if abs(skew) > _SKEW_FAIL_S else "warn"
    return Check("S3 clock", status, detail, "Set both clocks (NTP): signatures 15 min off are refused")


def _tried(name: str, check: Callable[[_Probe], _Finding], probe: _Probe) -> Check:
    try:
        return Check(name, *check(probe))
    except (BrokerError, httpx.HTTPError) as error:
        return Check(name, "fail", str(error), "The endpoint lacks what the broker needs: use another server")


def _storing(probe: _Probe) -> _Finding:
    """Write, read back, find in the listing, look at the metadata."""
    key = probe.key("plain")
    stored = probe.store.put_bytes(key, _CONTENT, content_type="application/octet-stream")
    probe.store.verify(key, stored.sha256 or "")
    head = probe.store.head(key)
    listed = [found.key for found in probe.store.list(probe.prefix)]
    if head is None or head.sha256 != stored.sha256 or listed != [key]:
        return (
            "fail",
            f"Of what was stored, the metadata say {head and head.metadata}, the listing {listed}",
            "A gateway drops metadata or its listings lag behind: use a server with strong consistency",
        )
    return ("ok", "what is stored is read back, listed and keeps its metadata", "")


def _multipart(probe: _Probe) -> _Finding:
    """Two parts, the second one first."""
    key = probe.key("multipart")
    parts = {1: secrets.token_bytes(MIN_PART_SIZE), 2: _CONTENT}
    upload_id = probe.store.create_upload(key)
    etags: dict[int, str] = {}
    try:
        urls = probe.store.presign_parts(key, upload_id, parts, 600)
        for number in (2, 1):
            answer = httpx.put(urls[number], content=parts[number], timeout=_HTTP_TIMEOUT_S, trust_env=False)
            answer.raise_for_status()
            etags[number] = answer.headers["etag"].strip('"')
        probe.store.complete_upload(key, upload_id, etags)
    except BaseException:
        with suppress(BrokerError):
            probe.store.abort_upload(key, upload_id)
        raise
    probe.store.verify(key, hashlib.sha256(parts[1] + parts[2]).hexdigest())
    return ("ok", "presigned parts in any order make the right object", "")


def _checksums(probe: _Probe) -> _Finding:
    """A wrong Content-MD5 must be refused; a wrong SHA-256 header may be refused or not looked at."""
    remedy = "Damage on the way would go unnoticed: use HTTPS and another server"
    wrong_md5, wrong_sha256 = "AAAAAAAAAAAAAAAAAAAAAA==", "A" * 43 + "="
    if _accepted(probe, ContentMD5=wrong_md5):
        return ("fail", "A body with a wrong Content-MD5 was accepted", remedy)
    if _accepted(probe, ChecksumSHA256=wrong_sha256):
        return ("ok", "a wrong Content-MD5 is refused; SHA-256 headers are not looked at", "")
    return ("ok", "a wrong Content-MD5 and a wrong SHA-256 are refused", "")


def _accepted(probe: _Probe, **checksum: str) -> bool:
    with s3_errors("store with a wrong checksum"):
        try:
            probe.store.client.put_object(
                Bucket=probe.store.bucket,
                Key=probe.key("wrong"),
                Body=_CONTENT,
                **checksum,  # type: ignore[arg-type]
            )
        except ClientError as error:
            if error_code(error) in _WRONG_CHECKSUM:
                return False
            raise
    return True


_WRONG_CHECKSUM = frozenset(
    (
        "BadDigest",
        "InvalidDigest",
        "XAmzContentChecksumMismatch",
        "XAmzContentSHA256Mismatch",
        "InvalidRequest",
    )
)


def _presigned_urls(probe: _Probe) -> _Finding:
    """The URL works without keys, for a part of the object too, and a changed one does not."""
    key = probe.key("presigned")
    probe.store.put_bytes(key, _CONTENT)
    url = probe.store.presign_get(key, 600, "result.bin")
    whole, piece = probe.get(url), probe.get(url, {"Range": "bytes=10-19"})
    public = probe.store.config.public_url or probe.store.config.endpoint_url
    if whole.status_code != 200 or whole.content != _CONTENT:
        return (
            "fail",
            f"A presigned URL of {public} answered {whole.status_code}",
            "Set s3.public_url to the URL that clients use: the signature covers the host",
        )
    if piece.status_code != 206 or piece.content != _CONTENT[10:20]:
        remedy = "Downloads can't be resumed: use another server, or let the proxy before it pass Range"
        return ("warn", f"A range was answered with {piece.status_code}", remedy)
    flipped = url[:-1] + ("0" if url[-1] != "0" else "1")
    if probe.get(flipped).status_code == 200:
        return ("fail", "A forged URL works", "Anybody can read: check the policy")
    return ("ok", f"{public}: works whole and in ranges; forged ones are refused", "")


def _anonymous_access(probe: _Probe) -> _Finding:
    """Without keys nothing is to be had."""
    key = probe.key("private")
    probe.store.put_bytes(key, _CONTENT)
    presigned = urlsplit(probe.store.presign_get(key, 60))
    status = probe.get(f"{presigned.scheme}://{presigned.netloc}{presigned.path}").status_code
    if status < 400:
        remedy = "Take the public read permission off the bucket (policy, ACL, anonymous access)"
        return ("fail", "Anybody can read the bucket without keys", remedy)
    return ("ok", f"refused ({status})", "")


def _cors(probe: _Probe) -> _Finding:
    """Ask what a browser asks before it sends a part to a presigned URL (Fetch, "CORS-preflight fetch")."""
    if not probe.origins:
        return ("ok", "no web origin is to be let in (s3.cors_origins)", "")
    url = probe.store.presign_put(probe.key("cors"), 600)
    refused = [origin for origin in probe.origins if not _let_in(url, origin)]
    if refused:
        return (
            "fail",
            f"Pages of {', '.join(refused)} may not upload or download",
            "Give the bucket a CORS rule: these origins, GET, HEAD and PUT, every header, expose ETag",
        )
    return ("ok", f"pages of {', '.join(probe.origins)} may upload and download", "")


def _let_in(url: str, origin: str) -> bool:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": "PUT",
        "Access-Control-Request-Headers": "content-type",
    }
    answer = httpx.options(url, headers=asked, timeout=_HTTP_TIMEOUT_S, trust_env=False)
    allowed = answer.headers.get("access-control-allow-origin")
    methods = answer.headers.get("access-control-allow-methods", "")
    return answer.is_success and allowed in ("*", origin) and "PUT" in methods


def _unfinished_uploads(probe: _Probe) -> _Finding:
    """Parts of abandoned uploads take room that no listing shows."""
    limit = datetime.now(UTC) - probe.stale_after
    uploads = find_uploads(probe.store.client, probe.store.bucket, "")
    stale = sum(found.initiated < limit for found in uploads)
    hours = probe.stale_after.total_seconds() / 3600
    if stale:
        remedy = "The worker aborts them (s3.stale_upload_hours): see that it runs"
        return ("warn", f"{stale} are older than {hours:g} h", remedy)
    return ("ok", f"none is older than {hours:g} h", "")


_CHECKS: tuple[tuple[str, Callable[[_Probe], _Finding]], ...] = (
    ("S3 storing", _storing),
    ("S3 multipart", _multipart),
    ("S3 checksums", _checksums),
    ("S3 presigned URLs", _presigned_urls),
    ("S3 anonymous access", _anonymous_access),
    ("S3 CORS", _cors),
    ("S3 unfinished uploads", _unfinished_uploads),
)
