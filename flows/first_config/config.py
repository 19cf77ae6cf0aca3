"""Make a whole run config for a model and the files that there are, each choice with its reason."""

from __future__ import annotations

import os
import re
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from resprout.configs.load import home_of, load_data, load_infra, parsed
from resprout.configs.schema import QUANTIZED, SOURCE_FILE
from resprout.flows import preflight
from resprout.flows.check import check
from resprout.flows.first_config import texts
from resprout.flows.first_config.data import Found, look_at_both, look_at_pool, look_at_text
from resprout.flows.first_config.goal import Goal, of_file
from resprout.flows.first_config.model import ModelLook, look_at_model
from resprout.flows.first_config.pruning import choose_pruning
from resprout.flows.first_config.recovery import recovery
from resprout.flows.first_config.section import Written
from resprout.flows.validate import probe, require_registry
from resprout.infra.environment import set_variables
from resprout.infra.mlflow.tracking import Tracker
from resprout.tasks.acquire.source import Context, scheme_of
from resprout.tasks.acquire.sources.local import files_at, is_pattern
from resprout.tasks.quantize.formats.gguf import Gguf

TEMPLATE = "config.yaml.j2"
WIDTH = 110
PROMPT_TOKENS, ANSWER_TOKENS = 512, 32
"""The defaults of `measure`, where the model has as many positions."""
BOUNDS = {"max_perplexity_ratio": 2.0, "max_file_ratio": 1.0}
GATE = (
    "a run whose perplexity is more than this many times the dense model's is not registered and exits with "
    "3; set what you accept"
)


@dataclass(frozen=True)
class Draft:
    """The config as YAML, its sections with their reasons, and the key that is left to the user, if any."""

    text: str
    sections: Sequence[Written]
    missing: str = ""


def draft(
    model: str,
    text: str | None,
    pools: Sequence[str],
    goal: Goal | None,
    output: Path,
    allow_pickle: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> Draft:
    """The config that would be written to `output`; relative paths are read from the current folder.

    It is checked as `resprout validate` does, unless there is no text to evaluate with.

    Raises:
        BadInput: model or file is not there or cannot be used, or the model cannot reach the goal.
    """
    base = output.resolve().parent
    infra, _ = load_infra(None, environ)
    home = home_of(infra, base, environ)
    set_variables(infra, home)
    here = Context(home, base, (home / "packages",), infra.store, Tracker(infra.mlflow, home).uri)
    source = _seen_from(base, model)
    text_at = _seen_from(base, text) if text is not None else None
    pools_at = [_seen_from(base, one) for one in pools]
    require_registry(source, infra, home)
    seen = look_at_model(source, here, allow_pickle)
    dtype, why_dtype = _dtype(seen, goal)
    file = _file(seen)
    asked = goal if goal is None or not file else of_file(goal, seen.gguf_type or "", seen.bytes, seen.shape)
    pruning = choose_pruning(seen.shape, asked, dtype)
    rows: list[Found] = []
    found: texts.Texts | None
    if text_at is not None:
        found = texts.divided([look_at_text(text_at, here)], seen)
        rows = [look_at_pool(one, here) for one in pools_at]
    elif pools_at:
        both = [look_at_both(one, here) for one in pools_at]
        held = found = texts.divided([documents for _, documents in both], seen)
        rows = [one.restricted(held.calibration) for one, _ in both]
    else:
        found = texts.shipped(here)
    slug = re.sub(r"[^A-Za-z0-9._]+", "-", seen.name).strip("-._")[:100] or "model"
    sections = [
        _model(source, seen, dtype, why_dtype, allow_pickle),
        texts.calibrate(found, seen),
        pruning,
        # Without --text the rows of the pools are the text.
        *recovery(
            rows, found if text_at is not None or not rows else None, seen, dtype, pruning.values["target"]
        ),
        texts.evaluate(found, seen),
        *_measure(seen),
        *file,
        Written("gate", [GATE], {**({"of": file[0].values["formats"][0]} if file else {}), **BOUNDS}),
        Written(
            "register",
            ["what passes the gate becomes a version of this model in MLflow"],
            {"name": f"{slug}-resprout", "alias": "candidate"},
        ),
    ]
    written = _rendered(output, slug, sections)
    if found is not None:
        check(load_data(parsed(written), output, (), environ), probe)
    return Draft(written, sections, "" if found is not None else texts.MISSING)


def _seen_from(base: Path, address: str) -> str:
    """The address in a config in folder `base`, where a relative path begins; given in the current folder."""
    path = Path(address).expanduser()
    there = path.exists() or (is_pattern(address) and bool(files_at(path)))
    if scheme_of(address) != "local" or address.startswith("file:") or path.is_absolute() or not there:
        return address
    return os.path.relpath(path, base) if base != Path.cwd() else address


def _dtype(model: ModelLook, goal: Goal | None) -> tuple[str, str]:
    if goal is not None and goal.key == "bytes":
        return "bfloat16", "dtype bfloat16, because the goal is a size, and a parameter takes two bytes in it"
    if not preflight.slow_in_16_bits("auto"):
        return "bfloat16", "dtype bfloat16, the default"
    memory = psutil.virtual_memory().total
    if model.shape is not None and preflight.two_models(model.shape, "float32") > memory:
        return (
            "bfloat16",
            "dtype bfloat16, because two models in float32 do not fit in the memory of this machine",
        )
    return (
        "float32",
        "dtype float32, because this processor has no instructions for 16 bits and is several times slower "
        "in them",
    )


def _model(source: str, model: ModelLook, dtype: str, why_dtype: str, allow_pickle: bool) -> Written:
    why = [_described(model), why_dtype]
    values: dict[str, Any] = {"source": source, "dtype": dtype}
    if allow_pickle:
        why.append("pickled weights are converted by a weights-only loader in a child process, as you asked")
        values["allow_pickle"] = True
    if model.licence:
        why.append(f"licence {model.licence}: as the source states it; lineage and model card name it")
        values["licence"] = model.licence
    else:
        why.append(
            "no licence: the source states none; add `licence:` here, which lineage and model card then name"
        )
    return Written("model", why, values)


def _described(model: ModelLook) -> str:
    shape = model.shape
    if shape is None:
        return "its widths are not known before it is here"
    embeddings = shape.embedding_params / shape.params
    experts = f", {shape.experts[0]} experts" if shape.experts else ""
    return (
        f"{shape.model_type}: {shape.layers} layers, hidden size {shape.hidden:,}, "
        f"FFN width {max(shape.ffn):,}{experts}, {shape.params / 1e6:,.2f} M parameters "
        f"({embeddings:.0%} embeddings), {shape.max_positions:,} positions"
    )


def _file(model: ModelLook) -> list[Written]:
    """Return the sections `quantize` and `compare` that end with a file as the GGUF file that came in."""
    if model.gguf_type not in Gguf.types:
        return []
    name = f"gguf:{model.gguf_type}"
    return [
        Written("quantize", [f"{name}, the format of the source file"], {"formats": [name]}),
        Written(
            "compare",
            [
                "the source file, and the dense model in this type and the two next smaller ones: whether "
                "pruning or fewer bits wins at the size"
            ],
            {"baselines": [SOURCE_FILE, QUANTIZED]},
        ),
    ]


def _measure(model: ModelLook) -> list[Written]:
    """The section `measure`, left to its defaults where the model has the positions for them."""
    positions = model.shape.max_positions if model.shape is not None else 0
    if not positions or positions >= PROMPT_TOKENS + ANSWER_TOKENS:
        return []
    answer = max(2, min(ANSWER_TOKENS, positions // 4))
    values = {"prefill_tokens": max(8, positions - answer), "decode_tokens": answer}
    return [
        Written(
            "measure", [f"prompt and answer together fit in the {positions} positions of the model"], values
        )
    ]


def _rendered(output: Path, name: str, sections: Sequence[Written]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters.update(yaml=_yaml, comment=_comment)
    return environment.get_template(TEMPLATE).render(
        file=" ".join(shlex.quote(output.name).split()), head={"name": name, "seed": 17}, sections=sections
    )


class _Dumper(yaml.SafeDumper):
    """Writes lists of plain values, and mappings of one, on a line."""

    def represent_sequence(
        self, tag: str, sequence: Any, flow_style: bool | None = None
    ) -> yaml.SequenceNode:
        return super().represent_sequence(tag, sequence, not any(isinstance(one, dict) for one in sequence))

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        short = len(mapping) == 1 and not any(isinstance(one, dict | list) for one in mapping.values())
        return super().represent_mapping(tag, mapping, short)


def _yaml(values: Mapping[str, Any]) -> str:
    """A section, or the keys in front of all, as YAML."""
    options: dict[str, Any] = {"sort_keys": False, "allow_unicode": True, "width": 10**6}
    keys = (
        yaml.dump({key: value}, Dumper=_Dumper, **options)
        if isinstance(value, dict | list)
        else yaml.safe_dump({key: value}, **options)
        for key, value in values.items()
    )
    return "".join(keys).rstrip("\n")


def _comment(text: str, indent: int = 0) -> str:
    """Lines of a comment; whatever a file or model is called, none of it is read as YAML."""
    words = " ".join(text.split())
    first = " " * indent + "# "
    return "\n".join(textwrap.wrap(words, WIDTH, initial_indent=first, subsequent_indent=first + "  "))
