from __future__ import annotations

from collections.abc import Callable

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from tiny_bytes import byte_tokenizer

CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """A byte-level tokenizer: one token a byte, then <s> and </s>."""

    def make(front: bool = False, back: bool = False, chat: str | None = None) -> PreTrainedTokenizerFast:
        made = byte_tokenizer(pad_token="</s>", chat_template=chat)
        form = f"{'<s> ' if front else ''}$A{' </s>' if back else ''}"
        made.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=form, special_tokens=[("<s>", made.bos_token_id), ("</s>", made.eos_token_id)]
        )
        return made

    return make


@pytest.fixture(scope="session")
def chat_template() -> str:
    return CHAT
