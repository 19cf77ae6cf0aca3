"""What boto3's many exceptions mean: the user's mistake, worth another try, or the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime

from botocore.compat import get_current_datetime
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    InvalidConfigError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    ReadTimeoutError,
    ResponseStreamingError,
    TokenRetrievalError,
)

from resprout.configs.errors import (
    BadInput,
    ResproutError,
    StageFailed,
    Transient,
    Unreachable,
    VerificationFailed,
)

CREDENTIALS = {
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "InvalidClientTokenId",
    "InvalidToken",
    "ExpiredToken",
    "TokenRefreshRequired",
    "401",
}
FORBIDDEN = {"AccessDenied", "AllAccessDisabled", "AccountProblem", "403", "Forbidden"}
BUSY = {
    "SlowDown",
    "ServiceUnavailable",
    "InternalError",
    "RequestTimeout",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "OperationAborted",
    "ConditionalRequestConflict",
}
FULL = {"XMinioStorageFull", "QuotaExceeded", "InsufficientCapacity", "InsufficientStorage"}
SENT_DAMAGED = {"BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"}
NO_SETUP = (
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    TokenRetrievalError,
    InvalidConfigError,
)
NETWORK = (
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
    FlexibleChecksumError,
)


def code_of(error: ClientError) -> str:
    """The server's error code, or its HTTP status where a HEAD brings no body."""
    return str(error.response.get("Error", {}).get("Code", ""))


@contextmanager
def s3_faults(place: str, endpoint: str | None) -> Iterator[None]:
    """Turn boto3's errors at `place` (s3://bucket) into ours; no message holds a secret."""
    where = f"{place} at {endpoint or 'AWS'}"
    try:
        yield
    except ResproutError:
        raise
    except ClientError as error:
        raise _translate(error, where) from error
    except NO_SETUP as error:
        raise BadInput(
            f"there are no usable credentials for {where} ({type(error).__name__}); set "
            "infra.store.access_key_id and secret_access_key, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    except NoRegionError as error:
        raise BadInput(f"no region is set for {where}; give infra.store.region") from error
    except ParamValidationError as error:
        raise BadInput(f"{where} is not a valid address: {_line(error)}") from error
    except NETWORK as error:
        raise Transient(f"{where} cannot be reached: {_line(error)}") from error
    except BotoCoreError as error:
        raise StageFailed(f"{where} refused the request: {_line(error)}") from error
    except ValueError as error:
        if "endpoint" in str(error).lower():
            raise BadInput(f"infra.store.endpoint_url is no address: {_line(error)}") from error
        raise


def _translate(error: ClientError, where: str) -> Exception:
    code = code_of(error)
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code == "NoSuchBucket":
        return BadInput(f"there is no bucket {where}; create it or give another infra.store.uri")
    if code in CREDENTIALS:
        return BadInput(
            f"{where} does not accept the credentials ({code}); check infra.store.access_key_id and "
            "secret_access_key, or the AWS_* variables"
        )
    if code == "RequestTimeTooSkewed":
        return Unreachable(
            f"{where} refuses requests because this machine's clock {_off(error)}; set the clock (NTP), then "
            "go on"
        )
    if code in FORBIDDEN:
        return BadInput(
            f"{where} does not allow {error.operation_name} with these credentials ({code}); they need to "
            "read, write and list this bucket"
        )
    if code in ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"):
        return BadInput(f"{where} is in another region ({code}); set infra.store.region to the bucket's")
    if code in ("InvalidBucketName", "301", "400"):
        return BadInput(
            f"{where} is no usable address ({code}); check infra.store.uri, endpoint_url and region"
        )
    if code in FULL or status == 507:
        return StageFailed(
            f"{where} has no room left ({code}); free space there or give another infra.store.uri"
        )
    if code in SENT_DAMAGED:
        return VerificationFailed(
            f"what arrived at {where} is not what was sent ({code}); files changed during the upload, or the "
            "link damages data: run again"
        )
    if code in BUSY or status >= 500 or status in (408, 429):
        return Transient(f"{where} is busy or failing ({code or status}); trying again later may help")
    return StageFailed(f"{where} refused {error.operation_name} ({code or status}): {_line(error)}")


def _off(error: ClientError) -> str:
    """How far the clock is off, by the date of the server's answer."""
    date = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    if date is None:
        return "is off"
    seconds = (get_current_datetime(False) - parsedate_to_datetime(date)).total_seconds()
    return f"is {abs(seconds) / 60:.0f} minutes {'fast' if seconds > 0 else 'slow'}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
