"""HF: a safetensors folder that stock transformers loads without code of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from resprout.configs.errors import BadInput, StageFailed
from resprout.tasks.export import probe as script
from resprout.tasks.export.probe import Probed, Question
from resprout.tasks.models.layout import layout_of
from resprout.tasks.models.load import save_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class HuggingFace:
    """config.json, safetensors, tokenizer; checked by transformers in a child process."""

    def write(self, model: PreTrainedModel, source: Path, folder: Path) -> None:
        """Save the model; layers of different widths, which stock classes cannot build, raise BadInput."""
        if layout_of(model.config) is not None:
            raise BadInput(
                "the model's layers have different widths, which stock transformers cannot load; prune with "
                "layout: uniform, or leave hf out of export.formats"
            )
        save_model(model, folder, tokenizer_from=source)

    def probe(self, folder: Path, question: Question) -> Probed:
        """Answers of stock transformers in an isolated Python in which resprout cannot be imported."""
        with TemporaryDirectory() as scratch:
            out = Path(scratch)
            script.write_request(out / "request.json", folder, question)
            command = [sys.executable, "-I", str(Path(script.__file__)), str(out / "request.json"), str(out)]
            offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
            # Run elsewhere than in a checkout, whose folders would otherwise be importable.
            child = subprocess.run(
                command, capture_output=True, text=True, cwd=scratch, env=os.environ | offline, check=False
            )
            if child.returncode != 0:
                reason = (child.stderr.strip().splitlines() or ["no message"])[-1]
                raise StageFailed(
                    f"stock transformers cannot load and run the hf export ({reason}); the export is "
                    "discarded"
                )
            return script.read_answer(out)
