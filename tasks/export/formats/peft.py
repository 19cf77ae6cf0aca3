"""PEFT: the adapter of a recovery by itself, a few megabytes for who has the pruned model."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from resprout.configs.errors import BadInput
from resprout.tasks.export import probe as script
from resprout.tasks.export.format import divergence
from resprout.tasks.export.formats.hf import HuggingFace
from resprout.tasks.export.probe import Probed, Question

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOLERANCE_NATS = {"float32": 1e-6, "bfloat16": 0.01, "float16": 1e-3}
"""Mean KL(recovered || pruned with the adapter) on the prompts that merging explains: sums cast once."""


class Peft(HuggingFace):
    """The adapter of a recovery by lora, for peft on the pruned model; checked in a child process.

    The pruned model is no part of it: a run of the same config without select and recover exports it.
    """

    layouts: ClassVar[tuple[str, ...]] = ("uniform", "per_layer")
    own_classes: ClassVar[bool] = False
    note: ClassVar[str] = (
        "This is an adapter alone. It goes onto the pruned model, whose digest `resprout.json` names as "
        "`pruned`: a run of the same config without `select` and `recover` exports that model."
    )
    quantized: ClassVar[bool] = False
    adapters: ClassVar[bool] = True
    library: ClassVar[str] = "peft"
    loading: ClassVar[tuple[str, ...]] = (
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        'pruned = AutoModelForCausalLM.from_pretrained("path/to/pruned")',
        "model = PeftModel.from_pretrained(pruned, {folder})",
        'tokenizer = AutoTokenizer.from_pretrained("path/to/pruned")',
    )

    def __init__(self, kind: str = "") -> None:
        self.base = Path()
        self.tolerance = 0.0

    def source(self, name: str, inputs: Mapping[str, Path]) -> Path:
        """The recovery; the pruned model, onto which its adapter goes, is kept for the check."""
        self.base = inputs["pruned"]
        return inputs["recovery"]

    def write(self, model: PreTrainedModel, source: Path, folder: Path) -> None:
        """Copy the adapter; the tokenizer is the pruned model's.

        Raises:
            BadInput: the recovery kept no adapter.
        """
        from resprout.tasks.recover.stage import ADAPTER

        if not (source / ADAPTER).is_dir():
            raise BadInput(
                "the export peft is the adapter of the run's recovery, which kept none: it was made by an "
                "earlier version of resprout; run the config again"
            )
        shutil.copytree(source / ADAPTER, folder, dirs_exist_ok=True)

    def request(self, path: Path, folder: Path, question: Question) -> None:
        """Write the file of questions, with the model that the adapter goes onto."""
        from resprout.tasks.models.families import LAYOUT_KEY
        from resprout.tasks.models.shape import read_config

        self.tolerance = TOLERANCE_NATS[question.dtype]
        own = LAYOUT_KEY in read_config(self.base)
        script.write_request(path, folder, question, own_classes=own, base=self.base)

    def compare(self, expected: Probed, found: Probed, bound: float) -> dict[str, float]:
        """Mean KL(recovered || pruned with the adapter) in nats, and the share of greedy tokens that agree.

        Other prompt ids, or a divergence that rounding does not explain, raises StageFailed.
        """
        return divergence("peft", expected, found, self.tolerance)
