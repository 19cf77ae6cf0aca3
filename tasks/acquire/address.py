"""Pinning and fetching by the scheme of a source's address."""

from __future__ import annotations

import re
from pathlib import Path

from resprout.configs.errors import BadInput
from resprout.infra.store.filesystem import unsafe
from resprout.tasks.acquire.pinned import Context, OnThisMachine, Pinned, Source, Wanted
from resprout.tasks.acquire.registry import SOURCES

_SCHEME = re.compile(r"([a-z][a-z0-9+-]*):/")


def scheme_of(address: str) -> str:
    """The registered scheme of an address; a path has `local`, an unknown scheme raises BadInput."""
    if not address.strip():
        raise BadInput("the source is empty; give a path or an address such as hf://org/name@revision")
    found = _SCHEME.match(address)
    name = found[1] if found else "local"
    return "local" if name == "file" else SOURCES.entry(name).name


def pin(address: str, wanted: Wanted, context: Context) -> Pinned:
    """The source behind `address`, resolved to exact content.

    Raises:
        BadInput: there is no such thing, it is not what is wanted, or access is refused.
        Transient: the place cannot be reached now.
    """
    pinned = _source(scheme_of(address)).pin(address, wanted, context)
    for file in pinned.files:
        # Whatever a server lists becomes a path here.
        if reason := unsafe(file.path):
            raise BadInput(
                f"'{address}' lists the file '{file.path[:200]}', which is no safe path: it {reason}"
            )
    return pinned


def locate(address: str, context: Context) -> Path | None:
    """Where the source lies on this machine, None where it lies elsewhere; hashes and fetches nothing.

    Raises:
        BadInput: the address is of this machine, and there is no such thing.
    """
    source = _source(scheme_of(address))
    return source.locate(address, context) if isinstance(source, OnThisMachine) else None


def fetch(pinned: Pinned, context: Context, scratch: Path) -> dict[str, Path]:
    """A local file for each path of the pinned source; what is remote is brought into `scratch`."""
    return _source(pinned.scheme).fetch(pinned, context, scratch)


def _source(scheme: str) -> Source:
    return SOURCES.get(scheme)()
