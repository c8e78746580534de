"""The errors of kvstore. A miss is an answer and never an error.

    KVStoreError
    ├── InvalidRequest      a value handed in is wrong: which one, what it was, what is allowed
    ├── ConfigInvalid       the configuration cannot be used: key, value, allowed range
    ├── NamespaceMismatch   a namespace exists under this name with another value in `field`
    ├── LimitExceeded       a limit was hit: which one and how large it is
    ├── AccessDenied        a daemon does not know the caller, or does not allow this
    ├── LeaseExpired        a lease or reservation was used after its end
    ├── TierRefused         a tier cannot be attached or detached now: why; it is as it was before
    └── Unavailable         a store or tier cannot serve: closed, or its device or memory is not to be had

`code` is the canonical status name that the service answers with.
"""


class KVStoreError(Exception):
    """Base of every error that kvstore raises on purpose."""

    code = "INTERNAL"


class InvalidRequest(KVStoreError, ValueError):
    """A value handed in is wrong; the text names it, its value and what is allowed."""

    code = "INVALID_ARGUMENT"


class ConfigInvalid(KVStoreError, ValueError):
    """The configuration cannot be used; the text names key, value and allowed range."""

    code = "INVALID_ARGUMENT"


class NamespaceMismatch(KVStoreError, ValueError):
    """A namespace of this name exists with another value in `field`."""

    code = "FAILED_PRECONDITION"

    def __init__(self, name: str, field: str, stored: object, wanted: object) -> None:
        super().__init__(
            f"namespace {name!r} exists with {field}={stored!r}, not {wanted!r}; "
            f"use the same {field}, or give the new namespace another name"
        )
        self.name, self.field, self.stored, self.wanted = name, field, stored, wanted


class LimitExceeded(KVStoreError):
    """A limit was hit; the text names the limit and its size."""

    code = "RESOURCE_EXHAUSTED"


class AccessDenied(KVStoreError):
    """A daemon does not know the caller, or does not allow this verb or namespace; the text says which."""

    code = "PERMISSION_DENIED"


class LeaseExpired(KVStoreError):
    """A lease or reservation was used after it had been released, committed or timed out."""

    code = "ABORTED"

    def __init__(self, text: str, num_lost: int = 0) -> None:
        super().__init__(text)
        self.num_lost = num_lost  # of a commit: blocks that had been undone


class TierRefused(KVStoreError):
    """A tier cannot be attached or detached, or not now; the text says why, and everything is as it was before."""

    code = "FAILED_PRECONDITION"


class Unavailable(KVStoreError):
    """A store or tier cannot serve: closed, or its device or memory is not to be had."""

    code = "UNAVAILABLE"
