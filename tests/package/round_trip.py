"""A put and a get with the installed package alone: run with its interpreter, outside the source tree."""

from pathlib import Path

import numpy as np

import kvstore

assert not Path(kvstore.__file__).is_relative_to(Path(__file__).parents[2] / "kvstore"), kvstore.__file__

spec = kvstore.NamespaceSpec(model="round-trip", block_nbytes=64 << 10, block_tokens=16)
blocks = np.random.default_rng(1).integers(0, 256, (8, spec.block_nbytes), dtype=np.uint8)
config = kvstore.Config.load(host={"nbytes": 64 << 20}, disk={"nbytes": 64 << 20})
with kvstore.open(config) as store:
    namespace = store.namespace(spec)
    keys = namespace.keys(np.arange(8 * spec.block_tokens))
    result = namespace.put(keys, blocks)
    num_blocks, out = namespace.get(keys)
assert result.stored == num_blocks == len(blocks), (result, num_blocks)
assert np.array_equal(out, blocks)
print(f"kvstore from {Path(kvstore.__file__).parent}: {num_blocks} blocks out as they went in")
