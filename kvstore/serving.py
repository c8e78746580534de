"""The section [serve] of the configuration."""

from __future__ import annotations

import os
from typing import Any, Literal

from pydantic import ByteSize, Field, field_validator
from pydantic_core import PydanticCustomError

from kvstore.section import Section


def text(description: str) -> Any:
    """A setting that is a text, or none."""
    return Field(default=None, description=description, json_schema_extra={"allowed": 'a text, or "" for none'})


class Serve(Section):
    """The daemon: where it listens, whom it lets in, and what a client may take."""

    socket: str | None = Field(
        default="/run/kvstore/kvstore.sock",
        description='Unix socket for this user\'s processes; "" for none.',
        json_schema_extra={"allowed": 'a path, or "" for none'},
    )
    attach: bool = Field(
        default=True,
        description="Whether this user's processes may map the memory, to look up and read without a call.",
    )
    clients_max: int = Field(default=64, ge=1, le=240, description="Processes that may be attached at a time.")
    leases_max: int = Field(
        default=16_384, ge=64, le=1 << 20, description="Blocks that one attached process may lease at a time."
    )
    lease_ms_max: int = Field(
        default=60_000, ge=10, le=3_600_000, description="After so long a lease of an attached process may be revoked."
    )
    listen: str | None = text("HOST:PORT for other machines; beyond loopback only with TLS.")
    insecure: bool = Field(
        default=False, description="Whether to listen beyond loopback without TLS; everyone may do everything then."
    )
    tls_cert: str | None = text("Certificate chain of the server, PEM.")
    tls_key: str | None = text("Private key of the server, PEM.")
    tls_client_ca: str | None = text("Who signs clients' certificates, PEM; set, every TLS client needs one.")
    access: str | None = text("Authorization table, TOML; without it everyone who can connect may do everything.")
    metrics: str | None = text("HOST:PORT of /metrics, /healthz and /readyz over HTTP.")
    threads: int = Field(default=32, ge=8, le=1024, description="Calls served at a time; four are kept for short ones.")
    watches_max: int = Field(
        default=8,
        ge=0,
        le=1024,
        description="Watches at a time, each with a thread of its own; a tenant has at most half of them, or one.",
    )
    client_nbytes_max: ByteSize = Field(
        default=ByteSize(4 << 30),
        ge=1 << 20,
        le=1 << 40,
        description="Bytes of blocks that one client's calls may hold.",
    )
    call_ms_max: int = Field(default=60_000, ge=100, le=3_600_000, description="The longest that a call may last.")
    drain_ms: int = Field(
        default=5_000, ge=0, le=600_000, description="How long calls under way may go on when the daemon ends."
    )
    log_format: Literal["text", "json"] = Field(default="text", description="How log lines are written.")

    @field_validator("socket", "listen", "tls_cert", "tls_key", "tls_client_ca", "access", "metrics", mode="before")
    @classmethod
    def _none(cls, value: object) -> object:
        text = os.fspath(value) if isinstance(value, os.PathLike) else value
        if isinstance(text, str) and "\0" in text:
            raise PydanticCustomError("rule", "without a zero byte")
        return text or None

    @field_validator("listen", "metrics")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        host, colon, port = (value or "").rpartition(":")
        if value is not None and not (host and colon and port.isdecimal() and int(port) < 65_536):
            raise PydanticCustomError("rule", 'HOST:PORT, or "" for none')
        return value
