"""Clients of a daemon. `connect` is the door; what speaks gRPC is loaded when it is called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvstore.client.store import RemoteStore


def connect(
    target: str,
    *,
    token: str | None = None,
    tls: bool | Mapping[str, str] | None = None,
    timeout_ms: float = 2_000,
    attach: bool = True,
) -> RemoteStore:
    """A store in a daemon at "unix:PATH" or "HOST:PORT", with the verbs of an embedded one.

    `token`: a bearer token. `tls`: True for the system's authorities, or paths of PEM files: `ca`, and `cert` and `key`
    for mutual TLS. `attach`: over a unix socket, map the daemon's memory where it allows that, so that lookups, reads
    and writes need no call. `timeout_ms`: after so long without an answer the daemon counts as gone. Nobody has to be
    there yet: a daemon that cannot be reached makes every lookup a miss and every put rejected, at the cost of
    microseconds, until it is back. Errors: InvalidRequest.
    """
    from kvstore.client.attachment import Attachments
    from kvstore.client.link import Link
    from kvstore.client.store import RemoteStore
    from kvstore.clock import SystemClock

    link = Link(target, token=token, tls=tls, timeout_ms=timeout_ms)
    attaches = attach and link.target.startswith("unix:")
    return RemoteStore(link, Attachments(link.timeout_s, SystemClock().now_us) if attaches else None)
