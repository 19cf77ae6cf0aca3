"""HTML and Markdown pages: one style, one content security policy, and escaping by the template's name.

A page is one file that loads nothing and runs nothing: the policy allows the style sheet by its hash alone.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from resprout.infra.markdown import code, fenced, plain
from resprout.tasks.report.charts import COLOURS


def render(template: str, facts: dict[str, Any], package: str = "resprout.tasks.report") -> str:
    """The page that a template of `package` makes of the facts; templates here can be extended from there."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    here = Environment(
        loader=ChoiceLoader([PackageLoader(one, ".") for one in (package, "resprout.tasks.report")]),
        undefined=StrictUndefined,
        autoescape=lambda name: bool(name) and ".html" in str(name),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    here.filters.update(code=code, fenced=fenced, plain=plain, source_hash=source_hash, end_of=end_of)
    here.globals["colours"] = COLOURS
    return here.get_template(f"{template}.j2").render(facts)


def end_of(text: str, length: int) -> str:
    """The end of a text, from a word on."""
    return text if len(text) <= length else f"…{text[-length:].partition(' ')[2] or text[-length:]}"


def source_hash(text: str) -> str:
    """The source expression by which a content security policy allows a text, such as sha256-...="""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
