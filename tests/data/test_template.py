from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from resprout.configs.errors import BadInput
from resprout.tasks.data.chat import chat_texts
from resprout.tasks.data.template import Encoded, encode, encode_rows

Make = Callable[..., Any]
ROW = {"instruction": "Add.", "input": "1 2", "output": "3"}


def test_alpaca_with_input(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer(front=True)
    found = encode(tokenizer, ROW, "alpaca", 512)
    assert tokenizer.decode(found.prompt_ids) == (
        "<s>Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:"
    )
    assert tokenizer.decode(found.response_ids) == "3</s>"


@pytest.mark.parametrize("given", ["", "  ", None])
def test_alpaca_without_input(make_tokenizer: Make, given: str | None) -> None:
    tokenizer = make_tokenizer()
    found = encode(tokenizer, {**ROW, "input": given}, "alpaca", 512)
    assert tokenizer.decode(found.prompt_ids) == (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Response:"
    )


def test_a_tokenizer_that_closes_texts_does_not_close_the_prompt(make_tokenizer: Make) -> None:
    assert encode(make_tokenizer(back=True), ROW, "alpaca", 512) == encode(
        make_tokenizer(), ROW, "alpaca", 512
    )


def test_chat(make_tokenizer: Make, chat_template: str) -> None:
    tokenizer = make_tokenizer(front=True, chat=chat_template)
    found = encode(tokenizer, ROW, "chat", 512)
    assert tokenizer.decode(found.prompt_ids) == "<s>user\nAdd.\n\n1 2</s>\n<s>assistant\n"
    assert tokenizer.decode(found.response_ids) == "3</s>"


def test_the_cut_is_at_the_end_of_the_response(make_tokenizer: Make) -> None:
    """The prompt without input has P tokens; of the answer's 6 bytes and EOS, max_len - P remain."""
    tokenizer = make_tokenizer()
    row = {"instruction": "x", "input": "", "output": "abcdef"}
    prompt = len(encode(tokenizer, row, "alpaca", 999).prompt_ids)
    assert tokenizer.decode(encode(tokenizer, row, "alpaca", prompt + 7).response_ids) == "abcdef</s>"
    assert tokenizer.decode(encode(tokenizer, row, "alpaca", prompt + 6).response_ids) == "abcdef"
    assert tokenizer.decode(encode(tokenizer, row, "alpaca", prompt + 2).response_ids) == "ab"
    cut = encode(tokenizer, row, "alpaca", prompt)
    assert cut.response_ids == []
    assert len(encode(tokenizer, row, "alpaca", prompt - 5)) == prompt - 5


def test_an_empty_answer_has_no_response(make_tokenizer: Make, chat_template: str) -> None:
    for template in ("alpaca", "chat"):
        row = {"instruction": "x", "input": "", "output": ""}
        assert encode(make_tokenizer(chat=chat_template), row, template, 512).response_ids == []


def test_rows_of_which_some_are_too_long(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer()
    long = {**ROW, "instruction": "x" * 900}
    found = encode_rows(tokenizer, [long, ROW], "alpaca", 300)
    assert found[0].response_ids == []
    assert found[1] == encode(tokenizer, ROW, "alpaca", 300)


def test_no_tokens_left_in_any_row(make_tokenizer: Make) -> None:
    with pytest.raises(
        BadInput, match=r"no tokens left after the template: of 2 rows .* raise max_len_tokens"
    ):
        encode_rows(make_tokenizer(), [ROW, ROW], "alpaca", 64)


def test_tokenizers_that_lack_something(make_tokenizer: Make) -> None:
    bare = make_tokenizer()
    with pytest.raises(BadInput, match="no chat template; set template: alpaca"):
        encode(bare, ROW, "chat", 512)
    bare.eos_token = None
    with pytest.raises(BadInput, match="no EOS token"):
        encode(bare, ROW, "alpaca", 512)


def test_a_chat_template_that_rewrites_the_prompt(make_tokenizer: Make) -> None:
    changing = "{{ messages | length }}{{ messages[0]['content'] }}"
    with pytest.raises(BadInput, match="cannot be told apart"):
        encode(make_tokenizer(chat=changing), ROW, "chat", 512)


def test_a_template_that_asks_for_the_date_writes_the_same_every_day(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "Today is {{ strftime_now('%d %b %Y') }}.{% for one in messages %}{{ one.content }}</s>{% endfor %}"
    )
    ((prompt, _),) = chat_texts(tokenizer, [{"instruction": "say", "input": "", "output": "said"}])
    assert prompt == "Today is 26 Jul 2024.say</s>"


def test_length() -> None:
    assert len(Encoded([1, 2], [3])) == 3


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("{% for i in range(99999) %}" * 9 + "{% endfor %}" * 9, "did not end within 6 s of processor time"),
        ("{{ 'a' * 10 ** 8 }}", "200,000,008 characters of a row"),
        ("{{ 'a' * 10 ** 10 }}", "more than 4 GiB of memory"),
        ("{{ raise_exception('only system turns') }}", "TemplateError: only system turns"),
        ("{{ messages.__class__.__base__ }}", "SecurityError"),
        ("{% if %}", "TemplateSyntaxError"),
    ],
)
def test_a_template_that_comes_with_a_model_has_limits(
    make_tokenizer: Make, template: str, fault: str
) -> None:
    with pytest.raises(BadInput, match=f"chat template.*{fault}.*set template: alpaca"):
        encode_rows(make_tokenizer(chat=template), [ROW], "chat", 512)
