"""Open what a config names: rows of its data, the model's tokenizer, sources elsewhere, the store.

What `check` finds is in the config and in headers; this takes seconds and may use the network. No weights are
read and nothing is kept, but for the probe that every run writes into a bucket.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from resprout.configs.errors import BadInput, ResproutError
from resprout.configs.load import Loaded
from resprout.flows.faults import Fault, faults_in
from resprout.flows.first_rows import row_faults
from resprout.flows.inputs import context, is_elsewhere, model_files, named_sources
from resprout.infra.environment import set_variables
from resprout.infra.store.store import ArtifactStore
from resprout.infra.tracking import Tracker
from resprout.tasks.acquire.address import locate, pin, scheme_of
from resprout.tasks.acquire.pinned import Context, Wanted
from resprout.tasks.data.chat import NO_TEMPLATE
from resprout.tasks.models.gguf_header import read_header
from resprout.tasks.models.tokenizer_files import (
    NO_TOKENIZER,
    ChatTemplate,
    chat_template,
    gguf_chat_template,
    gguf_has_tokenizer,
    has_tokenizer,
)


def probe(loaded: Loaded) -> Iterator[Fault]:
    """Each fault in what the config names; that a source is not there is for `check` to say."""
    set_variables(loaded.config.infra, loaded.home)
    select = loaded.config.select
    here = context(loaded, Tracker(loaded.config.infra.mlflow, loaded.home).uri)
    yield from _store(loaded)
    chat: ChatTemplate | None = None
    for key, address, wanted in named_sources(loaded.config):
        if is_elsewhere(address):
            yield from faults_in(key, partial(_resolve, address, wanted, here, loaded))
        elif wanted.purpose != "data":
            files, metadata = _held(address, wanted, here)
            if metadata is not None and not gguf_has_tokenizer(metadata):
                yield key, f"{address} {NO_TOKENIZER}"
            elif files and key == "model.source" and select is not None and select.template == "chat":
                try:
                    chat = chat_template(files) if metadata is None else gguf_chat_template(metadata)
                    if chat is None:
                        yield "select.template", f"{NO_TEMPLATE} ({address})"
                except BadInput as error:
                    yield "select.template", f"{address}: {error}"
    yield from row_faults(loaded, here, chat)


def _store(loaded: Loaded) -> Iterator[Fault]:
    store = loaded.config.infra.store
    yield from faults_in("RESPROUT_HOME", partial(_try_to_write, loaded.home))
    if store.uri is None:
        return
    opened: list[ArtifactStore] = []
    yield from faults_in("infra.store", lambda: opened.append(ArtifactStore.from_config(store, loaded.home)))
    for one in opened:
        folder = one.driver.folder("content")
        write = one.ensure_writable if folder is None else partial(_try_to_write, folder.parent)
        yield from faults_in("infra.store", write)


def _try_to_write(folder: Path) -> None:
    """BadInput where nothing can be written to a folder, or to the one in which it would be made."""
    there = folder
    while not there.exists():
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"probe")
    except OSError as error:
        raise BadInput(
            f"{there} cannot be written ({error.strerror}); make it writable with room on its disk, or give "
            "another folder"
        ) from None


def _resolve(address: str, wanted: Wanted, here: Context, loaded: Loaded) -> None:
    """Raise what is wrong with a source elsewhere: it cannot be reached, or is not what is wanted."""
    own = loaded.home / "mlflow.db"
    if (
        scheme_of(address) == "models"
        and loaded.config.infra.mlflow.tracking_uri is None
        and not own.is_file()
    ):
        raise BadInput(
            f"there is no {address}: nothing is registered in {own} yet; set infra.mlflow.tracking_uri to "
            "the server that holds it"
        )
    names = [file.path for file in pin(address, wanted, here).files]
    if wanted.purpose != "data" and not has_tokenizer(names) and not names[0].endswith(".gguf"):
        raise BadInput(f"{address} {NO_TOKENIZER}")


def _held(address: str, wanted: Wanted, here: Context) -> tuple[dict[str, Path], Mapping[str, Any] | None]:
    """A model's files on this machine, and a GGUF file's metadata; nothing of what cannot be read."""
    try:
        place = locate(address, here)
        files = model_files(address, place, wanted) if place is not None else {}
        name, path = next(iter(files.items()))
        return files, read_header(path)[0] if name.endswith(".gguf") else None
    except ResproutError:
        return {}, None
