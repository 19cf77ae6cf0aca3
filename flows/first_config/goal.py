"""Read a goal as people say it ("20 % smaller", "250MB", "1.3x") into the keys of `prune.target`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic import ByteSize, TypeAdapter, ValidationError

from resprout.configs.errors import BadInput
from resprout.tasks.gguf.types import bytes_per_weight
from resprout.tasks.models.shape import Shape

SMALLER = re.compile(r"(\d+(?:\.\d+)?)\s*%(?:\s*smaller)?", re.IGNORECASE)
FASTER = re.compile(r"(\d+(?:\.\d+)?)\s*[x×](?:\s*faster)?", re.IGNORECASE)
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?b)", re.IGNORECASE)
MOST_FASTER = 100
LEAST = 0.001
"""Percent."""
ALLOWED = 'give a share such as "20 % smaller", a size such as 250MB, or a speed such as 1.3x'


@dataclass(frozen=True)
class Goal:
    """`key` of `prune.target` and its `value`; `text` is what the user wrote."""

    text: str
    key: str
    value: Any

    @property
    def timed(self) -> bool:
        """Whether it is a speed."""
        return self.key == "latency_ratio"

    @property
    def target(self) -> dict[str, Any]:
        """The section `prune.target`."""
        return {self.key: self.value}


def parse_goal(text: str) -> Goal:
    """The goal that `text` states; BadInput says what is allowed."""
    given = " ".join(text.split())
    if found := SMALLER.fullmatch(given):
        percent = float(found[1])
        if not LEAST <= percent <= 100 - LEAST:
            raise BadInput(f"--goal is '{text}', but a model can get between 0 and 100 % smaller; {ALLOWED}")
        return Goal(given, "params_ratio", round(1 - percent / 100, 6))
    if found := FASTER.fullmatch(given):
        factor = float(found[1])
        if not 1 < factor <= MOST_FASTER:
            raise BadInput(f"--goal is '{text}'; give a factor above 1 and up to {MOST_FASTER}, such as 1.3x")
        return Goal(given, "latency_ratio", round(1 / factor, 3))
    if SIZE.fullmatch(given):
        try:
            size = TypeAdapter(ByteSize).validate_python(given)
        except ValidationError:
            size = ByteSize(0)
        if size:
            return Goal(given, "bytes", given)
    raise BadInput(f"--goal is '{text}', which is none; {ALLOWED}")


def of_file(goal: Goal, kind: str, size: int, shape: Shape | None) -> Goal:
    """Return the goal for a GGUF file of `size` bytes in this type as a share of the model's parameters.

    What pruning removes is in the file's own type; embeddings, often in a larger one, stay.

    Raises:
        BadInput: the goal is a size that the file has already.
    """
    if goal.key not in ("params_ratio", "bytes") or shape is None:
        return goal
    share = goal.key == "params_ratio"
    wanted = goal.value * size if share else TypeAdapter(ByteSize).validate_python(goal.value)
    if wanted >= size:
        raise BadInput(
            f"--goal is '{goal.text}', but the file has {size / 1e6:,.1f} MB already; give a smaller size"
        )
    kept = 1 - (size - wanted) / bytes_per_weight(kind) / shape.params
    if kept <= 0:
        raise BadInput(
            f"--goal is '{goal.text}', but the layers of the model take less than it asks for in the "
            f"file of {size / 1e6:,.1f} MB; give a goal nearer to its size"
        )
    return Goal(goal.text, "params_ratio", round(kept, 3))
