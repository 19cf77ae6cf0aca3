"""Render rows with the model's own chat template, in a child process with limits.

A template is a program. Jinja's sandbox keeps it from files and attributes, not from a loop without end or a
text without bounds; the child has a limit of processor time, memory and output.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from resprout.configs.errors import BadInput
from resprout.tasks.data import chat_child

NO_CHAT = "the tokenizer has no chat template"
NO_TEMPLATE = f"template is chat but {NO_CHAT}; set template: alpaca"
INSTEAD = "fix the template in the model's folder, or set template: alpaca"


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
    asked = {"template": template, "special_tokens": dict(special_tokens), "chats": chats}
    found = []
    for chat, (prompt, whole) in zip(chats, _in_child(asked), strict=True):
        if not whole.startswith(prompt):
            raise BadInput(
                "the tokenizer's chat template writes the prompt differently once an answer follows, so the "
                "answer's tokens cannot be told apart; set template: alpaca"
            )
        found.append((prompt, whole[len(prompt) :] if len(chat) > 1 else ""))
    return found


def _messages(row: Mapping[str, Any]) -> list[dict[str, str]]:
    instruction, given, output = (str(row[key] or "") for key in ("instruction", "input", "output"))
    user = {"role": "user", "content": f"{instruction}\n\n{given}" if given.strip() else instruction}
    return [user, {"role": "assistant", "content": output}] if output.strip() else [user]


def _in_child(asked: Mapping[str, Any]) -> list[list[str]]:
    environment = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH") if key in os.environ}
    done = subprocess.run(
        [sys.executable, "-I", "-m", chat_child.__name__],
        input=json.dumps(asked),
        env={**environment, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == -signal.SIGXCPU:
        seconds = chat_child.seconds_for(len(asked["chats"]))
        raise BadInput(
            f"the tokenizer's chat template did not end within {seconds} s of processor time; {INSTEAD}"
        )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1][:300]
        raise BadInput(f"the tokenizer's chat template does not render a row ({reason}); {INSTEAD}")
    texts: list[list[str]] = json.loads(done.stdout)
    return texts
