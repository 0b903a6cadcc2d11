"""What the sections of params.yaml have in common: unknown keys are refused, and a value is taken as it is meant."""

from typing import Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator


def param(description: str, **constraints: Any) -> Any:
    """Return a field without a default: its help, and pydantic's constraints such as `ge`."""
    return Field(description=description, **constraints)


class Section(BaseModel):
    """A group of parameters: unknown keys are refused, a blank means null where null is allowed."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=(), coerce_numbers_to_str=True
    )

    @field_validator("*", mode="before")
    @classmethod
    def _as_meant(cls, value: Any, info: ValidationInfo) -> Any:
        """Take a blank for an empty list or section, and `true` for no number."""
        kind = cls.model_fields[info.field_name or ""].annotation
        if value is None and get_origin(kind) in (list, dict):
            return [] if get_origin(kind) is list else {}
        if isinstance(value, bool) and bool not in (kind, *get_args(kind)):
            return str(value).lower()
        return value
