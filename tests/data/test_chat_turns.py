"""Turns of a chat as text, in templates as `init` writes them; what is no text is refused."""

from __future__ import annotations

from typing import Any

import pytest

from resprout.configs.errors import BadInput
from resprout.tasks.data.render import compile_template

CALL = "the first answer says nothing, as where a tool is called"


def turns(*said: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in said]


def pair(chat: Any) -> tuple[str, str]:
    question, answer = (
        compile_template(f"{{{{ c | {one} }}}}") for one in ("first_question", "first_answer")
    )
    return question({"c": chat}), answer({"c": chat})


@pytest.mark.parametrize(
    ("chat", "expected"),
    [
        (turns(("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")), ("q", "a")),
        (turns(("assistant", "hello"), ("user", "q"), ("assistant", "a")), ("q", "a")),
        (turns(("system", " s "), ("user", "q"), ("assistant", "a")), ("s\n\nq", "a")),
        (turns(("system", ""), ("user", "q"), ("assistant", "a")), ("q", "a")),
        (turns(("developer", "s"), ("assistant", "x"), ("user", "q"), ("assistant", "a")), ("s\n\nq", "a")),
        (turns(("user", "q"), ("user", "more"), ("assistant", "a")), ("q\n\nmore", "a")),
        (turns(("User", "q"), ("Assistant", "a"), ("tool", None)), ("q", "a")),
        ([{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], ("q", "a")),
        ([{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}], ("q", "a")),
        ([{"role": "user", "content": "q", "from": None}, {"from": "model", "value": "a"}], ("q", "a")),
        (turns(("user", [{"type": "text", "text": "q"}, "r"]), ("assistant", [{"text": "a"}])), ("qr", "a")),
    ],
)  # fmt: skip
def test_the_first_question_and_its_answer(chat: list[dict[str, Any]], expected: tuple[str, str]) -> None:
    assert pair(chat) == expected


@pytest.mark.parametrize(
    ("chat", "sentence"),
    [
        (turns(("assistant", "hello")), "the chat has no turn of the user; who speaks: assistant"),
        (turns(("assistant", "hello"), ("user", "q")), "nobody answers the first turn of the user"),
        (turns(("user", "q"), ("assistant", None), ("tool", "r"), ("assistant", "a")), CALL),
        (turns(("user", "q"), ("assistant", "")), CALL),
        (turns(("user", "q"), ("tool", "r"), ("assistant", "a")), "comes one of 'tool', no answer"),
        (turns(("system", "s"), ("user", " "), ("assistant", "a")), "turn of the user says nothing"),
        (turns(("user", [{"type": "image"}]), ("assistant", "a")), "a turn holds a part that is no text"),
        (turns(("user", {"x": 1}), ("assistant", "a")), "a turn says a dict, which is no text"),
        ("q", "expected a list of chat turns, found a str"),
        (None, "expected a list of chat turns, found a NoneType"),
        (["q", "a"], "expected chat turns"),
    ],
)  # fmt: skip
def test_a_chat_without_question_or_answer_is_refused(chat: Any, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        pair(chat)


def test_all_turns() -> None:
    render = compile_template("{{ c | all_turns }}")
    assert render({"c": turns(("user", "q"), ("assistant", None), ("assistant", ["a", "b"]))}) == "q\n\nab"
    assert render({"c": None}) == ""
    with pytest.raises(BadInput, match="'c' is undefined"):
        render({})
