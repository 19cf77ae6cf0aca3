"""On a GPU the same plan and nearly the same weights come out as on the CPU."""

from __future__ import annotations

import pytest
import torch

from resprout.configs.schema import PruneConfig
from resprout.tasks.prune.planning import make_plan
from resprout.tasks.prune.registry import CRITERIA
from resprout.tasks.prune.scoring import score_units
from resprout.tasks.prune.statistics import Gram
from resprout.tasks.prune.surgery import apply
from tiny_models import tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
IDS = torch.randint(4, 256, (6, 20), generator=torch.Generator().manual_seed(3))


def test_gram_of_bfloat16_inputs_adds_up_in_float32():
    values = torch.randn(512, 40, generator=torch.Generator().manual_seed(0)).bfloat16()
    gram = Gram(40)
    gram.update(values.cuda())
    exact = values.double().T @ values.double()
    torch.testing.assert_close(gram.matrix.cpu().double(), exact, rtol=1e-4, atol=1e-2)


WIDTHS = [entry.name for entry in CRITERIA if "ffn" in entry.declared["units"]]


@pytest.mark.parametrize("name", WIDTHS)
def test_scores_on_a_gpu_are_nearly_those_of_the_cpu(name):
    cpu, gpu = (
        score_units(tiny_model("llama").to(device), CRITERIA.get(name)(), ("ffn",), IDS, general=IDS)
        for device in ("cpu", "cuda")
    )
    for one, other in zip(cpu, gpu, strict=True):
        torch.testing.assert_close(one["ffn"], other["ffn"], rtol=1e-2, atol=0)


@pytest.mark.parametrize("repair", ["none", "bias", "least_squares"])
def test_pruning_on_a_gpu_equals_the_cpu(repair):
    config = {
        "method": "flap",
        "target": {"non_embedding_ratio": 0.84},
        "round_to": 8,
        "repair": repair,
        "units": ["ffn", "kv_groups"],
        "layout": "uniform",
    }
    logits, plans = [], []
    for device in ("cpu", "cuda"):
        model = tiny_model("llama").to(device)
        plan, _ = make_plan(model, PruneConfig.model_validate(config), IDS)
        apply(model, plan, IDS)
        plans.append(plan)
        logits.append(model(IDS.to(device)).logits.cpu())
    assert plans[0] == plans[1]
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-3, atol=1e-3)
