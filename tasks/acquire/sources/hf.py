"""A model repository of the Hugging Face Hub, pinned to a commit."""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resprout.configs.errors import BadInput
from resprout.infra.store.canonical import canonical_json, sha256_hex
from resprout.infra.store.filesystem import unsafe
from resprout.tasks.acquire.choose import choose
from resprout.tasks.acquire.hub_faults import TIMEOUT_SECONDS, hub_faults
from resprout.tasks.acquire.source import Context, Pinned, PinnedFile, Wanted

_ADDRESS = re.compile(r"hf://([^/@]+/[^/@]+)((?:/[^@]+)?)(?:@([^@]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class _Listing:
    """`files` maps a path to (size, SHA-256 where git-lfs keeps one)."""

    commit: str
    files: dict[str, tuple[int, str | None]]
    licence: str | None


class Hub:
    """hf://org/name[/file][@revision]; a commit in the local cache is used without the network."""

    def pin(self, address: str, wanted: Wanted, context: Context) -> Pinned:
        found = _ADDRESS.fullmatch(address)
        if not found:
            raise BadInput(f"'{address}' is no hub address; give hf://org/name[/file.gguf][@revision]")
        repository, inside, revision = found[1], found[2].lstrip("/"), found[3] or "main"
        with hub_faults(address):
            listing = _listing(repository, revision)
        paths = [
            path for path in listing.files if not inside or path == inside or path.startswith(f"{inside}/")
        ]
        if not paths:
            raise BadInput(f"'{address}': the repository has no {inside} at {revision}; check the path")
        if bad := next((path for path in paths if unsafe(path)), None):
            raise BadInput(f"'{address}' lists a file '{bad[:200]}' whose name is no safe path; use another")
        names = {
            path.removeprefix(f"{inside}/") if path != inside else Path(path).name: path for path in paths
        }
        places = (
            {name: name for name in names}
            if wanted.purpose == "data"
            else choose(names, wanted, address).files
        )
        files = tuple(
            PinnedFile(name, size, names[place], listing.commit, sha256)
            for name, place in sorted(places.items())
            for size, sha256 in [listing.files[names[place]]]
        )
        # A commit fixes every byte; what only the network knows must not enter the digest.
        chosen = [listing.commit, sorted([file.path, file.location] for file in files)]
        return Pinned(
            uri=f"hf://{repository}{found[2]}@{listing.commit}",
            scheme="hf",
            label=f"{repository}{found[2]}",
            files=files,
            identity={"repository": repository, "commit": listing.commit, "revision": revision},
            digest=sha256_hex(canonical_json(chosen)),
            licence=listing.licence,
        )

    def fetch(self, pinned: Pinned, context: Context, scratch: Path) -> dict[str, Path]:
        from huggingface_hub import snapshot_download

        with hub_faults(pinned.uri):
            folder = snapshot_download(
                pinned.identity["repository"],
                revision=pinned.identity["commit"],
                allow_patterns=[glob.escape(file.location) for file in pinned.files],
            )
        return {file.path: Path(folder) / file.location for file in pinned.files}

    def head(self, pinned: Pinned, file: PinnedFile, context: Context, size: int) -> bytes | None:
        """The first bytes of a file of the repository."""
        from huggingface_hub import HfFileSystem

        place = f"{pinned.identity['repository']}@{pinned.identity['commit']}/{file.location}"
        with hub_faults(pinned.uri), HfFileSystem().open(place, "rb", cache_type="none") as opened:
            found: bytes = opened.read(size)
        return found


def _listing(repository: str, revision: str) -> _Listing:
    from huggingface_hub import HfApi, errors

    try:
        info: Any = HfApi().model_info(
            repository, revision=revision, files_metadata=True, timeout=TIMEOUT_SECONDS
        )
    except errors.OfflineModeIsEnabled:
        cached = _cached(repository, revision)
        if cached is None:
            raise
        return cached
    files = {one.rfilename: (one.size or 0, _sha256(one)) for one in info.siblings or ()}
    card = info.card_data
    return _Listing(info.sha, files, _licence(card))


def _sha256(one: Any) -> str | None:
    return one.lfs.sha256 if one.lfs else None


def _licence(card: Any) -> str | None:
    named = card.get("license") if card is not None else None
    return ", ".join(named) if isinstance(named, list) else named


def _cached(repository: str, revision: str) -> _Listing | None:
    """The files of a commit in the local cache; only a full commit is exact without asking the hub."""
    from huggingface_hub import errors, snapshot_download

    if not _COMMIT.fullmatch(revision):
        return None
    try:
        folder = Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except errors.LocalEntryNotFoundError:
        return None
    files: dict[str, tuple[int, str | None]] = {
        path.relative_to(folder).as_posix(): (path.stat().st_size, None)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return _Listing(revision, files, None)
