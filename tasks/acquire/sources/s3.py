"""Objects of an S3 bucket, pinned by version, ETag and checksum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from resprout.configs.errors import BadInput, StageFailed
from resprout.infra.store.filesystem import disk_errors, unsafe
from resprout.infra.store.s3 import code_of, s3_client, s3_faults
from resprout.tasks.acquire.choose import choose
from resprout.tasks.acquire.licence import CARD_BYTES, card_licence
from resprout.tasks.acquire.source import Context, Pinned, PinnedFile, Wanted, files_digest

THREADS = 8
PIECE_BYTES = 1024 * 1024


class Bucket:
    """s3://bucket/key or s3://bucket/prefix, with the endpoint and the credentials of infra.store."""

    def pin(self, address: str, wanted: Wanted, context: Context) -> Pinned:
        return pin_objects(address, wanted, context, scheme="s3", uri=address)

    def fetch(self, pinned: Pinned, context: Context, scratch: Path) -> dict[str, Path]:
        found = {}
        for file in pinned.files:
            target = scratch / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            with disk_errors(scratch, pinned.total_bytes):
                _download(file, context, target)
            found[file.path] = target
        return found

    def head(self, pinned: Pinned, file: PinnedFile, context: Context, size: int) -> bytes | None:
        """The first bytes of an object."""
        with _opened(file, context, Range=f"bytes=0-{size - 1}") as body:
            found: bytes = body.read()
        return found


def pin_objects(
    address: str,
    wanted: Wanted,
    context: Context,
    *,
    scheme: str,
    uri: str,
    identity: Mapping[str, Any] | None = None,
) -> Pinned:
    """The objects at an s3:// address; other schemes that end in a bucket use it too."""
    bucket, _, key = address.removeprefix("s3://").partition("/")
    if not bucket or not key.strip("/"):
        raise BadInput(f"'{address}' names no object; give s3://bucket/key or s3://bucket/prefix")
    with s3_faults(f"s3://{bucket}", context.store.endpoint_url):
        client = s3_client(context.store)
        found = _objects(client, bucket, key)
        if not found:
            raise BadInput(f"there is nothing at {address}; check bucket and prefix")
        if bad := next((name for name in found if unsafe(name)), None):
            raise BadInput(f"{address} has an object '{bad}' whose name is no safe path; rename it")
        places = (
            {name: name for name in found}
            if wanted.purpose == "data"
            else choose(found, wanted, address).files
        )
        with ThreadPoolExecutor(THREADS) as pool:
            files = tuple(
                pool.map(
                    lambda item: _pin_object(client, bucket, found[item[1]], item[0]), sorted(places.items())
                )
            )
        licence = _licence(client, bucket, found.get("README.md"))
    return Pinned(
        uri=uri,
        scheme=scheme,
        label=key.rstrip("/").rpartition("/")[2],
        files=files,
        identity={**(identity or {}), "objects": {file.path: file.location for file in files}},
        digest=files_digest(files),
        licence=licence,
    )


def _objects(client: Any, bucket: str, key: str) -> dict[str, str]:
    """Keys by their path below the address: one object, or all under the prefix."""
    try:
        if not key.endswith("/"):
            client.head_object(Bucket=bucket, Key=key)
            return {key.rpartition("/")[2]: key}
    except ClientError as error:
        if code_of(error) not in ("404", "NoSuchKey", "NotFound"):
            raise
    prefix = f"{key.rstrip('/')}/"
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
    return {one.removeprefix(prefix): one for one in keys if not one.endswith("/")}


def _pin_object(client: Any, bucket: str, key: str, path: str) -> PinnedFile:
    head = client.head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED")
    etag = head["ETag"].strip('"')
    version = head.get("VersionId") or ""
    # What this project wrote carries its own SHA-256; anything else is recognised by its ETag.
    sha256 = head.get("Metadata", {}).get("sha256")
    location = f"s3://{bucket}/{key}#etag={etag}&version={version}"
    return PinnedFile(path, head["ContentLength"], location, sha256 or etag, sha256)


def _licence(client: Any, bucket: str, card: str | None) -> str | None:
    if card is None:
        return None
    found = client.get_object(Bucket=bucket, Key=card)
    return card_licence(found["Body"].read(CARD_BYTES).decode("utf-8", "replace"))


def _download(file: PinnedFile, context: Context, target: Path) -> None:
    with _opened(file, context) as body, target.open("wb") as sink:
        for piece in body.iter_chunks(PIECE_BYTES):
            sink.write(piece)


@contextmanager
def _opened(file: PinnedFile, context: Context, **options: str) -> Iterator[Any]:
    """The body of an object as it was pinned; StageFailed where it has changed since."""
    where, _, marks = file.location.rpartition("#etag=")
    etag, _, version = marks.partition("&version=")
    bucket, _, key = where.removeprefix("s3://").partition("/")
    if version and version != "null":
        options["VersionId"] = version
    with s3_faults(f"s3://{bucket}", context.store.endpoint_url):
        try:
            client = s3_client(context.store)
            found = client.get_object(Bucket=bucket, Key=key, IfMatch=f'"{etag}"', **options)
        except ClientError as error:
            if code_of(error) in ("PreconditionFailed", "412", "NoSuchKey", "404"):
                raise StageFailed(f"{where} was changed while it was being used; run again") from error
            raise
        yield found["Body"]
