"""Forgeries by somebody who may write a home's store and knows how resprout writes it, and who has no key."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resprout.configs.infrastructure import StoreConfig
from resprout.infra.store.canonical import canonical_json
from resprout.infra.store.record import Record
from resprout.infra.store.store import ArtifactStore

DEEP = b"[" * 200_000
"""JSON nested deeper than the stack of a parser that calls itself."""


@dataclass
class Forger:
    """Writes into the store of `home` what looks like resprout's own."""

    home: Path

    def __post_init__(self) -> None:
        self.store = ArtifactStore.from_config(StoreConfig(), self.home)

    def pointer(self, stage: str) -> str:
        """Key of the result of a stage, as the cache has it."""
        return next(key for key in self.store.driver.list("results/") if key.startswith(f"results/{stage}-"))

    def record(self, stage: str) -> tuple[str, Record]:
        """Id and record to which a stage's result leads."""
        identity = json.loads(self.store.driver.get_bytes(self.pointer(stage)) or b"")["record"]
        return identity, self.store.get_record(identity)

    def tampered(self, record: Record, scratch: Path) -> Record:
        """The record of an artifact like this one's with another last byte in its largest file, published."""
        shutil.copytree(self.home / "store" / "content" / record.content, scratch)
        largest = max(
            (one for one in scratch.rglob("*") if one.is_file()), key=lambda one: one.stat().st_size
        )
        data = largest.read_bytes()
        largest.chmod(0o644)
        largest.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        manifest = self.store.publish(scratch)
        return record.model_copy(update={"content": manifest.digest, "manifest": manifest.sha256})

    def point(self, stage: str, record: Record) -> str:
        """Keep a record and let the stage's result lead to it; the record's id."""
        key, identity = self.pointer(stage), self.store.put_record(record)
        self.store.driver.put_bytes(key, canonical_json({"digest": record.content, "record": identity}))
        return identity


def kept(home: Path, aside: Path) -> Path:
    """A copy of a home as it is, to bring it back from."""
    shutil.copytree(home, aside, symlinks=True)
    return aside


def brought_back(home: Path, aside: Path) -> None:
    """Put a home back as `kept` found it."""
    shutil.rmtree(home)
    shutil.copytree(aside, home, symlinks=True)


def versions(home: Path) -> dict[str, Any]:
    """Number and digest of each version that the home's registry has, and where the alias points."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}", f"sqlite:///{home / 'mlflow.db'}")
    found = client.search_model_versions("name = 'tiny-pruned'")
    aliases = client.get_registered_model("tiny-pruned").aliases
    return {
        "versions": {str(one.version): one.tags["resprout.digest"] for one in found},
        "alias": str(aliases["candidate"]),
    }
