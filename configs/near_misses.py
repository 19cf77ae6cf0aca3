"""Keys that people try because other tools have them, or in another section, and what to give here."""

from __future__ import annotations

from collections.abc import Mapping

from resprout.configs.schema import TargetConfig

SIZE = (
    "the size to reach is prune.target, which says what stays, e.g. target: {params_ratio: 0.8} for 20 % "
    "smaller, {bytes: 250 MB} or {latency_ratio: 0.8}"
)
SOURCE = (
    "the model's address is model.source: a folder, hf://org/name, models:/name@alias, s3:// or package://"
)
DATA = (
    "data stands where it is used, in calibrate.text, evaluate.perplexity.text and, for recovery, "
    "select.pool: each is a list such as [{source: text.jsonl}]"
)

INSTEAD: Mapping[str, str] = {
    **{f"prune.{one}": f"it belongs to prune.target: {{{one}: ...}}" for one in TargetConfig.model_fields},
    **dict.fromkeys(
        ("prune.sparsity", "prune.ratio", "prune.amount", "prune.pruning_ratio", "prune.size"), SIZE
    ),
    **dict.fromkeys(("model.path", "model.name", "model.id", "model.uri"), SOURCE),
    **dict.fromkeys(("data", "dataset", "datasets", "text", "pool"), DATA),
}
"""A sentence for each such key of a run config."""
