"""Settings: defaults, the order of sources, and errors that name everything that is wrong."""

import os
import tomllib
from pathlib import Path

import pytest

from kvstore.config import ENTRIES_MAX, ENTRIES_MIN, GIB, MIB, Config
from kvstore.errors import ConfigInvalid, KVStoreError
from kvstore.tiers.geometry import Geometry

SAMPLE = Path(__file__).parents[2] / "deploy" / "kvstore.toml"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("KVSTORE_")]:
        monkeypatch.delenv(name)


def write(folder: Path, text: str) -> Path:
    path = folder / "kvstore.toml"
    path.write_text(text)
    return path


def refusal(path: Path | None = None, **overrides: object) -> str:
    with pytest.raises(ConfigInvalid) as caught:
        Config.load(path, **overrides)
    return str(caught.value)


def test_the_defaults() -> None:
    config = Config.load()
    assert config == Config()
    assert (config.host.nbytes, config.host.prefault, config.serve.attach) == (GIB, "background", True)
    assert (config.disk.path, config.disk.nbytes, config.disk.segment_nbytes) == (None, 8 * GIB, 0)
    assert config.index.leases_max == 65_536
    assert (config.mover.reservation_ttl_ms, config.mover.put_wait_ms) == (30_000, 0)


def test_the_sample_names_every_setting_with_its_default() -> None:
    config = Config.load(SAMPLE)
    assert config == Config()
    sample = tomllib.loads(SAMPLE.read_text())
    named = [f"{section}.{key}" for section, keys in sample.items() for key in keys]
    assert named == [setting.key for setting in config.explain()]
    assert {setting.origin for setting in config.explain()} == {f"file {SAMPLE}"}


def test_arguments_beat_the_environment_beats_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(
        tmp_path, '[host]\nnbytes = "2 GiB"\n[serve]\nattach = false\n[disk]\nnbytes = "2 GiB"\nio_threads = 2\n'
    )
    monkeypatch.setenv("KVSTORE_HOST_NBYTES", "3 GiB")
    monkeypatch.setenv("KVSTORE_DISK_NBYTES", "3 GiB")
    config = Config.load(path, host={"nbytes": "4 GiB"})
    assert config.host.nbytes == 4 * GIB
    assert config.disk.nbytes == 3 * GIB
    assert (config.serve.attach, config.disk.io_threads) == (False, 2)
    assert config.mover == Config().mover
    origins = {setting.key: setting.origin for setting in config.explain()}
    assert origins["host.nbytes"] == "argument"
    assert origins["disk.nbytes"] == "environment KVSTORE_DISK_NBYTES"
    assert origins["disk.io_threads"] == f"file {path}"
    assert origins["mover.put_wait_ms"] == "default"


def test_every_setting_can_be_given_in_every_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = {
        "host": {"nbytes": 64 * MIB, "prefault": "now"},
        "disk": {
            "path": str(tmp_path),
            "nbytes": 512 * MIB,
            "segment_nbytes": MIB,
            "free_nbytes_min": 5,
            "io_threads": 9,
        },
        "index": {"entries_max": 70_000, "leases_max": 64, "events_max": 7},
        "mover": {
            "writeback_queue_blocks_max": 1,
            "promote_queue_blocks_max": 2,
            "write_nbytes_per_s": 3,
            "scrub_nbytes_per_s": 6,
            "write_nbytes_per_day": 4,
            "reservation_ttl_ms": 4,
            "put_wait_ms": 5,
            "prefill_tokens_per_s": 7,
        },
        "policy": {
            "eviction": "lru",
            "ghosts_max": 10,
            "disk_chance_min": 0.5,
            "disk_gain_min": 2.5,
            "pins_nbytes_max": 8,
            "ttl_blocks_max": 9,
            "whatif": False,
        },
        "trace": {"path": str(tmp_path / "trace"), "nbytes_max": MIB},
        "serve": {
            "socket": str(tmp_path / "socket"),
            "attach": False,
            "clients_max": 3,
            "leases_max": 128,
            "lease_ms_max": 11,
            "listen": "127.0.0.1:1",
            "insecure": True,
            "tls_cert": "a",
            "tls_key": "b",
            "tls_client_ca": "c",
            "access": "d",
            "metrics": "127.0.0.1:2",
            "threads": 8,
            "watches_max": 3,
            "client_nbytes_max": MIB,
            "call_ms_max": 100,
            "drain_ms": 0,
            "log_format": "json",
        },
    }
    wanted = Config(**other)
    assert {section: dict(values) for section, values in wanted} == other
    assert Config.load(**other) == wanted
    dotted = {f"{section}.{key}": value for section, keys in other.items() for key, value in keys.items()}
    assert set(dotted) == {setting.key for setting in wanted.explain()}
    assert Config.load(**dotted) == wanted
    for key, value in dotted.items():
        monkeypatch.setenv("KVSTORE_" + key.replace(".", "_").upper(), str(value).lower())
    monkeypatch.setenv("KVSTORE_DISK_PATH", str(tmp_path))
    monkeypatch.setenv("KVSTORE_SERVE_SOCKET", str(tmp_path / "socket"))
    monkeypatch.setenv("KVSTORE_TRACE_PATH", str(tmp_path / "trace"))
    assert Config.load() == wanted


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("8 GiB", 8 * GIB), ("512MiB", 512 * MIB), ("1.5 GiB", 3 * GIB // 2), ("8192", 8192), (4096, 4096)],
)
def test_sizes(text: str | int, nbytes: int) -> None:
    assert Config(host={"nbytes": text}).host.nbytes == nbytes


def test_none_means_not_given_and_an_empty_path_is_a_temporary_folder(tmp_path: Path) -> None:
    path = write(tmp_path, '[disk]\npath = "/var/lib/kvstore"\n')
    assert Config.load(path, disk={"path": None}).disk.path == "/var/lib/kvstore"
    assert Config.load(path, disk={"path": ""}).disk.path is None
    assert Config(disk={"path": tmp_path}).disk.path == str(tmp_path)


def test_every_wrong_key_is_listed_with_value_origin_and_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, '[host]\nprefault = "soon"\nnbyte = 5\n[hots]\nnbytes = 1\n[index]\nleases_max = 1.5\n')
    monkeypatch.setenv("KVSTORE_DISK_NBYTES", "8 gigs")
    monkeypatch.setenv("KVSTORE_DISK_SEGMENTS", "3")
    monkeypatch.setenv("KVSTORE_FOO_BAR", "4")
    text = refusal(path, mover={"put_wait_ms": -1})
    first, *lines = text.splitlines()
    assert first == "configuration: 8 settings are wrong"
    assert sorted(line.strip() for line in lines) == sorted(
        [
            f"host.prefault = 'soon' (file {path}): must be one of 'background', 'now', 'off'",
            f"host.nbyte = 5 (file {path}): no such setting; did you mean host.nbytes? host has nbytes, prefault",
            f"hots = {{'nbytes': 1}} (file {path}): no such setting; the sections are host, disk, index, "
            "mover, policy, trace, serve",
            f"index.leases_max = 1.5 (file {path}): must be a whole number from 64 to 1,048,576",
            "disk.nbytes = '8 gigs' (environment KVSTORE_DISK_NBYTES): must be a size from 0 B to 16 TiB, "
            'as a number of bytes or like "8 GiB"',
            "disk.segments = '3' (environment KVSTORE_DISK_SEGMENTS): no such setting; "
            "did you mean disk.segment_nbytes? disk has path, nbytes, segment_nbytes, free_nbytes_min, io_threads",
            "foo_bar = '4' (environment KVSTORE_FOO_BAR): no such setting; the sections are "
            "host, disk, index, mover, policy, trace, serve",
            "mover.put_wait_ms = -1 (argument): must be a whole number from 0 to 60,000",
        ]
    )


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("host.nbytes", 4095, "a size from 4 KiB to 16 TiB"),
        ("host.nbytes", (16 << 40) + 1, "a size from 4 KiB to 16 TiB"),
        ("host.nbytes", True, "a size from"),
        ("serve.attach", "maybe", "true or false"),
        ("disk.path", 5, 'a path, or "" for a temporary folder'),
        ("disk.path", "a\0b", "a path without a zero byte"),
        ("disk.io_threads", 0, "a whole number from 1 to 64"),
        ("disk.io_threads", 65, "a whole number from 1 to 64"),
        ("disk.io_threads", True, "a whole number from 1 to 64"),
        ("disk.segment_nbytes", 5000, "0, or a power of two from 1 MiB to 256 MiB"),
        ("disk.segment_nbytes", "3 MiB", "0, or a power of two from 1 MiB to 256 MiB"),
        ("disk.segment_nbytes", "512 MiB", "a size from 0 B to 256 MiB"),
        ("index.entries_max", 2**31 + 1, "a whole number from 0 to 2,147,483,648"),
        ("index.leases_max", 0, "a whole number from 64 to 1,048,576"),
        ("policy.eviction", "random", "one of 'gittins', 'lru', 's3fifo', 'arc'"),
        ("policy.ghosts_max", -1, "a whole number from 0 to 1,073,741,824"),
        ("policy.disk_chance_min", 1.5, "a number from 0 to 1"),
        ("policy.disk_gain_min", -1, "a number from 0 to 1000"),
        ("policy.pins_nbytes_max", -1, 'a size from 0 B to 16 TiB, as a number of bytes or like "8 GiB"'),
        ("policy.ttl_blocks_max", (1 << 26) + 1, "a whole number from 0 to 67,108,864"),
        ("mover.reservation_ttl_ms", 0, "a whole number from 1 to 86,400,000"),
    ],
)
def test_values_out_of_range(key: str, value: object, rule: str) -> None:
    assert refusal(**{key: value}).startswith(f"configuration: {key} = {value!r} (argument): must be {rule}")


def test_a_segment_fits_the_tier() -> None:
    text = refusal(disk={"nbytes": "16 MiB", "segment_nbytes": "8 MiB"})
    assert "disk.segment_nbytes = '8 MiB' (argument): must be at most 1/4 of disk.nbytes" in text
    assert Config(disk={"nbytes": 0, "segment_nbytes": "2 MiB"}).disk.nbytes == 0


def test_the_disk_tier_takes_every_segment_size_that_the_configuration_allows() -> None:
    for shift in range(20, 29):
        config = Config(disk={"nbytes": 4 << shift, "segment_nbytes": 1 << shift})
        assert Geometry.choose(config.disk.nbytes, config.disk.segment_nbytes).num_segments == 4


def test_a_section_that_is_no_section() -> None:
    assert refusal(host=5) == ("configuration: host = 5 (argument): must be a section with any of nbytes, prefault")
    assert "nbytes = 5 (argument): no such setting" in refusal(nbytes=5)
    assert "hots = {} (argument): no such setting" in refusal(hots={})
    assert Config.load(host={}) == Config()


def test_direct_construction_refuses_the_same_way() -> None:
    with pytest.raises(ConfigInvalid, match=r"host\.nbytes = 1 \(argument\): must be a size from 4 KiB"):
        Config(host={"nbytes": 1})
    assert issubclass(ConfigInvalid, KVStoreError)


def test_direct_construction_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVSTORE_HOST_NBYTES", "3 GiB")
    assert Config().host.nbytes == GIB


def test_a_variable_named_like_a_section_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVSTORE_HOST", "localhost")
    assert refusal().startswith("configuration: host = 'localhost' (environment KVSTORE_HOST): must be a section")


def test_variables_of_container_runtimes_and_of_the_build_are_not_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (
        "SERVICE_HOST",
        "SERVICE_PORT",
        "SERVICE_PORT_GRPC",
        "PORT",
        "PORT_7070_TCP_ADDR",
        "SANITIZE",
        "TRACES",
        "KILLS",
        "KILLS_SEED",
        "ATTACH_S",
        "ATTACH_PINS",
        "SOAK_S",
    ):
        monkeypatch.setenv(f"KVSTORE_{name}", "10.0.0.1")
    monkeypatch.setenv("KVSTORE_CACHE_SERVICE_HOST", "10.0.0.1")
    assert Config.load() == Config()


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    absent = tmp_path / "absent.toml"
    assert f"file {absent} cannot be read" in refusal(absent)
    assert f"file {tmp_path} cannot be read" in refusal(tmp_path)
    assert "is not TOML" in refusal(write(tmp_path, "[host\n"))
    (tmp_path / "kvstore.toml").write_bytes(b"\xff\xfe")
    assert "is not TOML" in refusal(tmp_path / "kvstore.toml")


def test_it_is_frozen() -> None:
    config = Config()
    with pytest.raises(ValueError, match="frozen"):
        config.host.nbytes = 5  # type: ignore[misc, assignment]
    with pytest.raises(ValueError, match="frozen"):
        config.host = config.host  # type: ignore[misc]
    assert hash(config) == hash(Config())
    assert config != Config(host={"nbytes": "2 GiB"})


def test_the_index_is_sized_from_the_tiers() -> None:
    assert Config().entries_max == 9 * GIB // (64 << 10)
    assert Config(host={"nbytes": MIB}, disk={"nbytes": 0}).entries_max == ENTRIES_MIN
    huge = {"nbytes": "16 TiB"}
    assert Config(host=huge, disk=huge).entries_max == 2 * (16 << 40) // (64 << 10) < ENTRIES_MAX
    assert Config(index={"entries_max": 100}).entries_max == 100
