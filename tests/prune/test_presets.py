"""Presets against their papers: what is in force where a config names a method and a target.

Of papers that zero single weights the units are the structures that hold these weights, over which the
criterion is summed.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from resprout.configs.errors import BadInput
from resprout.configs.presets import load_preset, preset_names
from resprout.configs.schema import PruneConfig
from resprout.tasks.models.families import FAMILIES
from resprout.tasks.prune.compatibility import resolve
from resprout.tasks.prune.planning import make_plan
from resprout.tasks.prune.surgery import apply
from tiny_models import tiny_model

MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe")
"""Families whose FFN channels are in experts, where no one module reads them."""


class Row(NamedTuple):
    """A method in force; of what the paper leaves to its reader (the control's widths) the plainest."""

    criterion: str
    allocator: str
    repair: str
    layout: str
    units: tuple[str, ...]
    spared_front: float = 0
    spared_back: float = 0


BOTH = ("ffn", "kv_groups")
"""FFN channels, and heads with their queries, keys and values (a group of them where they share keys)."""

PAPERS = {
    # 2407.14679: neurons, heads and embedding channels by activations, one width for all layers.
    "activation": Row("activation", "uniform", "none", "uniform", BOTH),
    "minitron_hidden": Row("hidden_activation", "uniform", "none", "uniform", ("hidden",)),
    # 2502.03460: a layer's sparsity by how far it turns the stream; in it first-order Taylor.
    "adapt_pruner": Row("taylor", "adaptive", "none", "per_layer", BOTH),
    # 1607.03250: neurons whose share of zeros lies a standard deviation above their layer's mean, that is
    # scores standardised in each layer against one threshold. Zeros behind a ReLU: FFN channels only.
    "apoz": Row("apoz", "global_standardised", "none", "per_layer", ("ffn",)),
    # 2409.13199: a softmax over how far blocks turn the stream; FFN channels only.
    "cfsp": Row("cfsp", "cfsp_softmax", "none", "per_layer", ("ffn",)),
    # 2405.06275 and the README of its code ("unstructured dual-pruning"): all linear weights, one share.
    "d_pruner": Row("domain_dual", "uniform", "none", "uniform", BOTH),
    # 2310.02998: shares of layers by zeroth-order gradients; in a layer Wanda.
    "ecoflap": Row("wanda_sp", "zeroth_order", "none", "per_layer", BOTH),
    # 2410.14649: level switches between layers, the fittest by the divergence from the dense model.
    "evopress": Row("wanda_sp", "evolutionary", "none", "per_layer", BOTH),
    "evopress_quick": Row("wanda_sp", "evolutionary", "none", "per_layer", BOTH),
    # 2405.18218: attention and FFN layers, greedily by the change of the logits.
    "finercut": Row("output_change", "lowest_first", "none", "per_layer", ("sublayers",)),
    # 2312.11983 and lib/prune.py of its code, structure AL-AM: standardised fluctuation, one threshold over
    # all heads and channels; the mean of what goes becomes a bias.
    "flap": Row("flap", "global_standardised", "bias", "per_layer", BOTH),
    # 2411.14507: whole blocks by macro influence, fused into their neighbours by training.
    "fusegpt": Row("macro_influence", "lowest_first", "fusion", "uniform", ("layers",)),
    # 2311.04902: all linear weights by gradient norm and input norm, the same share in every layer.
    "gblm": Row("gblm", "uniform", "none", "uniform", BOTH),
    # 2209.14624: one ranking of abs(w) over all layers and a minimum that each keeps.
    "global_magnitude": Row("magnitude", "global_ranking", "none", "per_layer", BOTH),
    # 2305.18403: heads and FFN channels by the gradients of adapters; loraprune/utils.py leaves int(0.1 L)
    # layers at the front and the last alone.
    "lora_gradient": Row("lora_gradient", "uniform", "none", "per_layer", BOTH, 0.1, 1),
    # 2305.11627 (its L2 baseline), prune_magnitude_sp in FLAP's lib/prune.py: the same share of each layer.
    "magnitude": Row("magnitude", "uniform", "none", "uniform", BOTH),
    # The controls, in the plainest shape.
    "random": Row("random", "uniform", "none", "uniform", BOTH),
    "random_init": Row("magnitude", "uniform", "random_init", "uniform", BOTH),
    # No paper's: what lost least where nothing was calibrated (tests/benchmarks/README.md).
    "recommended": Row("cfsp", "uniform", "least_squares", "uniform", ("ffn",)),
    "recommended_per_layer": Row("cfsp", "cfsp_softmax", "least_squares", "per_layer", ("ffn",)),
    # 1912.08881 and its FilterPruner: ranks brought to one scale by layer, the smallest of all layers go.
    "relevance": Row("relevance", "global_ranking", "none", "per_layer", BOTH),
    # 2302.05601: a layer's share by the PQ index of its weights; in it the smallest go.
    "sap": Row("magnitude", "pq_index", "none", "per_layer", BOTH),
    # 2403.03853: whole layers by block influence.
    "shortgpt": Row("block_influence", "lowest_first", "none", "uniform", ("layers",)),
    # 2401.15024: principal directions of the residual stream at each block, turns between them.
    "slicegpt": Row("principal", "uniform", "block_rotation", "per_layer", ("hidden",)),
    # No paper's: slicegpt with one rotation in place of one for each block, as its source says.
    "shared_rotation": Row("principal", "uniform", "rotation", "uniform", ("hidden",)),
    # 2305.11627: coupled structures, heads and channels, by first-order Taylor, in layers 4 to 29 of 32.
    "taylor": Row("taylor", "uniform", "none", "per_layer", BOTH, 4 / 32, 2 / 32),
    # 2306.11695 as prune_wanda_sp in FLAP's lib/prune.py: the same share of heads and channels everywhere.
    "wanda_sp": Row("wanda_sp", "uniform", "none", "uniform", BOTH),
    # 2302.04089: heads and channels one at a time by OBS, the rest solved anew; layers by SPDY.
    "ziplm": Row("obs", "spdy", "least_squares", "per_layer", BOTH),
}


def config(**values):
    return PruneConfig.model_validate(
        {"target": {"params_ratio": 0.9}, "general": [{"source": "general.jsonl"}], **values}
    )


@pytest.mark.parametrize("method", preset_names())
def test_a_method_by_its_name_alone_is_the_paper_s(method):
    assert method in PAPERS, f"{method} has no row: what does its paper say?"
    # A name that another preset had needs its layout, so that no old config changes its meaning in silence.
    given = config(method=method, **({"layout": PAPERS[method].layout} if method == "slicegpt" else {}))
    found = resolve(given)
    parts = (found.criterion, found.allocator, found.repair)
    row = Row(*parts, given.layout, given.units, found.spared_front, found.spared_back)
    assert row == PAPERS[method]
    assert found.method == method


def test_no_row_is_of_a_method_that_is_gone():
    assert set(PAPERS) == set(preset_names())


def outcome(method, layout):
    """The method's name in a layout, or why it is refused there."""
    try:
        return resolve(config(method=method, layout=layout)).method
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("layout", ["uniform", "per_layer"])
@pytest.mark.parametrize("method", preset_names())
def test_in_a_layout_that_is_not_its_own_a_method_has_another_name_or_none(method, layout):
    assert (outcome(method, layout) == method) == (layout in load_preset(method).layouts)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"method": "flap", "layout": "uniform"}, "flap (uniform widths)"),
        ({"method": "flap", "allocator": "uniform"}, "flap (uniform widths)"),
        ({"method": "flap", "layout": "uniform", "repair": "least_squares"}, "flap (uniform widths)"),
        ({"method": "flap", "allocator": "spdy"}, "flap (widths by spdy)"),
        ({"method": "cfsp", "layout": "uniform"}, "cfsp (uniform widths)"),
        ({"method": "ziplm", "layout": "uniform"}, "ziplm (uniform widths)"),
        ({"method": "wanda_sp", "layout": "per_layer"}, "wanda_sp (widths by global_standardised)"),
        ({"method": "shortgpt", "layout": "per_layer"}, "shortgpt"),
        ({"method": "taylor", "spared_front": 0, "spared_back": 0}, "taylor (no layers spared)"),
        ({"method": "taylor", "spared_back": 1}, "taylor (0.125 and 1 layers spared)"),
        ({"method": "cfsp", "spared_front": 1}, "cfsp (1 and 0 layers spared)"),
    ],
)
def test_the_name_says_what_spends_the_budget(values, name):
    assert resolve(config(**values)).method == name


@pytest.mark.parametrize(
    ("method", "other"),
    [
        ("ecoflap", "wanda_sp"),
        ("evopress", "wanda_sp"),
        ("sap", "magnitude"),
        ("global_magnitude", "magnitude"),
        ("adapt_pruner", "taylor"),
    ],
)
@pytest.mark.parametrize("given", [{"layout": "uniform"}, {"allocator": "uniform"}, {"allocator": "spdy"}])
def test_where_nothing_of_the_paper_is_left_the_pair_is_refused(method, other, given):
    with pytest.raises(
        BadInput, match=f"prune.method {method} with .*widths.* is {other}.* give method: {other}"
    ):
        resolve(config(method=method, **given))


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in MIXTURES])
def test_a_config_that_names_no_method_prunes_every_dense_family_for_stock_classes(family):
    config = PruneConfig.model_validate({"target": {"params_ratio": 0.95}, "round_to": 8})
    model = tiny_model(family)
    ids = torch.randint(4, 250, (4, 16), generator=torch.Generator().manual_seed(1))
    plan, _ = make_plan(model, config, ids)
    assert (plan.method, plan.units, plan.repair) == ("recommended", ("ffn",), "least_squares")
    apply(model, plan, ids)
    assert len({len(layer.ffn) for layer in plan.layers}) == 1
    assert model(ids).logits.isfinite().all()
