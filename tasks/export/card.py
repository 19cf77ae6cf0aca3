"""The model card of an export: README.md with the front matter that model hubs read, and licence files."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from resprout.infra.licences import UNKNOWN, Credit
from resprout.infra.markdown import plain
from resprout.tasks.core.stage import CardLine
from resprout.tasks.prune.plan import Plan

CARD = "README.md"
LICENCE_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "USE_POLICY*")
SOURCE = "source model"
HUB = re.compile(r"^hf://([\w.-]+/[\w.-]+)(?=[/@]|$)")
HUB_DATASET = re.compile(r"^hf-dataset://([\w.-]+/[\w.-]+)(?=[/@#]|$)")
IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def carry_licences(source: Path, folder: Path) -> list[str]:
    """Copy the source model's own licence files into the export; their names, sorted."""
    names = sorted(
        {path.name for pattern in LICENCE_FILES for path in source.glob(pattern) if path.is_file()}
    )
    for name in names:
        shutil.copyfile(source / name, folder / name)
    return names


def card(
    credits: Iterable[Credit],
    plan: Plan,
    lines: Sequence[CardLine],
    licence_files: list[str],
    own_classes: bool = False,
) -> str:
    """The text of README.md; equal facts give equal bytes.

    `lines`: of the stages that made the model. `own_classes`: stock classes cannot load the model.
    """
    listed = list(credits)
    front = front_matter(listed, plan, lines, licence_files)
    text = yaml.safe_dump(front, sort_keys=True, allow_unicode=True)
    body = _body(listed, plan, lines, licence_files, own_classes)
    return f"---\n{text}---\n\n" + "\n".join(body) + "\n"


def front_matter(
    credits: list[Credit], plan: Plan, lines: Sequence[CardLine], licence_files: list[str]
) -> dict[str, Any]:
    """Keys as the hub documents them (huggingface.co/docs/hub/model-cards).

    It looks `base_model` and `datasets` up among its own, so only sources that came from it are named there;
    the card's table has all.
    """
    model = next((credit for credit in credits if credit.role == SOURCE), None)
    front: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["resprout", "pruned", plan.criterion, *(line.tag for line in lines if line.tag)],
        **_licence(model.licence if model else None, licence_files),
    }
    if model is not None and (base := HUB.match(model.name)):
        front["base_model"] = base[1]
    data = {found[1] for one in credits if (found := HUB_DATASET.match(one.name))}
    if data:
        front["datasets"] = sorted(data)
    return front


def _licence(licence: str | None, files: list[str]) -> dict[str, str]:
    """The hub's identifier, or `other` with the licence's own name and file."""
    if licence is None:
        return {"license": UNKNOWN}
    if IDENTIFIER.fullmatch(licence.lower()):
        return {"license": licence.lower()}
    link = {"license_link": _inert(files[0])} if files else {}
    return {"license": "other", "license_name": _inert(licence), **link}


def _inert(text: str) -> str:
    """The text on one line and without HTML: not every page that shows a card takes its front matter out."""
    return re.sub(r"[<>\s]+", " ", text).strip()


def _body(
    credits: list[Credit], plan: Plan, lines: Sequence[CardLine], files: list[str], own_classes: bool
) -> Iterator[str]:
    model = next((credit for credit in credits if credit.role == SOURCE), None)
    kept = 100 * plan.reached.params / plan.dense.params
    name = plain(_short(model.name)) if model else plan.model_type
    listed = ", ".join(f"{name} {value}" for name, value in sorted(plan.allocator_settings.items()))
    settings = f" ({plain(listed)})" if listed else ""
    yield f"# {name}, pruned to {kept:.1f} % of its parameters"
    yield ""
    method = f"{plan.method}, " if plan.method else ""
    yield (
        f"Structured pruning by resprout: {method}criterion {plan.criterion}, allocator {plan.allocator}"
        f"{settings}, repair {plan.repair}, units {', '.join(plan.units)}, layout {plan.layout}"
        f"{''.join(line.text for line in lines)}."
    )
    yield ""
    yield "| | parameters | outside embeddings | bytes |"
    yield "|---|---:|---:|---:|"
    for name, size in (("source model", plan.dense), ("this model", plan.reached)):
        yield f"| {name} | {size.params:,} | {size.non_embedding_params:,} | {size.bytes:,} |"
    yield ""
    widths = sorted({len(layer.ffn) for layer in plan.layers})
    groups = sorted({len(layer.kv_groups) for layer in plan.layers})
    yield (
        f"{len(plan.layers)} layers with {_span(widths)} FFN channels and {_span(groups)} KV groups each, in "
        f"{plan.dtype}."
    )
    yield ""
    if own_classes:
        yield (
            "Stock classes know one width for all layers: call "
            "`resprout.tasks.models.auto.register_layouts()` before `AutoModelForCausalLM.from_pretrained`."
        )
        yield ""
    yield "## What it was made from"
    yield ""
    yield "| part | source | licence |"
    yield "|---|---|---|"
    for credit in credits:
        yield f"| {plain(credit.role)} | {plain(credit.name)} | {plain(credit.shown_licence)} |"
    yield ""
    yield (
        "This model is derived from its source model, so that model's licence binds it; the other licences "
        "bind what they say they bind."
    )
    if files:
        yield f"The source model's own terms lie beside this card: {', '.join(map(plain, files))}."


def _short(name: str) -> str:
    """The last part of an address, without the revision that it was pinned to."""
    found = HUB.match(name)
    return found[1].rpartition("/")[2] if found else name.rstrip("/").rpartition("/")[2] or name


def _span(values: list[int]) -> str:
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"
