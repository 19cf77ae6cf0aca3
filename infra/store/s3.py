"""Artifacts in S3 or a server that speaks it: checksummed parts, conditional writes, errors in words."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import boto3
from botocore.compat import get_current_datetime
from botocore.config import Config
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
from pydantic import SecretStr

from resprout.configs.errors import (
    BadInput,
    ResproutError,
    StageFailed,
    Transient,
    Unreachable,
    VerificationFailed,
)
from resprout.configs.infrastructure import StoreConfig, one_line
from resprout.infra.store.driver import Driver, Listed, Versioned
from resprout.infra.store.filesystem import require_safe
from resprout.infra.store.manifest import CHUNK_BYTES, PIECE_BYTES, FileEntry, Manifest

THREADS = 4
MAX_PARTS = 10_000
CONFLICT_TRIES = 5
AT_ONCE = 1000
"""Objects that one request deletes."""


def s3_client(config: StoreConfig) -> Any:
    """Make a boto3 client for the store, with its endpoint, credentials (else boto3's chain) and retries."""
    return boto3.session.Session().client(
        "s3",
        endpoint_url=config.endpoint_url,
        region_name=config.region,
        aws_access_key_id=_plain(config.access_key_id),
        aws_secret_access_key=_plain(config.secret_access_key),
        config=Config(
            retries={"mode": "standard", "total_max_attempts": 5},
            connect_timeout=5,
            read_timeout=60,
            max_pool_connections=16,
            s3={"addressing_style": "path" if config.endpoint_url else "auto"},
            # We send SHA-256 ourselves; servers that know no CRC trailers refuse boto3's default.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


class S3Driver(Driver):
    """Objects under s3://bucket/prefix; files over 16 MB go up in parts, the chunks of the manifest."""

    remote: ClassVar[bool] = True

    def __init__(self, client: Any, bucket: str, prefix: str) -> None:
        self.client = client
        self.bucket = bucket
        self.prefix = prefix.strip("/")

    @classmethod
    def from_config(cls, config: StoreConfig) -> S3Driver:
        parts = urlsplit(config.uri or "")
        if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
            raise BadInput(f"infra.store.uri is '{config.uri}'; give s3://bucket/prefix")
        if parts.path.strip("/"):
            require_safe(parts.path.strip("/"))
        with s3_faults(f"s3://{parts.netloc}", config.endpoint_url):
            return cls(s3_client(config), parts.netloc, parts.path)

    @classmethod
    def mlflow_variables(cls, config: StoreConfig) -> tuple[dict[str, str], dict[str, str]]:
        plain = {"MLFLOW_S3_ENDPOINT_URL": config.endpoint_url, "AWS_DEFAULT_REGION": config.region}
        secret: dict[str, str] = {}
        if config.access_key_id is not None and config.secret_access_key is not None:
            secret = {
                "AWS_ACCESS_KEY_ID": config.access_key_id.get_secret_value(),
                "AWS_SECRET_ACCESS_KEY": config.secret_access_key.get_secret_value(),
            }
        return {name: value for name, value in plain.items() if value is not None}, secret

    @contextmanager
    def staged(self, folder: Path, *, move: bool) -> Iterator[Path]:
        yield folder

    def put_folder(self, prefix: str, folder: Path, manifest: Manifest, *, force: bool) -> None:
        small = [entry for entry in manifest.files if entry.size <= CHUNK_BYTES]
        large = [entry for entry in manifest.files if entry.size > CHUNK_BYTES]

        def put(entry: FileEntry) -> None:
            self._put_file(folder / entry.path, f"{prefix}/{entry.path}", entry, force)

        with ThreadPoolExecutor(THREADS) as pool:
            _all([pool.submit(put, entry) for entry in small], pool)
        for entry in large:
            put(entry)

    def folder(self, prefix: str) -> Path | None:
        return None

    def matches(self, key: str, entry: FileEntry) -> bool:
        found = self._head(key)
        if found is None or found["ContentLength"] != entry.size:
            return False
        if checksum := found.get("ChecksumSHA256"):
            return bool(checksum == _stored_checksum(entry))
        return bool(found.get("Metadata", {}).get("sha256") == entry.sha256)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return self._put_conditionally(key, data, IfNoneMatch="*")

    def replace_if(self, key: str, data: bytes, token: str) -> bool:
        return self._put_conditionally(key, data, IfMatch=token)

    def put_bytes(self, key: str, data: bytes) -> None:
        with self._faults():
            self._put(key, data)

    def read_versioned(self, key: str) -> Versioned | None:
        with self._faults():
            try:
                found = self.client.get_object(Bucket=self.bucket, Key=self._key(key))
            except ClientError as error:
                if code_of(error) in ("NoSuchKey", "404"):
                    return None
                raise
            data = found["Body"].read()
        written = found["LastModified"]
        date = found["ResponseMetadata"]["HTTPHeaders"].get("date")
        now = parsedate_to_datetime(date) if date else written
        return Versioned(data, found["ETag"], max(0.0, (now - written).total_seconds()))

    def read(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        if length == 0:
            return
        end = "" if length is None else str(start + length - 1)
        span = {} if start == 0 and length is None else {"Range": f"bytes={start}-{end}"}
        with self._faults():
            try:
                found = self.client.get_object(Bucket=self.bucket, Key=self._key(key), **span)
            except ClientError as error:
                if code_of(error) in ("NoSuchKey", "404"):
                    raise FileNotFoundError(self.uri(key)) from error
                if code_of(error) == "InvalidRange":
                    return
                raise
            yield from found["Body"].iter_chunks(PIECE_BYTES)

    def head(self, key: str) -> int | None:
        found = self._head(key)
        return None if found is None else int(found["ContentLength"])

    def list(self, prefix: str) -> Iterator[str]:
        return (entry.key for entry in self.entries(prefix))

    def entries(self, prefix: str) -> Iterator[Listed]:
        top = f"{self.prefix}/" if self.prefix else ""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=top + prefix)
        with self._faults():
            for page in pages:
                date = page["ResponseMetadata"]["HTTPHeaders"].get("date")
                for item in page.get("Contents", ()):
                    written = item["LastModified"]
                    age = (parsedate_to_datetime(date) - written).total_seconds() if date else 0.0
                    key, token = item["Key"].removeprefix(top), item.get("ETag", "")
                    yield Listed(key, item["Size"], max(0.0, age), token)

    def delete(self, key: str) -> None:
        with self._faults():
            self.client.delete_object(Bucket=self.bucket, Key=self._key(key))

    def delete_all(self, keys: Iterable[str]) -> None:
        whole = [{"Key": self._key(key)} for key in keys]
        with self._faults():
            for start in range(0, len(whole), AT_ONCE):
                batch = {"Objects": whole[start : start + AT_ONCE], "Quiet": True}
                answer = self.client.delete_objects(Bucket=self.bucket, Delete=batch)
                for refused in answer.get("Errors", ()):
                    raise StageFailed(
                        f"s3://{self.bucket}/{refused['Key']} cannot be deleted ({refused.get('Code')}); "
                        "give this user s3:DeleteObject there"
                    )

    def delete_folder(self, prefix: str) -> None:
        self.delete_all(self.list(f"{require_safe(prefix)}/"))

    def uri(self, key: str) -> str:
        return f"s3://{self.bucket}/{self._key(key)}"

    def ensure_writable(self) -> None:
        # Some servers make a bucket on the first write, which would hide a misspelt name.
        with self._faults():
            prefix = f"{self.prefix}/" if self.prefix else ""
            self.client.list_objects_v2(Bucket=self.bucket, Prefix=prefix, MaxKeys=1)
        self.put_bytes("tmp/probe", b"probe")
        if self._put_conditionally("tmp/probe", b"another", IfNoneMatch="*"):
            raise BadInput(
                f"the server of s3://{self.bucket} ignores If-None-Match, without which two runs could "
                "overwrite each other; use one with conditional writes: AWS S3, MinIO, SeaweedFS"
            )

    def _put_file(self, local: Path, key: str, entry: FileEntry, force: bool) -> None:
        if not force and self.matches(key, entry):
            return
        with self._faults():
            if entry.size <= CHUNK_BYTES:
                self._put(key, local.read_bytes(), sha256=entry.sha256)
            else:
                self._put_parts(local, key, entry)

    def _put(self, key: str, data: bytes, sha256: str | None = None, **conditions: str) -> None:
        digest = sha256 or hashlib.sha256(data).hexdigest()
        self.client.put_object(
            Bucket=self.bucket,
            Key=self._key(key),
            Body=data,
            ChecksumSHA256=_base64(bytes.fromhex(digest)),
            Metadata={"sha256": digest},
            **conditions,
        )

    def _put_parts(self, local: Path, key: str, entry: FileEntry) -> None:
        if len(entry.chunks) > MAX_PARTS:
            limit = MAX_PARTS * CHUNK_BYTES // 10**9
            raise StageFailed(
                f"{entry.path} is larger than {limit} GB, the limit of one S3 upload; shard the weights"
            )
        target = {"Bucket": self.bucket, "Key": self._key(key)}
        upload = self.client.create_multipart_upload(
            **target, ChecksumAlgorithm="SHA256", Metadata={"sha256": entry.sha256}
        )
        target["UploadId"] = upload["UploadId"]

        def part(index: int) -> dict[str, Any]:
            with local.open("rb") as file:
                file.seek(index * CHUNK_BYTES)
                data = file.read(CHUNK_BYTES)
            checksum = _base64(bytes.fromhex(entry.chunks[index]))
            done = self.client.upload_part(**target, PartNumber=index + 1, Body=data, ChecksumSHA256=checksum)
            return {"PartNumber": index + 1, "ETag": done["ETag"], "ChecksumSHA256": checksum}

        try:
            with ThreadPoolExecutor(THREADS) as pool:
                parts = _all([pool.submit(part, index) for index in range(len(entry.chunks))], pool)
            self._complete(target, parts, key, entry)
        except BaseException:
            self.client.abort_multipart_upload(**target)
            raise

    def _complete(self, target: dict[str, str], parts: Any, key: str, entry: FileEntry) -> None:
        try:
            self.client.complete_multipart_upload(**target, MultipartUpload={"Parts": parts})
        except ClientError as error:
            # A retry after a lost answer finds the upload gone, because the first request finished it.
            if code_of(error) != "NoSuchUpload" or not self.matches(key, entry):
                raise

    def _put_conditionally(self, key: str, data: bytes, **condition: str) -> bool:
        with self._faults():
            for left in reversed(range(CONFLICT_TRIES)):
                try:
                    self._put(key, data, **condition)
                    return True
                except ClientError as error:
                    code = code_of(error)
                    if code in ("ConditionalRequestConflict", "409") and left:
                        continue
                    if code in ("NoSuchKey", "404") and "IfMatch" in condition:
                        return False
                    if code not in ("PreconditionFailed", "412"):
                        raise
                    # The first try may have been written and its answer lost: equal bytes are ours.
                    return self.get_bytes(key) == data
        return False

    def _head(self, key: str) -> Any:
        with self._faults():
            try:
                return self.client.head_object(Bucket=self.bucket, Key=self._key(key), ChecksumMode="ENABLED")
            except ClientError as error:
                if code_of(error) in ("NoSuchKey", "404", "NotFound"):
                    return None
                raise

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{require_safe(key)}" if self.prefix else require_safe(key)

    def _faults(self) -> Any:
        return s3_faults(f"s3://{self.bucket}", self.client.meta.endpoint_url)


def _all(jobs: list[Future[Any]], pool: ThreadPoolExecutor) -> list[Any]:
    """Return results in order; the first error cancels what has not started."""
    try:
        return [job.result() for job in jobs]
    except BaseException:
        pool.shutdown(cancel_futures=True)
        raise


def _stored_checksum(entry: FileEntry) -> str:
    """Return the checksum that S3 keeps: the SHA-256, for a multipart object that over those of its parts."""
    if entry.size <= CHUNK_BYTES:
        return _base64(bytes.fromhex(entry.sha256))
    parts = b"".join(bytes.fromhex(chunk) for chunk in entry.chunks)
    return f"{_base64(hashlib.sha256(parts).digest())}-{len(entry.chunks)}"


def _plain(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


SKEWED = "RequestTimeTooSkewed"
ERRORS: tuple[tuple[set[str], type[ResproutError], str], ...] = (
    (
        {"NoSuchBucket"},
        BadInput,
        "there is no bucket {where}; create it or give another infra.store.uri",
    ),
    (
        {
            "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidClientTokenId", "InvalidToken",
            "ExpiredToken", "TokenRefreshRequired", "401",
        },
        BadInput,
        "{where} does not accept the credentials ({code}); check infra.store.access_key_id and "
        "secret_access_key, or the AWS_* variables",
    ),
    (
        {SKEWED},
        Unreachable,
        "{where} refuses requests because this machine's clock {clock}; set the clock (NTP), then go on",
    ),
    (
        {"AccessDenied", "AllAccessDisabled", "AccountProblem", "403", "Forbidden"},
        BadInput,
        "{where} does not allow {operation} with these credentials ({code}); they need to read, write and "
        "list this bucket",
    ),
    (
        {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"},
        BadInput,
        "{where} is in another region ({code}); set infra.store.region to the bucket's",
    ),
    (
        {"InvalidBucketName", "301", "400"},
        BadInput,
        "{where} is no usable address ({code}); check infra.store.uri, endpoint_url and region",
    ),
    (
        {"XMinioStorageFull", "QuotaExceeded", "InsufficientCapacity", "InsufficientStorage", "status 507"},
        StageFailed,
        "{where} has no room left ({code}); free space there or give another infra.store.uri",
    ),
    (
        {"BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch"},
        VerificationFailed,
        "what arrived at {where} is not what was sent ({code}); files changed during the upload, or the link "
        "damages data: run again",
    ),
    (
        {
            "SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "Throttling",
            "ThrottlingException", "TooManyRequests", "OperationAborted", "ConditionalRequestConflict",
            "status 408", "status 429", "status 5xx",
        },
        Transient,
        "{where} is busy or failing ({code}); trying again later may help",
    ),
)  # fmt: skip
"""By the server's error codes, or HTTP statuses, the kind of failure and what to tell the user."""
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
    """Return the server's error code, or its HTTP status where a HEAD brings no body."""
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
        raise BadInput(f"{where} is not a valid address: {one_line(error, 300)}") from error
    except NETWORK as error:
        raise Transient(f"{where} cannot be reached: {one_line(error, 300)}") from error
    except BotoCoreError as error:
        raise StageFailed(f"{where} refused the request: {one_line(error, 300)}") from error
    except ValueError as error:
        if "endpoint" in str(error).lower():
            raise BadInput(f"infra.store.endpoint_url is no address: {one_line(error, 300)}") from error
        raise


def _translate(error: ClientError, where: str) -> Exception:
    code = code_of(error)
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    given = {code, f"status {status}", "status 5xx" if status >= 500 else code}
    for codes, kind, sentence in ERRORS:
        if given & codes:
            clock = _off(error) if code == SKEWED else ""
            return kind(
                sentence.format(where=where, code=code or status, operation=error.operation_name, clock=clock)
            )
    return StageFailed(f"{where} refused {error.operation_name} ({code or status}): {one_line(error, 300)}")


def _off(error: ClientError) -> str:
    """Say how far the clock is off, by the date of the server's answer."""
    date = error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    if date is None:
        return "is off"
    seconds = (get_current_datetime(False) - parsedate_to_datetime(date)).total_seconds()
    return f"is {abs(seconds) / 60:.0f} minutes {'fast' if seconds > 0 else 'slow'}"
