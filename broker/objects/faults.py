"""What botocore raises, in the broker's own errors. The one place that knows S3's error codes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    IncompleteReadError,
    NoCredentialsError,
    ParamValidationError,
    ResponseStreamingError,
)
from botocore.exceptions import ReadTimeoutError as BotoReadTimeoutError
from urllib3.exceptions import HTTPError

from broker.errors import (
    BrokerError,
    ConfigurationError,
    Conflict,
    Denied,
    DiskFull,
    IntegrityError,
    InvalidRequest,
    NotFound,
    Unreachable,
)

INTERRUPTIONS = (
    IncompleteReadError,
    ResponseStreamingError,
    BotoReadTimeoutError,
    HTTPError,
    OSError,
)
"""What breaks the reading of a body that had begun."""

_BY_CODE: dict[str, type[BrokerError]] = {
    "NoSuchKey": NotFound,
    "NoSuchBucket": NotFound,
    "NoSuchUpload": NotFound,
    "BadDigest": IntegrityError,
    "InvalidDigest": IntegrityError,
    "XAmzContentSHA256Mismatch": IntegrityError,
    "XAmzContentChecksumMismatch": IntegrityError,
    "InvalidPart": IntegrityError,
    "RequestTimeTooSkewed": ConfigurationError,
    "NotImplemented": ConfigurationError,
    "PermanentRedirect": ConfigurationError,
    "AuthorizationHeaderMalformed": ConfigurationError,
    "InvalidAccessKeyId": Denied,
    "SignatureDoesNotMatch": Denied,
    "QuotaExceeded": DiskFull,
    "XMinioStorageFull": DiskFull,
    "SlowDown": Unreachable,
    "RequestTimeout": Unreachable,
}
_BY_STATUS: dict[int, type[BrokerError]] = {
    401: Denied,
    403: Denied,
    404: NotFound,
    408: Unreachable,
    409: Conflict,
    412: Conflict,
    429: Unreachable,
    501: ConfigurationError,
    507: DiskFull,
}
_REMEDY: dict[str, str] = {
    "InvalidAccessKeyId": "; check s3.access_key_file",
    "SignatureDoesNotMatch": "; check s3.secret_key_file",
    "AccessDenied": "; check the keys and the bucket's policy",
    "NoSuchBucket": "; create it, or check s3.bucket",
    "RequestTimeTooSkewed": "; set the clocks (NTP)",
}


@contextmanager
def s3_errors(doing: str) -> Iterator[None]:
    """Translate what is raised inside; `doing` completes "The object store, asked to …"."""
    try:
        yield
    except ClientError as error:
        raise _translated(doing, error) from error
    except (ParamValidationError, ValueError) as error:
        raise InvalidRequest(f"The object store can't be asked to {doing}: {error}") from error
    except NoCredentialsError as error:
        raise ConfigurationError("The object store's keys are missing: set s3.access_key_file") from error
    except (BotoCoreError, HTTPError, OSError) as error:
        raise Unreachable(f"The object store did not answer when asked to {doing}: {error}") from error


def error_code(error: ClientError) -> str:
    """S3's code, `NoSuchKey` for instance; of a HEAD, which has no body, the HTTP status."""
    return str(error.response.get("Error", {}).get("Code", ""))


def _translated(doing: str, error: ClientError) -> BrokerError:
    code = error_code(error)
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    kind = _BY_CODE.get(code) or _BY_STATUS.get(status)
    if kind is None:
        kind = Unreachable if status >= 500 else InvalidRequest
    said = str(error.response.get("Error", {}).get("Message", "")).strip()
    answer = " ".join(part for part in (code, said if said != code else "") if part)
    return kind(f"The object store, asked to {doing}, answered {answer}{_REMEDY.get(code, '')}")
