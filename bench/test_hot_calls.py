"""The hot calls one by one, for comparing a change with the state before: `python -m pytest bench --benchmark-compare`.

`--benchmark-disable` calls each once. For figures beside their ceilings use `python -m bench`.
"""

import numpy as np
import pytest

import kvstore
from bench import stored
from bench.copy import Region
from bench.evict import BATCH_BLOCKS, NS, SLOT_NBYTES, full_index
from kvstore._core import transfer
from kvstore._core.lease import LeaseTable

BLOCK_NBYTES = 2 << 20
NUM_CHAINS = 1000


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def store():
    with stored.store_of(64 << 20) as opened:
        yield opened


@pytest.fixture
def ns(store):
    return store.namespace(kvstore.NamespaceSpec(model="bench", block_nbytes=BLOCK_NBYTES))


@pytest.fixture
def block():
    return Region(BLOCK_NBYTES, 1).bytes.reshape(1, -1)


@pytest.fixture
def chain_and_index(rng):
    keys = stored.chains(rng, NUM_CHAINS)
    return keys[NUM_CHAINS // 2], full_index(keys, rng)


@pytest.mark.parametrize("algorithm", ["sha256", "xxh3_128"])
def test_keys_of_8k_tokens(benchmark, store, rng, algorithm):
    spec = kvstore.NamespaceSpec(model=algorithm, block_nbytes=BLOCK_NBYTES, hash=algorithm)
    ns = store.namespace(spec)
    tokens = rng.integers(0, 150_000, 8192, dtype=np.uint32)
    assert len(benchmark(ns.keys, tokens)) == 512


def test_match_64(benchmark, chain_and_index):
    chain, index = chain_and_index
    assert benchmark(index.match, chain) == (64, 64, 64)


def test_lease_and_release_64(benchmark, chain_and_index):
    chain, index = chain_and_index
    table = LeaseTable(index, 64)

    def lease_and_release():
        grip = table.acquire(chain)
        grip.release()
        return grip.num_blocks

    assert benchmark(lease_and_release) == 64


def test_put_2m(benchmark, ns, block, rng):
    result = benchmark(lambda: ns.put(rng.integers(0, 256, (1, 32), dtype=np.uint8), block))
    assert result == kvstore.PutResult(1, 0, {})


def test_get_2m(benchmark, ns, block, rng):
    keys = stored.chains(rng, 1, 1)[0]
    ns.put(keys, block)
    out = Region(BLOCK_NBYTES, 2).bytes.reshape(1, -1)
    assert benchmark(ns.get, keys, out)[0] == 1
    assert (out == 1).all()


def test_gather_64_pieces_of_32k(benchmark, rng):
    target, source = Region(BLOCK_NBYTES, 0), Region(32 << 20, 1)
    dst = target.addresses(32 << 10, False, rng)
    src = source.addresses(32 << 10, True, rng)[:64].copy()
    benchmark(transfer.copy_pieces, dst, src, 32 << 10)
    assert (target.bytes == 1).all()


def test_evict_256(benchmark, rng):
    keys = stored.chains(rng, NUM_CHAINS)
    index = full_index(keys, rng)
    num_batches = NUM_CHAINS * stored.CHAIN_BLOCKS // BATCH_BLOCKS
    evict = index.evict_near
    freed, groups = benchmark.pedantic(evict, (BATCH_BLOCKS * SLOT_NBYTES, False, 0), rounds=num_batches - 1)
    assert freed == BATCH_BLOCKS * SLOT_NBYTES
    assert [(tier, ns, len(places)) for tier, ns, places in groups] == [(0, NS, BATCH_BLOCKS)]
