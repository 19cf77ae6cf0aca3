"""Export formats: what each must do, which there are, and how an export is compared with its model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from resprout.configs.errors import BadInput, StageFailed
from resprout.tasks.core.methods import Entry, Registry
from resprout.tasks.gguf.types import FILE as GGUF
from resprout.tasks.models.gguf_header import read_header
from resprout.tasks.models.tokenizer_files import chat_template, gguf_chat_template

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from resprout.tasks.export.probe import Probed, Question
    from resprout.tasks.models.shape import Shape


BESIDE = "metrics.json"
"""What `quantize` writes beside a model, which is no part of it."""


class Format(Protocol):
    """A way to write a model so that a stock tool loads it."""

    layouts: ClassVar[tuple[str, ...]]
    """Values of prune.layout whose models it can hold."""
    own_classes: ClassVar[bool]
    """Whether the model is loaded with resprout's classes."""
    note: ClassVar[str]
    """A sentence of the card in front of the lines that load the model, where they need one."""
    quantized: ClassVar[bool]
    """Whether it is written of what `quantize` made in the format."""
    adapters: ClassVar[bool]
    """Whether it is written of the adapter that recovery merged, and loaded onto the pruned model."""
    loading: ClassVar[tuple[str, ...]]
    """Lines of Python that load model and tokenizer from `{folder}`."""
    asking: ClassVar[tuple[str, ...]]
    """Lines of Python that continue a few words, after `loading`."""
    chatting: ClassVar[tuple[str, ...]]
    """Lines of Python that ask a question by the model's chat template, after `loading`; none: `asking`."""
    library: ClassVar[str]
    """The library that loads it, by the hub's name."""

    def __init__(self, kind: str) -> None:
        """Raises BadInput for a type that the format does not have."""
        ...

    def require(self) -> None:
        """Raise BadInput, which names the extra, where what it is written or checked by is not installed."""
        ...

    def check(self, shape: Shape) -> None:
        """Raise BadInput where a model of this shape cannot be written so; before a run, as far as known."""
        ...

    def source(self, name: str, inputs: Mapping[str, Path]) -> Path:
        """The folder that it is written of, among the inputs of the export; `name` as the config has it."""
        ...

    def write(self, model: PreTrainedModel, source: Path, folder: Path) -> None:
        """Write `model`, or what else lies in `source`, into the empty `folder`."""
        ...

    def probe(self, folder: Path, question: Question) -> Probed:
        """The stock tool's answer to the question, in a process that cannot import resprout.

        A tool that cannot load or run what was written raises StageFailed.
        """
        ...

    def compare(self, expected: Probed, found: Probed, bound: float) -> dict[str, float]:
        """How far the tool's answers are from the model's; StageFailed where they are of another model.

        `bound` is export.max_abs_logit_diff, for formats that keep every weight.
        """
        ...


FORMATS: Registry[type[Format]] = Registry("export format", "resprout.tasks.export.formats")


def entry(name: str) -> Entry:
    """The format that a name such as hf or gguf:Q4_K_M begins with; an unknown one raises BadInput."""
    return FORMATS.entry(name.partition(":")[0])


def format_of(name: str) -> Format:
    """The format in the type that a name says; BadInput for a type of a format that has none."""
    form, _, kind = name.partition(":")
    if kind and not FORMATS.entry(form).declared["quantized"]:
        raise BadInput(f"{form} keeps the dtype of the run and has no types; give {form}, not {name}")
    return FORMATS.get(form)(kind)


def folder_name(name: str) -> str:
    """Name of the folder that holds a format: a colon in a path is no name of a file on every system."""
    return name.replace(":", "-")


def usage(name: str, folder: str, chat: bool) -> list[str]:
    """Return lines of Python that load a format and let it write; `folder` is an expression.

    `chat`: the model has a chat template, so that it is asked a question by it.
    """
    own = entry(name).declared
    # Formats that declare no lines of their own are classes below that of hf.
    known = {**FORMATS.entry("hf").declared, **own}
    talk: tuple[str, ...] = (chat and known["chatting"]) or known["asking"]
    return [*(line.format(folder=folder) for line in known["loading"]), *talk]


def chats(folder: Path) -> bool:
    """Return whether the export in `folder` has a chat template, in its GGUF file or beside its weights."""
    if (file := folder / GGUF).is_file():
        return gguf_chat_template(read_header(file)[0]) is not None
    return chat_template({path.name: path for path in folder.iterdir() if path.is_file()}) is not None


def own_classes(formats: Iterable[str]) -> str | None:
    """How exports that stock transformers does not load are loaded, as a sentence; None: all are stock."""
    found = [name for name in formats if entry(name).declared["own_classes"]]
    if not found:
        return None
    return (
        f"stock transformers does not load {' and '.join(found)}: call resprout.tasks.models.auto."
        "register_layouts() before from_pretrained, export hf_code, or prune with layout: uniform"
    )


def largest_difference(name: str, expected: Probed, found: Probed, bound: float) -> float:
    """The largest absolute difference of a logit over all prompts and positions.

    Other prompt ids, other greedy text, another vocabulary, or a difference that is not within `bound` (a
    NaN is not) raises StageFailed.
    """
    if expected.input_ids != found.input_ids:
        raise StageFailed(
            f"the {name} export tokenizes the prompts differently; its tokenizer is not the model's"
        )
    shapes = [tuple(logits.shape) for logits in expected.logits], [tuple(x.shape) for x in found.logits]
    if shapes[0] != shapes[1]:
        raise StageFailed(
            f"the {name} export answers with logits of shapes {shapes[1]}, the model {shapes[0]}"
        )
    worst = max((a - b).abs().max().item() for a, b in zip(expected.logits, found.logits, strict=True))
    if not worst <= bound:
        raise StageFailed(
            f"logits of the {name} export differ by up to {worst:.6g} from the model's, where "
            f"export.max_abs_logit_diff allows {bound:g}; the export is discarded"
        )
    for prompt, (ours, theirs) in enumerate(zip(expected.greedy_ids, found.greedy_ids, strict=True)):
        if ours != theirs:
            raise StageFailed(
                f"the {name} export continues prompt {prompt} differently from the model under greedy "
                "decoding; the export is discarded"
            )
    return worst


def divergence(name: str, expected: Probed, found: Probed, tolerance: float) -> dict[str, float]:
    """Mean KL(model || export) in nats over the prompts' tokens, and the share of greedy tokens that agree.

    Other prompt ids, another vocabulary, or a divergence that is not within `tolerance` raises StageFailed.
    """
    import torch

    if expected.input_ids != found.input_ids:
        raise StageFailed(f"the {name} export tokenizes the prompts differently; it is discarded")
    # In float32 the rounding of the sum, 4e-8 on some processors, would pass for divergence.
    ours, theirs = (torch.cat(one.logits).double().log_softmax(-1) for one in (expected, found))
    if ours.shape != theirs.shape:
        raise StageFailed(f"the {name} export has another vocabulary than the model; it is discarded")
    apart = (ours.exp() * (ours - theirs)).sum(-1).mean().item()
    if not apart <= tolerance:
        raise StageFailed(
            f"the {name} export diverges by {apart:.4g} nats a token from the model on the prompts, and "
            f"{tolerance:g} are allowed for its type; it is discarded"
        )
    pairs = [
        pair
        for texts in zip(expected.greedy_ids, found.greedy_ids, strict=True)
        for pair in zip(*texts, strict=False)
    ]
    agreeing = sum(a == b for a, b in pairs) / max(1, len(pairs))
    return {"mean_kl_nats": apart, "greedy_agreement": agreeing}
