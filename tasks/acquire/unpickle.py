"""Child process: pickled weights of one folder to safetensors of another. Run with `python -I -m`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def convert(source: Path, target: Path, dtype: str) -> None:
    """Load with torch's weights-only unpickler, which builds tensors and nothing else, and save safetensors.

    Raises:
        ValueError: weights are missing or have other shapes than config.json asks for.
    """
    import torch
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source,
        dtype=getattr(torch, dtype),
        use_safetensors=False,
        weights_only=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    model, info = loaded
    wrong = [*info["missing_keys"], *(str(item[0]) for item in info["mismatched_keys"])]
    if wrong:
        raise ValueError(f"{len(wrong)} weights are missing or have another shape, first {sorted(wrong)[0]}")
    model.save_pretrained(target)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
