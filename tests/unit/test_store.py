"""BlockStore: namespaces, numbers and flushing."""

from concurrent.futures import Future
from pathlib import Path

import pytest
from store_helpers import (
    BLOCK,
    MIB,
    FakeClock,
    ObedientTier,
    chain,
    make_spec,
    make_store,
    put_chain,
    settle,
    snapshot,
)

import kvstore
from kvstore import Config
from kvstore import store as store_module
from kvstore.errors import InvalidRequest, LimitExceeded, NamespaceMismatch, Unavailable
from kvstore.tiers.base import Outcome
from kvstore.tiers.disk import DiskTier

DISK = {"nbytes": "16 MiB"}  # 16 segments of 1 MiB


def config(path: Path | None = None, **sections):
    disk = {**DISK, "path": str(path)} if path else {"nbytes": 0}
    return Config(**{"host": {"nbytes": "4 MiB", "prefault": "off"}, "disk": disk, **sections})


def disk(path, time):
    return DiskTier(path, capacity_nbytes=16 * MIB, time_s=time.time_s)


# ---- namespaces ----


def test_a_namespace_opened_twice_is_the_same():
    store = make_store()
    keys = put_chain(store.namespace(make_spec()), 3)
    again = store.namespace(make_spec())
    assert again.get(keys)[0] == 3
    assert list(store.stats()["namespaces"]) == ["tiny"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("revision", "v2"),
        ("dtype", "float16"),
        ("layout", "layers"),
        ("block_tokens", 8),
        ("block_nbytes", 2 * BLOCK),
        ("shards", 2),
        ("hash", "xxh3_128"),
    ],
)
def test_a_differing_field_is_named(field, value):
    store = make_store()
    ns = store.namespace(make_spec())
    put_chain(ns, 1)
    before = snapshot(store)
    with pytest.raises(NamespaceMismatch, match=field) as caught:
        store.namespace(make_spec(**{field: value}))
    assert (caught.value.field, caught.value.wanted) == (field, value)
    assert str(value) in str(caught.value) and "tiny" in str(caught.value)
    assert snapshot(store) == before


@pytest.mark.parametrize("field", ["model", "lora", "salt", "group", "name"])
def test_namespaces_of_other_names_lie_side_by_side(field):
    store = make_store(16)
    one, other = store.namespace(make_spec()), store.namespace(make_spec(**{field: 3 if field == "group" else "x"}))
    keys, others = put_chain(one, 2), chain(other, 2)
    assert (keys != others).any() and other.match(others).num_blocks == 0
    assert len(store.stats()["namespaces"]) == 2


def test_an_empty_namespace_left_by_an_earlier_run_may_be_made_anew(tmp_path):
    with kvstore.open(config(tmp_path)) as store:
        ns = store.namespace(make_spec())
        put_chain(ns, 2)
        ns.clear()
    with kvstore.open(config(tmp_path)) as store:
        put_chain(store.namespace(make_spec(block_nbytes=8192, dtype="float16")), 2)
        with pytest.raises(NamespaceMismatch, match="block_nbytes"):  # it is in use now
            store.namespace(make_spec())
        store.check()
    with kvstore.open(config(tmp_path)) as store:
        ns = store.namespace(make_spec(block_nbytes=8192, dtype="float16"))
        assert ns.match(chain(ns, 2)).num_blocks == 2


def test_a_block_must_fit_into_memory_and_into_a_segment(tmp_path):
    with kvstore.open(config()) as store, pytest.raises(InvalidRequest, match=r"4198400.*4194304"):
        store.namespace(make_spec(block_nbytes=4 * MIB + 4096))
    with kvstore.open(config(tmp_path)) as store, pytest.raises(InvalidRequest, match=r"1052672.*1048576"):
        store.namespace(make_spec(block_nbytes=MIB + 4096))


@pytest.mark.parametrize("spec", [None, "tiny", {"model": "tiny"}, 5])
def test_a_namespace_needs_a_spec(spec):
    with pytest.raises(InvalidRequest, match="NamespaceSpec"):
        make_store().namespace(spec)


def test_the_number_of_namespaces_is_limited(monkeypatch):
    monkeypatch.setattr(store_module, "NAMESPACES_MAX", 3)
    store = make_store()
    for number in range(3):
        store.namespace(make_spec(model=f"m{number}"))
    with pytest.raises(LimitExceeded, match="3 namespaces"):
        store.namespace(make_spec(model="one more"))
    store.namespace(make_spec(model="m1"))


# ---- numbers ----

STATS = {
    "lookups": {"leases", "blocks_asked", "blocks_found", "blocks_near", "blocks_far", "leases_in_use",
                "blocks_skipped", "probes"},
    "traffic": {"put_nbytes", "got_nbytes"},
    "index": {
        "entries", "entries_max", "writing", "waiting", "near", "far", "removed_pending", "near_nbytes", "far_nbytes",
        "writing_nbytes", "evicted_near", "evicted_far", "dropped_unwritten", "spared", "nbytes_per_entry", "events",
        "hints",
    },
    "mover": {
        "queued_blocks", "writes_under_way", "reads_under_way", "written_blocks", "promoted_blocks", "carried_blocks",
        "skipped_writes", "failed_writes", "failed_reads", "corrupt_blocks", "defects", "write_nbytes",
        "write_nbytes_per_s", "read_nbytes", "read_nbytes_per_s", "write_us", "read_us", "scrubbed_blocks",
        "scrub_rotten_blocks", "scrub_rounds", "scrub_age_s", "endurance_left_nbytes", "endurance_used_up"},
    "policy": {
        "ttl_chains", "ttl_blocks", "ttl_ignored", "expired_blocks", "pins", "pinned_blocks", "pinned_nbytes",
        "pins_nbytes_max", "name", "bypassed_blocks", "unworthy_blocks", "ghosts", "ghosts_nbytes", "classes",
    },
}  # fmt: skip
TIER_STATS = {"blocks", "used_nbytes", "capacity_nbytes", "healthy", "reason", "evicted"}


def test_stats_have_all_their_names():
    stats = make_store(far=ObedientTier(64 * BLOCK)).stats()
    assert stats.keys() == {"lookups", "traffic", "tiers", "index", "mover", "policy", "namespaces"}
    assert {part: set(stats[part]) for part in STATS} == STATS
    assert set(stats["tiers"]["far"]) == TIER_STATS | {"attached"}
    assert set(stats["tiers"]["host"]) == TIER_STATS | {"page_kind", "prefaulted_nbytes"}


def test_stats_of_a_scripted_run_are_right():
    """Six blocks of two namespaces through a memory of four: written back, evicted, read back."""
    store = make_store(4, ObedientTier(64 * BLOCK), clock=FakeClock())
    one, two = store.namespace(make_spec()), store.namespace(make_spec(model="two"))
    first = put_chain(one, 3)
    settle(store)
    second = put_chain(two, 3)
    settle(store)
    assert one.match(first).by_tier == {"host": 1, "far": 2}
    assert (one.get(first)[0], two.get(second)[0]) == (3, 3)
    with one.lease(chain(one, 5)) as lease:
        assert lease.num_blocks == 3
        stats = store.stats()
    asked, found = 3 + 3 + 5, 3 + 3 + 3
    assert stats["lookups"]["leases"] == 3
    assert (stats["lookups"]["blocks_asked"], stats["lookups"]["blocks_found"]) == (asked, found)
    assert stats["lookups"]["blocks_near"] + stats["lookups"]["blocks_far"] == found
    assert stats["lookups"]["leases_in_use"] == 64
    host, far = stats["tiers"]["host"], stats["tiers"]["far"]
    assert (host["blocks"], host["used_nbytes"], host["capacity_nbytes"]) == (4, 4 * BLOCK, 4 * BLOCK)
    assert (far["blocks"], far["used_nbytes"], far["healthy"], far["reason"]) == (6, 6 * BLOCK, True, "")
    assert stats["index"]["entries"] == 6 and stats["index"]["near"] == 4
    assert host["evicted"] == stats["index"]["evicted_near"] == 2 + stats["mover"]["promoted_blocks"]
    assert (stats["mover"]["written_blocks"], stats["mover"]["write_nbytes"]) == (6, 6 * BLOCK)
    assert stats["mover"]["read_nbytes"] == stats["mover"]["promoted_blocks"] * BLOCK
    assert {name: row["blocks"] for name, row in stats["namespaces"].items()} == {"tiny": 3, "two": 3}
    assert stats["namespaces"]["two"]["block_nbytes"] == BLOCK
    assert stats["traffic"] == {"put_nbytes": 6 * BLOCK, "got_nbytes": 6 * BLOCK}  # a lease alone gives nothing
    assert [len(row["tenant"]) for row in stats["namespaces"].values()] == [0, 0]
    assert store.stats()["lookups"]["leases_in_use"] == 0
    store.check()


# ---- flush ----


def test_flush_without_a_far_tier_has_nothing_to_do():
    store = make_store()
    put_chain(store.namespace(make_spec()), 2)
    assert store.flush() and store.flush(0)


def test_flush_writes_back_and_gives_up_at_its_deadline():
    clock, far = FakeClock(), ObedientTier(64 * BLOCK)
    store = make_store(8, far, clock=clock)
    put_chain(store.namespace(make_spec()), 4)
    far.holding = True
    began = clock.us
    assert not store.flush(250)
    assert clock.us - began == 250_000
    far.let_go()
    assert store.flush(0)
    assert store.stats()["tiers"]["far"]["blocks"] == 4


def test_flush_says_when_the_far_tier_cannot_be_written():
    far = ObedientTier(64 * BLOCK)
    store = make_store(8, far, clock=FakeClock())
    put_chain(store.namespace(make_spec()), 4)
    far.ill = "gone"
    assert not store.flush(10)
    far.ill, far.answer = "", Outcome.OK
    assert store.flush(10)


def test_a_flush_that_could_not_be_made_durable_does_not_say_that_it_was(monkeypatch):
    far = ObedientTier(64 * BLOCK)
    store = make_store(8, far)
    failed = Future()
    failed.set_exception(Unavailable("not durable"))
    monkeypatch.setattr(far, "flush", lambda: failed)
    assert not store.flush()
