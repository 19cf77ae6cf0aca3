"""ONNX: one graph with cache inputs for ONNX Runtime, made by transformers' own exporter."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar

from resprout.configs.errors import BadInput, StageFailed
from resprout.infra.identity import install_command
from resprout.tasks.export.format import largest_difference
from resprout.tasks.export.probe import Probed, Question, read_answer, write_request

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from resprout.tasks.models.shape import Shape

PROBE = "resprout.tasks.export.onnx_probe"
"""Run by its path, so that it imports nothing of resprout."""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = {"float32": 1e-3, "float16": 5e-2}
"""Largest difference of a logit that the order of sums explains, by dtype."""
SLIDING = "sliding_attention"
SAMPLE = (2, 8)
"""Rows and tokens of the prompt that the graph is traced on; both, and the cache's length, stay free."""


class Onnx:
    """A graph with weights beside it for ONNX Runtime, any layout; its cache goes in and out as tensors.

    A prompt is read with an empty cache, what follows with the one that came out.
    """

    layouts: ClassVar[tuple[str, ...]] = ("uniform", "per_layer")
    own_classes: ClassVar[bool] = False
    note: ClassVar[str] = ""
    quantized: ClassVar[bool] = False
    loading: ClassVar[tuple[str, ...]] = (
        "from onnxruntime import InferenceSession",
        "from transformers import AutoTokenizer",
        'model = InferenceSession({folder} + "/model.onnx")',
        "tokenizer = AutoTokenizer.from_pretrained({folder})",
    )

    def __init__(self, kind: str = "") -> None:
        if kind:
            raise BadInput(f"the format onnx keeps the dtype of the run; give onnx, not onnx:{kind}")
        self.tolerance = 0.0

    def check(self, shape: Shape) -> None:
        """Raise BadInput for caches that a trace does not keep: of windows, and of layers without attention.

        The cut to a window is baked in, so that it is wrong behind it (huggingface/transformers 49542).
        """
        window = shape.config.get("sliding_window")
        if window and SLIDING in (shape.config.get("layer_types") or (SLIDING,)):
            raise BadInput(
                f"export.formats holds onnx, but the model attends to windows of {window} tokens, which "
                "transformers' exporter to ONNX does not keep behind the first; leave onnx out"
            )
        if 0 in shape.kv_heads:
            raise BadInput(
                f"export.formats holds onnx, but layer {shape.kv_heads.index(0)} has no attention, so that "
                "transformers' exporter to ONNX finds no cache for it; leave onnx out"
            )

    def require(self) -> None:
        """Raise BadInput where the packages that write and run the graph are not installed."""
        missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            raise BadInput(
                f"the export onnx needs {', '.join(missing)}, not installed here; {install_command('onnx')}"
            )

    def write(self, model: PreTrainedModel, source: Path, folder: Path) -> None:
        """Trace the model and save graph, weights, config and tokenizer; no path of this machine is kept."""
        from transformers.exporters import OnnxConfig, OnnxExporter

        from resprout.tasks.models.load import save_beside_weights
        from resprout.tasks.models.shape import shape_of

        self.require()
        self.check(shape_of(model.config.to_dict()))
        dtype = str(model.dtype).removeprefix("torch.")
        if dtype not in TOLERANCE:
            raise BadInput(
                f"the export onnx takes {' and '.join(TOLERANCE)}, which ONNX Runtime computes everywhere, "
                f"but model.dtype is {dtype}; run with model.dtype: float32"
            )
        self.tolerance = TOLERANCE[dtype]
        with warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore")
            reader, inputs = _reader(model)
            made = OnnxExporter().export(reader, inputs, OnnxConfig(dynamic=True))
            _forget_code(made.program)
            made.save_pretrained(folder)
        save_beside_weights(model, folder, tokenizer_from=source)

    def probe(self, folder: Path, question: Question) -> Probed:
        """Answers of ONNX Runtime in an isolated Python, where neither torch nor resprout is imported."""
        with TemporaryDirectory() as scratch:
            out = Path(scratch)
            write_request(out / "request.json", folder, question)
            script = importlib.util.find_spec(PROBE)
            if script is None or script.origin is None:
                raise StageFailed(f"{PROBE} is missing; install resprout again")
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
        """The largest difference of a logit; beyond `bound` and what the dtype explains it is a fault."""
        return {"max_abs_logit_diff": largest_difference("onnx", expected, found, max(bound, self.tolerance))}


def _reader(model: PreTrainedModel) -> tuple[Any, dict[str, Any]]:
    """What reads any number of tokens behind a cache, and inputs to trace it on.

    Rows of different lengths make the attention mask an input.
    """
    import torch
    from transformers.exporters.utils import decompose_for_generation

    rows, tokens = SAMPLE
    ids = torch.arange(rows * tokens, device=model.device).reshape(rows, tokens) % model.config.vocab_size
    mask = torch.ones_like(ids)
    mask[-1, : tokens // 4] = 0
    asked = {"input_ids": ids, "attention_mask": mask}
    return decompose_for_generation(model, asked, multi_token_decode=True)["decode"]


def _forget_code(program: Any) -> None:
    """Drop from each node where in the code it was traced, which names files of this machine."""
    for graph in program.graphs():
        graph.metadata_props.clear()
        for node in graph.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None
        for value in graph.initializers.values():
            value.metadata_props.clear()
    for function in program.functions.values():
        function.metadata_props.clear()
        for node in function.all_nodes():
            node.metadata_props.clear()
            node.doc_string = None


class _quiet:
    """Hold back what tracing says about its own libraries."""

    def __enter__(self) -> None:
        self._before = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *fault: object) -> None:
        logging.disable(self._before)
