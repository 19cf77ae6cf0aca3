"""Render rows with the model's own chat template, in a child process with limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, tzinfo
from typing import Any

from jinja2 import TemplateError

from resprout.configs.errors import BadInput
from resprout.tasks.data.confined import Confined, Failed

NO_CHAT = "the tokenizer has no chat template"
NO_TEMPLATE = f"template is chat but {NO_CHAT}; set template: alpaca"
INSTEAD = "fix the template in the model's folder, or set template: alpaca"
INSTEAD_OF_CHAT = "fix the template in the model's folder, or set chat: false in the suite"


class OneDay(datetime):
    """A calendar of one day, for templates that write the date: else a run tomorrow trains on other tokens.

    It is the day that Llama 3's templates fall back on.
    """

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> OneDay:
        """That day, whatever is asked for."""
        return cls(2024, 7, 26)


def chat_texts(tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Prompt and response of each row as text, as the tokenizer's own template writes them.

    Raises:
        BadInput: there is no template, or as `rendered`.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise BadInput(NO_TEMPLATE)
    return rendered(*_template_of(tokenizer), rows)


class Conversations:
    """Renders the turns of conversations as a tokenizer's own template writes them."""

    def __init__(self, tokenizer: Any) -> None:
        template, special_tokens = _template_of(tokenizer)
        given = {"template": template, "special_tokens": special_tokens}
        self._render = Confined(conversation_renderer, given)

    def __call__(self, turns: Sequence[Mapping[str, str]], goes_on: bool) -> str:
        """The text of turns, the last of which may go on; else an answer follows.

        Raises:
            BadInput: the template does not render them, takes too long or writes too much.
        """
        (found,) = self._render([{"turns": list(turns), "goes_on": goes_on}])
        if isinstance(found, Failed):
            what = str(found) if found.ended else f"does not render {len(turns)} turns ({found})"
            raise BadInput(f"the tokenizer's chat template {what}; {INSTEAD_OF_CHAT}")
        return str(found)


def _template_of(tokenizer: Any) -> tuple[str, dict[str, str]]:
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return tokenizer.get_chat_template(), special


def rendered(
    template: str, special_tokens: Mapping[str, str], rows: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """Prompt and response of each row as text, as a chat template writes them.

    One user turn (instruction, blank line, input) and the answer as the assistant's; an empty answer gives an
    empty response.

    Raises:
        BadInput: the template does not render, takes too long or writes too much, or writes the prompt
            differently once an answer follows.
    """
    chats = [_messages(row) for row in rows]
    render = Confined(chat_renderer, {"template": template, "special_tokens": dict(special_tokens)})
    found = []
    for chat, one in render.over((chat, chat) for chat in chats):
        if isinstance(one, Failed):
            what = str(one) if one.ended else f"does not render a row ({one})"
            raise BadInput(f"the tokenizer's chat template {what}; {INSTEAD}")
        prompt, whole = one
        if not whole.startswith(prompt):
            raise BadInput(
                "the tokenizer's chat template writes the prompt differently once an answer follows, so the "
                "answer's tokens cannot be told apart; set template: alpaca"
            )
        found.append((prompt, whole[len(prompt) :] if len(chat) > 1 else ""))
    return found


def chat_renderer(given: Mapping[str, Any]) -> Callable[[list[dict[str, str]]], tuple[str, str]]:
    """A function from a conversation to its prompt and all of it, for a child process."""
    text = _text_renderer(given)

    def render(chat: list[dict[str, str]]) -> tuple[str, str]:
        prompt = text(chat[:1], add_generation_prompt=True)
        return prompt, text(chat) if len(chat) > 1 else prompt

    return render


def conversation_renderer(given: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], str]:
    """A function from turns to their text, for a child process.

    Where the template refuses the turns, those of the system are left out, as lm-eval does.
    """
    text = _text_renderer(given)

    def render(asked: Mapping[str, Any]) -> str:
        turns, goes_on = asked["turns"], asked["goes_on"]
        how = {"add_generation_prompt": not goes_on, "continue_final_message": goes_on}
        try:
            return text(turns, **how)
        except TemplateError:
            return text([one for one in turns if one["role"] != "system"], **how)

    return render


def _text_renderer(given: Mapping[str, Any]) -> Callable[..., str]:
    from transformers.utils import chat_template_utils

    # Templates get no function from a caller, and their `strftime_now` asks this one.
    vars(chat_template_utils)["datetime"] = OneDay

    def text(messages: list[dict[str, str]], **how: bool) -> str:
        (found,), _ = chat_template_utils.render_jinja_template(
            conversations=[messages],
            chat_template=given["template"],
            **how,
            **given["special_tokens"],
        )
        return str(found)

    return text


def _messages(row: Mapping[str, Any]) -> list[dict[str, str]]:
    instruction, given, output = (str(row[key] or "") for key in ("instruction", "input", "output"))
    user = {"role": "user", "content": f"{instruction}\n\n{given}" if given.strip() else instruction}
    return [user, {"role": "assistant", "content": output}] if output.strip() else [user]
