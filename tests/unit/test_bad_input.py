"""Every bad input at the public door: a named error with the value and the limit, and nothing has changed."""

import errno
import os
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
from store_helpers import (
    BLOCK,
    TOKENS,
    ObedientTier,
    chain,
    make_spec,
    make_store,
    payload,
    put_chain,
    settle,
    snapshot,
)

import kvstore
from kvstore import BlockLayout, Config
from kvstore.errors import ConfigInvalid, InvalidRequest, KVStoreError, LimitExceeded, Unavailable
from kvstore.namespace import NamespaceSpec

NUM = 4
WHOLE = BlockLayout((BLOCK,))


@pytest.fixture
def store():
    made = make_store(16, ObedientTier(64 * BLOCK))
    yield made
    made.check()


@pytest.fixture
def ns(store):
    """Two blocks of a chain of four are stored."""
    made = store.namespace(make_spec())
    put_chain(made, 2)
    return made


@pytest.fixture
def refused(store, ns):
    """Call it and be sure that it names what was wrong, and that nothing moved."""

    def check(call, *texts, kind=InvalidRequest):
        before, entries = snapshot(store), ns.explain(chain(ns, NUM))
        with pytest.raises(kind) as caught:
            call()
        for text in texts:
            assert text in str(caught.value), str(caught.value)
        assert snapshot(store) == before and ns.explain(chain(ns, NUM)) == entries

    return check


KEYS = {
    "a list": ([1, 2], "[1, 2]"),
    "none": (None, "None"),
    "a number": (5, "5"),
    "text": ("text", "'text'"),
    "31 bytes each": (np.zeros((NUM, 31), np.uint8), "(4, 31)"),
    "33 bytes": (b"x" * 33, "33 bytes"),
    "one axis": (np.zeros(NUM * 32, np.uint8), "(128,)"),
    "three axes": (np.zeros((1, NUM, 32), np.uint8), "(1, 4, 32)"),
    "signed": (np.zeros((NUM, 32), np.int8), "int8"),
    "booleans": (np.zeros((NUM, 32), np.bool_), "bool"),
    "64-bit": (np.zeros((NUM, 4), np.uint64), "uint64"),
    "floats": (np.zeros((NUM, 32)), "float64"),
    "objects": (np.full((NUM, 32), None), "object"),
    "Fortran order": (np.asfortranarray(np.zeros((NUM, 32), np.uint8)), "contiguous"),
    "every other key": (np.zeros((2 * NUM, 32), np.uint8)[::2], "contiguous"),
    "a view of words": (memoryview(np.zeros((NUM, 8), np.uint32)), "bytes"),
}


@pytest.mark.parametrize("kind", KEYS)
def test_keys(ns, refused, kind):
    keys, text = KEYS[kind]
    blocks = payload(chain(ns, NUM))
    for call in (
        lambda: ns.match(keys),
        lambda: ns.lease(keys),
        lambda: ns.get(keys),
        lambda: ns.put(keys, blocks),
        lambda: ns.reserve(keys),
        lambda: ns.prefetch(keys),
        lambda: ns.remove(keys),
        lambda: ns.explain(keys),
    ):
        refused(call, text, "keys")


@pytest.mark.parametrize("deadline", [-1, -0.001, float("nan"), float("inf"), "50", True, [1], 2**31, 10**30])
def test_deadlines(store, ns, refused, deadline):
    keys = chain(ns, NUM)
    blocks = payload(keys)
    for call in (
        lambda: ns.lease(keys, deadline),
        lambda: ns.lease(keys[:1], deadline_ms=deadline),  # also when nothing has to be waited for
        lambda: ns.get(keys, deadline_ms=deadline),
        lambda: ns.put(keys, blocks, deadline_ms=deadline),
        lambda: ns.reserve(keys, deadline_ms=deadline),
        lambda: ns.prefetch(keys, deadline_ms=deadline),
        lambda: store.flush(deadline),
    ):
        refused(call, f"deadline_ms={deadline!r}", "from 0 to 2147483647")
    refused(lambda: store.close(deadline), f"flush_ms={deadline!r}")


@pytest.mark.parametrize("deadline", [0, 0.5, np.float32(2), np.int64(3), 2**31 - 1])
def test_deadlines_of_every_number_type(store, ns, deadline):
    keys = chain(ns, NUM)
    assert ns.get(keys, deadline_ms=deadline)[0] == 2
    assert ns.put(keys, payload(keys), deadline_ms=deadline).stored == 2
    settle(store)
    assert store.flush(deadline)


@pytest.mark.parametrize("shard", [-1, 2, 2**40, True, False, 0.0, "0", None])
def test_shards(store, refused, shard):
    two = store.namespace(make_spec(model="two", shards=2))
    keys = chain(two, NUM)
    parts = np.zeros((NUM, BLOCK // 2), np.uint8)
    for call in (lambda: two.put(keys, parts, shard=shard), lambda: two.reserve(keys, shard)):
        refused(call, f"shard={shard!r}", "between 0 and 1")


@pytest.mark.parametrize("start", [-1, NUM + 1, 2**40, True, 1.0, "1", None])
def test_starts(ns, refused, start):
    keys = chain(ns, NUM)
    refused(lambda: ns.put(keys, payload(keys), start=start), f"start={start!r}", f"between 0 and {NUM}")


BLOCKS = {
    "too few": (np.zeros((NUM - 1, BLOCK), np.uint8), "for 3 blocks, not for 4"),
    "too many": (np.zeros((NUM + 1, BLOCK), np.uint8), "for 5 blocks, not for 4"),
    "none of them": (np.zeros((0, BLOCK), np.uint8), "for 0 blocks, not for 4"),
    "smaller ones": (np.zeros((2 * NUM, BLOCK // 2), np.uint8), "(8, 32768)"),
    "larger ones": (np.zeros((NUM // 2, 2 * BLOCK), np.uint8), "(2, 131072)"),
    "one byte more": (np.zeros((NUM, BLOCK + 1), np.uint8), "(4, 65537)"),
    "the other way round": (np.zeros((BLOCK, NUM), np.uint8), "(65536, 4)"),
    "Fortran order": (np.asfortranarray(np.zeros((NUM, BLOCK), np.uint8)), "C-contiguous"),
    "every other one": (np.zeros((2 * NUM, BLOCK), np.uint8)[::2], "C-contiguous"),
    "half of a row": (np.zeros((NUM, 2 * BLOCK), np.uint8)[:, :BLOCK], "C-contiguous"),
    "not whole blocks": (np.zeros(NUM * BLOCK - 1, np.uint8), "65536"),
    "no axis": (np.array(1), "shape ()"),
    "objects": (np.full((NUM, BLOCK // 8), None), "Python objects"),
    "a number": (5, "5"),
    "none": (None, "None"),
    "text": ("text", "'text'"),
    "a list too short": ([bytes(BLOCK)] * (NUM - 1), "for 3 blocks, not for 4"),
    "a list too long": ([bytes(BLOCK)] * (NUM + 1), "for 5 blocks, not for 4"),
    "an empty list": ([], "for 0 blocks, not for 4"),
    "a list with a short one": ([bytes(BLOCK)] * (NUM - 1) + [bytes(BLOCK - 1)], "buffers[3] has 65535 bytes"),
    "a list with none": ([None] * NUM, "buffers[0]"),
    "a generator": ((bytes(BLOCK) for _ in range(NUM)), "generator"),
}


@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks(ns, refused, kind):
    blocks, text = BLOCKS[kind]
    refused(lambda: ns.put(chain(ns, NUM), blocks), text)


@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_for_a_room(store, ns, refused, kind):
    blocks, text = BLOCKS[kind]
    with ns.reserve(chain(ns, NUM, prompt=3)) as room:
        refused(lambda: room.fill(blocks), text)


OUTS = {
    **{kind: BLOCKS[kind] for kind in BLOCKS if "too many" not in kind and "long" not in kind and "few" not in kind},
    "too few": (np.zeros((1, BLOCK), np.uint8), "for 1 blocks, not for 2"),
    "none of them": (np.zeros((0, BLOCK), np.uint8), "for 0 blocks, not for 2"),
    "a list too short": ([bytearray(BLOCK)], "for 1 blocks, not for 2"),
    "an empty list": ([], "for 0 blocks, not for 2"),
    "a list with a short one": ([bytearray(BLOCK), bytearray(BLOCK - 1)], "buffers[1] has 65535 bytes"),
    "bytes": (bytes(2 * BLOCK), "writable"),
    "a list of bytes": ([bytes(BLOCK)] * 2, "writable"),
}


def read_only():
    out = np.zeros((NUM, BLOCK), np.uint8)
    out.flags.writeable = False
    return out


@pytest.mark.parametrize("kind", [*OUTS, "read-only"])
def test_outs(ns, refused, kind):
    out, text = OUTS[kind] if kind != "read-only" else (read_only(), "writable")
    with ns.lease(chain(ns, NUM)) as lease:
        refused(lambda: lease.copy_into(out), text)


@pytest.mark.parametrize("kind", ["read-only", "bytes", "objects", "Fortran order", "smaller ones", "a number"])
def test_outs_are_checked_also_when_nothing_is_found(ns, refused, kind):
    out, text = OUTS[kind] if kind != "read-only" else (read_only(), "writable")
    refused(lambda: ns.get(chain(ns, NUM, prompt=9), out), text)
    refused(lambda: ns.get(chain(ns, NUM), out), text)


ROWS = [0, 1, 2, 3]
LAYOUTS = {
    "no layout at all": (None, ROWS, "without a layout"),
    "text": ("layout", ROWS, "'layout'"),
    "a tuple": ((BLOCK,), ROWS, "BlockLayout"),
    "pieces in a list": (BlockLayout([BLOCK]), ROWS, "tuple of pieces"),
    "a number of pieces": (BlockLayout(BLOCK), ROWS, "tuple of pieces"),
    "no pieces": (BlockLayout(()), ROWS, "make 0 bytes, a block has 65536"),
    "too small": (BlockLayout((BLOCK - 1,)), ROWS, "make 65535 bytes, a block has 65536"),
    "too large": (BlockLayout((BLOCK + 1,)), ROWS, "65537"),
    "more pieces than tensors": (BlockLayout((BLOCK // 2, BLOCK // 2)), ROWS, "2 pieces"),
    "a piece of nothing": (BlockLayout((0, BLOCK)), ROWS, "between 1 and 65536"),
    "a negative piece": (BlockLayout((-1, BLOCK + 1)), ROWS, "-1"),
    "a boolean": (BlockLayout((True, BLOCK - 1)), ROWS, "True"),
    "a float": (BlockLayout((float(BLOCK),)), ROWS, "65536.0"),
    "no block_ids": (WHOLE, None, "block_ids=None"),
    "one block_id": (WHOLE, 0, "block_ids"),
    "too few block_ids": (WHOLE, [0, 1], "for 2 blocks, not for 4"),
    "too many block_ids": (WHOLE, [0] * 9, "for 9 blocks, not for 4"),
    "block_ids out of range": (WHOLE, [0, 1, 2, 8], "block_ids[3] is 8; allowed: 0 to 7"),
    "negative block_ids": (WHOLE, [0, -1, 2, 3], "block_ids[1] is -1"),
    "float block_ids": (WHOLE, np.zeros(NUM), "float64"),
    "boolean block_ids": (WHOLE, [True] * NUM, "bool"),
    "block_ids of two axes": (WHOLE, np.zeros((NUM, 1), np.int64), "(4, 1)"),
    "text block_ids": (WHOLE, "0123", "block_ids"),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_layouts(ns, refused, kind):
    layout, block_ids, text = LAYOUTS[kind]
    tensor = np.zeros((8, BLOCK), np.uint8)
    tensors = tensor[:NUM] if layout is None else [tensor]
    refused(lambda: ns.put(chain(ns, NUM), tensors, layout=layout, block_ids=block_ids), text)


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        (np.zeros((8, BLOCK), np.uint8), "list"),
        ([], "1 pieces"),
        ([None], "tensor"),
        ([[1, 2]], "tensor"),
        ([np.zeros((8, BLOCK - 1), np.uint8)], "65535 bytes a block"),
        ([np.zeros((8, 2 * BLOCK), np.uint8)[:, ::2]], "stride"),
        ([np.full((8, BLOCK // 8), None)], "Python objects"),
        ([np.array(7)], "no axis"),
    ],
)
def test_tensors(ns, refused, tensors, text):
    refused(lambda: ns.put(chain(ns, NUM), tensors, layout=WHOLE, block_ids=ROWS), text)


@pytest.mark.parametrize("tier", ["disk", "far", "", None, 5, ["host"]])
def test_tiers_of_a_prefetch(ns, refused, tier):
    refused(lambda: ns.prefetch(chain(ns, NUM), tier), f"tier={tier!r}", "'host'")


@pytest.mark.parametrize("nbytes", [0, -1, 2**30 + 1, 2**80, True, 4096.0, "4096", None])
def test_block_sizes(store, ns, refused, nbytes):
    refused(lambda: store.namespace(make_spec(model="x", block_nbytes=nbytes)), f"block_nbytes={nbytes!r}")


def test_a_block_larger_than_memory(store, ns, refused):
    refused(lambda: store.namespace(make_spec(model="x", block_nbytes=16 * BLOCK + 1)), "1048577", "1048576")


@pytest.mark.parametrize("spec", [None, "tiny", 5, {"model": "m"}, NamespaceSpec])
def test_specs(store, ns, refused, spec):
    refused(lambda: store.namespace(spec), "NamespaceSpec")


@pytest.mark.parametrize("tokens", [None, "text", [-1] * TOKENS, [2**32] * TOKENS, [0.5] * TOKENS, [[1]], object()])
def test_tokens(ns, refused, tokens):
    refused(lambda: ns.keys(tokens))


# ---- opening ----


@pytest.mark.parametrize("config", ["kvstore.toml", {"host": {}}, 5, Config])
def test_configurations(config):
    with pytest.raises(InvalidRequest, match=r"Config"):
        kvstore.open(config)


def opened(path, **disk):
    return kvstore.open(Config(host={"nbytes": "4 MiB"}, disk={"path": str(path), "nbytes": "16 MiB", **disk}))


def test_a_path_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(KVStoreError, match="file"):
            opened(path)
    assert (tmp_path / "file").read_text() == "mine" and os.listdir(tmp_path) == ["file"]


def test_a_path_in_use_by_another_store(tmp_path):
    with opened(tmp_path) as store:
        with pytest.raises(Unavailable, match=f"in use by process {os.getpid()}"):
            opened(tmp_path)
        ns = store.namespace(make_spec())
        assert ns.get(put_chain(ns, 2))[0] == 2


def test_a_file_system_that_is_full(tmp_path, monkeypatch):
    full = SimpleNamespace(f_bavail=1, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda _path: full)
    with pytest.raises(LimitExceeded, match=r"room for 4096 bytes.* needed: at least 4194304"):
        opened(tmp_path / "new")
    assert os.listdir(tmp_path) == []


def test_a_path_that_is_read_only(tmp_path, monkeypatch):
    def refuse(path, *_args, **_rest):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(Unavailable, match=r"new.*Read-only file system"):
        opened(tmp_path / "new")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []


def test_a_mount_that_is_read_only(tmp_path):
    """The same with a real one, where this process may mount."""
    options = ["mount", "-t", "tmpfs", "-o", "ro,size=64m", "none", str(tmp_path)]
    if subprocess.run(options, capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        for path in (tmp_path, tmp_path / "new"):
            with pytest.raises(Unavailable, match="Read-only file system"):
                opened(path)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize(
    ("disk", "text"),
    [
        ({"nbytes": "1 MiB"}, "1048576"),
        ({"nbytes": "16 MiB", "segment_nbytes": "12 KiB"}, r"disk\.segment_nbytes = '12 KiB'"),
        ({"nbytes": "16 MiB", "segment_nbytes": "3 MiB"}, r"disk\.segment_nbytes = '3 MiB'"),
    ],
)
def test_disk_sizes_that_make_no_tier(tmp_path, disk, text):
    with pytest.raises(ConfigInvalid, match=text):
        opened(tmp_path / "new", **disk)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("nbytes", [0, -1, True, "17 TiB", "much", 1.5])
def test_sizes_of_memory(nbytes):
    with pytest.raises(ConfigInvalid, match=r"host\.nbytes"):
        kvstore.open(Config(host={"nbytes": nbytes}))
