"""vLLM computes of an export what transformers does. It has an environment of its own: make test-vllm."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from resprout.tasks.core.job import silent
from resprout.tasks.models.load import load_model, load_tokenizer
from resprout.tasks.packed.checkpoint import load_served
from resprout.tasks.quantize.format import format_of
from tiny_models import write_tiny_folder

PYTHON = os.environ.get("VLLM_PYTHON", "")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not PYTHON, reason="VLLM_PYTHON names no Python with vLLM (make test-vllm sets it)"),
]
WIDTHS = {
    "hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 64,
}  # fmt: skip
IDS = [5, 9, 13, 17, 21, 200, 33, 4, 77, 78, 79, 80]
ASK = """
import json, os, sys
os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1")
os.environ.update(VLLM_NO_USAGE_STATS="1", HF_HUB_OFFLINE="1")
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    folder, dtype, ids = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    model = LLM(model=folder, dtype=dtype, enforce_eager=True, max_model_len=64, max_num_seqs=2)
    asked = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    (found,) = model.generate([{"prompt_token_ids": ids}], asked)
    rows = zip(ids[1:], found.prompt_logprobs[1:], strict=True)
    print("FOUND", json.dumps([row[token].logprob for token, row in rows]), flush=True)
"""


def in_vllm(folder: Path, dtype: str, scratch: Path) -> torch.Tensor:
    """Log-probabilities of the ids behind the first."""
    script = scratch / "ask.py"
    script.write_text(ASK)
    done = subprocess.run(
        [PYTHON, script, folder, dtype, json.dumps(IDS)],
        cwd=scratch, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    assert lines, done.stderr[-2000:]
    return torch.tensor(json.loads(lines[-1].removeprefix("FOUND ")))


def in_transformers(model: Any) -> torch.Tensor:
    ids = torch.tensor([IDS])
    rows = model(ids).logits[0, :-1].float().log_softmax(-1)
    return rows.gather(1, ids[0, 1:, None])[:, 0]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "olmo2", "phi3"])
def test_a_plain_folder(family: str, tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path / "model", family, **WIDTHS)
    found = in_vllm(folder, "float32", tmp_path)
    torch.testing.assert_close(
        found, in_transformers(load_model(folder, "float32", "cpu")), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("kind", ["FP8", "W8A8", "W4A16-G64", "W4A16-G32", "W4A16"])
def test_a_packed_checkpoint(kind: str, tmp_path: Path) -> None:
    """In bfloat16; of 4 bits it is nearer to the packed model than to the one before.

    FP8 keeps three bits behind the first of each input. For W8A16 the CPU build of vLLM 0.32 has no kernel.
    """
    source = write_tiny_folder(tmp_path / "model", "llama", dtype="bfloat16", **WIDTHS)
    folder = tmp_path / "packed"
    folder.mkdir()
    whole, tokenizer = load_model(source, "bfloat16", "cpu"), load_tokenizer(source)
    format_of(f"compressed-tensors:{kind}").write(whole, tokenizer, source, folder, {}, {}, silent)
    expected = in_transformers(load_served(folder, "bfloat16", "cpu"))
    found = in_vllm(folder, "bfloat16", tmp_path)
    torch.testing.assert_close(found, expected, atol=0.04 if kind == "FP8" else 0.02, rtol=0)
    before = in_transformers(load_model(source, "bfloat16", "cpu"))
    if kind.startswith("W4"):
        assert (found - expected).abs().mean() < 0.5 * (found - before).abs().mean()
