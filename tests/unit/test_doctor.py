"""kvstore doctor over made-up machines: what is found, what it costs, what to do."""

import json
import resource

import pytest

from kvstore import doctor
from kvstore.cli import main
from kvstore.config import Config
from kvstore.doctor import examine

GOOD = {
    "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never",
    "sys/kernel/mm/transparent_hugepage/shmem_enabled": "always within_size [advise] never deny force",
    "proc/sys/vm/nr_hugepages": "0",
    "proc/sys/kernel/io_uring_disabled": "0",
    "proc/meminfo": "MemTotal: 9 kB\nMemAvailable:   16777216 kB\nSwapTotal:       0 kB\n",
    "proc/cpuinfo": "processor : 0\nflags\t\t: fpu sha_ni avx2\n",
    "sys/devices/system/node/node0/cpulist": "0-1",
    "sys/devices/system/node/has_cpu": "0",
}


def machine(root, **changes):
    for name, text in {**GOOD, **{key.replace("__", "/"): value for key, value in changes.items()}}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def verdicts(root, **config):
    findings = {one.name: one for one in examine(Config(**config), root)}
    assert all(bool(one.cost) == bool(one.remedy) == (one.verdict != "good") for one in findings.values())
    return findings


def test_a_good_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.blockio, "Engine", FakeEngine.allowed)
    disk = {"path": str(tmp_path / "disk" / "deep"), "nbytes": "16 MiB", "free_nbytes_min": 0}
    found = verdicts(machine(tmp_path), disk=disk)
    assert {name: one.verdict for name, one in found.items()} == dict.fromkeys(
        ("huge pages", "shared huge pages", "memory", "swap", "NUMA", "SHA-256", "descriptors", "io_uring", "disk"),
        "good",
    )
    assert "disk" not in verdicts(tmp_path, disk={"nbytes": 0})


class FakeEngine:
    """An engine that was refused io_uring, or not."""

    def __init__(self, refusal):
        self.refusal = refusal

    @classmethod
    def allowed(cls, _threads):
        return cls("")

    @classmethod
    def refused(cls, _threads):
        return cls("Operation not permitted")

    def stop(self):
        pass


@pytest.mark.parametrize(
    ("changes", "name", "verdict", "remedy"),
    [
        (
            {"sys__kernel__mm__transparent_hugepage__enabled": "always madvise [never]"},
            "huge pages",
            "costs",
            "madvise",
        ),
        ({"proc__meminfo": "MemAvailable: 1000 kB\nSwapTotal: 0 kB"}, "memory", "wrong", "host.nbytes"),
        ({"proc__meminfo": "MemAvailable: 16777216 kB\nSwapTotal: 2048 kB"}, "swap", "costs", "swapoff"),
        ({"sys__devices__system__node__node1__cpulist": "2-3"}, "NUMA", "costs", "numactl"),
        ({"proc__cpuinfo": "flags : fpu avx2"}, "SHA-256", "costs", "xxh3_128"),
    ],
)
def test_what_is_not_good_says_what_it_costs_and_what_to_do(tmp_path, changes, name, verdict, remedy):
    found = verdicts(machine(tmp_path, **changes))[name]
    assert found.verdict == verdict and remedy in found.remedy


def test_shared_memory_has_a_setting_of_its_own(tmp_path):
    key = "sys__kernel__mm__transparent_hugepage__shmem_enabled"
    assert "shared huge pages" not in verdicts(machine(tmp_path), serve={"attach": False})
    found = verdicts(machine(tmp_path, **{key: "always advise [never]"}))["shared huge pages"]
    assert found.verdict == "costs" and found.remedy.endswith("shmem_enabled")
    reserved = machine(tmp_path, **{key: "always advise [never]", "proc__sys__vm__nr_hugepages": "512"})
    assert verdicts(reserved)["shared huge pages"].verdict == "good"


def test_io_uring_that_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.blockio, "Engine", FakeEngine.refused)
    assert "seccomp" in verdicts(machine(tmp_path))["io_uring"].remedy
    found = verdicts(machine(tmp_path, proc__sys__kernel__io_uring_disabled="2"))["io_uring"]
    assert found.verdict == "costs" and "io_uring_disabled=0" in found.remedy


def test_too_few_descriptors_and_a_disk_that_is_too_small(tmp_path, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (256, 4096))
    disk = {"path": str(tmp_path / "disk"), "nbytes": "16 TiB"}
    found = verdicts(machine(tmp_path), disk=disk)
    assert (found["descriptors"].verdict, found["disk"].verdict) == ("wrong", "costs")


def test_the_command_fails_when_something_is_wrong(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KVSTORE_DISK_NBYTES", "0")
    assert main(["doctor", "--json"]) == 0
    names = [one["name"] for one in json.loads(capsys.readouterr().out)["findings"]]
    assert names[0] == "huge pages" and "memory" in names
    monkeypatch.setenv("KVSTORE_HOST_NBYTES", "16 TiB")
    assert main(["doctor"]) == 1
    assert "lower host.nbytes" in capsys.readouterr().out
