"""The authorization table: which credentials are which tenant, and what that tenant may do.

A TOML file of `[[tenant]]` tables (deploy/access.toml is the commented sample). Tokens are kept as their SHA-256 only,
so that reading the file gives nobody access.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError

from kvstore.errors import AccessDenied, ConfigInvalid, LimitExceeded

Verb = Literal["read", "write", "remove", "stats", "admin", "attach"]
VERBS: tuple[Verb, ...] = ("read", "write", "remove", "stats", "admin", "attach")
NAMESPACES_MAX = 64
TENANTS_MAX = 10_000


class Rule(BaseModel):
    """What one tenant may do, and how it proves who it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{0,64}$")]
    token_sha256: tuple[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], ...] = ()
    certificates: tuple[Annotated[str, Field(min_length=1, max_length=256)], ...] = ()
    namespaces: tuple[Annotated[str, Field(min_length=1, max_length=1024)], ...] = ("*",)
    verbs: tuple[Verb, ...] = ("read", "write")
    quota_nbytes: ByteSize = ByteSize(0)
    namespaces_max: Annotated[int, Field(ge=1, le=65_535)] = NAMESPACES_MAX

    def require(self, verb: Verb) -> None:
        """Errors: AccessDenied unless the tenant may use this verb."""
        if verb not in self.verbs:
            raise AccessDenied(f"tenant {self.name!r} may not {verb}; it may {', '.join(self.verbs) or 'do nothing'}")

    def may_use(self, title: str) -> bool:
        """Does one of the patterns fit the namespace's name?"""
        return any(fnmatch.fnmatchcase(title, pattern) for pattern in self.namespaces)

    def require_namespace(self, title: str) -> None:
        """Errors: AccessDenied unless one of the patterns fits the namespace's name."""
        if not self.may_use(title):
            raise AccessDenied(f"tenant {self.name!r} may not use namespace {title!r}")

    def require_room(self, num_open: int) -> None:
        """Errors: LimitExceeded when a tenant that has so many namespaces may not have another one."""
        if num_open >= self.namespaces_max:
            raise LimitExceeded(f"tenant {self.name!r} has {num_open} namespaces; namespaces_max={self.namespaces_max}")


OPERATOR = Rule(name="", verbs=VERBS, namespaces_max=65_535)  # whoever owns the daemon


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tenant: Annotated[tuple[Rule, ...], Field(max_length=TENANTS_MAX)] = ()


class Access:
    """All rules by the credentials that prove them. Immutable: a changed file makes a new one."""

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        self._by_token: dict[str, Rule] = {}
        self._by_certificate: dict[str, Rule] = {}
        for rule in rules:
            for table, proofs in ((self._by_token, rule.token_sha256), (self._by_certificate, rule.certificates)):
                for proof in proofs:
                    if proof in table:
                        raise ConfigInvalid(f"access: {proof!r} is given for {table[proof].name!r} and {rule.name!r}")
                    table[proof] = rule

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Access:
        """Errors: ConfigInvalid names the file, the field and what is wrong with it."""
        try:
            return cls(_File.model_validate(tomllib.loads(Path(path).read_text())).tenant)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
            raise ConfigInvalid(f"access: file {path}: {wrong}") from None
        except (OSError, ValueError) as error:
            raise ConfigInvalid(f"access: file {path} cannot be read: {error}") from None

    def of_token(self, token: str) -> Rule:
        """Errors: AccessDenied for a token that nobody has."""
        rule = self._by_token.get(hashlib.sha256(token.encode()).hexdigest())
        if rule is None:
            raise AccessDenied("the bearer token is not known here")
        return rule

    def of_certificate(self, common_name: str) -> Rule:
        """Errors: AccessDenied for a certificate that nobody has."""
        rule = self._by_certificate.get(common_name)
        if rule is None:
            raise AccessDenied(f"the certificate of {common_name!r:.80} is not known here")
        return rule
