"""The graph of a model for ONNX Runtime, traced by transformers' own exporter, with the cache in and out."""

from __future__ import annotations

import io
import logging
import warnings
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.exporters import OnnxConfig, OnnxExporter
from transformers.exporters.utils import decompose_for_generation

from resprout.tasks.models.load import save_beside_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAMPLE = (2, 8)
"""Rows and tokens of the prompt that the graph is traced on; both, and the cache's length, stay free."""


def write_graph(model: PreTrainedModel, source: Path, folder: Path, dtype: torch.dtype) -> None:
    """Write graph, weights, config and tokenizer in `dtype`; the model's parameters become that, in place.

    No path of this machine is kept, and equal models give equal bytes.
    """
    for parameter in model.parameters():
        # What a model holds in float32 whatever its dtype is, such as rotary frequencies, is no parameter.
        parameter.data = parameter.data.to(dtype)
    with ExitStack() as quiet:
        quiet.enter_context(warnings.catch_warnings())
        quiet.enter_context(redirect_stdout(io.StringIO()))
        quiet.callback(logging.disable, logging.root.manager.disable)
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        reader, inputs = _reader(model)
        made = OnnxExporter().export(reader, inputs, OnnxConfig(dynamic=True))
        _forget_code(made.program)
        made.save_pretrained(folder)
    save_beside_weights(model, folder, tokenizer_from=source)


def _reader(model: PreTrainedModel) -> tuple[Any, dict[str, Any]]:
    """What reads any number of tokens behind a cache, and inputs to trace it on.

    Rows of different lengths make the attention mask an input.
    """
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
