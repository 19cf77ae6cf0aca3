"""Small random models of every supported family, and a tokenizer for them."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from resprout.tasks.models.load import save_model

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


def tiny_model(model_type: str, seed: int = 0, dtype: str = "float32", **widths: Any) -> PreTrainedModel:
    """A random model of `model_type` in eval mode without gradients, with WIDTHS where `widths` has no say.

    Biases and norms, which stock initialisation leaves at 0 and 1, are random too: a wrong cut shows.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(model_type, **(WIDTHS | widths))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


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


def write_tiny_folder(
    folder: Path, model_type: str = "llama", seed: int = 0, dtype: str = "float32", **widths: Any
) -> Path:
    """A model folder with such a model and tokenizer; returns `folder`."""
    model = tiny_model(model_type, seed, dtype, **widths)
    with TemporaryDirectory() as tokenizer:
        write_tiny_tokenizer(Path(tokenizer), model.config.vocab_size)
        save_model(model, folder, tokenizer_from=Path(tokenizer))
    return folder
