"""Who is calling: a bearer token, a client certificate, or a process that may open the unix socket."""

from __future__ import annotations

from typing import NamedTuple

import grpc

from kvstore.access import OPERATOR, Access, Rule
from kvstore.errors import AccessDenied

BEARER = "Bearer "
TOKEN_MAX = 4096


class Unknown(AccessDenied):
    """The caller has not proved who it is."""

    code = "UNAUTHENTICATED"


class Caller(NamedTuple):
    """A caller as far as the service cares: its rule, and whom its bytes in flight count for."""

    rule: Rule
    client: str

    @property
    def tenant(self) -> str:
        """Empty for the operator."""
        return self.rule.name


class Gatekeeper:
    """Tells callers apart. Without an authorization table everyone who can connect is the operator: the daemon then
    listens only where that is its own user, or where somebody said that everyone may."""

    def __init__(self, access: Access | None) -> None:
        self._access = access

    def replace(self, access: Access | None) -> None:
        """From the next call on. A table does not come or go while the daemon runs, only its rows do."""
        self._access = access

    def caller(self, context: grpc.ServicerContext) -> Caller:
        """Errors: Unknown without or with wrong credentials."""
        access, peer = self._access, context.peer()
        if access is None:
            return Caller(OPERATOR, peer)
        rule = self._rule(access, context, peer)
        return Caller(rule, f"{rule.name} {peer}")

    def _rule(self, access: Access, context: grpc.ServicerContext, peer: str) -> Rule:
        try:
            for name, value in context.invocation_metadata():
                if name == "authorization":
                    return access.of_token(_token(value))
            for common_name in context.auth_context().get("x509_common_name", ()):
                return access.of_certificate(bytes(common_name).decode(errors="replace"))
        except AccessDenied as error:
            raise Unknown(str(error)) from None
        if peer.startswith("unix:"):  # its folder lets in the daemon's user alone
            return OPERATOR
        raise Unknown("no bearer token and no client certificate")


def _token(value: str | bytes) -> str:
    text = value if isinstance(value, str) else value.decode(errors="replace")
    if not text.startswith(BEARER) or len(text) > TOKEN_MAX:
        raise Unknown(f"the authorization is not 'Bearer TOKEN' of at most {TOKEN_MAX} characters")
    return text.removeprefix(BEARER)
