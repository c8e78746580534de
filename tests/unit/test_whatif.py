"""What other sizes would hit: as a simulation says, whatever is sampled, and never at the cost of who asks.

The real traces lie in shared/traces beside the repository; the environment variable KVSTORE_TRACES names another
folder.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from simulate_helpers import SANITIZED
from store_helpers import FakeClock, make_spec
from test_replay import known_trace

from kvstore import policy
from kvstore._core.index import Index
from kvstore._core.lease import LeaseTable
from kvstore._core.whatif import BLOCKS, Shadows
from kvstore.cli import replay as command
from kvstore.config import Config
from kvstore.embedded import open as open_store
from kvstore.mover import Mover
from kvstore.namespace import NamespaceSpec
from kvstore.replay import Replay
from kvstore.simulate import demand, simulate
from kvstore.space import Limits
from kvstore.store import BlockStore
from kvstore.tiers.host import HostTier
from kvstore.timed import open_timed, set_time
from kvstore.trace import BLOCK_TOKENS, Request

PLACE = 4096
SIZES = tuple(policy.WHATIF_FACTORS)
TOLERATED = 0.02


def caught_up(store: BlockStore) -> BlockStore:
    """Everything that was asked for so far is played."""
    store.mover.tend()
    while store.mover.whatif.play():
        pass
    assert store.mover.whatif.check() == 0
    return store


def replayed(requests: list[Request], host_blocks: int, disk_blocks: int = 0, eviction: str = "lru") -> dict:
    """Statistics of a store that had all of these."""
    with open_timed(command._config(64, host_blocks, disk_blocks, "", eviction)) as store:
        namespace = store.namespace(NamespaceSpec(model="m", block_nbytes=64, block_tokens=BLOCK_TOKENS))
        replay = Replay(store, namespace, verify=False)
        replay.run(requests, len(requests), lambda _: caught_up(store) and None)
        return caught_up(store).stats()


def hits(stats: dict, tier: str = "host", name: str = "hit_ratio_ever") -> list[float]:
    return [stats["whatif"][tier][size][name] for size in SIZES]


def simulated(requests: list[Request], sizes_blocks: list[int], eviction: str) -> list[float]:
    """Of the blocks that are asked for under this policy."""
    asked = demand(requests)
    full_only = eviction in policy.FULL_BLOCKS_ONLY
    share = asked.num_blocks(full_only=full_only).sum() / asked.num_asked
    return [simulate(asked, eviction, num_blocks).prefix_hit / share for num_blocks in sizes_blocks]


@pytest.mark.parametrize("eviction", ["lru", "gittins"])
@pytest.mark.parametrize("share", [0.01, 0.03])
@pytest.mark.parametrize("name", ["conversation", "synthetic"])
def test_every_size_hits_what_a_simulation_of_it_hits(name: str, share: float, eviction: str):
    if SANITIZED:
        pytest.skip("whole traces are not played under the sanitizers")
    requests = known_trace(name)
    num_blocks = round(share * demand(requests).num_unique)
    requests = requests[:4000]  # all of them say the same, and take a minute
    stats = replayed(requests, num_blocks, eviction=eviction)
    wanted = simulated(requests, [int(num_blocks * factor) for factor in policy.WHATIF_FACTORS.values()], eviction)
    assert stats["shadow"]["dropped_requests"] == 0
    assert hits(stats) == pytest.approx(wanted, abs=TOLERATED)
    assert wanted[-1] - wanted[0] > 5 * TOLERATED  # there is something to tell apart


def sessions(num_requests: int, num_sessions: int, seed: int = 7) -> list[Request]:
    """A beginning of 4 blocks that all share, and conversations that grow by 3 blocks and are picked at random."""
    rng = np.random.default_rng(seed)
    lengths = np.zeros(num_sessions, dtype=int)
    requests = []
    for number in range(num_requests):
        session = int(rng.integers(num_sessions))
        lengths[session] += 3
        own = 1000 + 10_000 * session + np.arange(lengths[session])
        ids = np.concatenate([np.arange(4), own]).astype(np.uint32)
        requests.append(Request(1000 * number, len(ids) * BLOCK_TOKENS, 1, ids, ""))
    return requests


@pytest.mark.parametrize("eviction", ["lru", "gittins"])
def test_a_sample_says_what_all_blocks_would(eviction: str):
    requests = sessions(6000, 1500)
    num_blocks = 4 * BLOCKS
    stats = replayed(requests, num_blocks, eviction=eviction)
    assert stats["whatif"]["host"]["1x"]["sampled_ratio"] == pytest.approx(0.25)
    wanted = simulated(requests, [int(num_blocks * factor) for factor in policy.WHATIF_FACTORS.values()], eviction)
    assert wanted[2] - wanted[0] > 5 * TOLERATED
    assert hits(stats) == pytest.approx(wanted, abs=TOLERATED)


def test_a_beginning_that_all_share_counts_whether_it_is_in_the_sample_or_not():
    """Nothing else is ever hit: without kinds of blocks it would be all or nothing."""
    requests = []
    for number in range(4000):
        ids = np.concatenate([[1], 1000 + 10 * number + np.arange(9)]).astype(np.uint32)
        requests.append(Request(1000 * number, len(ids) * BLOCK_TOKENS, 1, ids, ""))
    stats = replayed(requests, 16 * BLOCKS)
    assert stats["whatif"]["host"]["1x"]["sampled_ratio"] == pytest.approx(1 / 16)
    assert hits(stats) == pytest.approx([0.1] * 5, abs=0.005)


def test_a_disk_is_what_memory_and_it_hit_together():
    requests = sessions(1500, 100)
    stats = replayed(requests, 500, 1000)
    disk = stats["whatif"]["disk"]
    sizes = [max(500 * PLACE, disk[size]["capacity_nbytes"]) // PLACE for size in SIZES]
    assert disk["2x"]["capacity_nbytes"] == 2 * stats["tiers"]["disk"]["capacity_nbytes"]
    assert hits(stats, "disk") == pytest.approx(simulated(requests, sizes, "lru"), abs=TOLERATED)
    assert hits(stats) == pytest.approx(
        simulated(requests, [int(500 * factor) for factor in policy.WHATIF_FACTORS.values()], "lru"), abs=TOLERATED
    )


# ---- one request, however it comes ----


@contextmanager
def small_store(host_nbytes: int = 64 * PLACE, **more) -> Iterator[BlockStore]:
    config = Config(host={"nbytes": host_nbytes}, disk={"nbytes": 0}, policy={"eviction": "lru", **more})
    with open_timed(config) as store:
        yield store


def blocks_of(num_blocks: int, nbytes: int = PLACE) -> np.ndarray:
    return np.zeros((num_blocks, nbytes), dtype=np.uint8)


def space_of(store: BlockStore, model: str = "m", nbytes: int = PLACE):
    return store.namespace(NamespaceSpec(model=model, block_nbytes=nbytes, block_tokens=4))


def keys_of(space, num_blocks: int, first: int = 0):
    return space.keys(np.arange(first, first + 4 * num_blocks))


def ask_for(space, keys, nbytes: int) -> None:
    """As an engine: read what is there, put the rest."""
    start = space.get(keys)[0]
    space.put(keys, blocks_of(len(keys) - start, nbytes), start=start)


def counted(store: BlockStore) -> tuple[int, float]:
    """Requests, and what it says that the tier as it is hits."""
    stats = caught_up(store).stats()
    return stats["shadow"]["requests"], stats["whatif"]["host"]["1x"]["hit_ratio_ever"]


def test_a_prompt_in_pieces_is_one_request_and_hits_nothing():
    with small_store() as store:
        space = space_of(store)
        store.mover.tend()
        keys = keys_of(space, 12)
        for end in (4, 8, 12):
            space.put(keys[:end], blocks_of(end))
        assert counted(store) == (1, 0.0)


def test_a_lookup_and_its_reservation_are_one_request():
    with small_store() as store:
        space = space_of(store)
        store.mover.tend()
        keys = keys_of(space, 8)
        space.put(keys[:4], blocks_of(4))
        for _ in range(2):
            with space.lease(keys) as lease:
                assert lease.num_blocks in (4, 8)
            space.put(keys, blocks_of(8))
        requests, ratio = counted(store)
        assert requests == 3  # 4 asked for, none there; 8, 4 there; 8, all there
        assert ratio == pytest.approx(12 / 20)


def test_lookups_of_many_before_the_first_reservation_take_one_each():
    with small_store() as store:
        space = space_of(store)
        store.mover.tend()
        shared = keys_of(space, 4)
        space.put(shared, blocks_of(4))
        chains = [space.keys(np.concatenate([np.arange(16), 100 * number + np.arange(8)])) for number in (1, 2, 3)]
        for number, chain in enumerate(chains):
            set_time(store, 5000 * number)
            assert space.get(chain)[0] == 4
        for chain in chains:
            space.put(chain, blocks_of(6))
        requests, ratio = counted(store)
        assert requests == 4 and ratio == pytest.approx(12 / (4 + 18))


def test_a_lookup_that_nothing_follows_is_a_request_that_hit_all():
    with small_store() as store:
        space = space_of(store)
        store.mover.tend()
        keys = keys_of(space, 4)
        space.put(keys, blocks_of(4))
        for _ in range(3):
            assert space.get(keys)[0] == 4
        assert counted(store) == (4, pytest.approx(12 / 16))


def test_what_is_older_than_the_half_life_counts_half():
    with small_store() as store:
        space = space_of(store)
        store.mover.tend()
        space.put(keys_of(space, 4), blocks_of(4))
        set_time(store, 1_800_000)
        assert space.get(keys_of(space, 4))[0] == 4
        row = caught_up(store).stats()["whatif"]["host"]["1x"]
        assert row["hit_ratio_ever"] == pytest.approx(1 / 2)
        assert row["hit_ratio"] == pytest.approx(2 / 3)


# ---- limits, sizes, switches ----


def test_off_is_off():
    with small_store(whatif=False) as store:
        space = space_of(store)
        space.put(keys_of(space, 4), blocks_of(4))
        store.mover.rest()
        stats = store.stats()
        assert stats["whatif"] == {} and set(stats["shadow"].values()) == {0}


def stepped_store() -> BlockStore:
    """Nobody plays but the test."""
    near, index = HostTier(64 * PLACE), Index(4096, policy="lru")
    limits = Limits(near_nbytes=64 * PLACE, whatif_ghosts_max=100)
    mover = Mover(index, near, None, threading.RLock(), FakeClock(), limits)
    return BlockStore(
        index=index, leases=LeaseTable(index, 1 << 14), near=near, far=None, mover=mover, clock=FakeClock(),
        reservation_ttl_ms=1000, put_wait_ms=0,
    )  # fmt: skip


def test_a_ring_that_nobody_empties_drops_and_counts_and_goes_on():
    store = stepped_store()
    space = store.namespace(make_spec(block_nbytes=PLACE))
    store.mover.tend()
    keys = keys_of(space, 60)
    num_heard = 0
    for first in range(1500):
        space.put(keys_of(space, 60, first=1000 * first), blocks_of(60))
        num_heard += 1
    dropped = store.stats()["shadow"]["dropped_requests"]
    assert 0 < dropped < num_heard
    requests, _ = counted(store)
    assert requests == num_heard - dropped
    space.put(keys, blocks_of(60))
    assert counted(store)[0] == requests + 1
    assert store.stats()["shadow"]["dropped_requests"] == dropped
    assert store.stats()["shadow"]["nbytes"] < 32 << 20


def test_chains_that_are_too_long_to_play_are_dropped():
    store = stepped_store()
    space = store.namespace(make_spec(block_nbytes=PLACE))
    store.mover.tend()
    space.put(keys_of(space, 9000), np.zeros((9000, PLACE), dtype=np.uint8))
    assert counted(store)[0] == 0 and store.stats()["shadow"]["dropped_requests"] == 1


def test_namespaces_share_a_tier_by_their_bytes():
    """16 blocks of 4 KiB and 12 of 8 KiB take 40 places: they fit into 64, and not into 32."""
    with small_store() as store:
        small, large = space_of(store), space_of(store, "large", 2 * PLACE)
        store.mover.tend()
        for number in range(10):
            for space, num, nbytes in ((small, 16, PLACE), (large, 12, 2 * PLACE)):
                set_time(store, 10_000 * number)
                keys = keys_of(space, num)
                ask_for(space, keys, nbytes)
        found = hits(caught_up(store).stats())
        assert found[1:] == pytest.approx([0.9] * 4)
        assert found[0] < 0.6


def test_blocks_of_another_size_than_expected_take_another_sample():
    with small_store(host_nbytes=16384 * PLACE) as store:
        large, small = space_of(store, "large", 64 * PLACE), space_of(store)
        store.mover.tend()
        assert store.stats()["whatif"]["host"]["1x"]["sampled_ratio"] == 1  # of 504 blocks, on average
        for first in range(40):
            small.put(keys_of(small, 32, 1000 * first), blocks_of(32))
        caught_up(store)
        store.mover.tend()
        assert store.stats()["whatif"]["host"]["1x"]["sampled_ratio"] == pytest.approx(BLOCKS / 16384, rel=0.01)
        assert large.spec.block_nbytes == 64 * PLACE


def test_a_disk_that_leaves_is_not_asked_about(tmp_path):
    config = Config(host={"nbytes": "1 MiB"}, disk={"nbytes": "16 MiB", "path": str(tmp_path)})
    with open_store(config) as store:
        space_of(store)
        with store.lock:
            store.mover.tend()
        assert set(store.stats()["whatif"]) == {"host", "disk"}
        store.detach_tier("disk")
        with store.lock:
            store.mover.tend()
        assert set(store.stats()["whatif"]) == {"host"}


def test_wrong_arguments_are_refused():
    shadows = Shadows(Index(4096), 10)
    with pytest.raises(Exception, match="tier 2 is not below 2"):
        shadows.end(2)
    with pytest.raises(Exception, match="4 capacities"):
        shadows.begin(0, [PLACE] * 4, 1, PLACE)


def test_who_asks_and_who_plays_do_so_at_the_same_time():
    with small_store(host_nbytes=512 * PLACE) as store:
        space = space_of(store)
        store.mover.tend()

        def ask(seed: int) -> None:
            rng = np.random.default_rng(seed)
            for _ in range(300):
                num = int(rng.integers(1, 40))
                keys = keys_of(space, num, first=1000 * int(rng.integers(40)))
                ask_for(space, keys, PLACE)

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            store.mover.whatif.play()
            store.stats()
        caught_up(store)
        assert store.stats()["shadow"]["requests"] > 0
        store.check()


def test_a_mover_that_is_woken_often_plays_no_more_than_one_that_is_not(monkeypatch: pytest.MonkeyPatch):
    played = []
    with open_timed(command._config(64, 60, 0, "", "lru")) as store:
        store.mover.stop()
        monkeypatch.setattr(store.mover.whatif, "play", lambda: played.append(clock.now_us()))
        clock = store.mover.clock = FakeClock()
        store.mover._play_us = 0
        for _ in range(100):
            store.mover.rest()
            clock.us += 1_000
    assert len(played) == 100_000 // policy.PLAY_PAUSE_US + 1
