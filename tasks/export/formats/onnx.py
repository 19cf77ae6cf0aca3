"""ONNX: the graph that `quantize` made, for ONNX Runtime; its cache goes in and out as tensors."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, ClassVar

from resprout.configs.errors import StageFailed
from resprout.tasks.export.format import BESIDE, divergence, largest_difference
from resprout.tasks.export.probe import Probed, Question, read_answer, write_request
from resprout.tasks.onnx_runtime.library import require_onnx
from resprout.tasks.onnx_runtime.types import onnx_type

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from resprout.tasks.models.shape import Shape

SCRIPT = "resprout.tasks.onnx_runtime.session"
"""Run by its path, so that it imports nothing of resprout."""
TOLERANCE = 1e-3
"""Largest difference of a logit that the order of sums explains where nothing was rounded."""
TOLERANCE_NATS = 5e-3
"""Mean KL(model || graph) that half precision explains."""


class Onnx:
    """A graph with weights beside it for ONNX Runtime, as `quantize` made it (onnx:TYPE), any layout.

    A prompt is read with an empty cache, what follows with the one that came out.
    """

    layouts: ClassVar[tuple[str, ...]] = ("uniform", "per_layer")
    own_classes: ClassVar[bool] = False
    note: ClassVar[str] = ""
    quantized: ClassVar[bool] = True
    adapters: ClassVar[bool] = False
    loading: ClassVar[tuple[str, ...]] = (
        "from onnxruntime import InferenceSession",
        "from transformers import AutoTokenizer",
        'model = InferenceSession({folder} + "/model.onnx")',
        "tokenizer = AutoTokenizer.from_pretrained({folder})",
    )

    chatting: ClassVar[tuple[str, ...]] = ()
    asking: ClassVar[tuple[str, ...]] = (
        "import numpy",
        'ids = tokenizer("The river", return_tensors="np").input_ids',
        "given = {'input_ids': ids, 'attention_mask': numpy.ones_like(ids)}",
        "given['position_ids'] = numpy.arange(ids.shape[1])[None]",
        "for one in model.get_inputs():",
        "    if 'cache' in one.name:  # of no tokens yet; what comes out goes in with the next ones",
        "        half = 'float16' if 'float16' in one.type else 'float32'",
        "        given[one.name] = numpy.zeros((1, int(one.shape[1]), 0, int(one.shape[3])), half)",
        "used = {one.name: given[one.name] for one in model.get_inputs()}",
        "print(tokenizer.decode(model.run(['logits'], used)[0][0, -1].argmax()))",
    )
    library: ClassVar[str] = "onnx"

    def __init__(self, kind: str) -> None:
        self.kind = onnx_type(kind)
        self.exact = self.kind == "F32"

    def require(self) -> None:
        """Raise BadInput where the packages that write and run the graph are not installed."""
        require_onnx()

    def check(self, shape: Shape) -> None:
        """Nothing: `quantize`, which makes the graph, has checked the model."""

    def source(self, name: str, inputs: Mapping[str, Path]) -> Path:
        """The folder that `quantize` wrote."""
        return inputs[name]

    def write(self, model: PreTrainedModel, source: Path, folder: Path) -> None:
        """Copy graph, weights, config and tokenizer from `source`, what `quantize` wrote."""
        for path in source.iterdir():
            if path.name != BESIDE:
                shutil.copyfile(path, folder / path.name)

    def probe(self, folder: Path, question: Question) -> Probed:
        """Answers of ONNX Runtime in an isolated Python, where neither torch nor resprout is imported."""
        self.exact = self.kind == "F32" and question.dtype == "float32"
        with TemporaryDirectory() as scratch:
            out = Path(scratch)
            write_request(out / "request.json", folder, question)
            script = importlib.util.find_spec(SCRIPT)
            if script is None or script.origin is None:
                raise StageFailed(f"{SCRIPT} is missing; install resprout again")
            child = subprocess.run(
                [sys.executable, "-I", script.origin, str(out / "request.json"), str(out)],
                capture_output=True, text=True, cwd=scratch, env=os.environ | {"HF_HUB_OFFLINE": "1"},
                check=False,
            )  # fmt: skip
            if child.returncode != 0:
                reason = (child.stderr.strip().splitlines() or ["no message"])[-1]
                raise StageFailed(
                    f"ONNX Runtime cannot load and run the onnx export ({reason}); it is discarded"
                )
            return read_answer(out)

    def compare(self, expected: Probed, found: Probed, bound: float) -> dict[str, float]:
        """The largest difference of a logit where graph and model are in float32, else mean KL.

        What is beyond `bound` and the order of sums, or beyond half precision, raises StageFailed.
        """
        name = f"onnx:{self.kind}"
        if self.exact:
            return {"max_abs_logit_diff": largest_difference(name, expected, found, max(bound, TOLERANCE))}
        return divergence(name, expected, found, TOLERANCE_NATS)
