"""Small random models of every supported family, and a tokenizer for them."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from resprout.configs.presets import DEPTH
from resprout.configs.schema import PruneConfig
from resprout.tasks.models.families import FAMILIES
from resprout.tasks.models.load import save_model
from resprout.tasks.models.shape import depth_units, shape_of, without
from resprout.tasks.prune.planning import make_plan
from resprout.tasks.prune.surgery import apply

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WIDTHS: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


MOE: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
OWN: dict[str, dict[str, Any]] = {
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "gpt2": {"n_embd": 64, "n_inner": 128, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {"num_experts": 4, "shared_expert_intermediate_size": 48, **MOE},
    "qwen3_moe": {"num_experts": 4, **MOE},
}
"""What families call widths of their own."""


def widths_of(model_type: str) -> dict[str, Any]:
    """The widths of a tiny model of this family."""
    shared = WIDTHS
    if model_type in ("opt", "gpt2", "gpt_neox"):
        shared = {
            key: value for key, value in WIDTHS.items() if key not in ("head_dim", "num_key_value_heads")
        }
    if model_type == "gpt2":
        shared = {key: value for key, value in shared.items() if key.endswith(("_id", "vocab_size"))}
    return {**shared, **OWN.get(model_type, {})}


FITTING: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"norm_topk_prob": True},
    "gemma2": {"query_pre_attn_scalar": 16},
    "gemma3_text": {"query_pre_attn_scalar": 16, "num_hidden_layers": 7},
}
"""Settings of a tiny model under which llama.cpp computes the family as its config says."""
HIDDEN = [name for name in sorted(FAMILIES) if "hidden" in FAMILIES[name].units]
"""Families that can lose hidden channels."""
READERS = {
    "opt": {"ffn": "fc2", "kv_groups": "self_attn.out_proj"},
    "gpt2": {"ffn": "mlp.c_proj", "kv_groups": "attn.c_proj"},
    "gpt_neox": {"ffn": "mlp.dense_4h_to_h", "kv_groups": "attention.dense"},
}
"""Modules that read channels and heads, by their stock names, where not as in Llama and its likes."""
LLAMA_READERS = {"ffn": "mlp.down_proj", "kv_groups": "self_attn.o_proj"}


def readers_of(model_type: str) -> dict[str, str]:
    """The modules of a family that read channels and heads, by their stock names."""
    return READERS.get(model_type, LLAMA_READERS)


def column(*values: float) -> torch.Tensor:
    """Scores of units, one each: float32 [units, 1]."""
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 1)


def half_of(unit: str, model: PreTrainedModel) -> dict[str, int]:
    """A target that half of the units of one kind reach."""
    shape = shape_of(model.config.to_dict())
    if unit in DEPTH:
        found = list(depth_units(shape, unit))
        return {"params": without(shape, found[len(found) // 2 :]).params}
    gone = sum(count // 2 * shape.unit_params(unit, layer) for layer, count in enumerate(shape.counts(unit)))
    return {"params": shape.params - gone}


def read_units(model_type: str) -> tuple[str, ...]:
    """The units of a family but channels inside experts, which no one module reads."""
    family = FAMILIES[model_type]
    return tuple(unit for unit in family.units if unit != "ffn" or family.ffn_reader)


def layout_for(model_type: str, units: Collection[str]) -> dict[str, str]:
    """The layout and allocator with which all layers of a family lose as many of these units."""
    stated = FAMILIES[model_type].states_heads or "kv_groups" not in units
    return {"layout": "uniform"} if stated else {"layout": "per_layer", "allocator": "uniform"}


def tiny_model(model_type: str, seed: int = 0, dtype: str = "float32", **widths: Any) -> PreTrainedModel:
    """A random model of `model_type` in eval mode without gradients, with WIDTHS where `widths` has no say.

    Biases and norms, which stock initialisation leaves at 0 and 1, are random too: a wrong cut shows.
    """
    return copy.deepcopy(_made(model_type, seed, dtype, json.dumps(widths)))


@functools.lru_cache(maxsize=64)
def _made(model_type: str, seed: int, dtype: str, widths: str) -> PreTrainedModel:
    from transformers import AutoConfig, AutoModelForCausalLM

    asked = json.loads(widths)
    layers = {"n_layer": asked.pop("num_hidden_layers", 2)} if model_type == "gpt2" else {}
    config = AutoConfig.for_model(model_type, **(widths_of(model_type) | layers | asked))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def with_layers_that_differ(model: PreTrainedModel) -> PreTrainedModel:
    """The model with its layers cut to two widths."""
    config: dict[str, Any] = {
        "method": "flap",
        "target": {"params_ratio": 0.85},
        "round_to": 4,
        "units": ["ffn"],
        "repair": "none",
    }
    ids = torch.arange(4, 68).reshape(4, 16)
    plan, _ = make_plan(model, PruneConfig.model_validate(config), ids)
    assert len({len(layer.ffn) for layer in plan.layers}) == 2
    apply(model, plan)
    return model


def write_tiny_tokenizer(folder: Path, vocab_size: int = 256) -> None:
    """A tokenizer of words w4, w5, ... whose ids are their numbers; ids 0 to 3 are pad, BOS, EOS, unknown."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {f"w{i}": i for i in range(4, vocab_size)}
    words = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)


def write_byte_tokenizer(folder: Path) -> None:
    """Byte-level BPE of 256 tokens as GPT-2's, one of them a merge: a kind that llama.cpp knows."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    first, bos, eos = alphabet[-1], alphabet[0], alphabet[1]
    vocab = {token: place for place, token in enumerate(alphabet) if token != first}
    made = Tokenizer(models.BPE({**vocab, "th": alphabet.index(first)}, [("t", "h")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=made, bos_token=bos, eos_token=eos).save_pretrained(folder)


def write_tiny_folder(
    folder: Path, model_type: str = "llama", seed: int = 0, dtype: str = "float32", **widths: Any
) -> Path:
    """A model folder with such a model and tokenizer; returns `folder`."""
    model = tiny_model(model_type, seed, dtype, **widths)
    with TemporaryDirectory() as tokenizer:
        write_tiny_tokenizer(Path(tokenizer), model.config.vocab_size)
        save_model(model, folder, tokenizer_from=Path(tokenizer))
    return folder
