"""Filters of row templates that turn a chat into text: its first question, the answer to it, or all turns.

A turn is {"role", "content"}, or {"from", "value"} as ShareGPT has it; what it says is a text or a list of
parts of text. What is no text is refused, so that no Python object is trained on as it prints.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

SPEAKER, SAYS = ("role", "from"), ("content", "value")
USER, ASSISTANT, SYSTEM = ("user", "human"), ("assistant", "gpt", "model"), ("system", "developer")
"""Names of the roles of a chat in common data sets."""
APART = "\n\n"


class _Turn(NamedTuple):
    speaker: str
    says: Any


def is_chat(value: Any) -> bool:
    """Whether a value is a list of turns."""
    turns = value if isinstance(value, list) else []
    return bool(turns) and all(isinstance(turn, Mapping) and _key(turn, SPEAKER) for turn in turns)


def has_question(chat: Any) -> bool:
    """Whether the user speaks in a chat."""
    return any(turn.speaker in USER for turn in _turns(chat))


def first_question(chat: Any) -> str:
    """What the user says until somebody answers, behind the system's text before it, blank lines between.

    Raises:
        ValueError: `chat` is no list of turns, or the user says nothing in it.
    """
    before, asked, _ = _parts(chat)
    if not (question := _joined(asked)):
        raise ValueError("the first turn of the user says nothing")
    return _joined([*before, _Turn("", question)])


def first_answer(chat: Any) -> str:
    """What the assistant says next after the first question.

    Raises:
        ValueError: `chat` is no list of turns, another follows on the user, or the answer has no text, as a
            call of a tool.
    """
    _, _, rest = _parts(chat)
    if not rest:
        raise ValueError("nobody answers the first turn of the user")
    if rest[0].speaker not in ASSISTANT:
        raise ValueError(f"after the first turn of the user comes one of '{rest[0].speaker}', no answer")
    if not (answer := _text(rest[0].says).strip()):
        raise ValueError("the first answer says nothing, as where a tool is called")
    return answer


def all_turns(chat: Any) -> str:
    """All that is said, blank lines between; ValueError where `chat` is no list of turns."""
    return _joined(_turns(chat)) if chat is not None else ""


FILTERS = {one.__name__: one for one in (first_question, first_answer, all_turns)}
"""By the name that a template calls them by."""


def _parts(chat: Any) -> tuple[list[_Turn], list[_Turn], list[_Turn]]:
    """The system's turns before the first of the user, the user's until another speaks, and the rest."""
    turns = _turns(chat)
    begin = next((place for place, turn in enumerate(turns) if turn.speaker in USER), None)
    if begin is None:
        speakers = ", ".join(dict.fromkeys(turn.speaker for turn in turns)) or "nobody"
        raise ValueError(f"the chat has no turn of the user; who speaks: {speakers}")
    end = next((place for place in range(begin, len(turns)) if turns[place].speaker not in USER), len(turns))
    return [turn for turn in turns[:begin] if turn.speaker in SYSTEM], turns[begin:end], turns[end:]


def _turns(chat: Any) -> list[_Turn]:
    if isinstance(chat, str) or not isinstance(chat, Iterable):
        raise ValueError(f"expected a list of chat turns, found a {type(chat).__name__}")
    found = []
    for turn in chat:
        if not isinstance(turn, Mapping) or not (speaker := _key(turn, SPEAKER)):
            raise ValueError(
                'expected chat turns {"role", "content"} or {"from", "value"}, found another form'
            )
        says = _key(turn, SAYS)
        found.append(_Turn(str(turn[speaker]).lower(), turn[says] if says else None))
    return found


def _key(turn: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    """The first of the names that a turn has a value for; some files give every turn all keys."""
    return next((name for name in names if turn.get(name) is not None), None)


def _joined(turns: Iterable[_Turn]) -> str:
    return APART.join(text for turn in turns if (text := _text(turn.says).strip()))


def _text(says: Any) -> str:
    """What a turn says: a text, nothing, or parts of text."""
    if says is None or isinstance(says, str):
        return says or ""
    if not isinstance(says, list):
        raise ValueError(f"a turn says a {type(says).__name__}, which is no text")
    return "".join(map(_part, says))


def _part(part: Any) -> str:
    text = part.get("text") if isinstance(part, Mapping) else part
    if not isinstance(text, str):
        raise ValueError("a turn holds a part that is no text")
    return text
