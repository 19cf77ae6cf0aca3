from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from resprout.configs.errors import BadInput, StageFailed
from resprout.configs.schema import PartOfRecovery, RecoverConfig
from resprout.tasks.core.job import Job, silent
from resprout.tasks.core.stage import Volume
from resprout.tasks.models.load import load_model, own_generator
from resprout.tasks.recover.methods.full import cast, masters
from resprout.tasks.recover.methods.lora import merge, with_adapters
from resprout.tasks.recover.stage import METHODS, recover, tokens
from resprout.tasks.recover.training import fit
from resprout.tasks.recover.training_data import TrainingData, prepare
from tiny_models import tiny_model

Write = Callable[..., Path]
TRAINED = [entry.name for entry in METHODS if entry.name != "reconstruct"]
"""Methods with a loss on tokens; the other's tests are in test_reconstruct.py."""
IDS = torch.randint(0, 256, (2, 20), generator=torch.Generator().manual_seed(4))


def settings(section: type[RecoverConfig] = RecoverConfig, **changes: Any) -> RecoverConfig:
    return section(**{"batch_tokens": 600, "learning_rate": 5e-3, "rank": 4, **changes})


class Result:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
        self.metrics = json.loads((folder / "metrics.json").read_text())

    def bytes(self) -> dict[str, bytes]:
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files}

    def model(self) -> Any:
        return load_model(self.folder / "model", "float32", "cpu")


@pytest.fixture
def run(tmp_path: Path, models_folder: Path, write_selection: Write) -> Callable[..., Result]:
    number = iter(range(99))

    def call(
        section: type[RecoverConfig] = RecoverConfig,
        dtype: str = "float32",
        seed: int = 17,
        selection: Path | None = None,
        **changes: Any,
    ) -> Result:
        workdir = tmp_path / f"out{next(number)}"
        workdir.mkdir()
        inputs = {"pruned": models_folder / "pruned", "dense": models_folder / "dense"}
        inputs["selection"] = selection or write_selection()
        recover.body(Job(settings(section, **changes), seed=seed, dtype=dtype), inputs, workdir, silent)
        return Result(workdir)

    return call


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", TRAINED)
def test_contract(method: str, dtype: str, run: Callable[..., Result], models_folder: Path) -> None:
    """Every method: a plain changed model of the same dtype and names, an entry a step, equal bytes again."""
    result = run(dtype=dtype, method=method)
    adapter = ["adapter"] if method == "lora" else []
    files = [*adapter, "history.jsonl", "metrics.json", "model"]
    assert sorted(path.name for path in result.folder.iterdir()) == files
    before = load_model(models_folder / "pruned", dtype, "cpu")
    after: Any = load_model(result.folder / "model", dtype, "cpu")
    assert type(after) is type(before)
    assert json.loads((result.folder / "model" / "config.json").read_text())["dtype"] == dtype
    old, new = before.state_dict(), after.state_dict()
    assert list(old) == list(new)
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    around = {name for name in old if "embed" in name or "norm" in name or "lm_head" in name}
    stays = {"lora": around, "perp": {name for name in old if "embed" in name}}.get(method, set())
    assert changed == set(old) - stays
    assert [entry["step"] for entry in result.history] == list(range(1, 6))  # 3000 tokens / 600
    assert result.metrics["recovery_steps"] == 5
    assert all(isinstance(value, (int, float)) and math.isfinite(value) for value in result.metrics.values())
    assert all(math.isfinite(value) for entry in result.history for value in entry.values())
    again = run(dtype=dtype, method=method)
    assert again.bytes() == result.bytes()
    assert run(dtype=dtype, method=method, seed=18).bytes() != result.bytes()


@pytest.mark.parametrize("method", [name for name in TRAINED if name != "distill"])
def test_it_learns_a_toy(method: str, run: Callable[..., Result]) -> None:
    """Twelve rows that all answer 'lalala': the loss falls from ln 258 = 5.6 to a tenth."""
    result = run(method=method, epochs=20, dropout=0.0, learning_rate=1e-2, rank=16)
    assert result.history[0]["loss"] > 5
    assert result.history[-1]["loss"] < 0.5
    assert result.metrics["loss_first"] == result.history[0]["loss"]
    tail = [entry["loss"] for entry in result.history[-10:]]
    assert result.metrics["loss_last_tenth"] == pytest.approx(sum(tail) / 10)


def test_learning_rate_rises_then_falls_to_zero(run: Callable[..., Result]) -> None:
    """20 steps, 4 of warm-up: rates of steps 1.. are 1/5 to 4/5, then the cosine's 1 at the fifth."""
    rates = [entry["learning_rate"] / 5e-3 for entry in run(epochs=4, warmup_ratio=0.2).history]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    expected = [0.5 * (1 + math.cos(math.pi * step / 16)) for step in range(16)]
    assert rates[4:] == pytest.approx(expected, abs=1e-6)


def test_parts_of_a_recovery_go_through_one_schedule(run: Callable[..., Result]) -> None:
    """The same steps and learning rates as in one piece; the first part ends in the warm-up."""
    whole = run(epochs=4, warmup_ratio=0.2).history
    parts = ((0.0, 0.1), (0.1, 0.75), (0.75, 1.0))
    pieces = [
        entry
        for begin, end in parts
        for entry in run(PartOfRecovery, epochs=4, warmup_ratio=0.2, begin=begin, end=end).history
    ]
    for name in ("step", "learning_rate"):
        assert [entry[name] for entry in pieces] == pytest.approx([entry[name] for entry in whole])
    assert [entry["step"] for entry in whole] == list(range(1, 21))


def test_steps_do_not_depend_on_what_was_selected(run: Callable[..., Result], write_selection: Write) -> None:
    few = run(selection=write_selection(count=2, name="few"))
    many = run(selection=write_selection(count=40, seed=3, name="many"))
    assert len(few.history) == len(many.history) == 5


@pytest.mark.parametrize(
    ("epochs", "requested", "steps"), [(1.0, 3000, 5), (1.0, 3001, 6), (2.5, 3000, 13), (0.1, 300, 1)]
)
def test_steps_by_hand(
    epochs: float, requested: int, steps: int, models_folder: Path, write_selection: Write
) -> None:
    """ceil(epochs * requested / 600)."""
    inputs = {"pruned": models_folder / "pruned", "selection": write_selection(requested=requested)}
    data = prepare(settings(epochs=epochs), inputs, 17)
    assert len(data.steps) == steps
    sizes = [sum(len(data.rows[index]) for index in step) for step in data.steps]
    assert max(sizes) < 600 + 200
    assert data.tokens == sum(sizes) == pytest.approx(600 * steps, abs=200)


def training_data(models_folder: Path, selection: Path) -> TrainingData:
    return prepare(settings(), {"pruned": models_folder / "pruned", "selection": selection}, 17)


def test_time_grows_with_the_tokens_that_are_given_and_else_with_the_rows() -> None:
    config = RecoverConfig(epochs=2).key_data()
    assert tokens(config, Volume(0, rows_bytes=4000)) == 2000
    assert tokens({**config, "tokens": 64}, Volume(0, rows_bytes=4000)) == 64
    assert tokens({**config, "budget": {"tokens": 32}}, Volume(0)) == 32
    assert tokens(config, Volume(0)) is None


def test_only_adapters_move(models_folder: Path, write_selection: Write) -> None:
    model: Any = load_model(models_folder / "pruned", "bfloat16", "cpu")
    before = {name: each.clone() for name, each in model.named_parameters()}
    job = Job(settings(), dtype="bfloat16")
    with own_generator(0, "cpu"):
        adapted = with_adapters(model, job.config)
        fit(adapted, None, job, training_data(models_folder, write_selection()), silent)
    trained = {name: each for name, each in adapted.named_parameters() if each.requires_grad}
    assert len(trained) == 2 * 2 * 7  # A and B of q, k, v, o, gate, up, down in two layers
    assert all("lora_" in name and each.dtype == torch.float32 for name, each in trained.items())
    assert all(each.abs().max() > 0 for each in trained.values())
    for name, each in adapted.named_parameters():
        if "lora_" not in name:
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert torch.equal(each, before[plain])


def test_small_steps_add_up_in_all_weights(models_folder: Path, write_selection: Write) -> None:
    """bfloat16 loses steps of 1e-5 beside weights of 0.3; float32 masters keep them until the one cast."""
    model: Any = masters(load_model(models_folder / "pruned", "bfloat16", "cpu"))
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    job = Job(settings(method="full", learning_rate=1e-5), dtype="bfloat16")
    fit(model, None, job, training_data(models_folder, write_selection()), silent)
    after = {name: each.detach().clone() for name, each in model.named_parameters()}
    for name, each in after.items():
        assert each.dtype == torch.float32
        assert 0 < (each - before[name]).abs().max() < 1e-4
    for name, each in cast(model, "bfloat16").named_parameters():
        assert torch.equal(each, after[name].to(torch.bfloat16))
        assert each.grad is None
        assert not each.requires_grad


def test_adapters_start_as_nothing_and_merge_exactly(models_folder: Path) -> None:
    """First the adapters change the logits, then merging keeps them."""
    model: Any = load_model(models_folder / "pruned", "float32", "cpu")
    with torch.no_grad():
        plain = model(IDS).logits
        adapted = with_adapters(model, settings(dropout=0.3)).eval()
        assert torch.equal(adapted(IDS).logits, plain)
        torch.manual_seed(0)
        for name, each in adapted.named_parameters():
            if "lora_B" in name:
                each.normal_(std=0.1)
        changed = adapted(IDS).logits
        assert (changed - plain).abs().max() > 0.1
        merged = merge(adapted)
        assert torch.allclose(merged(IDS).logits, changed, atol=1e-4)
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert not any(each.requires_grad for each in merged.parameters())


def test_merging_rounds_once(models_folder: Path) -> None:
    """bfloat16 base, float32 adapters: the merged weight is round(W + alpha / r * B A), summed in float32."""
    model: Any = load_model(models_folder / "pruned", "bfloat16", "cpu")
    weight = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    adapted = with_adapters(model, settings(rank=4, alpha=16.0))
    layer = adapted.base_model.model.model.layers[0].mlp.up_proj
    torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.01)
    b, a = layer.lora_B["default"].weight.detach(), layer.lora_A["default"].weight.detach()
    expected = (weight.float() + 4.0 * (b @ a)).to(torch.bfloat16)
    assert not torch.equal(expected, weight)
    found = merge(adapted).model.layers[0].mlp.up_proj.weight
    assert torch.equal(found, expected)


def test_distillation_pulls_towards_the_dense_model(run: Callable[..., Result]) -> None:
    result = run(distill_weight=1.0, epochs=20, learning_rate=2e-2, dropout=0.0)
    assert result.history[-1]["distillation"] < 0.6 * result.history[0]["distillation"]
    assert result.history[0]["loss"] == result.history[0]["distillation"] > 0


def test_without_distillation_no_dense_model_is_read(
    models_folder: Path, write_selection: Write, tmp_path: Path
) -> None:
    inputs = {"pruned": models_folder / "pruned", "selection": write_selection()}
    folder = tmp_path / "out"
    folder.mkdir()
    recover.body(Job(settings(), dtype="float32"), inputs, folder, silent)
    assert Result(folder).history[0]["distillation"] == 0
    with pytest.raises(BadInput, match=r"distill_weight is 0\.5 but there is no dense model"):
        recover.body(Job(settings(distill_weight=0.5), dtype="float32"), inputs, folder, silent)


def test_a_loss_that_is_not_finite_stops(models_folder: Path, write_selection: Write, tmp_path: Path) -> None:
    broken: Any = load_model(models_folder / "pruned", "float32", "cpu")
    broken.model.norm.weight.data[3] = float("nan")
    folder = tmp_path / "broken"
    broken.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((models_folder / "pruned" / name).read_bytes())
    inputs = {"pruned": folder, "selection": write_selection()}
    with pytest.raises(
        StageFailed, match=r"the loss is not finite at step 1 of recovery .* lower recover\.learning_rate"
    ):
        recover.body(Job(settings(), dtype="float32"), inputs, tmp_path, silent)


def test_float16_on_a_cpu(run: Callable[..., Result]) -> None:
    with pytest.raises(BadInput, match=r"float16 on a CPU; set model\.dtype: bfloat16"):
        run(dtype="float16")


def test_progress_counts_steps_and_the_global_generator_is_untouched(
    models_folder: Path, write_selection: Write, tmp_path: Path
) -> None:
    seen: list[tuple[int, int, str]] = []
    inputs = {"pruned": models_folder / "pruned", "selection": write_selection()}
    torch.manual_seed(99)
    expected = torch.rand(3)
    torch.manual_seed(99)
    folder = tmp_path / "out"
    folder.mkdir()
    recover.body(Job(settings(), dtype="float32"), inputs, folder, lambda *told: seen.append(told))
    assert seen == [(step, 5, "steps") for step in range(1, 6)]
    assert torch.equal(torch.rand(3), expected)


def test_nothing_is_printed(run: Callable[..., Result], capfd: pytest.CaptureFixture[str]) -> None:
    run()
    out, _ = capfd.readouterr()
    assert out == ""


@pytest.mark.parametrize(
    ("family", "adapters"), [("mixtral", 4), ("qwen3_moe", 4), ("gpt2", 4), ("llama", 7)]
)
def test_every_linear_layer_has_an_adapter_and_fused_experts_have_none(family: str, adapters: int) -> None:
    model: Any = tiny_model(family)
    ids = IDS.clamp(max=255)
    with torch.no_grad():
        plain = model(ids).logits
        adapted = with_adapters(model, settings(dropout=0.05)).eval()
        assert torch.equal(adapted(ids).logits, plain)
        assert sum("lora_A" in name for name, _ in adapted.named_parameters()) == 2 * adapters
        for name, each in adapted.named_parameters():
            if "lora_B" in name:
                each.fill_(0.05)
        changed = adapted(ids).logits
        assert not torch.allclose(changed, plain, atol=1e-3)
        torch.testing.assert_close(merge(adapted)(ids).logits, changed, rtol=1e-4, atol=1e-4)


def test_the_adapter_alone_makes_the_recovered_model_of_the_pruned_one(
    run: Callable[..., Result], models_folder: Path, tmp_path: Path
) -> None:
    """Loaded by peft it is the merged model up to the order of sums; nothing of this machine is in it."""
    from peft import PeftModel

    result = run()
    adapter = result.folder / "adapter"
    loaded = PeftModel.from_pretrained(load_model(models_folder / "pruned", "float32", "cpu"), adapter)
    torch.testing.assert_close(loaded(IDS).logits, result.model()(IDS).logits, rtol=1e-4, atol=1e-4)
    before = load_model(models_folder / "pruned", "float32", "cpu")(IDS).logits
    assert (result.model()(IDS).logits - before).abs().max() > 1e-2
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None
    assert config["target_modules"] == sorted(config["target_modules"])
    for path in adapter.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()
        assert str(models_folder).encode() not in path.read_bytes()
