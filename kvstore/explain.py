"""Why a block is not there, in words."""

from __future__ import annotations

from kvstore._core import index as core

REASONS = {
    core.NEVER: "never stored, or gone too long ago to be remembered",
    core.EVICTED: "evicted by {policy}",
    core.UNWRITTEN: "evicted by {policy} before it could be written back",
    core.REMOVED: "removed",
    core.CORRUPT: "rotten: its bytes did not match their checksum",
    core.OVER_QUOTA: "evicted to keep its namespace within its quota",
    core.BYPASSED: "bypassed by {policy}: what could have made room for it was worth more",
    core.EXPIRED: "expired: nobody had used it again when its time was over",
    core.ABANDONED: "reserved but never committed",
}
APPRAISED = (core.EVICTED, core.UNWRITTEN, core.OVER_QUOTA, core.BYPASSED)


def why_absent(reason: int, age_s: int, value: float | None, policy: str, *, has_far: bool) -> str:
    """`reason` of the index's ghosts, `age_s` seconds old, and what `policy` expected of the block then: hits per
    second. Without a far tier nothing could be written back."""
    if reason == core.UNWRITTEN and not has_far:
        reason = core.EVICTED
    when = f" {max(0, age_s)} s ago" if reason != core.NEVER else ""
    worth = f", worth {value:.1e} hits a second then" if value is not None and reason in APPRAISED else ""
    return REASONS[reason].format(policy=policy) + when + worth
