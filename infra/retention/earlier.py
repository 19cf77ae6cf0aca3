"""What an earlier backup left, and which of it nobody has touched since, by listings alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from resprout.configs.errors import VerificationFailed
from resprout.infra.retention import bundle
from resprout.infra.store.driver import Driver, Listed
from resprout.infra.store.manifest import FileEntry

SEEN = "seen.jsonl"
"""Object beside a backup: how listings showed each object, at its source and here, after the last backup.

It saves requests and proves nothing, so the backup's statement does not name it.
"""


class Earlier:
    """The objects of the backup that is at `target`; none where there is none that can be read."""

    def __init__(self, target: Driver) -> None:
        self.entries = _entries(target)
        self._folders: dict[str, list[FileEntry]] = {}
        for entry in self.entries.values():
            self._folders.setdefault("/".join(entry.path.split("/")[:3]), []).append(entry)
        self._sources, here = _seen(target)
        self._untouched = {
            one.key for one in target.entries("") if stamp(one) and stamp(one) == here.get(one.key)
        }

    def there(self, entry: FileEntry) -> bool:
        """Whether the backup has these bytes, untouched since it was made."""
        return self.entries.get(entry.path) == entry and entry.path in self._untouched

    def same(self, path: str, source: str | None) -> FileEntry | None:
        """The entry of what the backup has, where the source is as it was then."""
        entry = self.entries.get(path)
        unchanged = entry is not None and bool(source) and self._sources.get(path) == source
        return entry if entry is not None and unchanged and self.there(entry) else None

    def folder(self, prefix: str) -> list[FileEntry]:
        """Entries of an artifact or of the files of a run, a model or a trace."""
        return self._folders.get(prefix, [])


def stamp(listed: Listed) -> str | None:
    """What a listing shows of an object, another after each change; None where it shows too little."""
    return f"{listed.size} {listed.token}" if listed.token else None


def note(target: Driver, sources: Mapping[str, str], listed: Iterable[Listed]) -> None:
    """Write down how both sides look now."""
    lines = [
        json.dumps([one.key, sources.get(one.key), stamp(one)])
        for one in sorted(listed, key=lambda one: one.key)
    ]
    target.put_bytes(SEEN, "".join(f"{line}\n" for line in lines).encode())


def _entries(target: Driver) -> dict[str, FileEntry]:
    try:
        return {entry.path: entry for entry in bundle.read_list(target)}
    except VerificationFailed:
        return {}


def _seen(target: Driver) -> tuple[dict[str, str], dict[str, str]]:
    sources, here = {}, {}
    for line in (target.get_bytes(SEEN) or b"").splitlines():
        try:
            key, source, own = json.loads(line)
        except (ValueError, TypeError):
            return {}, {}
        sources[str(key)], here[str(key)] = source, own
    return sources, here
