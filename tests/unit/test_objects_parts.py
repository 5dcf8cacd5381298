"""Cutting streams, knowing parts, configuration, the clock: pure."""

import hashlib
import io
from datetime import UTC, datetime, timedelta

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError
from hypothesis import given
from hypothesis import strategies as st

from broker import errors
from broker.objects.checks import clock_check
from broker.objects.config import MAX_PARTS, MIB, S3Config
from broker.objects.faults import s3_errors
from broker.objects.parts import chunks_of, composite_etag, part_size_for, split
from broker.objects.server.config import backend_conf, proxy_conf, swift_conf

CONFIG = {
    "endpoint_url": "http://127.0.0.1:9",
    "bucket": "models",
    "access_key": "a",
    "secret_key": "very secret",
}


@given(st.lists(st.binary(max_size=50)), st.integers(1, 40))
def test_parts_are_the_stream_and_only_the_last_is_short(chunks, size):
    parts = [bytes(part) for part in split(chunks, size)]
    assert b"".join(parts) == b"".join(chunks)
    assert all(len(part) == size for part in parts[:-1])
    assert all(parts)


def test_reader_and_iterable_are_the_same_stream():
    data = bytes(range(256)) * 9000
    assert b"".join(chunks_of(io.BytesIO(data))) == b"".join(chunks_of([data[:7], data[7:]])) == data


@pytest.mark.parametrize("size", [None, 0, 1 << 20, 160_000 * MIB, 160_000 * MIB + 1, 5 << 40])
def test_every_object_fits_into_ten_thousand_parts(size):
    part = part_size_for(size, 16 * MIB)
    assert part >= 16 * MIB
    assert part % MIB == 0
    assert -(-(size or 0) // part) <= MAX_PARTS


def test_object_larger_than_s3_allows_is_refused():
    with pytest.raises(errors.InvalidRequest, match="5 TiB"):
        part_size_for((5 << 40) + 1, 16 * MIB)


def test_composite_etag_is_that_of_the_parts_in_their_order():
    one, two = (hashlib.md5(part).hexdigest() for part in (b"one", b"two"))
    expected = hashlib.md5(bytes.fromhex(one) + bytes.fromhex(two)).hexdigest()
    assert composite_etag({2: two, 1: one}) == f"{expected}-2"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("endpoint_url", "127.0.0.1:9000"),
        ("endpoint_url", "ftp://host"),
        ("public_url", "https://host/?x=1"),
        ("bucket", "No"),
        ("bucket", "a..b"),
        ("bucket", "x" * 64),
        ("part_size", 1 << 20),
    ],
)
def test_wrong_setting_is_named(field, value):
    with pytest.raises(errors.ConfigurationError, match=field.replace("part_size", "part size")):
        S3Config(**(CONFIG | {field: value}))


def test_secret_is_not_shown():
    assert "very secret" not in repr(S3Config(**CONFIG))


def answer(code, status):
    return ClientError(
        {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject"
    )


@pytest.mark.parametrize(
    ("raised", "becomes"),
    [
        (answer("NoSuchKey", 404), errors.NotFound),
        (answer("404", 404), errors.NotFound),
        (answer("AccessDenied", 403), errors.Denied),
        (answer("SignatureDoesNotMatch", 403), errors.Denied),
        (answer("RequestTimeTooSkewed", 403), errors.ConfigurationError),
        (answer("BadDigest", 400), errors.IntegrityError),
        (answer("XAmzContentSHA256Mismatch", 400), errors.IntegrityError),
        (answer("NotImplemented", 501), errors.ConfigurationError),
        (answer("InternalError", 500), errors.Unreachable),
        (answer("SlowDown", 503), errors.Unreachable),
        (answer("Whatever", 429), errors.Unreachable),
        (answer("InsufficientStorage", 507), errors.DiskFull),
        (answer("PreconditionFailed", 412), errors.Conflict),
        (answer("MalformedXML", 400), errors.InvalidRequest),
        (EndpointConnectionError(endpoint_url="http://x"), errors.Unreachable),
        (ReadTimeoutError(endpoint_url="http://x"), errors.Unreachable),
        (ConnectionResetError("reset"), errors.Unreachable),
    ],
)
def test_what_botocore_raises_becomes_the_brokers_error(raised, becomes):
    with pytest.raises(errors.BrokerError) as caught, s3_errors("store it"):
        raise raised
    assert type(caught.value) is becomes
    assert "store it" in caught.value.detail


@pytest.mark.parametrize(
    ("seconds", "status"),
    [(0, "ok"), (-59, "ok"), (61, "warn"), (-600, "warn"), (1000, "fail"), (-1000, "fail")],
)
def test_clock_that_differs_is_told_before_signatures_are_refused(seconds, status):
    now = datetime(2026, 1, 1, tzinfo=UTC)
    header = (now + timedelta(seconds=seconds)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    check = clock_check(header, now)
    assert (check.status, bool(check.remedy)) == (status, status != "ok")


def test_server_without_a_date_is_a_warning():
    assert clock_check(None, datetime.now(UTC)).status == "warn"


def test_configuration_is_the_same_in_every_directory():
    assert "devices = data\n" in backend_conf("object")
    assert "keys = keys.json\n" in proxy_conf(["*"])


def test_line_break_cannot_enter_the_configuration():
    with pytest.raises(ValueError, match="line break"):
        proxy_conf(["http://a\n[app:evil]"])
    with pytest.raises(ValueError, match="line break"):
        swift_conf("a\nb")
