"""Prompt templates: a row in Alpaca form to prompt and response tokens.

Prompt and response are tokenised apart, so the border between them is the same whatever stands on either
side, and selection, divergence, training and token counts all see the same tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from resprout.configs.errors import BadInput
from resprout.tasks.data.chat import chat_texts

Template: TypeAlias = Literal["alpaca", "chat"]

# Stanford Alpaca, train.py PROMPT_DICT.
ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)


ALPACA_HEADINGS = ("### Instruction:", "### Input:", "### Response:")
"""Headings of the prompt; a model that does not stop after its answer continues with one of them."""


@dataclass(frozen=True)
class Encoded:
    """A row as tokens; `response_ids` is empty where the answer is empty or the cut left none of it."""

    prompt_ids: list[int]
    response_ids: list[int]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


def encode(tokenizer: Any, row: Mapping[str, Any], template: Template, max_len: int) -> Encoded:
    """Prompt and response tokens of one row, at most `max_len` together, cut at the end of the response.

    alpaca: the Stanford prompt with or without input, after the special tokens that the tokenizer puts in
    front; the response is the answer and EOS. chat: the tokenizer's own template on one user turn
    (instruction, blank line, input); the response runs to the end-of-turn token. A cut response loses its
    EOS, so that stopping in the middle is not learned.

    Raises:
        BadInput: the tokenizer has no EOS (alpaca) or no chat template (chat).
    """
    (found,) = encode_rows(tokenizer, [row], template, max_len, check=False)
    return found


def encode_rows(
    tokenizer: Any, rows: Sequence[Mapping[str, Any]], template: Template, max_len: int, check: bool = True
) -> list[Encoded]:
    """`encode` for each row, in order.

    Raises:
        BadInput: as `encode`, and with `check` where not one row has a response token left.
    """
    texts = _texts(tokenizer, rows, template)
    encoded = _encoded(tokenizer, texts, template, max_len)
    if check and encoded and not any(row.response_ids for row in encoded):
        raise no_responses(len(rows), max(len(row.prompt_ids) for row in encoded), max_len)
    return encoded


def no_responses(rows: int, longest: int, max_len: int) -> BadInput:
    """The error about rows of which not one keeps a response token behind prompts of up to `longest`."""
    return BadInput(
        f"no tokens left after the template: of {rows} rows not one keeps a response within "
        f"max_len_tokens {max_len} (prompts take up to {longest} of them); raise max_len_tokens, or "
        "check that the template for `output` names the answer's column"
    )


def is_cut(row: Encoded, max_len: int, eos: int | None) -> bool:
    """Whether an answer went on beyond `max_len` tokens: it has lost the token that ends it."""
    return len(row) == max_len and row.response_ids[-1:] != [eos]


def _encoded(
    tokenizer: Any, texts: Sequence[tuple[str, str]], template: Template, max_len: int
) -> list[Encoded]:
    if not texts:
        return []
    fronts = tokenizer([prompt for prompt, _ in texts], add_special_tokens=template == "alpaca")["input_ids"]
    backs = tokenizer([response for _, response in texts], add_special_tokens=False)["input_ids"]
    eos, found = tokenizer.eos_token_id, list[Encoded]()
    for front, back in zip(fronts, backs, strict=True):
        if template == "alpaca":
            while len(front) > 1 and front[-1] == eos:  # tokenizers that close every text with EOS
                front = front[:-1]
            back = [*back, eos] if back else back
        elif eos in back:  # templates put a line break behind the end-of-turn token
            back = back[: len(back) - back[::-1].index(eos)]
        found.append(Encoded(list(front[:max_len]), list(back[: max(0, max_len - len(front))])))
    return found


def _texts(tokenizer: Any, rows: Sequence[Mapping[str, Any]], template: Template) -> list[tuple[str, str]]:
    """Prompt and response of each row."""
    if template == "chat":
        return chat_texts(tokenizer, rows)
    if tokenizer.eos_token_id is None:
        raise BadInput(
            "the tokenizer has no EOS token, which ends an alpaca response; set eos_token in its config"
        )
    return [_alpaca(row) for row in rows]


def _alpaca(row: Mapping[str, Any]) -> tuple[str, str]:
    instruction, given, output = (
        str(row["instruction"]),
        str(row.get("input") or ""),
        str(row["output"] or ""),
    )
    if given.strip():
        return ALPACA_WITH_INPUT.format(instruction=instruction, input=given), output
    return ALPACA_WITHOUT_INPUT.format(instruction=instruction), output
