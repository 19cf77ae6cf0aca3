"""Each part of the pruned model comes closer to the dense one's, whatever the family, cut or layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from kept_checkpoints import Kept, Killed, killed_at

from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.schema import PruneConfig, ReconstructConfig, RecoverConfig
from resprout.tasks.core.job import Job, silent
from resprout.tasks.data.template import Encoded
from resprout.tasks.models.anatomy import anatomy
from resprout.tasks.models.families import FAMILIES
from resprout.tasks.models.load import load_model, save_model
from resprout.tasks.models.shape import shape_of
from resprout.tasks.prune.masking import mask, write_masked
from resprout.tasks.prune.plan import write_plan
from resprout.tasks.prune.planning import make_plan
from resprout.tasks.prune.surgery import apply
from resprout.tasks.recover.examples import Examples
from resprout.tasks.recover.methods import reconstruct
from resprout.tasks.recover.methods.reconstruct import parts_of, train
from resprout.tasks.recover.stage import recover
from resprout.tasks.recover.training_data import Recovered, TrainingData
from tiny_models import half_of, layout_for, tiny_model, write_tiny_folder

IDS = torch.arange(4, 68).reshape(4, 16)
READERS = [name for name, family in sorted(FAMILIES.items()) if family.ffn_reader]
FAST = {"learning_rate": 1e-3, "epochs": 8}
Pair = Callable[..., dict[str, Path]]


def rows(count: int = 12, seed: int = 3) -> list[Encoded]:
    """Rows of 5 to 25 random tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(5, 26, (count,), generator=generator).tolist()
    ids = [torch.randint(4, 256, (length,), generator=generator).tolist() for length in lengths]
    return [Encoded(each[:2], each[2:]) for each in ids]


def data() -> TrainingData:
    return TrainingData(Examples.written([("rows", rows())]), [[0]], 0, 1, [])


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    """Folders of a tiny dense model, of its pruned form and of the plan between them."""

    def make(
        family: str = "llama",
        units: tuple[str, ...] = ("ffn",),
        masked: bool = False,
        widths: dict[str, Any] | None = None,
        **prune: Any,
    ) -> dict[str, Path]:
        sizes = {"num_hidden_layers": 3, **(widths or {})}
        write_tiny_folder(tmp_path / "dense", family, **sizes)
        model: Any = tiny_model(family, **sizes)
        depth = units[0] in ("layers", "sublayers")
        given = {
            "method": "random", "units": list(units), "target": half_of(units[0], model), "round_to": 1,
            "repair": "none", **({} if depth else layout_for(family, units)), **prune,
        }  # fmt: skip
        plan, _ = make_plan(model, PruneConfig.model_validate(given), IDS)
        for name in ("pruned", "plan"):
            (tmp_path / name).mkdir()
        columns = mask(model, plan) if masked else apply(model, plan)
        save_model(model, tmp_path / "pruned", tokenizer_from=tmp_path / "dense")
        if masked:
            write_masked(columns or {}, tmp_path / "pruned")
        write_plan(plan, tmp_path / "plan")
        return {name: tmp_path / name for name in ("dense", "pruned", "plan")}

    return make


def run(folders: dict[str, Path], dtype: str = "float32", **settings: Any) -> Recovered:
    config = RecoverConfig(method="reconstruct", reconstruct=ReconstructConfig(**settings))
    with torch.enable_grad():
        return train(Job(config, dtype=dtype), folders, data(), silent)


def loaded(recovered: Recovered, inputs: dict[str, Path], folder: Path) -> Any:
    """The recovered model, through its files where it was not in memory."""
    if next(anatomy(recovered.model).layers[0].module.parameters()).is_meta:
        save_model(recovered.model, folder, inputs["pruned"])
        return load_model(folder, "float32", "cpu")
    return recovered.model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_comes_closer(family: str, dtype: str, pair: Pair, tmp_path: Path) -> None:
    """The error of nearly every part falls, of none it rises; all else keeps its bits and shapes."""
    inputs = pair(family, ("experts",) if "experts" in FAMILIES[family].units else ("ffn",))
    result = run(inputs, dtype, **FAST)
    for entry in result.history:
        assert entry["error_after"] <= entry["error_before"]
    cut = [one for one in result.history if one["error_before"] > 0]
    assert len(cut) >= 3
    assert all(one["error_after"] < 0.97 * one["error_before"] for one in cut)
    before: Any = load_model(inputs["pruned"], dtype, "cpu")
    after = loaded(result, inputs, tmp_path / "out").to(getattr(torch, dtype))
    assert shape_of(after.config.to_dict()).sizes(dtype) == shape_of(before.config.to_dict()).sizes(dtype)
    outside = {name for name, _ in shape_of(inputs["pruned"]).tensors() if ".layers." not in name}
    outside = {name for name in outside if ".h." not in name}
    for name, one in before.named_parameters():
        assert after.get_parameter(name).shape == one.shape
        if name in outside:
            assert torch.equal(after.get_parameter(name), one), name


@pytest.mark.parametrize("inputs_of", ["dense", "pruned"])
@pytest.mark.parametrize("family", READERS)
def test_closed_form_changes_readers_alone(family: str, inputs_of: str, pair: Pair, tmp_path: Path) -> None:
    units = tuple(unit for unit in ("ffn", "kv_groups") if unit in FAMILIES[family].units)
    inputs = pair(family, units)
    result = run(inputs, solver="closed_form", inputs=inputs_of, ridge=1e-4)
    assert result.metrics["reconstruction_error_after"] < 0.9 * result.metrics["reconstruction_error_before"]
    before: Any = load_model(inputs["pruned"], "float32", "cpu")
    after = loaded(result, inputs, tmp_path / "out")
    changed = {
        name for name, one in before.named_parameters() if not torch.equal(one, after.get_parameter(name))
    }
    shape = shape_of(inputs["pruned"])
    readers = (shape.family.attention_reader, shape.family.ffn_reader)
    assert changed
    assert all(name.endswith(tuple(f"{one}.weight" for one in readers)) for name in changed)


def test_closed_form_is_least_squares(pair: Pair) -> None:
    """By hand: the first FFN's last matrix on real tokens alone, whatever the rows are padded to."""
    inputs = pair("llama", ("ffn",))
    found = [
        run(inputs, solver="closed_form", ridge=1e-6, memory="whole", batch_rows=size).model.model.layers[0]
        for size in (1, 5)
    ]
    torch.testing.assert_close(
        found[0].mlp.down_proj.weight, found[1].mlp.down_proj.weight, rtol=1e-3, atol=1e-3
    )
    models: list[Any] = [load_model(inputs[name], "float32", "cpu") for name in ("dense", "pruned")]
    dense, pruned = (model.model.layers[0] for model in models)
    features, outputs = [], []
    for row in rows():
        states = []
        hook = dense.post_attention_layernorm.register_forward_hook(
            lambda module, given, out, states=states: states.append((given[0], out))
        )
        with torch.no_grad():
            models[0](torch.tensor([row.prompt_ids + row.response_ids]))
        hook.remove()
        ((middle, normed),) = states
        outputs.append(dense.mlp(normed)[0].detach())
        kept = pruned.post_attention_layernorm(middle)
        features.append(
            (pruned.mlp.act_fn(pruned.mlp.gate_proj(kept)) * pruned.mlp.up_proj(kept))[0].detach()
        )
    x, y = torch.cat(features).double(), torch.cat(outputs).double()
    expected = torch.linalg.lstsq(x, y).solution.T
    torch.testing.assert_close(found[0].mlp.down_proj.weight.double(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("solver", ["gradient", "closed_form"])
@pytest.mark.parametrize("inputs_of", ["dense", "pruned"])
def test_streamed_bytes_are_those_of_whole_models(
    solver: str, inputs_of: str, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = pair("llama", ("ffn", "kv_groups"), layout="per_layer", allocator="global_standardised",
                  method="wanda_sp")  # fmt: skip
    settings = {"solver": solver, "inputs": inputs_of, **FAST}
    whole = run(inputs, memory="whole", **settings)
    save_model(whole.model, tmp_path / "whole", inputs["pruned"])
    monkeypatch.setattr("resprout.tasks.models.forward.ACTIVATION_BYTES", 5000)
    streamed = run(inputs, memory="stream", **settings)
    save_model(streamed.model, tmp_path / "stream", inputs["pruned"])
    assert streamed.history == whole.history
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "stream" / path.name).read_bytes() == path.read_bytes(), path.name


def test_one_layer_of_each_model_is_in_memory(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = pair("llama", ("ffn",), widths={"num_hidden_layers": 5})
    counts: list[tuple[int, int]] = []
    models: list[Any] = []
    opened, done = reconstruct._opened, reconstruct._Work.done

    def watched_opened(*given: Any) -> Any:
        models.append(opened(*given))
        return models[-1]

    def watched_done(self: Any) -> Any:
        entry = done(self)
        layers = [[layer.module for layer in anatomy(model).layers] for model in models]
        there = [sum(not next(one.parameters()).is_meta for one in each) for each in layers]
        counts.append((there[0], there[1]))
        return entry

    monkeypatch.setattr(reconstruct, "_opened", watched_opened)
    monkeypatch.setattr(reconstruct._Work, "done", watched_done)
    run(inputs, memory="stream")
    assert counts == [(1, 1)] * 10
    assert all(next(layer.module.parameters()).is_meta for layer in anatomy(models[1]).layers)


@pytest.mark.parametrize("masked_units", [("ffn",), ("ffn", "kv_groups")])
@pytest.mark.parametrize("solver", ["gradient", "closed_form"])
def test_masked_columns_stay_zero(
    solver: str, masked_units: tuple[str, ...], pair: Pair, tmp_path: Path
) -> None:
    inputs = pair("llama", masked_units, masked=True)
    result = run(inputs, solver=solver, **FAST)
    after = loaded(result, inputs, tmp_path / "out")
    columns = json.loads((inputs["pruned"] / "masked.json").read_text())
    assert columns
    for name, (dim, index) in columns.items():
        weight = after.get_parameter(name)
        assert not weight.index_select(dim, torch.tensor(index)).any()
        assert weight.abs().sum() > 0
    assert result.metrics["reconstruction_error_after"] < result.metrics["reconstruction_error_before"]


@pytest.mark.parametrize("units", ["layers", "sublayers"])
@pytest.mark.parametrize("granularity", ["sublayers", "block"])
def test_what_is_left_stands_for_what_is_removed(
    units: str, granularity: str, pair: Pair, tmp_path: Path
) -> None:
    """Layers that stay whole have an error, since they are to give what those behind them gave."""
    inputs = pair("llama", (units,), widths={"num_hidden_layers": 6})
    result = run(inputs, granularity=granularity, **FAST)
    cut = [one for one in result.history if one["error_before"] > 0.01]
    assert cut
    assert all(one["error_after"] < one["error_before"] for one in cut)
    whole = [one for one in result.history if one["error_before"] == 0]
    assert all(one["error_after"] == 0 for one in whole)
    (tmp_path / "plan" / "plan.json").unlink()
    if units == "layers":
        with pytest.raises(
            BadInput, match=r"has 3 of 6 layers and there is no plan, so that .* give the plan"
        ):
            run(inputs)


def test_parts_by_hand() -> None:
    """Six layers of which 1, 2 and 5 stay: places 2 l and 2 l + 1 are in front of attention and FFN of l."""
    shape = shape_of(tiny_model("llama", num_hidden_layers=3).config.to_dict())
    apart = parts_of(shape, [1, 2, 5], 6, ReconstructConfig())
    assert [(one.begin, one.until) for one in apart] == [(0, 3), (3, 4), (4, 5), (5, 10), (10, 11), (11, 12)]
    whole = parts_of(shape, [1, 2, 5], 6, ReconstructConfig(granularity="block"))
    assert [(one.layer, one.begin, one.until) for one in whole] == [(0, 0, 4), (1, 4, 10), (2, 10, 12)]
    solved = parts_of(shape, [1, 2, 5], 6, ReconstructConfig(solver="closed_form"))
    assert [(one.begin, one.until) for one in solved] == [(2, 3), (3, 4), (4, 5), (5, 6), (10, 11), (11, 12)]
    neox = shape_of(tiny_model("gpt_neox", num_hidden_layers=3).config.to_dict())
    assert parts_of(neox, [0, 1, 2], 3, ReconstructConfig())[1].sublayers == ("attention", "ffn")


def test_an_uncut_model_is_left_as_it_is(pair: Pair) -> None:
    inputs = pair("llama")
    result = run({**inputs, "pruned": inputs["dense"]}, **FAST)
    assert {entry["error_before"] for entry in result.history} == {0.0}
    assert result.metrics["recovery_parts_unchanged"] == 6


def test_weights_that_are_worse_are_not_kept(pair: Pair, tmp_path: Path) -> None:
    inputs = pair("llama")
    result = run(inputs, learning_rate=3.0)
    assert result.metrics["recovery_parts_unchanged"] == 6
    after = loaded(result, inputs, tmp_path / "out")
    before: Any = load_model(inputs["pruned"], "float32", "cpu")
    assert all(torch.equal(one, after.get_parameter(name)) for name, one in before.named_parameters())


def test_through_the_stage(pair: Pair, models_folder: Path, write_selection: Any, tmp_path: Path) -> None:
    """A plain model folder, an entry a part, no adapter; equal bytes again, others with another seed."""
    found = []
    for number, seed in enumerate((17, 17, 18)):
        inputs = {name: models_folder / name for name in ("dense", "pruned")}
        inputs["selection"] = write_selection()
        folder = tmp_path / f"out{number}"
        folder.mkdir()
        config = RecoverConfig(method="reconstruct", reconstruct=ReconstructConfig(samples=9, **FAST))
        recover.body(Job(config, seed=seed, dtype="float32"), inputs, folder, silent)
        assert sorted(path.name for path in folder.iterdir()) == ["history.jsonl", "metrics.json", "model"]
        found.append({str(one.relative_to(folder)): one.read_bytes() for one in folder.rglob("*.*")})
    assert found[0] == found[1] != found[2]
    history = [json.loads(line) for line in (tmp_path / "out0" / "history.jsonl").read_text().splitlines()]
    assert [(entry["step"], entry["layer"]) for entry in history] == [(1, 0), (2, 0), (3, 1), (4, 1)]
    assert json.loads((tmp_path / "out0" / "metrics.json").read_text())["recovery_rows"] == 9
    assert json.loads((tmp_path / "out0" / "metrics.json").read_text())["recovery_parts"] == 4


@pytest.mark.parametrize(
    "settings", [{}, {"inputs": "pruned"}, {"solver": "closed_form"}, {"memory": "whole"}]
)
def test_it_goes_on_from_the_part_at_which_it_was_killed(
    settings: dict[str, Any], pair: Pair, tmp_path: Path
) -> None:
    """Killed behind the second and the fourth of six parts: the same entries and weights as undisturbed."""
    inputs, kept, found = pair("llama"), Kept(tmp_path / "kept"), []
    given = ReconstructConfig(**{"solver": "gradient", **FAST, **settings})
    config = RecoverConfig(method="reconstruct", reconstruct=given, checkpoint_minutes=1e-9)
    for number, (ends, checkpoints) in enumerate(((0, None), (2, kept), (4, kept), (0, kept))):
        job = Job(config, dtype="float32", checkpoints=checkpoints)
        if ends:
            with torch.enable_grad(), pytest.raises(Killed):
                train(job, inputs, data(), killed_at(ends))
            continue
        with torch.enable_grad():
            recovered = train(job, inputs, data(), silent)
        found.append((recovered.history, loaded(recovered, inputs, tmp_path / f"out{number}").state_dict()))
    assert kept.steps == [1, 2, 3, 4, 5]
    (history, weights), (again, others) = found
    assert history == again
    assert all(torch.equal(each, others[name]) for name, each in weights.items())


def test_a_checkpoint_of_other_parts_is_refused(pair: Pair, tmp_path: Path) -> None:
    inputs, kept = pair("llama"), Kept(tmp_path / "kept")
    config = RecoverConfig(method="reconstruct", checkpoint_minutes=1e-9)
    with torch.enable_grad(), pytest.raises(Killed):
        train(Job(config, dtype="float32", checkpoints=kept), inputs, data(), killed_at(2))
    config = RecoverConfig(method="reconstruct", reconstruct=ReconstructConfig(granularity="block"))
    with pytest.raises(BadInput, match="of a reconstruction in 6 parts, not in 3"):
        train(Job(config, dtype="float32", checkpoints=kept), inputs, data(), silent)


def test_files_of_other_names_are_read_too(pair: Pair) -> None:
    assert run(pair("gpt_neox")).metrics["recovery_parts"] == 3


def test_what_cannot_be_reconstructed(pair: Pair, tmp_path: Path) -> None:
    inputs = pair("llama")
    write_tiny_folder(tmp_path / "narrow", "llama", hidden_size=32)
    with pytest.raises(
        BadInput, match="compares hidden states, but the dense model is llama of hidden size 64"
    ):
        run({**inputs, "pruned": tmp_path / "narrow"})
    with pytest.raises(BadInput, match=r"float16 on a CPU; set model\.dtype: bfloat16"):
        run(inputs, dtype="float16")
    broken: Any = load_model(inputs["pruned"], "float32", "cpu")
    broken.model.layers[1].mlp.up_proj.weight.data[3] = float("nan")
    save_model(broken, tmp_path / "broken", inputs["dense"])
    with pytest.raises(StageFailed, match=r"the error of layer 1 is not finite .*reconstruct\.learning_rate"):
        run({**inputs, "pruned": tmp_path / "broken"})
