from __future__ import annotations

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHAT = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """A byte-level tokenizer: one token a byte, then <s> and </s>."""

    def make(front: bool = False, back: bool = False, chat: str | None = None) -> PreTrainedTokenizerFast:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocab = {char: index for index, char in enumerate([*alphabet, "<s>", "</s>"])}
        raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        raw.decoder = decoders.ByteLevel()
        raw.add_special_tokens(["<s>", "</s>"])
        form = f"{'<s> ' if front else ''}$A{' </s>' if back else ''}"
        raw.post_processor = processors.TemplateProcessing(
            single=form, special_tokens=[("<s>", vocab["<s>"]), ("</s>", vocab["</s>"])]
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="</s>", chat_template=chat
        )

    return make


@pytest.fixture(scope="session")
def chat_template() -> str:
    return CHAT
