"""The model card of an export: README.md with the front matter that model hubs read, and licence files."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resprout.infra.licences import UNKNOWN, Credit
from resprout.infra.markdown import plain
from resprout.tasks.core.stage import CardLine
from resprout.tasks.export.judged import Metric
from resprout.tasks.prune.plan import Plan

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

CARD = "README.md"
LICENCE_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "USE_POLICY*")
SOURCE = "source model"
HUB = re.compile(r"^hf://([\w.-]+/[\w.-]+)(?=[/@]|$)")
HUB_DATASET = re.compile(r"^hf-dataset://([\w.-]+/[\w.-]+)(?=[/@#]|$)")
OTHER = "other"
IDENTIFIER = re.compile(r"[a-z0-9][a-z0-9.+-]*")


@dataclass(frozen=True)
class Use:
    """How an export is used: the library, lines of Python that load it and ask it, a sentence before them.

    Of a file of few bits `stored` is its format, `bytes` those of its weights, and `evaluated` says whether
    the scores are its own.
    """

    library: str
    lines: Sequence[str]
    note: str = ""
    stored: str = ""
    bytes: int = 0
    evaluated: bool = True


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
    scores: Sequence[Metric],
    use: Use,
) -> str:
    """The text of README.md; equal facts give equal bytes.

    `lines`: of the stages that made the model.
    """
    listed = list(credits)
    front = front_matter(listed, plan, lines, licence_files, scores, use).to_yaml(line_break="\n")
    body = _body(listed, plan, lines, licence_files, scores, use)
    return f"---\n{front}\n---\n\n" + "\n".join(body) + "\n"


def front_matter(
    credits: list[Credit],
    plan: Plan,
    lines: Sequence[CardLine],
    licence_files: list[str],
    scores: Sequence[Metric],
    use: Use,
) -> ModelCardData:
    """Keys as the hub documents them (huggingface.co/docs/hub/model-cards).

    It looks `base_model` and `datasets` up among its own, so only sources that came from it are named there;
    the card's table has all.
    """
    from huggingface_hub import EvalResult, ModelCardData

    model = next((credit for credit in credits if credit.role == SOURCE), None)
    base = HUB.match(model.name) if model is not None else None
    data = {found[1] for one in credits if (found := HUB_DATASET.match(one.name))}
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=_inert(one.data),
            dataset_name=_inert(one.data),
            metric_type={"perplexity": "perplexity", "divergence": "kl_divergence"}.get(one.kind, "accuracy"),
            metric_name=_inert(f"{one.name} ({one.protocol})"),
            metric_value=one.value,
        )
        for one in (scores if use.evaluated else ())
    ]
    return ModelCardData(
        base_model=base[1] if base else None,
        datasets=sorted(data) or None,
        eval_results=results or None,
        library_name=use.library,
        model_name=_inert(f"{_title(model, plan)}-pruned"),
        pipeline_tag="text-generation",
        tags=[
            "resprout",
            "pruned",
            plan.criterion,
            *(line.tag for line in lines if line.tag),
            *([use.stored.partition(":")[0], "quantized"] if use.stored else ()),
        ],
        **_licences(model, credits, licence_files),
    )


def _licences(model: Credit | None, credits: Sequence[Credit], files: list[str]) -> dict[str, Any]:
    """The hub's identifiers of all licences behind the weights, the model's first.

    What the hub has no identifier for is `other`, with the name, and for the model's own with its file; a
    licence of data that nobody stated is left to the card's table.
    """
    stated = [model.licence if model else None]
    stated += [one.licence for one in credits if one is not model and one.licence is not None]
    names = [UNKNOWN if one is None else _identifier(one) for one in stated]
    found: dict[str, Any] = {"license": names[0] if len(set(names)) == 1 else [*dict.fromkeys(names)]}
    if other := [one for one, name in zip(stated, names, strict=True) if one and name == OTHER]:
        found["license_name"] = _inert(other[0])
        if files and names[0] == OTHER:
            found["license_link"] = _inert(files[0])
    return found


def _identifier(licence: str) -> str:
    return licence.lower() if IDENTIFIER.fullmatch(licence.lower()) else OTHER


def _inert(text: str) -> str:
    """The text on one line and without HTML: not every page that shows a card takes its front matter out."""
    return re.sub(r"[<>\s]+", " ", text).strip()


def _body(
    credits: list[Credit],
    plan: Plan,
    lines: Sequence[CardLine],
    files: list[str],
    scores: Sequence[Metric],
    use: Use,
) -> Iterator[str]:
    model = next((credit for credit in credits if credit.role == SOURCE), None)
    kept = 100 * plan.reached.params / plan.dense.params
    name = plain(_title(model, plan))
    listed = ", ".join(f"{name} {value}" for name, value in sorted(plan.allocator_settings.items()))
    settings = f" ({plain(listed)})" if listed else ""
    yield f"# {name}, pruned to {kept:.1f} % of its parameters{f', {use.stored}' if use.stored else ''}"
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
    if use.stored:
        size = plan.reached
        yield f"| stored as {use.stored} | {size.params:,} | {size.non_embedding_params:,} | {use.bytes:,} |"
    yield ""
    widths = sorted({len(layer.ffn) for layer in plan.layers})
    groups = sorted({len(layer.kv_groups) for layer in plan.layers})
    yield (
        f"{len(plan.layers)} layers with {_span(widths)} FFN channels and {_span(groups)} KV groups each, in "
        f"{plan.dtype}{f', stored as {use.stored}' if use.stored else ''}."
    )
    yield ""
    yield "## Use"
    yield ""
    if use.note:
        yield use.note
        yield ""
    # The folder is the current one; whoever is elsewhere puts its path, or a name on a hub, in its place.
    yield from ("```python", *use.lines, "```")
    yield ""
    yield '`"."` is the folder of this card; give its path, or the model\'s name on a hub, from elsewhere.'
    yield ""
    yield (
        "Meant for what the source model is meant for, where its size or speed is in the way, under the same "
        "limits. After pruning nothing was measured but what stands below: not safety, nor other languages, "
        "lengths or tasks."
    )
    yield ""
    if scores:
        yield "## What was lost"
        yield ""
        before = f"before it was stored as {use.stored} (this file was not evaluated)"
        head = "this model" if use.evaluated else before
        yield f"| metric | source model | {head} | change | protocol |"
        yield "|---|---:|---:|---|---|"
        for one in scores:
            yield f"| {plain(one.name)} | {' | '.join(one.shown)} | {one.change} | {one.protocol} |"
        yield ""
        yield (
            "Both models by one evaluator in one run; ± is a standard error. Accuracies differ measurably "
            "where zero is outside the interval of 95 % of their difference. Divergence is KL(source || "
            f"{'this model' if use.evaluated else 'the model before'})."
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


def _title(model: Credit | None, plan: Plan) -> str:
    return _short(model.name) if model else plan.model_type


def _short(name: str) -> str:
    """The last part of an address, without the revision that it was pinned to."""
    found = HUB.match(name)
    return found[1].rpartition("/")[2] if found else name.rstrip("/").rpartition("/")[2] or name


def _span(values: list[int]) -> str:
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"
