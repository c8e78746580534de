"""Advice: what a size adds, what that saves, and how it is said."""

import re
from types import SimpleNamespace

import pytest
from store_helpers import make_spec, put_chain

from kvstore.advice import GIB, advise
from kvstore.cli import advise as command
from kvstore.cli import main
from kvstore.config import Config
from kvstore.embedded import open as open_store
from kvstore.metrics import Metrics

HITS = {"0.5x": 0.2, "1x": 0.3, "2x": 0.45, "4x": 0.5, "8x": 0.5}
FACTORS = {"0.5x": 0.5, "1x": 1, "2x": 2, "4x": 4, "8x": 8}


def stats(requests: int = 1000) -> dict:
    """Memory of 2 GiB, asked for 1,000 tokens a second."""
    rows = {
        size: {
            "capacity_nbytes": int(2 * GIB * FACTORS[size]),
            "hit_ratio": hits,
            "hit_ratio_ever": hits / 2,
            "full_ratio": 0.4 if size == "8x" else 1.0,
            "sampled_ratio": 0.1,
        }
        for size, hits in HITS.items()
    }
    shadow = {"requests": requests, "dropped_requests": 3, "asked_tokens_per_s": 1000.0, "nbytes": 1}
    return {"whatif": {"host": rows}, "shadow": shadow}


def test_what_a_size_adds_and_saves():
    half, own, double, _, most = advise(stats(), prefill_tokens_per_s=500)
    assert (double.added_nbytes, double.capacity_nbytes) == (2 * GIB, 4 * GIB)
    assert double.added_hit_ratio == pytest.approx(0.15)
    assert double.saved_s_per_h == pytest.approx(0.15 * 1000 * 3600 / 500)
    assert double.saved_s_per_h_per_gib == pytest.approx(double.saved_s_per_h / 2)
    assert half.saved_s_per_h == pytest.approx(-0.1 * 1000 * 3600 / 500) and half.added_nbytes == -GIB
    assert half.saved_s_per_h_per_gib == pytest.approx(-half.saved_s_per_h)  # what each GiB that is there brings
    assert (own.added_nbytes, own.saved_s_per_h, own.saved_s_per_h_per_gib) == (0, 0, None)
    assert (double.is_full, most.is_full) == (True, False)


def test_without_a_rate_nothing_is_saved_and_all_of_the_past_can_be_taken():
    found = list(advise(stats(), 0, recent=False))
    assert [one.hit_ratio for one in found] == [hits / 2 for hits in HITS.values()]
    assert {one.saved_s_per_h for one in found} == {None}


def test_a_store_that_plays_nothing_has_no_advice():
    assert list(advise({"whatif": {}, "shadow": {}}, 10)) == []
    assert "policy.whatif is off" in command.text([], {"requests": 0})
    assert "no request" in command.text(list(advise(stats(0), 10)), stats(0)["shadow"])


def test_the_table_says_it_all_within_a_terminal():
    lines = command.text(list(advise(stats(), 500)), stats()["shadow"]).splitlines()
    assert max(map(len, lines[:8])) <= 80
    rows = [re.split(r"  +", line.strip()) for line in lines if line.startswith("host")]
    assert rows[0] == ["host", "0.5x", "1.00 GiB", "20.0 %", "-10.0", "-12.0 min", "+12.0 min"]
    assert rows[1] == ["host", "as it is", "2.00 GiB", "30.0 %"]
    assert rows[2] == ["host", "2x", "4.00 GiB", "45.0 %", "+15.0", "+18.0 min", "+9.00 min"]
    assert rows[4][3] == "50.0 % *" and any(line.startswith("* has room left") for line in lines)
    assert "1,000 requests were played, 3 were not; 1,000 tokens a second" in "\n".join(lines)


def test_of_a_daemon_as_a_table_and_as_an_object(monkeypatch, capsys):
    class Daemon(SimpleNamespace):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(command, "opened", lambda *_: Daemon(stats=stats))
    assert main(["advise", "--prefill-tokens-per-s", "500"]) == 0
    assert "+18.0 min" in capsys.readouterr().out
    assert main(["advise", "--json"]) == 0
    said = capsys.readouterr().out
    assert '"saved_s_per_h": null' in said and '"added_hit_ratio": 0.15' in said and '"dropped_requests": 3' in said


def test_metrics_have_a_gauge_for_each_tier_and_size():
    config = Config(host={"nbytes": "1 MiB"}, disk={"nbytes": 0})
    with open_store(config) as store:
        put_chain(store.namespace(make_spec()), 3)
        with store.lock:
            store.mover.tend()
        metrics = Metrics()
        metrics.watch(store.stats)
        text = metrics.text().decode()
    for size in FACTORS:
        assert f'kvstore_whatif_hit_ratio{{size="{size}",tier="host"}}' in text or (
            f'kvstore_whatif_hit_ratio{{tier="host",size="{size}"}}' in text
        )
    assert "# TYPE kvstore_whatif_hit_ratio gauge" in text and "# TYPE kvstore_shadow_requests_total counter" in text
    assert 'kvstore_tiers_blocks{tier="host"} 3.0' in text
