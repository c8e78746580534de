"""The section [trace] of the configuration."""

from __future__ import annotations

import os

from pydantic import ByteSize, Field, field_validator
from pydantic_core import PydanticCustomError

from kvstore.section import Section


class Trace(Section):
    """Whether the store records what is asked of it."""

    path: str | None = Field(
        default=None,
        description='File to record requests to, for `kvstore replay`; gzip if it ends in .gz; "" records nothing.',
        json_schema_extra={"allowed": 'a path, or "" for none'},
    )
    nbytes_max: ByteSize = Field(
        default=ByteSize(512 << 20),
        ge=64 << 10,
        le=1 << 40,
        description="Size of the file at which recording stops.",
    )

    @field_validator("path", mode="before")
    @classmethod
    def _none(cls, value: object) -> object:
        text = os.fspath(value) if isinstance(value, os.PathLike) else value
        if isinstance(text, str) and "\0" in text:
            raise PydanticCustomError("rule", "a path without a zero byte")
        return text or None
