"""kvstore: a tiered KV-cache store for LLM inference."""

from kvstore.block import BlockLayout, Lookup, Match, PutResult
from kvstore.client import connect
from kvstore.config import Config
from kvstore.embedded import open
from kvstore.errors import KVStoreError
from kvstore.handle import Namespace
from kvstore.hint import Hint
from kvstore.namespace import NamespaceSpec
from kvstore.store import BlockStore

__all__ = [
    "BlockLayout",
    "BlockStore",
    "Config",
    "Hint",
    "KVStoreError",
    "Lookup",
    "Match",
    "Namespace",
    "NamespaceSpec",
    "PutResult",
    "connect",
    "open",
]
