"""What a machine is, read from the files of other machines."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from edgekd.device import machine
from edgekd.errors import UsageError


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("architecture", "flags", "expected"),
    [
        ("x86_64", "sse4_2 avx2 avx512f avx512_vnni", "x86_64-vnni"),
        ("AMD64", "avx2 avx_vnni", "x86_64-vnni"),
        ("x86_64", "avx2 avx512f", "x86_64-avx512"),
        ("x86_64", "avx avx2 fma", "x86_64-avx2"),
        ("x86_64", "sse2 avx", "x86_64"),
        ("x86_64", "", "x86_64"),
        ("aarch64", "asimd asimddp", "aarch64"),
        ("arm64", "", "aarch64"),
        ("armv7l", "", "armv7l"),
    ],
)
def test_cpu_kind(tmp_path: Path, architecture: str, flags: str, expected: str) -> None:
    root = _write(tmp_path, {"proc/cpuinfo": f"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: {flags}\n"})
    assert machine.cpu_kind(root=root, machine=architecture) == expected


def test_cpu_kind_without_cpuinfo_assumes_nothing(tmp_path: Path) -> None:
    assert machine.cpu_kind(root=tmp_path, machine="x86_64") == "x86_64"


def test_arm_calls_its_flags_features(tmp_path: Path) -> None:
    root = _write(tmp_path, {"proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp\n\nModel\t\t: A Board\n"})
    assert machine.cpu_flags(root=root) == ["fp", "asimd", "asimddp"]
    assert machine.describe(root=root)["cpu"] == "A Board"


@pytest.mark.parametrize(
    ("files", "quota", "cores"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None, 8),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
          "sys/fs/cgroup/a/cpu.max": "400000 100000\n"}, 4.0, 4),
        ({"proc/self/cgroup": "3:cpu,cpuacct:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000\n",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 0.5, 1),
        ({"proc/self/cgroup": "3:cpu:/\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
          "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, None, 8),
        ({}, None, 8),
    ],
)  # fmt: skip
def test_cores_are_the_affinity_within_the_quota(
    tmp_path: Path, files: dict[str, str], quota: float | None, cores: int
) -> None:
    root = _write(tmp_path, files)
    assert machine.cpu_quota(root=root) == quota
    assert machine.available_cores(root=root, affinity=8) == cores


def test_a_quota_above_the_affinity_changes_nothing(tmp_path: Path) -> None:
    root = _write(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "800000 100000\n"})
    assert machine.available_cores(root=root, affinity=2) == 2


def test_threads_default_to_one_and_end_at_the_cores() -> None:
    assert machine.resolve_threads(None, cores=4) == 1
    assert machine.resolve_threads(4, cores=4) == 4
    with pytest.raises(UsageError, match=r"found threads=5, but this process may use 4 cores .* take --threads 4 or"):
        machine.resolve_threads(5, cores=4)
    with pytest.raises(UsageError, match="found threads=0, expected at least 1"):
        machine.resolve_threads(0, cores=4)
    with pytest.raises(UsageError, match="take --threads"):
        machine.resolve_threads(machine.available_cores() + 1)


def test_describe_tells_memory_limits_and_container(tmp_path: Path) -> None:
    root = _write(
        tmp_path,
        {
            "proc/cpuinfo": "model name\t: Some CPU\nflags\t: avx2\n",
            "proc/meminfo": "MemTotal:        1000000 kB\nMemFree: 5 kB\n",
            "proc/self/cgroup": "0::/x\n",
            "sys/fs/cgroup/x/memory.max": "512000000\n",
            "sys/fs/cgroup/memory.max": "max\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
            ".dockerenv": "",
            "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA H200\nIRQ:   \t\t 17\n",
            "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54.03  Tue\nGCC:\n",
        },
    )
    told = machine.describe(root=root)
    assert told["cpu"] == "Some CPU"
    assert told["flags"] == ["avx2"]
    assert told["governor"] == "powersave"
    assert (told["memory_mb"], told["memory_limit_mb"]) == (1024, 512)
    assert told["container"] == "docker"
    assert (told["gpu"], told["gpu_driver"]) == ("NVIDIA H200", "535.54.03")
    assert {"cpu", "flags", "cores_allowed", "quota", "governor", "memory_mb", "os", "container"} <= told.keys()


def test_describe_of_an_empty_root_says_none(tmp_path: Path) -> None:
    told = machine.describe(root=tmp_path)
    assert told["governor"] is told["memory_mb"] is told["memory_limit_mb"] is told["container"] is None
    assert told["gpu"] is told["gpu_driver"] is None
    assert told["flags"] == []
    assert told["cpu"]


def test_versions_name_what_is_installed_without_importing_it() -> None:
    told = machine.versions()
    assert told["python"] == sys.version.split()[0]
    assert told["numpy"]
    assert "edgekd" in told


@pytest.mark.parametrize("text", ["", "x", "1-", "-1", "3-1", "0,,1", "0;1"])
def test_a_wrong_list_of_cores_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"expected numbers and ranges like 4-7 or 0,2"):
        machine.use_cpus(text)


def test_cores_that_are_not_ours_are_refused() -> None:
    with pytest.raises(UsageError, match=r"found the cores '0-99999999999', but this process may use"):
        machine.use_cpus("0-99999999999")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a CPU affinity that Python can set")
def test_the_chosen_cores_are_the_allowed_ones_afterwards() -> None:
    before = machine.allowed_cores()
    try:
        assert machine.use_cpus(str(before[-1])) == [before[-1]]
        assert machine.allowed_cores() == [before[-1]]
        assert machine.available_cores() == 1
    finally:
        os.sched_setaffinity(0, before)
