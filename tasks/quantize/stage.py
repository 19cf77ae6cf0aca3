"""Stage quantize: one file of few bits, made of the final model; the run calls it once for each format.

Inputs: `model`; `plan` where it is a pruned one; `importance`, which a stage of that name makes once for all
of a model's formats, or `calibration`, where the format needs it. Content: a model folder in the format, and
metrics.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resprout.configs.schema import QuantizeConfig
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.core.stage import Reads, calibration_tokens, nothing, stage
from resprout.tasks.models.shape import Shape
from resprout.tasks.quantize.format import FORMATS, Need, format_of, split


@dataclass(frozen=True)
class Quantization:
    """The section, and which of its formats is made."""

    config: QuantizeConfig | None
    format: str
    name: str | None = None
    """Of the model, for the file's own metadata."""
    licence: str | None = None
    """Of the source model."""

    @property
    def needs(self) -> Need:
        """The input beside the model."""
        config = self.config or QuantizeConfig(formats=(self.format,))
        return format_of(self.format).needs(config)

    def key_data(self) -> dict[str, Any]:
        return {"format": self.format, "needs": self.needs, "name": self.name, "licence": self.licence}


def modules(wanted: Quantization) -> list[str]:
    """The module of the format."""
    return [FORMATS.entry(split(wanted.format)[0]).module]


def params(config: QuantizeConfig) -> dict[str, Any]:
    """Settings by which people compare runs."""
    return {"quantized": ", ".join(config.formats)}


def check(config: QuantizeConfig, base: Path) -> None:
    """BadInput for a format or a type that is not there, or that lacks what is needed to write it."""
    for name in config.formats:
        format_of(name).require()


def fits(config: QuantizeConfig, shapes: Mapping[str, Shape]) -> None:
    """BadInput where a format cannot hold the model that pruning leaves."""
    for name in config.formats:
        format_of(name).check(shapes.get("model", shapes["source"]))


@stage(
    "importance",
    kind="importance",
    section="quantize",
    reads={"model": Reads("model"), "calibration": Reads("data")},
    libraries=("torch", "transformers"),
    settings=nothing,
    tokens=calibration_tokens,
)
def importance(
    job: Job[QuantizeConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress
) -> None:
    """Write the mean square of each input channel of the model's matrices, once for all of its formats."""
    from safetensors.torch import load_file, save_file

    from resprout.tasks.models.load import load_for
    from resprout.tasks.quantize.importance import mean_squares

    model = load_for(job, inputs["model"])
    input_ids = load_file(inputs["calibration"] / "calibration.safetensors")["input_ids"].long()
    save_file(mean_squares(model, input_ids), workdir / "importance.safetensors")
    progress(1, 1, "models")


@stage(
    "quantize",
    kind="quantized",
    section="quantize",
    reads={
        "model": Reads("model"),
        "importance": Reads("data", optional=True, where=lambda wanted: wanted.needs == "importance"),
        "calibration": Reads("data", where=lambda wanted: wanted.needs == "calibration"),
        "plan": Reads("plan", optional=True),
    },
    weights=True,
    libraries=("torch", "transformers", "gguf"),
    methods=modules,
    params=params,
    checks={"quantize.formats": check},
    tokens=calibration_tokens,
    fits=fits,
    starts=True,
)
def quantize(job: Job[Quantization], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write the model in the format, judged by what its stock runtime computes of it afterwards."""
    from safetensors.torch import load_file

    from resprout.tasks.models.load import load_for, load_tokenizer

    made = format_of(job.config.format)
    model = load_for(
        job, inputs["model"], resident="" if made.layerwise else f"quantizing to {job.config.format}"
    )
    tokenizer = load_tokenizer(inputs["model"], job.trust_remote_code)
    needs = job.config.needs
    known = load_file(inputs[needs] / f"{needs}.safetensors") if needs else {}
    about = {f"resprout.{role}": job.digests[role] for role in sorted(inputs)}
    for key, value in (("general.name", job.config.name), ("general.license", job.config.licence)):
        if value is not None:
            about[key] = value
    metrics = made.write(model, tokenizer, inputs["model"], workdir, known, about, progress)
    (workdir / "metrics.json").write_text(json.dumps(metrics, indent=1, sort_keys=True) + "\n")
    progress(1, 1, "files")
