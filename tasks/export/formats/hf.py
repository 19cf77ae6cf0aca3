"""HF: a safetensors folder that stock transformers loads without code of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, ClassVar

from resprout.configs.errors import BadInput, StageFailed
from resprout.tasks.export import probe as script
from resprout.tasks.export.format import largest_difference
from resprout.tasks.export.probe import Probed, Question

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from resprout.tasks.models.shape import Shape


class HuggingFace:
    """A safetensors folder for stock transformers, no code of ours; checked in a child process."""

    layouts: ClassVar[tuple[str, ...]] = ("uniform",)
    own_classes: ClassVar[bool] = False
    note: ClassVar[str] = ""
    runs_code: ClassVar[bool] = False
    """Whether transformers runs Python code of the folder to load it."""
    quantized: ClassVar[bool] = False
    adapters: ClassVar[bool] = False
    loading: ClassVar[tuple[str, ...]] = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "model = AutoModelForCausalLM.from_pretrained({folder})",
        "tokenizer = AutoTokenizer.from_pretrained({folder})",
    )

    asking: ClassVar[tuple[str, ...]] = (
        'inputs = tokenizer("The river", return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0]))",
    )
    chatting: ClassVar[tuple[str, ...]] = (
        'chat = [{"role": "user", "content": "What is the capital of France?"}]',
        'inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")',
        "answer = model.generate(**inputs, max_new_tokens=64, do_sample=False)[0]",
        'print(tokenizer.decode(answer[inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
    )
    library: ClassVar[str] = "transformers"

    def __init__(self, kind: str = "") -> None:
        """It keeps the dtype of the run: there are no types."""

    def require(self) -> None:
        """Nothing: transformers is here."""

    def check(self, shape: Shape) -> None:
        """Raise BadInput for widths that stock classes cannot state."""
        if not shape.stock and "per_layer" not in self.layouts:
            raise BadInput(
                "export.formats holds hf, but stock classes cannot state the widths that this model has been "
                "given; give formats: [hf_layouts]"
            )

    def source(self, name: str, inputs: Mapping[str, Path]) -> Path:
        """The final model."""
        return inputs["model"]

    def write(self, model: PreTrainedModel, source: Path, folder: Path) -> None:
        """Save the model; layers of different widths, which stock classes cannot build, raise BadInput."""
        from resprout.tasks.export.mlflow_model import write_mlmodel
        from resprout.tasks.models.layouts import layout_of
        from resprout.tasks.models.load import load_tokenizer, save_model

        alike = "per_layer" not in self.layouts
        if layout_of(model.config) is not None and alike:
            raise BadInput(
                "the model's layers have different widths, which stock transformers cannot load; prune with "
                "layout: uniform, or give export.formats: [hf_layouts]"
            )
        save_model(model, folder, tokenizer_from=source)
        if alike:
            write_mlmodel(model, load_tokenizer(folder), folder)

    def request(self, path: Path, folder: Path, question: Question) -> None:
        """Write the file of questions for the child process."""
        script.write_request(path, folder, question, self.own_classes, self.runs_code)

    def probe(self, folder: Path, question: Question) -> Probed:
        """Answers of transformers in an isolated Python, where resprout is not, but for `own_classes`."""
        with TemporaryDirectory() as scratch:
            out = Path(scratch)
            self.request(out / "request.json", folder, question)
            command = [sys.executable, "-I", str(Path(script.__file__)), str(out / "request.json"), str(out)]
            offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
            # Code of the folder is copied there before it runs.
            offline["HF_MODULES_CACHE"] = str(out / "modules")
            # Run elsewhere than in a checkout, whose folders would otherwise be importable.
            child = subprocess.run(
                command, capture_output=True, text=True, cwd=scratch, env=os.environ | offline, check=False
            )
            if child.returncode != 0:
                reason = (child.stderr.strip().splitlines() or ["no message"])[-1]
                classes = "resprout's classes" if self.own_classes else "stock classes"
                classes = "the code beside the weights" if self.runs_code else classes
                raise StageFailed(
                    f"transformers with {classes} cannot load and run the export ({reason}); it is discarded"
                )
            return script.read_answer(out)

    def compare(self, expected: Probed, found: Probed, bound: float) -> dict[str, float]:
        """The largest difference of a logit; other ids, greedy text or logits beyond `bound` are a fault."""
        return {
            "max_abs_logit_diff": largest_difference(
                type(self).__module__.rpartition(".")[2], expected, found, bound
            )
        }
