"""Checkpoints: unfinished work of a stage, kept under its key until its artifact is published.

checkpoints/<stage key>/<step>-<nonce>/<path>     the files: safetensors and JSON, nothing else
checkpoints/<stage key>/<step>-<nonce>.json       its manifest in a DSSE envelope, signed where there is a key

The second is written last and makes the checkpoint visible; what has none was cut off and counts for nothing.
At most two lie there at a time: the newest, and the one before for the day when bytes are damaged.
"""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from resprout.configs.errors import BadInput, Transient, Unreachable, VerificationFailed
from resprout.infra.retry import retry_while_down
from resprout.infra.store import keys
from resprout.infra.store.cache import download
from resprout.infra.store.canonical import canonical_json, sha256_hex
from resprout.infra.store.driver import Driver
from resprout.infra.store.filesystem import walk
from resprout.infra.store.manifest import Manifest, scan
from resprout.infra.store.store import ArtifactStore
from resprout.infra.store.stored_json import DamagedJson, parse_json, safetensors_header

logger = logging.getLogger(__name__)

ROOM = "checkpoints"
PREDICATE = "urn:resprout:checkpoint:v1"
PATIENCE_SECONDS = 15.0
"""How long training stands still for a store that is down; whoever ends a process waits about 30 s for it."""
MAX_STEP = 10**12 - 1


@dataclass
class StageCheckpoints:
    """The checkpoints of the stage whose key this process holds; `guard` raises where it no longer does.

    `stop` is called while `save` waits for a store that is down, and may raise.
    """

    store: ArtifactStore
    key: str
    guard: Callable[[], None]
    stop: Callable[[], None] = lambda: None
    _down: bool = field(default=False, init=False)
    """Whether the store was down at the last save: training does not wait for it a second time."""

    @property
    def _driver(self) -> Driver:
        return self.store.driver

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        """Open the newest whole checkpoint as a local folder, hashed in full; None where there is none.

        Raises:
            Transient: the store cannot be reached.
        """
        with ExitStack() as opened:
            yield self._newest(opened)

    def _newest(self, opened: ExitStack) -> Path | None:
        for name in sorted(self._visible(), reverse=True):
            try:
                folder = opened.enter_context(self._local(name, self._manifest(name)))
                _require_plain(folder)
            except (BadInput, VerificationFailed) as error:
                logger.warning("the checkpoint %s is not used: %s", self._uri(name), error)
            else:
                logger.info("%s goes on from step %d", self.key.rpartition("-")[0], _step(name))
                return folder
        return None

    def save(self, folder: Path, step: int) -> None:
        """Keep the files of `folder`, which is left empty, as the checkpoint of `step`.

        Of earlier ones the last stays. A store that is down costs this checkpoint, and not the training: it
        is waited for a little, and logged.

        Raises:
            BadInput: there is no file, or one that is neither safetensors nor JSON.
            StageFailed: the disk is full, or another process has taken the stage over.
        """
        if not 0 <= step <= MAX_STEP:
            raise ValueError(f"a checkpoint's step is a number from 0 to {MAX_STEP}, not {step}")
        name = f"{step:012d}-{uuid.uuid4().hex[:8]}"
        try:
            _require_plain(folder)
            with self._driver.staged(folder, move=True) as staged:
                manifest = scan(staged)
                retry_while_down(
                    lambda: self._publish(name, staged, manifest),
                    0.0 if self._down else PATIENCE_SECONDS,
                    stop=self.stop,
                )
            self._down = False
        except (Transient, Unreachable) as error:
            if not self._down:
                logger.warning("no checkpoint of step %d is kept, and the work goes on: %s", step, error)
            self._down = True
        finally:
            _empty(folder)

    def clear(self) -> None:
        """Remove all checkpoints of the stage."""
        self._driver.delete_folder(f"{ROOM}/{self.key}")

    def _publish(self, name: str, staged: Path, manifest: Manifest) -> None:
        self.guard()
        # Room is made first, so that there are never three. Those of a later step were found unusable.
        others = self._visible() - {name}
        before = max((one for one in others if _step(one) <= _step(name)), default=None)
        self._drop_all_but({before, name})
        self._driver.put_folder(self._prefix(name), staged, manifest, force=False)
        self.guard()
        said = self.store.signer.envelope(_statement(self._predicate(name, manifest)))
        self._driver.put_bytes(f"{self._prefix(name)}.json", said)
        if before is not None and _step(before) == _step(name):
            with suppress(Transient, Unreachable):
                self._drop_all_but({name})

    def _visible(self) -> set[str]:
        return {name for name, is_manifest in self._listed() if is_manifest}

    def _listed(self) -> Iterator[tuple[str, bool]]:
        """Yield for each object the name of its checkpoint, and whether it is the manifest."""
        top = f"{ROOM}/{self.key}/"
        for key in self._driver.list(top):
            if not keys.is_stray(key):
                name, _, path = key.removeprefix(top).partition("/")
                yield name.removesuffix(".json"), not path

    def _drop_all_but(self, kept: set[str | None]) -> None:
        for name in sorted({name for name, _ in self._listed()} - kept):
            self._driver.delete(f"{self._prefix(name)}.json")
            self._driver.delete_folder(self._prefix(name))

    def _manifest(self, name: str) -> Manifest:
        """Return the manifest of a checkpoint, if it is this stage's and counts."""
        signer, what = self.store.signer, f"manifest of checkpoint {name}"
        data = self._driver.get_bytes(f"{self._prefix(name)}.json")
        if data is None:
            raise VerificationFailed("it was removed meanwhile")
        try:
            opened = signer.open(data, what)
            predicate = opened.statement["predicate"]
            manifest = Manifest.model_validate(predicate["manifest"])
            sound = opened.statement == _statement(self._predicate(name, manifest))
        except (ValidationError, KeyError, TypeError) as error:
            raise VerificationFailed(f"the {what} is damaged ({type(error).__name__})") from error
        if not sound:
            raise VerificationFailed(f"the {what} is that of another checkpoint")
        # What is trained further from it is signed in the end, so it has to be signed itself.
        if (signer.required or signer.signs) and not opened.signed_by:
            raise VerificationFailed(f"the {what} has no signature that counts")
        return manifest

    @contextmanager
    def _local(self, name: str, manifest: Manifest) -> Iterator[Path]:
        own = self._driver.folder(self._prefix(name))
        if own is not None:
            try:
                there = scan(own)
            except (BadInput, OSError) as error:
                raise VerificationFailed(str(error)) from error
            if there != manifest:
                raise VerificationFailed("its files are not those that were saved")
            yield own
            return
        with self.store.workdir() as folder:
            try:
                download(self._driver, self._prefix(name), manifest, folder)
            except FileNotFoundError as error:
                raise VerificationFailed(f"{error} is missing") from error
            yield folder

    def _predicate(self, name: str, manifest: Manifest) -> dict[str, Any]:
        return {"stage": self.key, "name": name, "manifest": manifest.model_dump(mode="json")}

    def _prefix(self, name: str) -> str:
        return f"{ROOM}/{self.key}/{name}"

    def _uri(self, name: str) -> str:
        return self._driver.uri(self._prefix(name))


def _step(name: str) -> int:
    return int(name.partition("-")[0])


def _statement(predicate: dict[str, Any]) -> dict[str, Any]:
    """Return an in-toto statement about the checkpoint, whose subject is the hash of its predicate."""
    digest = {"sha256": sha256_hex(canonical_json(predicate))}
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": f"checkpoint:{predicate['stage']}", "digest": digest}],
        "predicateType": PREDICATE,
        "predicate": predicate,
    }


def _require_plain(folder: Path) -> None:
    """BadInput where a file is neither safetensors nor JSON, by its name or by its bytes: no code at rest."""
    found = list(walk(folder))
    if not found:
        raise BadInput(f"{folder} holds no file; a checkpoint needs at least one")
    for path, full in found:
        try:
            if full.suffix == ".safetensors":
                safetensors_header(full)
            elif full.suffix == ".json":
                parse_json(full.read_bytes(), path)
            else:
                raise DamagedJson(f"{path} has another name")
        except DamagedJson as error:
            raise BadInput(
                f"{path} cannot be part of a checkpoint: it is neither a safetensors file nor JSON under "
                "the name that says so; a checkpoint holds those alone, since anything else could hold code"
            ) from error


def _empty(folder: Path) -> None:
    with suppress(FileNotFoundError):
        for one in folder.iterdir():
            if one.is_dir() and not one.is_symlink():
                shutil.rmtree(one)
            else:
                one.unlink()
