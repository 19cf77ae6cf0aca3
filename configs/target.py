"""How large a pruned model may be."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    ByteSize,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from resprout.configs.section import Ratio, Section


class TargetConfig(Section):
    """How large the pruned model may be; exactly one form."""

    params_ratio: Ratio | None = None
    """Kept share of all unique parameters, a tied tensor counted once."""
    non_embedding_ratio: Ratio | None = None
    """Kept share of the parameters outside token embeddings and an untied head."""
    params: Annotated[int, Field(ge=1)] | None = None
    """Number of unique parameters."""
    non_embedding_params: Annotated[int, Field(ge=1)] | None = None
    """Number of parameters outside token embeddings and an untied head."""
    bytes: Annotated[ByteSize, Field(ge=1)] | None = None
    """Bytes of all unique weights in model.dtype; a number, or one with a unit such as "250 MB"."""
    latency_ratio: Ratio | None = None
    """Kept share of the time of a forward pass over a batch of calibration tokens, measured on this machine;
    allocator spdy or dynamic_programming."""
    latency_ms: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    """Milliseconds of that forward pass, likewise."""

    @property
    def whole(self) -> bool:
        """Whether nothing is to go."""
        return 1.0 in (self.params_ratio, self.non_embedding_ratio)

    @property
    def timed(self) -> bool:
        """Whether the target is a time."""
        return self.latency_ratio is not None or self.latency_ms is not None

    @field_validator("bytes", mode="wrap")
    @classmethod
    def _is_a_size(cls, value: Any, read: ValidatorFunctionWrapHandler) -> Any:
        try:
            return read(value)
        except ValidationError:
            raise ValueError(
                "no size of at least one byte; give a whole number of bytes, or a number with a unit such as "
                "250 MB"
            ) from None

    @model_validator(mode="after")
    def _one_form(self) -> TargetConfig:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            forms = ", ".join(type(self).model_fields)
            raise ValueError(f"the target names {', '.join(given) or 'nothing'}; give exactly one of {forms}")
        return self
