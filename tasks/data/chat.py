"""Render rows with the model's own chat template, in a child process with limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, tzinfo
from typing import Any

from resprout.configs.errors import BadInput
from resprout.tasks.data.confined import Confined, Failed

NO_CHAT = "the tokenizer has no chat template"
NO_TEMPLATE = f"template is chat but {NO_CHAT}; set template: alpaca"
INSTEAD = "fix the template in the model's folder, or set template: alpaca"


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
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return rendered(tokenizer.get_chat_template(), special, rows)


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
    from transformers.utils import chat_template_utils

    # Templates get no function from a caller, and their `strftime_now` asks this one.
    vars(chat_template_utils)["datetime"] = OneDay

    def text(messages: list[dict[str, str]], prompt: bool) -> str:
        (found,), _ = chat_template_utils.render_jinja_template(
            conversations=[messages],
            chat_template=given["template"],
            add_generation_prompt=prompt,
            **given["special_tokens"],
        )
        return str(found)

    def render(chat: list[dict[str, str]]) -> tuple[str, str]:
        prompt = text(chat[:1], True)
        return prompt, text(chat, False) if len(chat) > 1 else prompt

    return render


def _messages(row: Mapping[str, Any]) -> list[dict[str, str]]:
    instruction, given, output = (str(row[key] or "") for key in ("instruction", "input", "output"))
    user = {"role": "user", "content": f"{instruction}\n\n{given}" if given.strip() else instruction}
    return [user, {"role": "assistant", "content": output}] if output.strip() else [user]
