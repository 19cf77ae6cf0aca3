"""A folder or file on this machine, used in place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from resprout.configs.errors import BadInput, StageFailed
from resprout.tasks.acquire.choose import choose
from resprout.tasks.acquire.hashes import FileHashes
from resprout.tasks.acquire.licence import local_licence
from resprout.tasks.acquire.source import Context, Pinned, PinnedFile, Wanted, files_digest

HIDDEN = "."
WILD = "*?["
"""Characters that stand for others in a pattern of paths, such as folder/train-*.parquet."""


class Local:
    """Pinned by the SHA-256 of each file, so the same bytes elsewhere have the same digest."""

    def locate(self, address: str, context: Context) -> Path:
        """The path, or the pattern of paths, as a path; a relative one begins at `context.base`.

        Raises:
            BadInput: nothing is there.
        """
        path = Path(unquote(urlsplit(address).path) if address.startswith("file:") else address).expanduser()
        path = path if path.is_absolute() else context.base / path
        if not path.exists() and not (is_pattern(str(path)) and files_at(path)):
            where = "" if str(path) == address else f" ({path})"
            raise BadInput(f"there is no {address}{where}; give an existing folder or file")
        return path

    def pin(self, address: str, wanted: Wanted, context: Context) -> Pinned:
        path = self.locate(address, context)
        label = path.name if path.exists() else path.relative_to(_folder(path).parent).as_posix()
        return pin_path(path, wanted, context, scheme="local", uri=path.absolute().as_uri(), label=label)

    def fetch(self, pinned: Pinned, context: Context, scratch: Path) -> dict[str, Path]:
        hashes = FileHashes(context.home)
        found = {file.path: Path(file.location) for file in pinned.files}
        for file in pinned.files:
            path = Path(file.location)
            if not path.is_file() or hashes.sha256(path) != file.sha256:
                raise StageFailed(f"{path} was changed or removed while it was being used; run again")
        return found


def pin_path(
    path: Path,
    wanted: Wanted,
    context: Context,
    *,
    scheme: str,
    uri: str,
    label: str,
    identity: Mapping[str, Any] | None = None,
    licence: str | None = None,
) -> Pinned:
    """A local folder or file as a pinned source; other schemes that end in local files use it too."""
    found = files_at(path)
    if not found and not path.exists():
        raise BadInput(f"there is no {path}; give an existing folder or file")
    if not found:
        raise BadInput(f"{path} holds no files; give a folder or file with content")
    if wanted.purpose == "data":
        places = {name: name for name in found}
    else:
        places = choose(found, wanted, str(path)).files
    hashes = FileHashes(context.home)
    try:
        files = tuple(
            PinnedFile(name, found[place].stat().st_size, str(found[place]), digest, digest)
            for name, place in sorted(places.items())
            for digest in [hashes.sha256(found[place])]
        )
    except PermissionError as error:
        raise BadInput(f"{error.filename} cannot be read by this user; fix its permissions") from error
    return Pinned(
        uri=uri,
        scheme=scheme,
        label=label,
        files=files,
        identity={**(identity or {}), "sha256": {file.path: file.identity for file in files}},
        digest=files_digest(files),
        licence=licence or local_licence(found),
    )


def is_pattern(address: str) -> bool:
    """Whether an address may name several paths at once."""
    return any(one in address for one in WILD)


def files_at(path: Path) -> dict[str, Path]:
    """Regular files by their path in a folder, or in the folder that a pattern begins at.

    Hidden files and folders (.git, .cache) are not content.
    """
    if path.is_file():
        return {path.name: path}
    folder = _folder(path)
    pattern = "**/*" if folder == path else str(path.relative_to(folder))
    found = {}
    for file in sorted(folder.glob(pattern)):
        relative = file.relative_to(folder)
        if file.is_file() and not any(part.startswith(HIDDEN) for part in relative.parts):
            found[relative.as_posix()] = file
    return found


def _folder(path: Path) -> Path:
    """A folder itself; of a pattern the last folder before it."""
    return next(one for one in (path, *path.parents) if one.is_dir())
