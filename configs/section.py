"""The base of all config sections: strict, frozen, and what of a section enters cache keys."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Ratio = Annotated[float, Field(gt=0.0, le=1.0)]
Percent = Annotated[int, Field(ge=0, le=100)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


class Section(BaseModel):
    """Base of all sections: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        use_attribute_docstrings=True,
        serialize_by_alias=True,
        allow_inf_nan=False,
    )

    enters_key: ClassVar[bool] = True
    """Whether the section is part of a stage's cache key as it stands; a data source enters by its rows'
    digest."""

    @field_validator("*", mode="before")
    @classmethod
    def _truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise ValueError("true and false are allowed only for a switch, which this is not")
        return value

    def key_data(self) -> dict[str, Any]:
        """The section as plain data for cache keys, without the sections in it that do not enter."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: _key_value(value) for name, value in values.items() if _enters(value)}


def _enters(value: Any) -> bool:
    if isinstance(value, tuple) and value:
        return all(_enters(item) for item in value)
    return value.enters_key if isinstance(value, Section) else True


def _key_value(value: Any) -> Any:
    if isinstance(value, Section):
        return value.key_data()
    if isinstance(value, tuple | list):
        return [_key_value(item) for item in value]
    if isinstance(value, dict):
        return {key: _key_value(item) for key, item in value.items()}
    return value
