"""A file or folder inside an installed Python package, found without importing it."""

from __future__ import annotations

import email
import importlib.util
import re
from pathlib import Path
from typing import Any

from resprout.configs.errors import BadInput
from resprout.infra.store.filesystem import unsafe
from resprout.tasks.acquire.source import Context, Pinned, Wanted
from resprout.tasks.acquire.sources.local import Local, pin_path

_MODULE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Package(Local):
    """package://module/path: pinned like a local path; the distribution and its version go to the record."""

    def locate(self, address: str, context: Context) -> Path:
        """The path inside the package; BadInput where there is no such package or file."""
        module, _, inside = address.removeprefix("package://").partition("/")
        if not _MODULE.fullmatch(module) or unsafe(inside):
            raise BadInput(f"'{address}' is no package address; give package://module/path/to/file")
        roots = package_folders(module, context)
        if not roots:
            searched = ", ".join(["this Python's packages", *map(str, context.package_roots)])
            raise BadInput(f"'{address}': no package '{module}' in {searched}; pip install it")
        path = next((root / inside for root in roots if (root / inside).exists()), None)
        if path is None:
            shipped = sorted(file.name for file in roots[0].iterdir() if not file.name.startswith("_"))
            raise BadInput(
                f"'{address}': package '{module}' has no {inside}; it holds {', '.join(shipped[:8])}"
            )
        return path

    def pin(self, address: str, wanted: Wanted, context: Context) -> Pinned:
        path = self.locate(address, context)
        module, _, inside = address.removeprefix("package://").partition("/")
        about = distribution(module, path)
        pinned = pin_path(
            path,
            wanted,
            context,
            scheme="package",
            uri=address,
            label=f"{module}/{inside}",
            identity={key: value for key, value in about.items() if key != "licence"},
        )
        if pinned.licence is None and about.get("licence"):
            return Pinned(**{**vars(pinned), "licence": about["licence"]})
        return pinned


def package_folders(module: str, context: Context) -> list[Path]:
    """Folders of a top-level package: on sys.path, then under `package_roots`; nothing is imported."""
    found = []
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is not None and spec.submodule_search_locations:
        found += [Path(location) for location in spec.submodule_search_locations]
    found += [root / module for root in context.package_roots]
    return [folder for folder in found if folder.is_dir()]


def distribution(module: str, path: Path) -> dict[str, Any]:
    """Name, version and licence of the distribution whose *.dist-info is beside the package."""
    parents = [parent.parent for parent in path.parents if parent.name == module]
    for info in sorted(parents[0].glob("*.dist-info")) if parents else ():
        name = info.name.removesuffix(".dist-info").rpartition("-")[0]
        top = info / "top_level.txt"
        names = top.read_text(encoding="utf-8").split() if top.is_file() else []
        if module not in names and re.sub(r"[-_.]+", "_", name).lower() != module.lower():
            continue
        metadata = info / "METADATA"
        if metadata.is_file():
            about = email.message_from_string(metadata.read_text(encoding="utf-8", errors="replace"))
            stated = (about["License-Expression"] or about["License"] or "").strip()
            licence = stated if stated and "\n" not in stated else None
            return {"distribution": about["Name"], "version": about["Version"], "licence": licence}
    return {}
