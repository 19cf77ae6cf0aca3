"""Checkpoints of every library are known by their config, evaluated and timed as transformers computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from resprout.configs.errors import BadInput
from resprout.configs.schema import EvaluateConfig, MeasureConfig, QuantizeConfig
from resprout.tasks.core.job import Job, silent
from resprout.tasks.evaluate.stage import evaluate
from resprout.tasks.measure.stage import measure
from resprout.tasks.measure.worker import Measured, MeasureRequest
from resprout.tasks.models.shape import read_config, shape_of
from resprout.tasks.packed.checkpoint import LIBRARIES, packed_by, weight_bytes
from resprout.tasks.quantize.stage import Quantization, quantize
from tiny_models import write_tiny_folder
from tiny_run import TWO_CHOICES, words

FORMATS = {"compressed-tensors": "compressed-tensors:W8A16", "torchao": "torchao:INT8"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model, its checkpoints by their libraries, and what an evaluation reads."""
    root = tmp_path_factory.mktemp("packed")
    found = {name: root / name for name in ("text", "task_own", *FORMATS)}
    for folder in found.values():
        folder.mkdir()
    (found["text"] / "text.jsonl").write_text(json.dumps({"text": words(400, 1), "source": "made"}))
    (found["task_own"] / "task.json").write_text(json.dumps(TWO_CHOICES))
    rows = [
        {"question": words(4, i), "a": words(2, i + 1), "b": words(1, i), "label": i % 2} for i in range(9)
    ]
    (found["task_own"] / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    found["dense"] = write_tiny_folder(root / "dense", dtype="bfloat16")
    for library, name in FORMATS.items():
        wanted = Quantization(QuantizeConfig(formats=(name,), rounding="nearest"), name)
        job = Job(wanted, dtype="bfloat16", digests={"model": "m" * 64})
        quantize.body(job, {"model": found["dense"]}, found[library], silent)
    return found


def test_every_library_is_tried_here() -> None:
    assert LIBRARIES.keys() == FORMATS.keys()


@pytest.mark.parametrize("given", [None, [], "torchao", {}, {"quant_method": "gptq"}])
def test_other_configs_are_of_no_library_that_is_known(given: Any) -> None:
    assert packed_by({"quantization_config": given}) is None
    assert packed_by({}) is None


@pytest.mark.parametrize("library", FORMATS)
def test_a_checkpoint_is_evaluated_as_transformers_computes_it(
    library: str, made: dict[str, Path], tmp_path: Path
) -> None:
    config = EvaluateConfig.model_validate(
        {
            "perplexity": {
                "name": "words", "text": [{"source": "x"}], "window_tokens": 32, "kl_tokens": 400,
            },
            "zero_shot": {"tasks": [{"task": "own", "data": {"source": "x"}}], "batch_size": 4},
            "prompts": ["w5 w6"],
        }
    )  # fmt: skip
    scores = {}
    for name in ("dense", library):
        (out := tmp_path / name).mkdir()
        inputs = {role: made[role] for role in ("text", "task_own", "dense")} | {"model": made[name]}
        evaluate.body(Job(config, dtype="bfloat16"), inputs, out, silent)
        scores[name] = json.loads((out / "metrics.json").read_text())
        details = json.loads((out / "details.json").read_text())
    packed, dense = scores[library], scores["dense"]
    assert packed_by(read_config(made[library])) == library
    assert packed["params"] == dense["params"] == shape_of(made["dense"]).params
    assert packed["bytes"] == weight_bytes(made[library])
    assert packed["words_ppl_seq32"] == pytest.approx(dense["words_ppl_seq32"], rel=0.01)
    assert 0 < packed["words_kl_to_dense_seq32"] < 0.01
    assert dense["words_kl_to_dense_seq32"] == 0
    assert len(details["layer_distances"]) == 2
    assert all(0 < one < 0.01 for one in details["layer_distances"])
    assert 0 <= packed["own_acc"] <= 1


@pytest.mark.parametrize("library", FORMATS)
def test_a_checkpoint_is_timed_in_transformers(library: str, made: dict[str, Path]) -> None:
    """By the process of a model that `measure` starts; what it holds is the checkpoint's model."""
    request = MeasureRequest(
        str(made[library]), "bfloat16", "cpu", False, points=[(16, 2, 1)], warmup=1, threads=None
    )
    measured = Measured(request, 0.0)
    ((prefill, decode),), ((again, _),) = measured.times(2).seconds
    assert min(prefill, decode, again) > 0
    weight = measured._model.get_submodule("model.layers.0.mlp.down_proj").weight
    assert type(weight).__name__ == {"torchao": "Int8Tensor"}.get(library, "Parameter")


def test_the_shape_of_a_checkpoint_is_read_where_memory_is_planned(made: dict[str, Path]) -> None:
    config = MeasureConfig(prefill_tokens=250, decode_tokens=20, threads=1)
    for library in FORMATS:
        with pytest.raises(BadInput, match="is 270, but the model takes 256 positions"):
            measure.body(Job(config), {"dense": made[library]}, made[library], silent)
