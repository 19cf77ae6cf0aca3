"""MLmodel beside an export: with it MLflow's transformers flavour loads the folder where it lies.

MLflow's own files of the name hold dates, ids and versions; this one holds what the flavour needs and nothing
else, so that equal models give equal bytes. The weights are those of the folder itself. Only the tokenizer is
there once more, in the one place where the flavour looks for it (mlflow.transformers.model_io).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from resprout.tasks.models.tokenizer_files import TOKENIZER_FILES

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FILE = "MLmodel"
TOKENIZER = "components/tokenizer"


def write_mlmodel(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Add MLmodel and the tokenizer's second place to `folder`, which holds model and tokenizer."""
    flavour: dict[str, Any] = {
        "task": "text-generation",
        "instance_type": "TextGenerationPipeline",
        "model_binary": ".",
        "pipeline_model_type": type(model).__name__,
        "components": ["tokenizer"],
        "tokenizer_type": type(tokenizer).__name__,
        "torch_dtype": str(model.dtype),
    }
    served = {"loader_module": "mlflow.transformers"}
    (folder / TOKENIZER).mkdir(parents=True)
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, folder / TOKENIZER / name)
    text = yaml.safe_dump({"flavors": {"python_function": served, "transformers": flavour}})
    (folder / FILE).write_text(text, encoding="utf-8")
