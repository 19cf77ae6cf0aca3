"""Push an export to a repository of the Hugging Face Hub: afterwards its branch `main` holds these files.

Level-triggered like registration: what is there is read first, and where it is what should be, nothing is
written. All files go into one commit; it is tagged with the digest of the export.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from resprout.configs.errors import BadInput, ResproutError, StageFailed, Transient
from resprout.infra.store.filesystem import walk
from resprout.infra.store.manifest import hash_file
from resprout.tasks.acquire.hub_faults import TIMEOUT_SECONDS, hub_faults
from resprout.tasks.export.mlflow_model import FILE as MLMODEL
from resprout.tasks.export.mlflow_model import TOKENIZER

if TYPE_CHECKING:
    from huggingface_hub import HfApi

ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+)")
TOKEN = "HF_TOKEN"
OWN_TAG = "resprout"
"""Tag of the model cards that exports have: a repository without it is someone else's."""
RECORD = "resprout-push.json"
"""Name of the file at the root that lists the paths of the last push."""
UNRECORDED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.gguf",
    "*.onnx",
    "*.onnx.data",
    "adapter_config.json",
    "modeling_resprout.py",
)
"""What is taken for an earlier push's where that kept no record: weights, and what makes a tool look for
them."""
FOR_MLFLOW = (MLMODEL, f"{TOKENIZER}/*")
SHORT = 12
GIT_BYTES = 20_000_000
"""The hub keeps larger files outside git whatever their name."""


@dataclass(frozen=True)
class Pushed:
    """Address and commit of the branch now, its page, and whether anything was written."""

    to: str
    commit: str
    url: str
    changed: bool


def repository_of(address: str) -> str:
    """org/name of hf://org/name; BadInput for anything else."""
    found = ADDRESS.fullmatch(address)
    if found is None:
        raise BadInput(f"'{address}' is no model repository; give hf://org/name")
    return found[1]


def require_token() -> str:
    """The token of the environment; BadInput where there is none."""
    token = os.environ.get(TOKEN, "").strip()
    if not token:
        raise BadInput(
            f"pushing needs a token that may write, and {TOKEN} is not set; set {TOKEN} in the environment "
            "(huggingface.co/settings/tokens)"
        )
    return token


def push(
    folders: Mapping[str, Path], address: str, digest: str, message: str, about: str, private: bool
) -> Pushed:
    """Bring the files of `folders`, each under its path in the repository, to the branch `main`.

    What the last push put there and this one has no more is deleted, and nothing that others added. A
    repository that is not there is made, `private` or not. `digest` is the export's, `message` and `about`
    title and text of the commit.

    Raises:
        BadInput: no token, no access, or a repository that holds another model.
        StageFailed: the hub does not show what was sent.
        Transient: the hub cannot be reached, or is failing.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    repository, tag = repository_of(address), f"resprout-{digest[:SHORT]}"
    api = HfApi(token=require_token())
    with TemporaryDirectory() as scratch, _faults(address):
        wanted = _files(folders)
        wanted[RECORD] = _record(sorted(wanted), Path(scratch))
        api.create_repo(repository, private=private, exist_ok=True)
        before = _listing(api, repository)
        _refuse_foreign(address, before)
        if _lacking(before, wanted):
            stale = sorted(_earlier(api, repository, before) - wanted.keys())
            made = api.create_commit(
                repository,
                operations=[
                    *(CommitOperationAdd(path, str(file)) for path, file in sorted(wanted.items())),
                    *(CommitOperationDelete(path) for path in stale),
                ],
                commit_message=message,
                commit_description=about,
                parent_commit=before.commit,
            )
            now = _listing(api, repository)
            if lacking := _lacking(now, wanted):
                raise StageFailed(
                    f"after the push {address} shows other bytes of {', '.join(lacking)}; push again"
                )
            commit, changed = made.oid, True
        else:
            commit, changed = before.commit or "", False
        if changed or tag not in _tags(api, repository):
            api.create_tag(repository, tag=tag, revision=commit, exist_ok=True)
    return Pushed(f"hf://{repository}@{commit}", commit, f"{api.endpoint}/{repository}", changed)


@dataclass(frozen=True)
class _Listing:
    """The head of the branch, its files with the hash that the hub has of each, and the tags of its card."""

    commit: str | None
    files: dict[str, str]
    tags: list[str]


def _listing(api: HfApi, repository: str) -> _Listing:
    info: Any = api.model_info(repository, files_metadata=True, timeout=TIMEOUT_SECONDS)
    files = {one.rfilename: one.lfs.sha256 if one.lfs else one.blob_id or "" for one in info.siblings or ()}
    return _Listing(info.sha, files, list(info.tags or ()))


def _record(paths: list[str], folder: Path) -> Path:
    """The file that lists the paths of a push."""
    file = folder / RECORD
    file.write_text(json.dumps({"files": paths}, indent=1) + "\n", encoding="utf-8")
    return file


def _earlier(api: HfApi, repository: str, there: _Listing) -> set[str]:
    """The files that are there of the last push: those of its record, else those that look like it."""
    if RECORD in there.files:
        with TemporaryDirectory() as scratch:
            file = api.hf_hub_download(
                repository, RECORD, revision=there.commit, local_dir=scratch, etag_timeout=TIMEOUT_SECONDS
            )
            try:
                return set(json.loads(Path(file).read_bytes())["files"]) & there.files.keys()
            except (ValueError, KeyError, TypeError):
                # Somebody wrote over it; then it is as if there were none.
                pass
    return {path for path in there.files if _matches(path, UNRECORDED)}


def _tags(api: HfApi, repository: str) -> set[str]:
    return {one.name for one in api.list_repo_refs(repository).tags}


def _files(folders: Mapping[str, Path]) -> dict[str, Path]:
    """Each file by its path in the repository, without what only MLflow reads."""
    found = {}
    for at, folder in folders.items():
        for relative, file in walk(folder):
            if not _matches(relative, FOR_MLFLOW):
                found[f"{at}/{relative}".lstrip("/")] = file
    return found


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def _refuse_foreign(address: str, there: _Listing) -> None:
    """BadInput where a repository with files has no card of ours: it would be overwritten."""
    if any(path != ".gitattributes" for path in there.files) and OWN_TAG not in there.tags:
        raise BadInput(
            f"{address} holds a model that resprout did not push (its card has no tag '{OWN_TAG}'); give the "
            "name of a new repository"
        )


def _lacking(there: _Listing, wanted: Mapping[str, Path]) -> list[str]:
    """The files that the repository has not, or with other bytes; small ones are known by git's own hash."""
    return [
        path
        for path, file in sorted(wanted.items())
        if there.files.get(path) not in (hash_file(file, path).sha256, _git_hash(file))
    ]


def _git_hash(file: Path) -> str:
    """The name that git has for a file's content; empty of files that the hub keeps outside git."""
    from huggingface_hub.utils.sha import git_hash

    return git_hash(file.read_bytes()) if file.stat().st_size < GIT_BYTES else ""


@contextmanager
def _faults(address: str) -> Iterator[None]:
    """Faults of the hub as sentences; those of an upload are hidden in a RuntimeError."""
    from huggingface_hub import errors

    with hub_faults(address):
        try:
            yield
        except ResproutError:
            raise
        except errors.OfflineModeIsEnabled as error:
            raise BadInput(
                f"nothing can be pushed to {address} while HF_HUB_OFFLINE is set; unset it"
            ) from error
        except errors.BadRequestError as error:
            said = " ".join(str(error).split())[:300]
            raise BadInput(f"{address}: the hub refuses the commit ({said})") from error
        except errors.HfHubHTTPError as error:
            if error.response is not None and error.response.status_code == 412:
                raise Transient(f"someone else pushed to {address} meanwhile; push again") from error
            raise
        except RuntimeError as error:
            if isinstance(error.__cause__, Exception):
                raise error.__cause__ from error
            raise Transient(f"the upload to {address} broke off ({error}); push again") from error
