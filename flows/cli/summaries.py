"""Show the summary of each command whole, where click cuts it at 45 characters."""

from __future__ import annotations

import inspect
from typing import Any

from typer.core import TyperGroup


class WholeSummaries(TyperGroup):
    """A group of commands whose list shows the first paragraph of each help, wrapped."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, with its summary."""
        command = super().get_command(ctx, cmd_name)
        if command is not None and command.short_help is None:
            paragraph = inspect.cleandoc(command.help or "").partition("\n\n")[0]
            command.short_help = " ".join(paragraph.split())
        return command
