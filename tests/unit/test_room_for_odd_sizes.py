"""Room in memory for block sizes whose slots do not fill their slabs."""

import numpy as np
import pytest

import kvstore
from kvstore.config import MIB

CAPACITY_NBYTES = 16 * MIB


@pytest.mark.parametrize("block_nbytes", [100_000, 917_504, 1_500_000, 2_200_000])
def test_a_full_arena_evicts_although_its_slots_do_not_add_up_to_its_capacity(block_nbytes):
    config = kvstore.Config(host={"nbytes": CAPACITY_NBYTES, "prefault": "off"}, disk={"nbytes": 0})
    num_blocks = 2 * CAPACITY_NBYTES // block_nbytes
    with kvstore.open(config) as store:
        namespace = store.namespace(kvstore.NamespaceSpec(model="m", block_nbytes=block_nbytes))
        for number in range(num_blocks):
            keys = namespace.keys(np.full(16, number, dtype=np.uint32))
            result = namespace.put(keys, np.full((1, block_nbytes), number % 251, dtype=np.uint8))
            assert result.stored == 1, (number, result)
            assert namespace.get(keys)[1][0, -1] == number % 251
        store.check()
        assert store.stats()["tiers"]["host"]["used_nbytes"] <= CAPACITY_NBYTES


def test_two_odd_sizes_share_an_arena_that_one_of_them_filled():
    config = kvstore.Config(host={"nbytes": CAPACITY_NBYTES, "prefault": "off"}, disk={"nbytes": 0})
    with kvstore.open(config) as store:
        sizes = (917_504, 1_500_000)
        small, large = (store.namespace(kvstore.NamespaceSpec(model=f"m{size}", block_nbytes=size)) for size in sizes)
        for round_number, namespace in enumerate([small, large, small, large]):
            for number in range(12):
                keys = namespace.keys(np.full(16, 100 * round_number + number, dtype=np.uint32))
                blocks = np.zeros((1, namespace.spec.block_nbytes), dtype=np.uint8)
                assert namespace.put(keys, blocks).stored == 1, (round_number, number)
        store.check()
