"""Formats by name: what may be asked of them before a run costs no import of torch."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "torchao", "transformers", "gguf", "tqdm", "onnxruntime", "lm_eval")


def test_formats_are_checked_without_the_libraries_that_write_them() -> None:
    code = (
        "import sys\n"
        "from resprout.tasks.export.format import FORMATS, format_of\n"
        "from resprout.tasks.quantize.format import FORMATS as FEW, format_of as few\n"
        "typed = {'gguf': 'gguf:Q4_0', 'compressed-tensors': 'compressed-tensors:W8A16'}\n"
        "typed |= {'onnx': 'onnx:F16', 'torchao': 'torchao:INT8'}\n"
        "[format_of(typed.get(one.name, one.name)) for one in FORMATS]\n"
        "[few(typed[one.name]) for one in FEW]\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], len(list(FORMATS)), len(list(FEW)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy, _, counts = done.stdout.strip().rpartition("] ")
    assert heavy == "[", done.stdout
    assert min(map(int, counts.split())) >= 1
