"""Child process: renders conversations by a chat template, within limits. Run with `python -I -m`."""

from __future__ import annotations

import json
import math
import sys
from datetime import datetime, tzinfo
from typing import Any

SECONDS = 5
SECONDS_A_ROW = 0.02
"""Processor time; a template in use takes a tenth of a millisecond a row."""
MEMORY_BYTES = 4 << 30
MOST_CHARACTERS = 1 << 20
"""Of a rendered text beyond ten times what the row holds; system prompts in use have a few thousand."""


class OneDay(datetime):
    """A calendar of one day, for templates that write the date: else a run tomorrow trains on other tokens.

    It is the day that Llama 3's templates fall back on.
    """

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> OneDay:
        """That day, whatever is asked for."""
        return cls(2024, 7, 26)


def seconds_for(rows: int) -> int:
    """Processor time that so many rows may take, in seconds."""
    return math.ceil(SECONDS + SECONDS_A_ROW * rows)


def render(asked: dict[str, Any]) -> list[tuple[str, str]]:
    """The prompt of each conversation, and all of it.

    Raises:
        ValueError: a text is out of all proportion to its row.
    """
    from transformers.utils import chat_template_utils

    # Templates get no function from a caller, and their `strftime_now` asks this one.
    vars(chat_template_utils)["datetime"] = OneDay

    def text(messages: list[dict[str, str]], prompt: bool) -> str:
        (found,), _ = chat_template_utils.render_jinja_template(
            conversations=[messages],
            chat_template=asked["template"],
            add_generation_prompt=prompt,
            **asked["special_tokens"],
        )
        held = sum(len(message["content"]) for message in messages)
        if len(found) > 10 * held + MOST_CHARACTERS:
            raise ValueError(f"it makes {len(found):,} characters of a row of {held:,}")
        return str(found)

    return [
        (prompt := text(chat[:1], True), text(chat, False) if len(chat) > 1 else prompt)
        for chat in asked["chats"]
    ]


def _limit(rows: int) -> None:
    import resource

    used = math.ceil(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (used + seconds_for(rows), hard))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> None:
    """Read what is asked as JSON from stdin, write the texts as JSON to stdout."""
    asked = json.load(sys.stdin)
    _limit(len(asked["chats"]))
    try:
        found = render(asked)
    except MemoryError:
        sys.exit(f"it takes more than {MEMORY_BYTES >> 30} GiB of memory")
    except Exception as error:
        # Whatever a template does wrong: jinja2's errors, and any error of Python inside of it.
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
