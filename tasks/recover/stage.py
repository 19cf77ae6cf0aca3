"""Stage `recover`: the pruned model trained on the selected rows.

Inputs: `pruned`, `selection` (selected.jsonl, summary.json) and, where distill_weight is above 0, `dense`.

Content: `model/` (a plain model folder), history.jsonl (one line a step), metrics.json; `adapter/` for peft
where the model is the pruned one with an adapter merged into it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resprout.configs.errors import BadInput
from resprout.configs.schema import RecoverConfig
from resprout.tasks.core.job import Job, Progress
from resprout.tasks.core.methods import Registry
from resprout.tasks.core.stage import CardLine, Model, Reads, Volume, stage

if TYPE_CHECKING:
    from resprout.tasks.recover.training_data import Adapter, Recovered, TrainingData

ADAPTER = "adapter"
"""Folder of the adapter that was merged into the model."""
METHODS: Registry[Callable[[Job[RecoverConfig], Mapping[str, Path], TrainingData, Progress], Recovered]] = (
    Registry("recovery method", "resprout.tasks.recover.methods", function="train")
)


def modules(config: RecoverConfig) -> list[str]:
    """The module of the method that the section selects."""
    return [METHODS.entry(config.method).module]


def distils(config: RecoverConfig) -> bool:
    """Whether training uses the dense model."""
    return config.distill_weight > 0


def params(config: RecoverConfig) -> dict[str, Any]:
    """Settings by which people compare runs."""
    adapters = {"rank": config.rank, "alpha": config.alpha} if config.method == "lora" else {}
    return {
        "recovery": config.method,
        **adapters,
        "learning_rate": config.learning_rate,
        "epochs": config.epochs,
        "batch_tokens": config.batch_tokens,
        "distill_weight": config.distill_weight,
    }


def card(config: RecoverConfig) -> CardLine:
    """The method, which hubs find by a tag too."""
    return CardLine(f"; then recovery by {config.method}", tag=config.method)


def check(config: RecoverConfig, base: Path) -> None:
    """BadInput for a method that is not there."""
    METHODS.entry(config.method)


def tokens(config: Mapping[str, Any], volume: Volume) -> float | None:
    """Bytes of the rows, with which their tokens grow, in all epochs."""
    return config["epochs"] * volume.rows_bytes if volume.rows_bytes else None


@stage(
    "recover",
    kind="recovery",
    section="recover",
    reads={
        "pruned": Reads("model", of="model"),
        "selection": Reads("data"),
        "dense": Reads("model", of="source", where=distils),
    },
    gives="recovery",
    leaves=Model("recovered", folder="model"),
    weights=True,
    reported=True,
    tagged=True,
    libraries=("torch", "transformers", "tokenizers", "peft", "accelerate", "numpy"),
    methods=modules,
    seeded=True,
    params=params,
    card=card,
    checks={"recover.method": check},
    tokens=tokens,
)
def recover(job: Job[RecoverConfig], inputs: Mapping[str, Path], workdir: Path, progress: Progress) -> None:
    """Write the recovered model and how training went."""
    from resprout.tasks.models.load import save_model
    from resprout.tasks.recover.training_data import prepare

    if job.config.distill_weight > 0 and "dense" not in inputs:
        raise BadInput(
            f"recover.distill_weight is {job.config.distill_weight} but there is no dense model to distil "
            "from; give the stage `dense`, or set distill_weight: 0"
        )
    data = prepare(job.config, inputs, job.seed, job.trust_remote_code)
    recovered = METHODS.get(job.config.method)(job, inputs, data, progress)
    save_model(recovered.model, workdir / "model", tokenizer_from=inputs["pruned"])
    if recovered.adapter is not None:
        write_adapter(recovered.adapter, workdir / ADAPTER)
    with (workdir / "history.jsonl").open("w", encoding="utf-8") as file:
        for entry in recovered.history:
            file.write(json.dumps(entry, sort_keys=True) + "\n")
    text = json.dumps(recovered.metrics, indent=1, sort_keys=True)
    (workdir / "metrics.json").write_text(text + "\n", encoding="utf-8")


def write_adapter(adapter: Adapter, folder: Path) -> None:
    """Write the folder that peft loads onto the pruned model."""
    from safetensors.torch import save_file

    folder.mkdir()
    save_file(adapter.tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    text = json.dumps(adapter.config, indent=2, sort_keys=True)
    (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
