"""What this machine is: CPU kind, cores that we may use, memory, system, versions. Reads only, changes nothing.

Every function that reads system files takes `root`, so that tests can hand it another machine's files.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

from edgekd.errors import MissingHere, UsageError
from edgekd.version import __version__

ROOT = Path("/")
# The packages whose version can change a number or a result; asked by name, never imported.
PACKAGES = (
    *("numpy", "onnxruntime", "onnxruntime-gpu", "torch", "torchvision", "onnx", "onnxscript", "pillow"),
    *("tokenizers", "transformers", "timm", "openvino", "ai-edge-litert", "ncnn", "MNN", "executorch"),
)


def cpu_kind(*, root: Path = ROOT, machine: str | None = None) -> str:
    """The kind by which a bundle picks its default variant.

    "x86_64-vnni", "x86_64-avx512", "x86_64-avx2", "x86_64", "aarch64", or the system's own name for others.
    int8 products saturate on x86 without VNNI, hence the difference. Where the flags cannot be read (not Linux)
    an x86 CPU is plain "x86_64", the kind for which nothing is assumed.
    """
    architecture = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}.get(
        (machine or platform.machine()).lower(), (machine or platform.machine()).lower()
    )
    if architecture != "x86_64":
        return architecture
    flags = set(cpu_flags(root=root))
    if flags & {"avx512_vnni", "avx_vnni"}:
        return "x86_64-vnni"
    if "avx512f" in flags:
        return "x86_64-avx512"
    return "x86_64-avx2" if "avx2" in flags else "x86_64"


def cpu_flags(*, root: Path = ROOT) -> list[str]:
    """The CPU's feature flags as /proc/cpuinfo names them (x86 "flags", ARM "Features"); empty elsewhere."""
    info = _cpuinfo(root)
    return (info.get("flags") or info.get("Features") or "").split()


def available_cores(*, root: Path = ROOT, affinity: int | None = None) -> int:
    """How many cores this process may keep busy: its CPU affinity, cut down to the container's quota.

    A quota of 1.5 cores gives 1: a second thread would be throttled half of the time.
    """
    allowed = affinity if affinity is not None else len(allowed_cores())
    limit = cpu_quota(root=root)
    return max(1, allowed if limit is None else min(allowed, int(limit)))


def allowed_cores() -> list[int]:
    """The numbers of the cores that this process may run on, ascending."""
    if sys.platform == "linux":
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def use_cpus(text: str) -> list[int]:
    """Keep this process, and those that it starts, on the cores of a list like "4-7" or "0,2"; gives their numbers.

    On big.LITTLE boards the cores differ. Only the own process is changed. Raises `UsageError` for a text that is
    no such list or names cores that this process may not use, `MissingHere` where the system has no affinity.
    """
    allowed = allowed_cores()
    cores: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or int(last or first) < int(first):
            raise UsageError(f"found the cores '{text}', expected numbers and ranges like 4-7 or 0,2")
        # One beyond the last allowed core is enough to be refused, whatever the number was.
        cores |= set(range(int(first), min(int(last or first), allowed[-1] + 1) + 1))
    if not cores <= set(allowed):
        raise UsageError(
            f"found the cores '{text}', but this process may use {', '.join(map(str, allowed))}; choose among those"
        )
    if sys.platform != "linux":
        raise MissingHere("this system cannot keep a process on chosen cores; leave --cpus out")
    os.sched_setaffinity(0, cores)
    return sorted(cores)


def resolve_threads(threads: int | None, *, cores: int | None = None) -> int:
    """The number of threads to run with; None means 1, the setting that an edge device usually has.

    Raises `UsageError` for less than one or for more than the available cores (threads that wait for each
    other's core made a model 7 to 12 times slower).
    """
    available = available_cores() if cores is None else cores
    if threads is None:
        return 1
    if threads < 1:
        raise UsageError(f"found threads={threads}, expected at least 1; leave it out for 1")
    if threads > available:
        raise UsageError(
            f"found threads={threads}, but this process may use {available} core{'s' if available > 1 else ''} "
            f"(CPU affinity and container quota); take --threads {available} or fewer"
        )
    return threads


def cpu_quota(*, root: Path = ROOT) -> float | None:
    """The container's CPU quota in cores (cgroup version 2 or 1, the tightest on the way up); None if unlimited."""
    quotas = []
    for folder in cgroup_folders("cpu", root=root):
        fields = (_read(folder / "cpu.max") or "").split()
        if len(fields) == 2 and fields[0] != "max":
            quotas.append(int(fields[0]) / int(fields[1]))
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota is not None and period is not None and int(quota) > 0:
            quotas.append(int(quota) / int(period))
    return min(quotas) if quotas else None


def cgroup_folders(controller: str, *, root: Path = ROOT) -> list[Path]:
    """The folders of this process's control group, from its own up to the top, for `controller` ("cpu", "memory")."""
    folders = []
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, own = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / (controller if controllers else "")
        # Inside a container the path may be the host's: then only the top, which is the container's own, exists.
        parts = [part for part in own.split("/") if part and part != ".."]
        folders += [mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1)]
    return [folder for folder in folders if folder.is_dir()]


def describe(*, root: Path = ROOT) -> dict[str, Any]:
    """The `machine` part of a result: CPU, flags, cores, quota, governor, memory, system, container limits, GPU.

    A value that the system does not tell is None.
    """
    info = _cpuinfo(root)
    quota = cpu_quota(root=root)
    return {
        "cpu": info.get("model name") or info.get("Model") or platform.processor() or platform.machine(),
        "cpu_kind": cpu_kind(root=root),
        "flags": cpu_flags(root=root),
        "cores": os.cpu_count(),
        "cores_allowed": available_cores(root=root),
        "quota": quota,
        "governor": _read(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "memory_mb": _memory_mb(root),
        "memory_limit_mb": _memory_limit_mb(root),
        "os": platform.platform(),
        "container": _container(root),
        "gpu": ", ".join(_gpus(root)) or None,
        "gpu_driver": _gpu_driver(root),
    }


def _gpus(root: Path) -> list[str]:
    """NVIDIA's cards, as their driver calls them."""
    texts = [_read(path) or "" for path in sorted(root.glob("proc/driver/nvidia/gpus/*/information"))]
    lines = [line.partition(":") for text in texts for line in text.splitlines()]
    return [value.strip() for key, _, value in lines if key.strip() == "Model"]


def _gpu_driver(root: Path) -> str | None:
    """The version of NVIDIA's driver: "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54.03  Tue ..."."""
    words = (_read(root / "proc/driver/nvidia/version") or "").partition("\n")[0].split()
    return next((word for word in words if word[0].isdecimal()), None)


def versions() -> dict[str, str]:
    """Versions of Python, edgekd and the installed packages that matter, without importing any of them."""
    found = {"python": platform.python_version(), "edgekd": __version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cpuinfo(root: Path) -> dict[str, str]:
    """The first block of /proc/cpuinfo (all cores of one kind are alike), and the board's name after it."""
    info: dict[str, str] = {}
    for line in (_read(root / "proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        info.setdefault(key.strip(), value.strip())
    return info


def _memory_mb(root: Path) -> int | None:
    for line in (_read(root / "proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            return round(int(line.split()[1]) * 1024 / 1e6)
    return None


def _memory_limit_mb(root: Path) -> int | None:
    limits = []
    for folder in cgroup_folders("memory", root=root):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _read(folder / name)
            # Version 1 writes "no limit" as a number near 2^63.
            if text is not None and text != "max" and int(text) < 1 << 60:
                limits.append(int(text))
    return round(min(limits) / 1e6) if limits else None


def _container(root: Path) -> str | None:
    if (root / ".dockerenv").exists():
        return "docker"
    if (root / "run/.containerenv").exists():
        return "podman"
    groups = _read(root / "proc/1/cgroup") or ""
    return next((name for name in ("kubepods", "docker", "lxc", "containerd") if name in groups), None)


def _read(path: Path) -> str | None:
    """The stripped text of a system file, or None where it does not exist or may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
