"""The pruning plan: the units each layer keeps, sizes asked for and reached; imports no torch."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from resprout.configs.errors import BadInput
from resprout.tasks.models.size import Shape, Sizes

PLAN_FILE = "plan.json"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Size(_Strict):
    """Unique parameters, those outside embeddings and head, and bytes of the weights."""

    params: int
    non_embedding_params: int
    bytes: int

    @classmethod
    def of(cls, sizes: Sizes) -> Size:
        return cls(**asdict(sizes))


class LayerPlan(_Strict):
    """Kept units of one layer, ascending indices into the uncut layer."""

    ffn: tuple[int, ...]
    kv_groups: tuple[int, ...]


class Plan(_Strict):
    """Everything that `apply` needs, and what led to it."""

    schema_version: Literal[1] = 1
    model_type: str
    criterion: str
    allocator: str
    repair: str
    units: tuple[Literal["ffn", "kv_groups"], ...]
    layout: Literal["uniform", "per_layer"]
    round_to: int
    dtype: str
    dense: Size
    requested: Size
    reached: Size
    warnings: tuple[str, ...] = ()
    layers: tuple[LayerPlan, ...]

    def shape(self, dense: Shape) -> Shape:
        """The widths of the pruned model, given those of the model the plan was made for."""
        return replace(
            dense,
            ffn=tuple(len(layer.ffn) for layer in self.layers),
            kv_heads=tuple(len(layer.kv_groups) for layer in self.layers),
        )

    def check_fits(self, dense: Shape) -> None:
        """Raise BadInput unless the plan was made for a model of this shape."""
        made_for = (self.model_type, len(self.layers), self.dense.params)
        given = (dense.model_type, dense.layers, dense.params)
        if made_for != given:
            raise BadInput(
                "the plan was made for a {} model of {} layers and {} parameters, but the model given is "
                "{} of {} "
                "layers and {} parameters; make a plan for this model".format(*made_for, *given)
            )
        for index, layer in enumerate(self.layers):
            for kind, kept, width in (
                ("ffn", layer.ffn, dense.ffn[index]),
                ("kv_groups", layer.kv_groups, dense.kv_heads[index]),
            ):
                if list(kept) != sorted(set(kept)) or not kept or kept[0] < 0 or kept[-1] >= width:
                    raise BadInput(
                        f"plan.json keeps {kind} {list(kept[:3])}... in layer {index}; give ascending "
                        f"indices from 0 to {width - 1}, each once and at least one"
                    )


def write_plan(plan: Plan, folder: Path) -> None:
    """Write plan.json to `folder`."""
    text = json.dumps(plan.model_dump(mode="json"), sort_keys=True, indent=1)
    (folder / PLAN_FILE).write_text(text + "\n", encoding="utf-8")


def read_plan(folder: Path) -> Plan:
    """The plan in `folder`; a missing or broken one raises BadInput."""
    path = folder / PLAN_FILE
    try:
        return Plan.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        raise BadInput(f"{path} is no readable pruning plan: {error}") from error
