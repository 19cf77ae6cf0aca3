"""Answers of a model to a few prompts: logits at every position and greedy text.

The parent imports this module; the clean child process runs it as a script, `python -I probe.py REQUEST
OUT`, by its path. So it imports nothing of resprout, and as a script it first makes sure that no one can,
but for the classes of layouts where the export's format says that it needs them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Question:
    """Prompts, and in which dtype, on which device and with how many CPU threads they are answered.

    With `max_memory`, bytes by device, the model lies on as many of these as it needs, and else on disk.
    """

    prompts: list[str]
    greedy_tokens: int
    dtype: str
    device: str
    threads: int
    max_memory: Mapping[str, int] | None = None


@dataclass(frozen=True)
class Probed:
    """For each prompt its ids, float32 logits [tokens, vocabulary], and the ids that greedy decoding adds."""

    input_ids: list[list[int]]
    logits: list[Any]
    greedy_ids: list[list[int]]


def probe(model: Any, tokenizer: Any, question: Question) -> Probed:
    """The model's answers, one prompt at a time without padding."""
    import torch

    input_ids, logits, greedy = [], [], []
    for prompt in question.prompts:
        encoded = tokenizer(prompt, return_tensors="pt").input_ids.to(question.device)
        with torch.no_grad():
            logits.append(model(encoded).logits[0].float().cpu())
            longer = model.generate(
                encoded,
                attention_mask=torch.ones_like(encoded),
                max_new_tokens=question.greedy_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id or 0,
            )
        input_ids.append(encoded[0].tolist())
        greedy.append(longer[0, encoded.shape[1] :].tolist())
    return Probed(input_ids, logits, greedy)


def write_request(
    path: Path,
    folder: Path,
    question: Question,
    own_classes: bool = False,
    runs_code: bool = False,
    base: Path | None = None,
) -> None:
    """The file of questions that the child process reads; an adapter in `folder` is loaded onto `base`."""
    asked = {
        "folder": str(folder.resolve()),
        "question": asdict(question),
        "own_classes": own_classes,
        "runs_code": runs_code,
        "base": None if base is None else str(base.resolve()),
    }
    path.write_text(json.dumps(asked))


def read_answer(out: Path) -> Probed:
    """The file of answers that the child process writes."""
    from safetensors.torch import load_file

    answer = json.loads((out / "answer.json").read_text())
    tensors = load_file(out / "logits.safetensors")
    logits = [tensors[str(i)] for i in range(len(tensors))]
    return Probed(answer["input_ids"], logits, answer["greedy_ids"])


def main(request: Path, out: Path) -> None:
    """Load the requested folder by transformers and write the answers to `out`."""
    given = json.loads(request.read_text())
    if given["own_classes"]:
        from resprout.tasks.models.auto import register_layouts

        register_layouts()
    else:
        refuse_resprout()
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    question = Question(**given["question"])
    torch.set_num_threads(question.threads)
    whole = given["base"] or given["folder"]
    spread: dict[str, Any] = {}
    if question.max_memory is not None:
        room = {int(one) if one.isdigit() else one: size for one, size in question.max_memory.items()}
        spread = {"device_map": "auto", "max_memory": room, "offload_folder": str(out / "offloaded")}
    model = AutoModelForCausalLM.from_pretrained(
        whole,
        dtype=question.dtype,
        local_files_only=True,
        trust_remote_code=given["runs_code"],
        **spread,
    )
    if given["base"]:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, given["folder"])
    if not spread:
        model.to(question.device)
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(whole, local_files_only=True, trust_remote_code=False)
    answers = probe(model, tokenizer, question)
    save_file(
        {str(i): tensor.contiguous() for i, tensor in enumerate(answers.logits)}, out / "logits.safetensors"
    )
    ids = {"input_ids": answers.input_ids, "greedy_ids": answers.greedy_ids}
    (out / "answer.json").write_text(json.dumps(ids))


def refuse_resprout() -> None:
    """Make every import of resprout fail, also where it is installed, and check that it does."""
    sys.modules["resprout"] = None  # type: ignore[assignment]
    try:
        __import__("resprout")
    except ImportError:
        return
    raise SystemExit("resprout could be imported in the process that must do without it")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
