"""What every section of the configuration is built from."""

from __future__ import annotations

from typing import cast

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

TIER_NBYTES_MAX = 16 << 40  # a place is a 32-bit count of pages


class Section(BaseModel):
    """Immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_as_number(cls, value: object, info: ValidationInfo) -> object:
        """`nbytes = true` is a mistake, although Python could count with it."""
        if isinstance(value, bool) and cls.model_fields[cast(str, info.field_name)].annotation is not bool:
            raise PydanticCustomError("type", "")
        return value
