"""Statistics in Prometheus' format: the numbers of stats(), under the same names."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from kvstore.errors import Unavailable

# What only grows while the store is open; everything else is a state. A name that is missing here is a gauge too many,
# which rate() still works on.
COUNTERS = frozenset(
    {
        *(
            "lookups.leases",
            "lookups.blocks_asked",
            "lookups.blocks_found",
            "lookups.blocks_near",
            "lookups.blocks_far",
            "lookups.blocks_skipped",
            "lookups.probes",
        ),
        *("tiers.evicted", "tiers.dropped", "index.evicted_near", "index.evicted_far", "index.dropped_unwritten"),
        *("index.spared", "mover.written_blocks", "mover.promoted_blocks", "mover.carried_blocks"),
        *("mover.skipped_writes", "mover.failed_writes", "mover.failed_reads", "mover.corrupt_blocks"),
        *("mover.scrubbed_blocks", "mover.scrub_rotten_blocks", "mover.scrub_rounds", "mover.defects"),
        *("traffic.put_nbytes", "traffic.got_nbytes", "index.hints", "policy.ttl_ignored", "policy.expired_blocks"),
        *("mover.write_nbytes", "mover.write_us", "mover.read_nbytes", "mover.read_us"),
        *("trace.calls", "trace.dropped_calls", "trace.requests"),
        *("service.calls", "service.refused", "service.sent_nbytes", "service.received_nbytes"),
    }
)
LABELS = {"tiers": "tier", "namespaces": "namespace"}  # sections with one row for each name


class Metrics:
    """Text for a scrape; empty until it is told what to `watch`."""

    def __init__(self) -> None:
        self._stats: Callable[[], Mapping[str, Any]] | None = None
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._lock = threading.Lock()

    def watch(self, stats: Callable[[], Mapping[str, Any]]) -> None:
        """From now on these are the statistics."""
        with self._lock:
            self._stats = stats

    def text(self) -> bytes:
        """The exposition, UTF-8."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """What the registry asks; nothing while the store is opening or once it is closed."""
        with self._lock:
            stats = self._stats
        try:
            found = stats() if stats is not None else {}
        except Unavailable:
            return
        for section, values in found.items():
            yield from _families(section, values)


def _families(section: str, values: Mapping[str, Any]) -> Iterator[Metric]:
    label = LABELS.get(section)
    if label is None:
        for name, value in values.items():
            if isinstance(value, (int, float)):
                yield _family(section, name, (), [((), value)])
        return
    names = dict.fromkeys(name for row in values.values() for name in row)
    for name in names:
        rows = [((title,), row[name]) for title, row in values.items() if isinstance(row.get(name), (int, float))]
        if rows:
            yield _family(section, name, (label,), rows)


def _family(section: str, name: str, labels: tuple[str, ...], rows: Sequence[tuple[tuple[str, ...], float]]) -> Metric:
    kind = CounterMetricFamily if f"{section}.{name}" in COUNTERS else GaugeMetricFamily
    family: Metric = kind(f"kvstore_{section}_{name}", f"{section}.{name}, see docs/operations.md", labels=labels)
    for title, value in rows:
        family.add_metric(title, float(value))  # type: ignore[attr-defined]
    return family
