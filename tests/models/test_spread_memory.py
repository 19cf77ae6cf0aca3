"""Memory that evaluation and pruning take with a model on disk is a part of its size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from resprout.tasks.models.offload import SafetensorsWriter
from resprout.tasks.models.shape import shape_of
from tiny_models import WIDTHS, write_tiny_folder

CHILD = """
import json, sys
from pathlib import Path
import psutil, torch
from resprout.configs.schema import EvaluateConfig, PruneConfig
from resprout.tasks.core.job import Job, silent
from resprout.tasks.core.resources import metered
from resprout.tasks.evaluate.stage import evaluate
from resprout.tasks.prune.stage import plan, prune, score

torch.set_num_threads(1)
root, room = Path(sys.argv[1]), json.loads(sys.argv[2])
text = {"name": "words", "text": [{"source": "x"}], "window_tokens": 16, "limit_tokens": 32}
judged = EvaluateConfig.model_validate({"perplexity": text})
pruned = PruneConfig.model_validate(
    {"method": "flap", "units": ["ffn"], "layout": "uniform", "target": {"params_ratio": 0.9}, "round_to": 8}
)

def run(model, out):
    # What one stage has freed and the allocator keeps is no room that the next one did not need.
    before = psutil.Process().memory_info().rss
    peaks, inputs = {}, {"model": root / model, "calibration": root / "calibration", "text": root / "text"}
    for role, stage, config in (
        ("scores", score, pruned),
        ("plan", plan, pruned),
        ("pruned", prune, pruned),
        ("judged", evaluate, judged),
    ):
        (root / out / role).mkdir(parents=True)
        with metered("cpu") as cost:
            stage.body(Job(config, max_memory=room), dict(inputs), root / out / role, silent)
        peaks[role] = cost.peak_memory_bytes - before
        inputs[role] = root / out / role
    return peaks

# Libraries are there, and count no more.
run("tiny", sys.argv[3] + "-warm")
print(json.dumps(run("large", sys.argv[3])))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 250 MB and a tiny one, calibration tokens and text."""
    from safetensors.torch import save_file

    root = tmp_path_factory.mktemp("memory")
    for name in ("calibration", "text", "large"):
        (root / name).mkdir()
    write_tiny_folder(root / "tiny", dtype="bfloat16")
    for path in (root / "tiny").glob("*token*"):
        (root / "large" / path.name).write_bytes(path.read_bytes())
    config = json.loads((root / "tiny" / "config.json").read_text())
    wide = {"hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 48, "num_hidden_layers": 20}
    config |= wide
    (root / "large" / "config.json").write_text(json.dumps(config))
    tensors = dict(shape_of(config).tensors())
    writer = SafetensorsWriter(root / "large" / "model.safetensors", tensors, "bfloat16")
    generator = torch.Generator().manual_seed(0)
    for name, dims in tensors.items():
        writer.put(name, (torch.randn(dims, generator=generator) * dims[-1] ** -0.5).bfloat16())
    writer.close()
    ids = torch.randint(4, WIDTHS["vocab_size"], (2, 16), generator=generator)
    save_file({"input_ids": ids}, root / "calibration" / "calibration.safetensors")
    words = " ".join(f"w{4 + index * 7 % 200}" for index in range(60))
    (root / "text" / "text.jsonl").write_text(json.dumps({"text": words, "source": "t"}) + "\n")
    return root


def peaks(root: Path, room: dict[str, int] | None, name: str) -> dict[str, int]:
    command = [sys.executable, "-c", CHILD, str(root), json.dumps(room), name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_model_on_disk_takes_a_part_of_its_size(root: Path) -> None:
    size = (root / "large" / "model.safetensors").stat().st_size
    assert size > 200_000_000
    spread, whole = peaks(root, {"cpu": 4096}, "spread"), peaks(root, None, "whole")
    for role in ("scores", "pruned", "judged"):
        assert spread[role] < 0.5 * size < 0.8 * size < whole[role], (role, spread, whole, size)
    for role in ("scores", "plan", "pruned", "judged"):
        for path in (root / "whole" / role).iterdir():
            assert path.read_bytes() == (root / "spread" / role / path.name).read_bytes(), path
