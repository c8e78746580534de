"""Readers verify leased blocks while a writer evicts, overwrites, removes and moves them.

KVSTORE_STRESS_S: for how long, in seconds.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from compiled import CORE, build, mutated_core

STRESS_S = float(os.environ.get("KVSTORE_STRESS_S", "4"))
PATIENCE_S = 30  # until a defect counts as not found; most show within a second
NUM_READERS = 3
BAD_READ = 5


def run(program: Path, seconds: float, seed: int, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(program), str(seconds), str(seed), str(NUM_READERS)]
    everything = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 60, env=everything)


def sanitized(folder: Path, core: Path = CORE) -> subprocess.CompletedProcess[str]:
    """A run under the thread sanitizer. It does not know fences, so the blocks' own bytes, which they protect, are
    left out (their content is checked); everything else has to be free of races by its atomics and locks alone."""
    (folder / "suppressions").write_text("race:stamp\n")
    try:
        program = build(folder, "stress", "-fsanitize=thread", "-Wno-tsan", "-O1", core=core)
    except AssertionError as error:
        if "tsan" in str(error):
            pytest.skip("no thread sanitizer here")
        raise
    done = run(program, 1, 1, TSAN_OPTIONS=f"halt_on_error=1 suppressions={folder / 'suppressions'}")
    if "FATAL: ThreadSanitizer" in done.stderr:
        pytest.skip(f"the thread sanitizer does not run here: {done.stderr[:200]}")
    return done


def test_nothing_but_the_fenced_bytes_races(tmp_path):
    done = sanitized(tmp_path)
    assert done.returncode == 0 and "data race" not in done.stderr, done.stderr


def test_the_thread_sanitizer_sees_a_touch_that_is_not_released(tmp_path):
    released = "atomic_store_explicit(&shared->touch_head, head + 1, memory_order_release);"
    core = mutated_core(tmp_path, "lease.c", released, released.replace("release", "relaxed"))
    assert "data race" in sanitized(tmp_path, core).stderr


@pytest.mark.parametrize("seed", [1, 2])
def test_no_leased_block_is_overwritten_and_nothing_is_left_over(tmp_path, seed):
    print("seed", seed)
    done = run(build(tmp_path, "stress"), STRESS_S, seed)
    assert done.returncode == 0, f"exit {done.returncode} (see stress.c): {done.stdout} {done.stderr}"
    acquires, blocks, bad, evicted, promoted, _ = map(int, done.stdout.split())
    assert bad == 0 and acquires and blocks and evicted and promoted, done.stdout


@pytest.mark.parametrize(
    ("source", "old", "new"),
    [
        ("lease.c", "if (state != KV_VALID && state != KV_EVICT) return OTHER;", "state = KV_VALID;"),
        (
            "lease.c",
            "if (!kv_key_equals(record, key) || (ns != KV_NONE && record->ns != ns)) return OTHER;",
            "(void)key, (void)ns;",
        ),
        ("lease.c", "return state == KV_VALID ? HELD : BUSY;", "return HELD;"),
        ("evict.c", "if (leased[i] || index->links[id].near_kids > 0) {", "if (index->links[id].near_kids > 0) {"),
        ("evict.c", "if (leased[i] || (index->records[id].flags", "if ((index->records[id].flags"),
    ],
    ids=["state not checked", "key not compared", "marked taken for valid", "lease ignored", "reaped under a lease"],
)
def test_the_stress_finds(tmp_path, source, old, new):
    program = build(tmp_path, "stress", core=mutated_core(tmp_path, source, old, new))
    done = run(program, PATIENCE_S, 1)
    assert done.returncode == BAD_READ, f"exit {done.returncode}: {done.stdout} {done.stderr}"
