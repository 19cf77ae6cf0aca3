"""Where the files of runs lie in a home that was moved or copied.

MLflow never changes an address that it has noted, so in such a home its own database holds old ones.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from resprout.infra.environment import ARTIFACTS


class HomeFiles:
    """The folder below `home` that holds them, where MLflow's database is the home's `own`."""

    def __init__(self, home: Path, own: bool) -> None:
        self.own = own
        self.address = (home / ARTIFACTS).resolve().as_uri()

    def here(self, address: str) -> str:
        """An address of files of runs, where the home is now; others as they are."""
        old, found, rest = address.rpartition(f"/{ARTIFACTS}")
        if not self.own or not found or not old.startswith("file:") or rest[:1] not in ("", "/"):
            return address
        return f"{self.address}{rest}"

    def folder(self, address: str) -> Path | None:
        """The local folder behind such an address; None where MLflow keeps the files elsewhere."""
        here = self.here(address)
        return Path(unquote(urlsplit(here).path)) if here.startswith(f"{self.address}/") else None
