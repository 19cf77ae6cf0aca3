"""One contract for every method, family, kind of unit and layout."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import save_file

from doors import through_the_doors, write_calibration
from masked_channels import without_channels
from resprout.configs.errors import BadInput
from resprout.configs.presets import DEPTH, load_preset, preset_names
from resprout.configs.schema import PruneConfig
from resprout.tasks.core.job import Job, silent
from resprout.tasks.models.families import FAMILIES
from resprout.tasks.models.load import load_model
from resprout.tasks.models.shape import count, shape_of
from resprout.tasks.prune.compatibility import resolve
from resprout.tasks.prune.plan import LayerPlan, read_plan, write_plan
from resprout.tasks.prune.planning import make_plan
from resprout.tasks.prune.registry import CRITERIA, REPAIRS
from resprout.tasks.prune.stage import plan as plan_stage
from resprout.tasks.prune.stage import prune as prune_stage
from resprout.tasks.prune.stage import score as score_stage
from resprout.tasks.prune.surgery import apply
from resprout.tasks.prune.target import implied_shape
from tiny_models import READERS, half_of, layout_for, read_units, readers_of, tiny_model, write_tiny_folder

IDS = torch.randint(4, 256, (6, 20), generator=torch.Generator().manual_seed(3))


QUICK = {
    "evolutionary": {"generations": 2, "children": 3, "survivors": "1,1", "tokens": "20,80"},
    "evolutionary_depth": {
        "generations": 2,
        "children": 3,
        "survivors": "1,1",
        "tokens": "20,80",
        "initial": 4,
    },
    "spdy": {"steps": 2, "calibration_tokens": 20},
}
"""Settings of allocators that would take seconds."""


def prune_config(**values):
    base = {"method": "flap", "target": {"non_embedding_ratio": 0.84}, "round_to": 8, "repair": "none"}
    base |= {"units": ["ffn"], "layout": "uniform"}
    base["general"] = [{"source": "general.jsonl"}]
    # Models of two layers have none to spare (tests/prune/test_spared.py).
    base |= {"spared_front": 0, "spared_back": 0}
    config = PruneConfig.model_validate(base | values)
    return config.model_copy(update={"allocator_settings": QUICK.get(resolve(config).allocator, {})})


BIASED = ("gpt2", "gpt_neox", "llama", "opt", "qwen3_moe")
"""Families whose stock class can hold the bias that `repair: bias` adds to all units they have here."""
TURNED = [name for name in preset_names() if REPAIRS.entry(load_preset(name).repair).declared.get("basis")]
"""Presets that keep no channels as they are; tests/prune/test_rotation.py has their contract."""


def silenced(model, plan):
    """The model itself, zeros in place of all that the plan removes, by the stock names of its tensors."""
    config = model.config
    stack = model.base_model.decoder if config.model_type == "opt" else model.base_model
    ffn, attention = (readers_of(config.model_type)[kind] for kind in ("ffn", "kv_groups"))
    layers = stack.h if config.model_type == "gpt2" else stack.layers
    for index in range(len(layers)):
        place = [place for place in range(len(plan.layers)) if plan.source(place) == index]
        kept, layer = plan.layers[place[0]] if place else LayerPlan(ffn=(), kv_groups=()), layers[index]
        if not kept.kv_groups:
            silence(layer.get_submodule(attention))
        if not kept.ffn:
            silence(layer.mlp if hasattr(config, "num_experts_per_tok") else layer.get_submodule(ffn))
        if plan.units[0] in DEPTH:
            continue
        if kept.experts is not None:
            without_experts(layer.mlp.gate, kept.experts, getattr(config, "norm_topk_prob", True))
        if kept.expert_ffn is not None:
            down = layer.mlp.experts.down_proj
            stay = torch.zeros(down.shape[0] * down.shape[2])
            stay[list(kept.expert_ffn)] = 1
            down.mul_(stay.view(len(down), 1, -1))
        elif hasattr(config, "num_experts_per_tok"):
            assert len(kept.ffn) == layer.mlp.experts.down_proj.shape[2]
        else:
            down = layer.get_submodule(ffn).weight
            (down if config.model_type == "gpt2" else down.T).mul_(mask(kept.ffn, down, config)[:, None])
        out = layer.get_submodule(attention).weight
        heads = kept.heads
        if heads is None:
            each = 1 if config.model_type in READERS else layer.self_attn.num_key_value_groups
            heads = [group * each + one for group in kept.kv_groups for one in range(each)]
        rows = (out if config.model_type == "gpt2" else out.T).view(-1, 16, out.shape[0])
        for head in set(range(len(rows))) - set(heads):
            rows[head].zero_()
    without_channels(model, plan.hidden)
    return model


def silence(module):
    """Let a module give zeros."""
    for parameter in module.parameters():
        parameter.zero_()


def mask(kept, weight, config):
    ones = torch.zeros(weight.shape[0 if config.model_type == "gpt2" else 1])
    ones[list(kept)] = 1
    return ones


def without_experts(router, kept, normalised):
    """Route among the kept experts alone."""

    def forward(hidden):
        logits = torch.nn.functional.linear(hidden.reshape(-1, hidden.shape[-1]), router.weight)
        gone = [expert for expert in range(logits.shape[1]) if expert not in kept]
        logits[:, gone] = -torch.inf
        values, indices = logits.float().softmax(dim=-1).topk(2, dim=-1)
        return logits, values / values.sum(dim=-1, keepdim=True) if normalised else values, indices

    router.forward = forward


def deep_model(family):
    """Four layers, of two kinds of attention where the family has them."""
    types = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    kinds = {"layer_types": types, "sliding_window": 5} if family.startswith("gemma") else {}
    return tiny_model(family, num_hidden_layers=4, **kinds)


DEPENDENT = [("kv_groups", "heads"), ("experts", "ffn")]
TOGETHER = [
    ("ffn", "kv_groups"),
    ("ffn", "heads"),
    ("ffn", "hidden"),
    ("ffn", "kv_groups", "hidden"),
    *DEPENDENT,
]
"""Units that are pruned at once; the dependent ones in one layout only."""


@functools.cache
def parts_of(method, units, layout):
    """What a method comes to here; some differ in a repair or in settings that all tests share."""
    found = resolve(prune_config(method=method, units=units, layout=layout))
    return str(dataclasses.replace(found, method=""))


def cases():
    """Every method, family and layout, with the units that all three allow; of equal ones the first."""
    seen = set()
    for method in preset_names():
        preset = load_preset(method)
        for name, family in FAMILIES.items():
            scored = set(CRITERIA.entry(preset.criterion).declared["units"])
            if preset.depth_criterion:
                scored |= {"layers", "sublayers"}
            if "experts" in family.units and "experts" not in scored:
                scored -= {"ffn"}
            for units in [*((unit,) for unit in family.units), *TOGETHER]:
                for layout in ("uniform",) if "hidden" in units else ("uniform", "per_layer"):
                    allowed = set(units) <= set(family.units) & scored and method not in TURNED
                    stated = "sublayers" not in units and (family.states_heads or "kv_groups" not in units)
                    allowed = allowed and (stated or layout == "per_layer")
                    # Of an allocator's paper nothing is left with uniform widths, which resolve refuses.
                    allowed = allowed and not (
                        preset.reduces_to and layout == "uniform" and units[0] not in DEPTH
                    )
                    if not allowed or (layout == "per_layer" and units in DEPENDENT):
                        continue
                    if (case := (parts_of(method, units, layout), name, units, layout)) not in seen:
                        seen.add(case)
                        yield pytest.param(method, name, units, layout)


LOADED: set[str] = set()
"""Configs of cut models that were saved, loaded and run: methods differ in values, not in shapes."""


@pytest.mark.parametrize(("method", "family", "units", "layout"), cases())
def test_a_cut_model_computes_what_the_masked_one_does(method, family, units, layout, tmp_path):
    dense = deep_model(family) if units[0] in DEPTH else tiny_model(family)
    config = prune_config(method=method, units=units, layout=layout, target=half_of(units[0], dense))
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    plan, _ = make_plan(dense, config, IDS, general=IDS)
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())

    pruned = copy.deepcopy(dense)
    apply(pruned, plan)
    whole, expected = dense(IDS).logits, silenced(dense, plan)(IDS).logits
    assert not torch.allclose(expected, whole, atol=1e-3)
    torch.testing.assert_close(pruned(IDS).logits, expected, rtol=1e-4, atol=1e-5)

    sizes = count(pruned)
    assert (sizes.params, sizes.non_embedding_params, sizes.bytes) == tuple(
        plan.reached.model_dump().values()
    )
    assert plan.reached.params <= plan.requested.params < plan.dense.params
    assert shape_of(json.loads(pruned.config.to_json_string())).sizes("float32") == sizes
    if layout == "uniform":
        assert implied_shape(shape_of(dense.config.to_dict()), config).params == plan.reached.params

    if (shape := pruned.config.to_json_string()) in LOADED:
        return
    pruned.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, "float32", "cpu")
    assert torch.equal(loaded(IDS).logits, pruned(IDS).logits)
    generate = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(loaded.generate(IDS[:2], **generate), pruned.generate(IDS[:2], **generate))
    LOADED.add(shape)


@pytest.mark.parametrize("repair", ["none", "bias", "least_squares"])
def test_equal_runs_through_the_doors_give_equal_bytes(repair, family, tmp_path):
    units = tuple(unit for unit in ("ffn", "kv_groups") if unit in read_units(family))
    layout = layout_for(family, units)
    config = prune_config(units=units, repair=repair, target={"params_ratio": 0.96}, **layout)
    write_tiny_folder(tmp_path / "model", family, dtype="bfloat16")
    calibration = write_calibration(tmp_path / "calibration", IDS)
    if repair == "bias" and family not in BIASED:
        with pytest.raises(BadInput, match="lack for"):
            implied_shape(shape_of(tmp_path / "model"), config)
        return
    digests = []
    for run in ("first", "second"):
        where = through_the_doors(config, tmp_path / "model", calibration, tmp_path / run)
        files = sorted(path for path in (tmp_path / run).rglob("*") if path.is_file())
        digests.append([(p.name, hashlib.sha256(p.read_bytes()).hexdigest()) for p in files])
    assert digests[0] == digests[1]
    names = [name for name, _ in digests[0]]
    assert names == [
        *("metrics.json", "plan.json"),
        *(
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ),
        "scores.safetensors",
    ]
    metrics = json.loads((where["plan"] / "metrics.json").read_text())
    plan = read_plan(where["plan"])
    assert metrics["reached_params"] == plan.reached.params
    assert plan.reached.bytes == 2 * plan.reached.params
    assert str(tmp_path) not in (where["pruned"] / "config.json").read_text()


def test_uniform_models_load_and_compute_the_same_without_resprout(tmp_path):
    """Every family and repair, both kinds of units, in one clean child process."""
    expected = {}
    for family in sorted(FAMILIES):
        units = tuple(unit for unit in ("ffn", "kv_groups") if unit in read_units(family))
        units = units if FAMILIES[family].states_heads else ("ffn",)
        for repair in ("none", "bias", "least_squares"):
            if repair == "bias" and family not in BIASED:
                continue
            model = tiny_model(family, dtype="bfloat16")
            config = prune_config(units=units, repair=repair, target={"params_ratio": 0.96})
            plan, _ = make_plan(model, config, IDS)
            apply(model, plan, IDS)
            name = f"{family}-{repair}"
            model.save_pretrained(tmp_path / name)
            expected[name] = model(torch.tensor([[5, 6, 7]])).logits.double().flatten().tolist()
    assert len(expected) == 2 * len(FAMILIES) + len(BIASED)
    code = """
    import sys, json, torch
    from pathlib import Path
    sys.modules["resprout"] = None
    from transformers import AutoModelForCausalLM
    found = {}
    for folder in Path(sys.argv[1]).iterdir():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16")
        assert getattr(model.config, "head_dim", 16) == 16
        found[folder.name] = model(torch.tensor([[5, 6, 7]])).logits.double().flatten().tolist()
    print(json.dumps(found))
    """
    command = [sys.executable, "-I", "-c", textwrap.dedent(code), str(tmp_path)]
    stock = subprocess.run(command, capture_output=True, text=True)
    assert stock.returncode == 0, stock.stderr
    assert json.loads(stock.stdout) == expected


def test_layers_that_differ_do_not_load_silently_wrong(tmp_path):
    """Stock code stops at the shapes; resprout loads them and cuts them again."""
    from transformers import AutoModelForCausalLM

    model = tiny_model("llama")
    plan, _ = make_plan(model, prune_config(layout="per_layer", round_to=4), IDS)
    widths = {len(layer.ffn) for layer in plan.layers}
    assert len(widths) == 2
    apply(model, plan)
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"size mismatch|mismatched"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    again = load_model(tmp_path, "float32", "cpu")
    with pytest.raises(BadInput, match="already have different widths"):
        make_plan(again, prune_config(), IDS)
    smaller, _ = make_plan(again, prune_config(layout="per_layer", round_to=4), IDS)
    expected = silenced(copy.deepcopy(again), smaller)(IDS).logits
    apply(again, smaller)
    torch.testing.assert_close(again(IDS).logits, expected, rtol=1e-4, atol=1e-5)


def test_a_plan_is_replayed_from_its_file_and_only_on_its_model(tmp_path):
    model = tiny_model("qwen2")
    plan, _ = make_plan(model, prune_config(), IDS)
    write_plan(plan, tmp_path)
    assert read_plan(tmp_path) == plan
    lines = (tmp_path / "plan.json").read_text().splitlines()
    assert lines[1:4] == [' "allocator": "uniform",', ' "allocator_settings": {},', ' "criterion": "flap",']
    with pytest.raises(
        BadInput, match=r"made for a qwen2 model of 2 layers and \d+ parameters, but .* mistral"
    ):
        apply(tiny_model("mistral"), plan)
    layer = plan.layers[0].model_copy(update={"ffn": (3, 2)})
    with pytest.raises(BadInput, match=r"keeps ffn \[3, 2\].* in layer 0"):
        apply(model, plan.model_copy(update={"layers": (layer, plan.layers[1])}))
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(BadInput, match="no readable pruning plan"):
        read_plan(tmp_path)


def test_a_plan_names_the_model_it_was_made_for(tmp_path):
    """Another model of the same shape is refused; a plan that does not say, as older ones, is taken."""
    config = prune_config()
    inputs = {"model": write_tiny_folder(tmp_path / "model"), "calibration": tmp_path}
    save_file({"input_ids": IDS}, tmp_path / "calibration.safetensors")
    for name, stage in (("scores", score_stage), ("plan", plan_stage)):
        inputs[name] = tmp_path / name
        inputs[name].mkdir()
        stage.body(Job(config, digests={"model": "a1"}), inputs, inputs[name], silent)
    assert read_plan(inputs["plan"]).model_digest == "a1"
    for given, taken in (({"model": "a1"}, True), ({}, True), ({"model": "b2"}, False)):
        job, where = Job(config, digests=given), tmp_path / f"pruned-{len(list(tmp_path.iterdir()))}"
        if taken:
            prune_stage.body(job, inputs, where, silent)
            continue
        with pytest.raises(
            BadInput, match="made for the model a1, but the model given is b2; give that model"
        ):
            prune_stage.body(job, inputs, where, silent)
    write_plan(read_plan(inputs["plan"]).model_copy(update={"model_digest": None}), inputs["plan"])
    prune_stage.body(Job(config, digests={"model": "b2"}), inputs, tmp_path / "older", silent)


def test_progress_counts_batches_and_layers():
    seen = []
    model = tiny_model("llama")
    plan, _ = make_plan(model, prune_config(), IDS, lambda *args: seen.append(args))
    plan = plan.model_copy(update={"repair": "least_squares"})
    apply(model, plan, IDS, progress=lambda *args: seen.append(args))
    assert seen == [(1, 1, "batches seen"), (1, 2, "layers cut"), (2, 2, "layers cut")]


def test_tied_embeddings_survive(tmp_path):
    model = tiny_model("llama", tie_word_embeddings=True)
    plan, _ = make_plan(model, prune_config(), IDS)
    apply(model, plan)
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, "float32", "cpu")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert count(loaded).params == plan.reached.params
