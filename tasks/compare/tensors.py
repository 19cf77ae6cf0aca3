"""By how much two safetensors files differ; one tensor of each is in memory at a time."""

from __future__ import annotations

from pathlib import Path


def compare_tensors(first: Path, second: Path) -> str:
    """In words: tensors that are missing, of other shapes, or apart, and the largest differences.

    The relative difference of a tensor is its largest absolute difference over its largest magnitude.
    ValueError where a file is no safetensors file.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    parts: list[str] = []
    try:
        with safe_open(first, "pt") as ours, safe_open(second, "pt") as theirs:
            names, others = set(ours.keys()), set(theirs.keys())
            if lone := sorted(names ^ others):
                parts.append(f"{len(lone)} tensors are in one of both only, such as {lone[0]}")
            apart, shaped, most, most_relative, worst = 0, 0, 0.0, 0.0, ""
            for name in sorted(names & others):
                one, two = ours.get_tensor(name), theirs.get_tensor(name)
                if one.shape != two.shape or one.dtype != two.dtype:
                    shaped += 1
                    continue
                if torch.equal(one, two):
                    continue
                apart += 1
                wide, other = one.double(), two.double()
                absolute = float((wide - other).abs().max())
                relative = absolute / max(float(wide.abs().max()), float(other.abs().max()), 1e-300)
                most = max(most, absolute)
                if relative >= most_relative:
                    most_relative, worst = relative, name
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    if shaped:
        parts.append(f"{shaped} tensors have other shapes or dtypes")
    if apart:
        parts.append(
            f"{apart} of {len(names & others)} tensors differ, at most by {most:.3g} absolute and "
            f"{most_relative:.3g} relative (in {worst})"
        )
    return ", ".join(parts) or "the same tensors, laid out otherwise"
