"""A story as one HTML page that needs nothing else: a graph from sources to the model, details below."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from resprout.flows.audit.facts import Facts
from resprout.flows.audit.story import Story
from resprout.flows.audit.terminal import details, header, origin_lines, usual_of
from resprout.infra.lineage import Node

WIDTH, HEIGHT = 190, 62
"""Size of a box, in pixels."""
ACROSS, DOWN = 232, 84
"""Distance of two boxes."""
MARGIN = 12


@dataclass(frozen=True)
class Box:
    """A node of the drawing with the place of its upper left corner."""

    identity: str
    role: str
    node: Node
    x: int
    y: int


def page(story: Story, facts: Facts) -> str:
    """The page; everything that came from a config, a name or a file is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    here = Environment(
        loader=PackageLoader("resprout.flows.audit", "."),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    boxes = place(story)
    return here.get_template("page.html.j2").render(
        title=story.title,
        reference=story.reference,
        header=list(header(story, facts, usual_of(story))),
        version=story.version,
        boxes=list(boxes.values()),
        edges=_edges(boxes),
        width=2 * MARGIN + WIDTH + max(box.x for box in boxes.values()),
        height=2 * MARGIN + HEIGHT + max(box.y for box in boxes.values()),
        box_width=WIDTH,
        box_height=HEIGHT,
        licences=story.licences(),
        details={identity: list(details(box.node, facts)) for identity, box in boxes.items()},
        origins={identity: origin_lines(box.node.record.origin) for identity, box in boxes.items()},
    )


def place(story: Story) -> dict[str, Box]:
    """Each node in a column behind all of its inputs, near their middle: sources left, the end right."""
    nodes, roles = story.nodes(), story.roles()
    column: dict[str, int] = {}

    def column_of(node: Node) -> int:
        if node.record_id not in column:
            column[node.record_id] = max((column_of(parent) + 1 for _, parent in node.parents), default=0)
        return column[node.record_id]

    for node in nodes.values():
        column_of(node)
    row: dict[str, float] = {}
    boxes: dict[str, Box] = {}
    for at in range(max(column.values()) + 1):
        here = [nodes[identity] for identity in nodes if column[identity] == at]
        for node in here:
            behind = [row[parent.record_id] for _, parent in node.parents]
            row[node.record_id] = sum(behind) / len(behind) if behind else 0.0
        here.sort(key=lambda node: (row[node.record_id], node.record.stage, node.record_id))
        for index, node in enumerate(here):
            identity = node.record_id
            row[identity] = index
            boxes[identity] = Box(
                identity, roles[identity], node, MARGIN + at * ACROSS, MARGIN + index * DOWN
            )
    return boxes


def _edges(boxes: dict[str, Box]) -> list[dict[str, Any]]:
    """Curves from each input's right side to the left side of what was made of it."""
    found = []
    for box in boxes.values():
        for role, parent in box.node.parents:
            given = boxes[parent.record_id]
            x1, y1 = given.x + WIDTH, given.y + HEIGHT // 2
            x2, y2 = box.x, box.y + HEIGHT // 2
            middle = (x1 + x2) // 2
            found.append({"role": role, "path": f"M{x1} {y1} C{middle} {y1} {middle} {y2} {x2} {y2}"})
    return found
