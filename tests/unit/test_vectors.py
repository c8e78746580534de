"""The core against protos/kvstore/v1/test_vectors.txt, which was made without it. The file's top says its format."""

import json
from pathlib import Path

import pytest

from kvstore.hashing import chain_keys, mix_keys
from kvstore.namespace import NamespaceSpec

FILE = Path(__file__).parents[2] / "protos" / "kvstore" / "v1" / "test_vectors.txt"
VECTORS = [line.split("\t") for line in FILE.read_text().splitlines() if not line.startswith("#")]


def listed(text: str) -> list[str]:
    return [] if text == "-" else text.split(",")


def vectors(kind: str) -> list[list[str]]:
    found = [fields for name, *fields in VECTORS if name == kind]
    assert found, f"no vectors of kind {kind}"
    return found


def test_every_line_is_of_a_known_kind() -> None:
    assert {fields[0] for fields in VECTORS} == {"namespace", "sha256", "xxh3_128", "mix"}


@pytest.mark.parametrize(("text", "digest"), vectors("namespace"))
def test_namespace_text_and_digest(text: str, digest: str) -> None:
    spec = NamespaceSpec(**json.loads(text))
    assert spec.text() == text
    assert spec.digest().hex() == digest
    assert NamespaceSpec.from_text(text) == spec


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("kind", ["sha256", "xxh3_128"])
def test_chained_keys(kind: str, portable: bool) -> None:
    for seed, block_tokens, tokens, keys in vectors(kind):
        token_ids = [int(token) for token in listed(tokens)]
        found = chain_keys(bytes.fromhex(seed), token_ids, int(block_tokens), kind, portable=portable)
        assert [bytes(key).hex() for key in found] == listed(keys), (seed, block_tokens, tokens)


def test_mixed_keys() -> None:
    for seed, hashes, keys in vectors("mix"):
        found = mix_keys(bytes.fromhex(seed), [bytes.fromhex(one) for one in listed(hashes)])
        assert [bytes(key).hex() for key in found] == listed(keys), (seed, hashes)
