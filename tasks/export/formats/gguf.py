"""GGUF: the file that `quantize` made, for llama.cpp and what is built on it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from resprout.tasks.export.format import divergence
from resprout.tasks.export.probe import Probed, Question
from resprout.tasks.gguf.types import FILE, file_type
from resprout.tasks.llama_cpp.library import require_llama_cpp

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from resprout.tasks.models.shape import Shape

TOLERANCE_NATS = {
    "F32": 1e-3,
    "F16": 1e-3,
    "BF16": 1e-3,
    "Q8": 0.05,
    "Q6": 0.15,
    "Q5": 0.4,
    "IQ4": 0.8,
    "Q4": 0.8,
}
"""Mean KL(model || file) on the prompts that a type explains, by its first part; beyond it a file is off."""
COARSE_NATS = 4.0
"""The same for types of three bits and fewer."""


class Gguf:
    """One file for llama.cpp, as `quantize` made it (gguf:TYPE); checked in a child process."""

    layouts: ClassVar[tuple[str, ...]] = ("uniform", "per_layer")
    own_classes: ClassVar[bool] = False
    note: ClassVar[str] = ""
    quantized: ClassVar[bool] = True
    adapters: ClassVar[bool] = False
    # The package tokenises the special tokens of a chat as plain text, and llama.cpp logs thousands of lines.
    loading: ClassVar[tuple[str, ...]] = (
        "from functools import partial",
        "from llama_cpp_py_sync import Llama",
        "from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib",
        'quiet = get_ffi().callback("ggml_log_callback", lambda *line: None)',
        "get_lib().llama_log_set(quiet, get_ffi().NULL)",
        'model = Llama({folder} + "/model.gguf")',
        "model.tokenize = partial(model.tokenize, parse_special=True)",
    )
    chatting: ClassVar[tuple[str, ...]] = (
        'chat = [{"role": "user", "content": "What is the capital of France?"}]',
        "answer = model.create_chat_completion(chat, max_tokens=64, temperature=0)",
        'print(answer["choices"][0]["message"]["content"])',
    )

    asking: ClassVar[tuple[str, ...]] = ('print("The river" + model.generate("The river", max_tokens=20))',)
    library: ClassVar[str] = "gguf"

    def __init__(self, kind: str) -> None:
        self.file = file_type(kind)

    def require(self) -> None:
        """Raise BadInput where llama.cpp is not installed."""
        require_llama_cpp()

    def check(self, shape: Shape) -> None:
        """Nothing: `quantize`, which makes the file, has checked the model."""

    def source(self, name: str, inputs: Mapping[str, Path]) -> Path:
        """The folder that `quantize` wrote."""
        return inputs[name]

    def write(self, model: PreTrainedModel, source: Path, folder: Path) -> None:
        """Copy the file from `source`, what `quantize` wrote; config and tokenizer are inside."""
        shutil.copyfile(source / FILE, folder / FILE)

    def probe(self, folder: Path, question: Question) -> Probed:
        """llama.cpp's answers, with the file's own tokenizer."""
        import torch

        from resprout.tasks.llama_cpp.process import LlamaCpp

        found = Probed([], [], [])
        with LlamaCpp(folder / FILE) as llama:
            llama.load(512, question.threads)
            for prompt in question.prompts:
                ids = llama.tokenize(prompt)
                found.input_ids.append(ids)
                found.logits.append(torch.from_numpy(llama.logits(ids)))
                found.greedy_ids.append(llama.greedy(ids, question.greedy_tokens))
        return found

    def compare(self, expected: Probed, found: Probed, bound: float) -> dict[str, float]:
        """Mean KL(model || file) in nats over the prompts' tokens, and the share of greedy tokens that agree.

        Other prompt ids, another vocabulary, or a divergence beyond the type's tolerance raises StageFailed.
        """
        part = self.file.kind.name.partition("_")[0]
        return divergence(f"gguf:{self.file.name}", expected, found, TOLERANCE_NATS.get(part, COARSE_NATS))
