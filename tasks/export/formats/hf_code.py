"""HF with code: layers of their own widths for who has transformers but not resprout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from resprout.tasks.export.formats.hf import HuggingFace

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class HuggingFaceCode(HuggingFace):
    """The same with a width for each layer, for transformers with code beside the weights.

    The code is `tasks/models/modeling_resprout.py`, with which resprout computes too, and runs only with
    trust_remote_code=True; without it stock classes stop at the shapes. It is checked where resprout is not.
    A model that stock classes can load gets no code.
    """

    layouts: ClassVar[tuple[str, ...]] = ("uniform", "per_layer")
    own_classes: ClassVar[bool] = False
    note: ClassVar[str] = (
        "Stock classes know one width for all layers, so `trust_remote_code=True` runs "
        "`modeling_resprout.py` of this folder, which needs torch and transformers alone: read it first."
    )
    runs_code: ClassVar[bool] = True
    quantized: ClassVar[bool] = False
    adapters: ClassVar[bool] = False
    loading: ClassVar[tuple[str, ...]] = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "model = AutoModelForCausalLM.from_pretrained({folder}, trust_remote_code=True)",
        "tokenizer = AutoTokenizer.from_pretrained({folder})",
    )

    def write(self, model: PreTrainedModel, source: Path, folder: Path) -> None:
        """Save the model with the code, and in config.json what it builds the layers by."""
        from resprout.tasks.models import modeling_resprout
        from resprout.tasks.models.layouts import layout_of, to_layers
        from resprout.tasks.models.shape import read_config

        super().write(model, source, folder)
        if (shape := layout_of(model.config)) is None:
            return
        code = Path(modeling_resprout.__file__)
        shutil.copyfile(code, folder / code.name)
        config = read_config(folder) | {
            modeling_resprout.LAYERS_KEY: to_layers(model.config, shape),
            "auto_map": {"AutoModelForCausalLM": f"{code.stem}.{type(model).__name__}"},
        }
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")
