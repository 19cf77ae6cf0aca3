"""A version of a registered MLflow model, by number or alias."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from resprout.configs.errors import BadInput, ResproutError, Transient
from resprout.configs.infrastructure import without_credentials
from resprout.infra.store.canonical import canonical_json, sha256_hex
from resprout.infra.store.filesystem import unsafe
from resprout.tasks.acquire.choose import choose
from resprout.tasks.acquire.source import Context, Pinned, PinnedFile, Wanted
from resprout.tasks.acquire.sources.local import Local, pin_path
from resprout.tasks.acquire.sources.s3 import Bucket, pin_objects

_ADDRESS = re.compile(r"models:/([^/@]+)(?:/(\d+)|@([^/@]+))")
INSIDE = "#artifact="
_NO_SUCH = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND")


class MlflowModel:
    """models:/name/3 or models:/name@alias; files in a bucket or folder are pinned there."""

    def pin(self, address: str, wanted: Wanted, context: Context) -> Pinned:
        found = _ADDRESS.fullmatch(address)
        if not found:
            raise BadInput(f"'{address}' is no model version; give models:/name/3 or models:/name@alias")
        if wanted.purpose == "data":
            raise BadInput(f"'{address}' is a model; give data as a path, package://, s3:// or hf-dataset://")
        name, number, alias = found.groups()
        with _faults(address, context):
            client = _client(context)
            version = (
                client.get_model_version(name, number)
                if number
                else client.get_model_version_by_alias(name, alias)
            )
            place = client.get_model_version_download_uri(name, str(version.version))
            uri = f"models:/{name}/{version.version}"
            identity = {
                "name": name,
                "version": int(version.version),
                "source": version.source,
                "run_id": version.run_id or None,
                "tags": dict(version.tags),
            }
            if place.startswith("s3://"):
                return pin_objects(place, wanted, context, scheme="models", uri=uri, identity=identity)
            folder = _local(place)
            if folder is not None:
                return pin_path(
                    folder, wanted, context, scheme="models", uri=uri, label=name, identity=identity
                )
            return _pin_artifacts(place, uri, identity, wanted, context, version)

    def fetch(self, pinned: Pinned, context: Context, scratch: Path) -> dict[str, Path]:
        where = pinned.files[0].location
        if where.startswith("s3://"):
            return Bucket().fetch(pinned, context, scratch)
        if where.startswith("/"):
            return Local().fetch(pinned, context, scratch)
        found = {}
        with _faults(pinned.uri, context):
            for index, file in enumerate(pinned.files):
                place, _, inside = file.location.partition(INSIDE)
                target = scratch / str(index)
                target.mkdir()
                brought = _repository(place, context).download_artifacts(inside, str(target))
                found[file.path] = Path(brought)
        return found

    def head(self, pinned: Pinned, file: PinnedFile, context: Context, size: int) -> bytes | None:
        """The first bytes of a file in a bucket; a tracking server gives files as a whole."""
        in_bucket = file.location.startswith("s3://")
        return Bucket().head(pinned, file, context, size) if in_bucket else None


def _pin_artifacts(
    place: str, uri: str, identity: dict[str, Any], wanted: Wanted, context: Context, version: Any
) -> Pinned:
    """A version behind a tracking server, which shows paths and sizes only: the version is the identity."""
    listed = dict(_artifacts(place, context))
    if bad := next((name for name in listed if unsafe(name)), None):
        raise BadInput(f"{uri} has a file '{bad}' whose name is no safe path; register a clean folder")
    chosen = choose(listed, wanted, uri).files
    mark = sha256_hex(canonical_json([uri, version.source, version.creation_timestamp]))
    files = tuple(
        PinnedFile(path, listed[where], f"{place}{INSIDE}{where}", mark)
        for path, where in sorted(chosen.items())
    )
    digest = sha256_hex(canonical_json([mark, [[file.path, file.size] for file in files]]))
    return Pinned(uri, "models", identity["name"], files, identity, digest)


def _artifacts(place: str, context: Context) -> Iterator[tuple[str, int]]:
    repository = _repository(place, context)
    todo: list[str | None] = [None]
    while todo:
        for one in repository.list_artifacts(todo.pop()):
            if one.is_dir:
                todo.append(one.path)
            else:
                yield one.path, one.file_size or 0


def _repository(place: str, context: Context) -> Any:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(
        place, tracking_uri=context.tracking_uri, registry_uri=context.tracking_uri
    )


def _local(place: str) -> Path | None:
    parts = urlsplit(place)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return Path(place) if not parts.scheme else None


def _client(context: Context) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=context.tracking_uri, registry_uri=context.tracking_uri)


@contextmanager
def _faults(address: str, context: Context) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except ResproutError:
        raise
    except MlflowException as error:
        # The message may quote the tracking URI with its user and password.
        text = without_credentials(" ".join(str(error.message).split()))[:300]
        if error.error_code in _NO_SUCH:
            raise BadInput(f"'{address}': {text}; check name, version and alias in the registry") from error
        where = without_credentials(context.tracking_uri or "the default address")
        raise Transient(f"the MLflow server at {where} does not answer for '{address}': {text}") from error
    except OSError as error:
        where = without_credentials(context.tracking_uri or "the default address")
        raise Transient(
            f"the MLflow server at {where} cannot be reached for '{address}': {type(error).__name__}"
        ) from error
