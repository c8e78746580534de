"""Who may import whom. An import that is not in the table is a change of the design: decide it here first."""

import re
import sys
from collections.abc import Mapping

from tidy_source import CYTHON_FILES, ROOT, Arrow, Module, imports, modules

# Every module may import these; they import nothing of ours but each other, in this order.
EVERYWHERE = ("errors", "block", "arrays")

DISK = {
    "tiers.changes",
    "tiers.disk_folder",
    "tiers.disk_io",
    "tiers.health",
    "tiers.holdings",
    "tiers.journal",
    "tiers.manifest",
    "tiers.manifest_rows",
    "tiers.preparer",
    "tiers.recovery",
    "tiers.geometry",
    "tiers.segment_files",
    "tiers.segments",
}

# Module → what it may import besides EVERYWHERE. `cli.*` is every subcommand that has no row of its own.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "block": set(),
    "arrays": set(),
    # values and pure decisions
    "checks": set(),
    "clock": set(),
    "section": set(),
    "serving": {"section"},
    "tracing": {"section"},
    "evicting": {"section"},
    "config": {"evicting", "section", "serving", "tracing"},
    "access": set(),
    "frames": set(),
    "events": set(),
    "hint": {"checks"},
    "namespace": set(),
    "policy": set(),
    "rates": set(),
    "trace": set(),
    "trace_file": set(),
    "joining": {"trace"},
    "workload": set(),
    # the doors to the compiled core
    "_core": set(),
    "hashing": {"_core.hash"},
    "copying": {"_core.arena", "_core.transfer", "checks", "namespace", "tiers.base"},
    # tiers: none knows another one; the disk tier is the only one of several files
    "tiers": set(),
    "tiers.base": set(),
    "tiers.breaker": set(),
    "tiers.checks": {"tiers.base"},
    "tiers.memory": {"hashing", "tiers.base", "tiers.checks"},
    "tiers.host": {"_core.arena", "hashing", "tiers.base", "tiers.checks"},
    "tiers.disk": DISK | {"tiers.base", "tiers.checks"},
    "tiers.disk_folder": set(),
    "tiers.disk_io": {"_core.blockio", "tiers.base", "tiers.geometry", "tiers.segment_files"},
    "tiers.geometry": {"tiers.base"},
    "tiers.holdings": {
        *("tiers.changes", "tiers.disk_folder", "tiers.geometry", "tiers.manifest", "tiers.segment_files"),
        "tiers.segments",
    },
    "tiers.health": {"tiers.base", "tiers.breaker", "tiers.disk_io"},
    "tiers.journal": {"tiers.changes", "tiers.manifest"},
    "tiers.changes": {"tiers.base"},
    "tiers.manifest": {"tiers.base", "tiers.changes", "tiers.manifest_rows"},
    "tiers.manifest_rows": {"tiers.base", "tiers.geometry"},
    "tiers.preparer": {"tiers.disk_io", "tiers.segment_files", "tiers.segments"},
    "tiers.recovery": {"tiers.base", "tiers.manifest_rows"},
    "tiers.segment_files": {"_core.blockio", "tiers.disk_folder"},
    "tiers.segments": {"tiers.base", "tiers.geometry"},
    # a tier's folder from outside; what its namespaces mean is part of what is checked
    "tiers.findings": set(),
    "tiers.lineage": {"tiers.base"},
    "tiers.verifying": {"tiers.base", "tiers.disk_io", "tiers.segment_files"},
    "tiers.contents": {
        *("namespace", "tiers.base", "tiers.findings", "tiers.geometry", "tiers.manifest", "tiers.manifest_rows"),
        *("tiers.recovery", "tiers.segment_files"),
    },
    "tiers.inspection": {
        *("tiers.base", "tiers.contents", "tiers.disk_folder", "tiers.findings", "tiers.geometry", "tiers.lineage"),
        *("tiers.manifest", "tiers.manifest_rows", "tiers.segment_files", "tiers.verifying"),
    },
    # movement: knows the contract of the tiers, and the host tier because its arena is what blocks move through
    "space": {
        "_core.eviction",
        "_core.index",
        "_core.put",
        "_core.walk",
        "clock",
        "policy",
        "tiers.base",
        "tiers.host",
        "whatif",
    },
    "whatif": {"_core.index", "_core.whatif", "policy"},
    "quota": {"policy", "space", "tiers.base"},
    "budget": {"policy"},
    "backlog": {"tiers.base"},
    "stepper": set(),
    "listing": {"_core.index", "_core.walk"},
    "recency": {"_core.index", "_core.leave", "_core.walk", "clock", "tiers.base"},
    "carry": {"_core.index", "listing", "tiers.base"},
    "scrub": {"_core.index", "listing", "policy", "tiers.base"},
    "promotion": {"policy", "tiers.base"},
    "prefill": {"_core.index", "policy"},
    "matching": {"_core.index"},
    "mover": {
        *("_core.index", "backlog", "budget", "carry", "clock", "policy", "promotion", "recency", "scrub", "space"),
        *("stepper", "tiers.base", "tiers.host"),
    },
    # the verbs
    "explain": {"_core.index"},
    "recovered": {"tiers.base"},
    "recovery": {"_core.index", "namespace", "recovered", "tiers.base"},
    "removals": set(),
    "returning": {"recovered"},
    "attachment": {
        *("_core.index", "_core.leave", "_core.walk", "durability", "recovered", "removals", "returning"),
        "tiers.base",
    },
    "durability": {"_core.index", "checks", "tiers.base"},
    "recording": {"clock", "hashing", "hint", "joining", "trace", "trace_file"},
    "lease": {"copying"},
    "room": {"hint", "tiers.base"},
    "putting": {"copying", "room"},
    "reservation": {"_core.put", "hint", "room"},
    "expiry": {"_core.hint", "_core.index", "clock"},
    "pins": {"_core.index", "_core.lease"},
    "hints": {"_core.hint", "expiry", "hint", "pins"},
    "hinting": {"checks", "hint", "joining"},
    "arrivals": {"_core.lease", "lease", "tiers.base"},
    "handle": {
        *("arrivals", "_core.lease", "checks", "copying", "durability", "hashing", "hint", "hinting", "joining"),
        *("lease", "matching"),
        *("namespace", "putting", "reservation", "room", "tiers.base"),
    },
    "store": {
        "_core.eviction",
        "_core.index",
        "_core.lease",
        "attachment",
        "checks",
        "clock",
        "durability",
        "explain",
        "feed",
        "recovery",
        "handle",
        "hints",
        "mover",
        "namespace",
        "prefill",
        "quota",
        "recording",
        "space",
        "tiers.base",
        "tiers.host",
        "watching",
    },
    "feed": {"_core.events", "_core.index", "clock", "events"},
    "watching": {"checks", "clock", "events", "feed", "handle", "namespace", "tiers.host"},
    # composition: the one place where tiers are chosen
    "embedded": {
        *("_core.events", "_core.index", "_core.lease", "clock", "config", "mover", "policy", "recording", "space"),
        *("store", "tiers.base", "tiers.disk", "tiers.host"),
    },
    "kvstore": {"client", "config", "embedded", "handle", "hint", "namespace", "store"},
    # wire ↔ values, on either side; neither knows the other
    "service": set(),
    "service.limits": set(),
    "service.endpoints": {"serving"},
    "service.identity": {"access"},
    "service.calls": {"service.identity", "service.limits", "v1.kvstore_pb2"},
    "service.namespaces": {
        *("access", "checks", "handle", "hashing", "namespace", "service.identity", "service.limits", "store"),
    },
    "service.attaching": {
        *("_core.attach", "_core.put", "checks", "config", "hint", "joining", "service.endpoints"),
        "store",
    },
    "service.bulk": {
        *("_core.transfer", "frames", "hint", "lease", "putting", "room", "service.calls", "service.hints"),
        *("service.identity", "service.limits", "service.namespaces", "v1.kvstore_pb2"),
    },
    "service.hints": {"hint", "service.calls", "service.identity", "service.namespaces", "v1.kvstore_pb2"},
    "service.statistics": {"service.attaching", "service.identity", "service.limits", "store"},
    "service.control": {
        *("arrivals", "checks", "config", "events", "namespace", "service.attaching", "service.calls", "service.hints"),
        *(
            "service.identity",
            "service.limits",
            "service.namespaces",
            "service.statistics",
            "service.tiers",
            "store",
            "v1.kvstore_pb2",
        ),
    },
    "service.watches": {
        *("_core.events", "events", "feed", "service.calls", "service.identity", "service.limits"),
        *("service.namespaces", "v1.kvstore_pb2"),
    },
    "service.tiers": {"service.calls", "service.identity", "service.limits", "store", "v1.kvstore_pb2"},
    "service.server": {
        *(
            "access",
            "config",
            "service.attaching",
            "service.bulk",
            "service.calls",
            "service.control",
            "service.endpoints",
        ),
        *(
            "service.identity",
            "service.limits",
            "service.namespaces",
            "service.tiers",
            "service.watches",
            "store",
            "v1.kvstore_pb2",
        ),
    },
    "client": {"client.attachment", "client.link", "client.store", "clock"},
    "client.blocks": {"_core.transfer", "copying", "frames"},
    "client.circuit": set(),
    "client.link": {"checks", "client.circuit", "v1.kvstore_pb2"},
    "client.streams": {"client.blocks", "client.link", "frames", "v1.kvstore_pb2"},
    "client.putting": {"client.blocks", "client.streams", "copying", "v1.kvstore_pb2"},
    "client.lease": {"client.blocks", "copying"},
    "client.hints": {"checks", "client.link", "clock", "hint", "policy", "v1.kvstore_pb2"},
    "client.room": {"client.blocks", "client.hints", "client.streams", "copying", "hint"},
    "client.handle": {
        *("checks", "client.blocks", "client.hints", "client.lease", "client.link", "client.putting"),
        *("client.room", "client.streams", "clock", "copying", "hashing", "hint", "namespace", "policy"),
        "v1.kvstore_pb2",
    },
    # a daemon's memory in this process: the verbs over the same leases, rooms and copies as embedded
    "client.attachment": {"_core.arena", "_core.lease", "_core.link"},
    "client.space": {
        *("_core.link", "client.attachment", "clock", "copying", "hashing", "hint", "namespace", "room"),
        "tiers.base",
    },
    "client.coming": {"_core.lease", "client.space", "lease"},
    "client.attached": {
        *("checks", "client.attachment", "client.coming", "client.handle", "client.lease", "client.link"),
        *("client.putting", "client.room", "client.space", "copying", "hint", "lease", "namespace"),
        *("putting", "room", "v1.kvstore_pb2"),
    },
    "client.watch": {"client.handle", "client.link", "events", "v1.kvstore_pb2"},
    "client.store": {
        *("checks", "client.attached", "client.attachment", "client.handle", "client.link", "client.watch"),
        *("events", "namespace", "v1.kvstore_pb2"),
    },
    "aio": {"client", "config", "embedded", "events"},
    # the daemon: composition and lifecycle
    "logs": set(),
    "metrics": set(),
    "probes": {"metrics"},
    "doctor": {"_core.blockio", "config"},
    "daemon": {"access", "config", "embedded", "metrics", "probes", "service.server", "store"},
    # users of the public interface
    "caller": {"handle", "hint", "lease", "workload"},
    "timed": {"config", "embedded", "store"},
    "replay": {"_core.eviction", "caller", "handle", "hint", "policy", "store", "timed", "trace", "workload"},
    "advice": set(),
    "simulate": {"_core.simulation", "policy", "trace"},
    "tiered": {"_core.tiered", "simulate"},
    "demo": {
        *("_core.arena", "caller", "config", "handle", "hashing", "namespace", "space", "store"),
        *("tiers.disk", "timed", "workload"),
    },
    "cli": set(),
    "cli.render": set(),
    "cli.plot": {"replay", "simulate"},
    "cli.traffic": {"caller", "cli.render"},
    "cli.remote": {"client", "client.store"},
    "cli.frame": {"cli.render", "rates"},
    "cli.tiers": {"_core.simulation", "_core.tiered", "cli.render", "simulate", "tiered"},
    "cli.tier": {"cli", "cli.remote", "cli.render"},
    "cli.*": {
        *(
            "caller",
            "cli",
            "cli.plot",
            "cli.frame",
            "cli.remote",
            "cli.render",
            "cli.tiers",
            "cli.traffic",
            "clock",
            "client",
            "config",
            "daemon",
            "demo",
            "doctor",
            "embedded",
            "evicting",
            "handle",
            "logs",
            "namespace",
        ),
        "advice",
        *("rates", "replay", "simulate", "space", "store", "timed", "tiers.disk", "tiers.findings", "tiers.inspection"),
        *("trace", "workload"),
    },
    "__main__": {"cli"},
    "v1": set(),
}

# What annotations may name upwards, under TYPE_CHECKING only: objects that are handed in.
MAY_NAME: dict[str, set[str]] = {
    "carry": {"mover"},
    "promotion": {"carry", "mover"},
    "prefill": {"mover"},
    "matching": {"store"},
    "arrivals": {"_core.lease", "handle", "promotion", "store"},
    "attachment": {"store"},
    "recovery": {"store"},
    "durability": {"store"},
    "reservation": {"_core.lease", "handle", "store"},
    "pins": {"_core.lease", "mover"},
    "hints": {"_core.lease", "store"},
    "hinting": {"recording", "store"},
    "scrub": {"mover"},
    "lease": {"_core.arena", "_core.lease", "tiers.base"},
    "room": {"_core.arena", "_core.lease", "copying", "tiers.base"},
    "client.space": {"_core.arena", "_core.lease"},
    "client.attached": {"_core.lease"},
    "handle": {"_core.arena", "_core.lease", "mover", "store"},
}

# Distributions from outside → the only modules that may import them (a folder ends in `.*`).
THIRD_PARTY: dict[str, tuple[str, ...]] = {
    "numpy": ("*",),
    "pydantic": ("access", "config", "evicting", "section", "serving", "tracing"),
    "pydantic_core": ("config", "section", "serving", "tracing"),
    "pydantic_settings": ("config",),
    "lmdb": ("tiers.manifest",),
    "click": ("cli", "cli.*"),
    "rich": ("cli", "cli.*"),
    "matplotlib": ("cli.plot",),
    "grpc": ("service.*", "client.*"),
    "grpc_health": ("service.server",),
    "grpc_reflection": ("service.server",),
    "google": ("service.*", "client.*"),
    "prometheus_client": ("metrics",),
    "cupy": ("tiers.hbm",),
}

# Compiled module → what its .pyx and .pxd may cimport of ours.
MAY_CIMPORT: dict[str, set[str]] = {
    "view": {"records"},
    "index": {"records", "view"},
    "lease": {"index", "records", "view"},
    "put": {"arena", "index", "lease", "records", "view"},
    "attach": {"put", "records"},
    "link": {"records", "view"},
    "hint": {"index", "records", "view"},
    "leave": {"index", "records"},
    "walk": {"index", "records"},
    "eviction": {"index", "records"},
    "events": {"index", "records"},
    "clocked": {"lease", "records", "view"},
    "simulation": {"records"},
    "whatif": {"index", "records"},
    "tiered": {"records", "simulation"},
}


def row(table: Mapping[str, set[str]], name: str) -> set[str] | None:
    """A module's row: its own, or the one of its folder."""
    return table.get(name, table.get(f"{name.rpartition('.')[0]}.*"))


def is_covered(name: str, patterns: tuple[str, ...]) -> bool:
    return any(name == pattern or (pattern[-1] == "*" and name.startswith(pattern[:-1])) for pattern in patterns)


def ours(module: Module) -> list[tuple[str, Arrow]]:
    """The imports of our own modules, without the leading `kvstore.`."""
    arrows = [(arrow.target.partition("."), arrow) for arrow in imports(module.tree)]
    return [(parts[2] or "kvstore", arrow) for parts, arrow in arrows if parts[0] == "kvstore"]


def test_every_module_has_its_row() -> None:
    missing = [module.name for module in modules() if row(MAY_IMPORT, module.name) is None]
    assert not missing, "say in MAY_IMPORT what these may import"


def test_every_row_has_its_module() -> None:
    names = {module.name for module in modules()} | {"cli.*"}
    assert (MAY_IMPORT.keys() | MAY_NAME.keys()) - names == set()


def test_modules_import_only_what_their_row_allows() -> None:
    wrong = []
    for module in modules():
        allowed = {*EVERYWHERE, *(row(MAY_IMPORT, module.name) or ())}
        named = allowed | MAY_NAME.get(module.name, set())
        for target, arrow in ours(module):
            if target not in (named if arrow.types_only else allowed):
                wrong.append(f"{module.path.relative_to(ROOT)}:{arrow.line} imports {target}")
    assert not wrong, "\n".join(wrong)


def test_the_lowest_modules_import_only_those_below() -> None:
    for module in modules():
        if module.name in EVERYWHERE:
            below = EVERYWHERE[: EVERYWHERE.index(module.name)]
            assert [target for target, _ in ours(module) if target not in below] == [], module.name


def test_the_table_has_no_circle() -> None:
    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join((*path, name))
        for target in row(MAY_IMPORT, name) or ():
            visit(target, (*path, name))

    for name in MAY_IMPORT:
        visit(name, ())


def test_no_relative_imports() -> None:
    wrong = [module.name for module in modules() for arrow in imports(module.tree) if arrow.target.startswith(".")]
    assert not wrong, "\n".join(wrong)


def test_what_comes_from_outside_is_imported_where_it_belongs() -> None:
    wrong = []
    for module in modules():
        for arrow in imports(module.tree):
            top = arrow.target.partition(".")[0]
            if top in sys.stdlib_module_names or top == "kvstore":
                continue
            if not is_covered(module.name, THIRD_PARTY.get(top, ())):
                wrong.append(f"{module.path.relative_to(ROOT)}:{arrow.line} imports {top}")
    assert not wrong, "\n".join(wrong)


def test_compiled_modules_know_only_errors_and_each_other() -> None:
    wrong = []
    for path in CYTHON_FILES:
        text = path.read_text()
        allowed = {f"kvstore._core.{name}" for name in MAY_CIMPORT.get(path.stem, ())}
        found = set(re.findall(r"^\s*(?:from|cimport) (kvstore[\w.]*)", text, re.M))
        found |= set(re.findall(r"^\s*import (kvstore[\w.]*)", text, re.M))
        wrong += [f"{path.name} imports {name}" for name in found - allowed - {"kvstore.errors"}]
    assert not wrong, "\n".join(wrong)
