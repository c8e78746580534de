"""What a carry does when it finds no place."""

import numpy as np

import kvstore
from kvstore.carry import Carry
from kvstore.tiers.base import Usage

KIB, MIB = 1 << 10, 1 << 20
NBYTES = 64 * KIB


def test_a_carry_gives_no_block_up_because_the_tier_rests(tmp_path, monkeypatch):
    config = kvstore.Config(host={"nbytes": "8 MiB", "prefault": "off"}, disk={"nbytes": "16 MiB", "path": tmp_path})
    with kvstore.open(config) as store:
        namespace = store.namespace(kvstore.NamespaceSpec(model="m", block_nbytes=NBYTES))
        keys = namespace.keys(np.arange(16 * 20, dtype=np.uint32))
        namespace.put(keys, np.zeros((20, NBYTES), dtype=np.uint8))
        assert store.flush()
        store.mover.stop()
        with store.lock:
            carry = Carry(store.mover, store.far, (0, 2**32 - 1))
            assert not carry.step()
            carry._reading.result(timeout=60)
            monkeypatch.setattr(store.far, "allocate", lambda *rest, **options: np.empty(0, dtype=np.uint32))
            monkeypatch.setattr(store.far, "usage", lambda: Usage(20, 20 * NBYTES, 14 * MIB, False, "resting"))
            assert carry.step()
        monkeypatch.undo()
        assert namespace.match(keys).num_blocks == 20
        store.check()
