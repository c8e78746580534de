"""Tiered KV-cache store for LLM inference.

    import kvstore
    config = kvstore.Config.load("kvstore.toml")
"""

from typing import TYPE_CHECKING

from kvstore.errors import KVStoreError

if TYPE_CHECKING:
    from kvstore.config import Config

__all__ = ["Config", "KVStoreError"]

_LAZY = {"Config": "kvstore.config"}  # loaded at first use: importing kvstore stays quick


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    globals()[name] = value = getattr(import_module(_LAZY[name]), name)
    return value
