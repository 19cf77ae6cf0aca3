"""What a stage returns: where its content is and which record tells how it came to be."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class ArtifactRef(BaseModel):
    """A stage's result by reference: content `digest`, the stage's `key`, and the id of its `record`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    digest: str
    key: str
    record: str
    uri: str
    bytes: int
