"""What works on this machine, what is missing and how to get it, and what would disturb a measurement.

Nothing is changed and nothing is printed: the command line prints what `diagnose` found.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.device.machine import ROOT, describe
from edgekd.device.runtimes import open_session
from edgekd.errors import EdgekdError, MissingExtra
from edgekd.version import __version__

# Extra -> what it is for, and the packages that it installs (pyproject.toml; a test compares the two).
EXTRAS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "cpu": ("run models", ("onnxruntime",)),
    "gpu": ("run models on CUDA, instead of cpu", ("onnxruntime-gpu",)),
    "openvino": ("run models on OpenVINO", ("openvino",)),
    "litert": ("run .tflite models", ("ai-edge-litert",)),
    "ncnn": ("run ncnn models", ("ncnn",)),
    "mnn": ("run and convert MNN models", ("MNN",)),
    "executorch": ("run and convert ExecuTorch models", ("executorch",)),
    "mlperf": ("measure with MLPerf's load generator", ("mlcommons-loadgen",)),
    "image": ("read image files", ("pillow",)),
    "text": ("read texts", ("tokenizers",)),
    "extensions": ("run ONNX files with their tokenizer inside", ("onnxruntime-extensions",)),
    "graph": ("quantize, verify and inspect ONNX files", ("onnx",)),
    "report": ("draw report.html", ("jinja2",)),
    "sign": ("sign bundles and check signatures", ("cryptography",)),
    "train": (
        "train, distil and export",
        (
            "torch",
            "torchvision",
            "onnxscript",
            "accelerate",
            "safetensors",
            "scikit-learn",
            "filelock",
            "platformdirs",
        ),
    ),
    "http": ("learn from a teacher behind a URL", ("httpx2",)),
    "hf": ("read Parquet, and models from Hugging Face folders", ("pyarrow", "transformers")),
    "datasets": ("data sets of the Hugging Face hub by name", ("datasets",)),
    "timm": ("models of timm by name", ("timm",)),
    "optimum": ("export through Hugging Face's exporter (another transformers than hf's)", ("optimum-onnx",)),
}
# Extras that another one brings along.
INCLUDED: Mapping[str, tuple[str, ...]] = {"train": ("graph", "image", "report")}
BASE = ("numpy", "typer", "rich", "pydantic")

# One node, Identity, opset 18, IR 8: x (N, 1) float32 to y. Written out, since onnx may not be installed.
IDENTITY_MODEL = bytes.fromhex(
    "08083a410a100a017812017922084964656e746974791201675a140a0178120f0a0d080112090a0312014e0a02080162140a0179120f0a0d"
    "080112090a0312014e0a02080142040a001012"
)
STEADY_GOVERNORS = ("performance",)
BUSY_SHARE = 0.25  # of the cores, by the load average of the last minute
PRESSURE_PERCENT = 5.0


@dataclass(frozen=True)
class Package:
    """An installed package; `version` is None where it is missing."""

    name: str
    version: str | None


@dataclass(frozen=True)
class Extra:
    """One extra of edgekd: the packages it needs, those that are missing, and the line that installs it."""

    name: str
    purpose: str
    missing: tuple[str, ...]
    install: str

    @property
    def installed(self) -> bool:
        """Every package of it is there."""
        return not self.missing


@dataclass(frozen=True)
class RuntimeCheck:
    """Whether an inference runtime really ran a tiny model here; `detail` is its version, or what went wrong."""

    name: str
    works: bool
    detail: str
    install: str


@dataclass(frozen=True)
class Noise:
    """Something that moves timings; `advice` is empty where all is well."""

    name: str
    value: str
    advice: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All that `edgekd doctor` shows."""

    edgekd: str
    python: str
    machine: Mapping[str, Any]
    packages: tuple[Package, ...]
    extras: tuple[Extra, ...]
    runtimes: tuple[RuntimeCheck, ...]
    noise: tuple[Noise, ...]
    problems: tuple[str, ...]


def diagnose(*, root: Path = ROOT, version_of: Callable[[str], str | None] | None = None) -> Diagnosis:
    """Look at this machine. `root` is that of the system's files, `version_of` asks for a package (None: not there)."""
    version_of = installed_version if version_of is None else version_of
    names = dict.fromkeys((*BASE, *(package for _, packages in EXTRAS.values() for package in packages)))
    packages = tuple(Package(name, version_of(name)) for name in names)
    found = {package.name for package in packages if package.version is not None}
    machine = describe(root=root)
    problems = []
    if {"onnxruntime", "onnxruntime-gpu"} <= found:
        problems.append(
            "onnxruntime and onnxruntime-gpu are both installed, but they are the same module: one has overwritten "
            "the other. Keep one: pip uninstall onnxruntime onnxruntime-gpu, then install the extra cpu or gpu"
        )
    return Diagnosis(
        edgekd=__version__,
        python=platform.python_version(),
        machine={key: value for key, value in machine.items() if key != "flags"},
        packages=packages,
        extras=tuple(_extra(name, found) for name in EXTRAS),
        runtimes=(check_runtime("onnxruntime", version_of=version_of),),
        noise=noise_sources(machine, root=root),
        problems=tuple(problems),
    )


def require(*extras: str, purpose: str) -> None:
    """Raise `MissingExtra` with one pip line for all of `extras` when a package of theirs is not installed."""
    named = [name for extra in extras for name in (extra, *INCLUDED.get(extra, ()))]
    for name in named:
        for package in EXTRAS[name][1]:
            # onnxruntime-gpu is the same module as onnxruntime: either will do.
            if not any(installed_version(other) for other in (package, f"{package}-gpu")):
                raise MissingExtra(package, ",".join(extras), purpose=purpose)


def to_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """Plain values, as `edgekd doctor --json` prints them."""
    plain = dataclasses.asdict(diagnosis)
    for extra, row in zip(diagnosis.extras, plain["extras"]):
        row["installed"] = extra.installed
    return plain


def check_runtime(name: str, *, version_of: Callable[[str], str | None] | None = None) -> RuntimeCheck:
    """Open a tiny model with the runtime and compare what comes out with what went in."""
    version_of = installed_version if version_of is None else version_of
    install = install_line("cpu")
    x = np.array([[1.5], [-2.0]], np.float32)
    try:
        session = open_session(IDENTITY_MODEL, runtime=name)
        try:
            works = bool(np.array_equal(session.run({"x": x})["y"], x))
        finally:
            session.close()
    except (EdgekdError, ImportError, OSError) as error:
        return RuntimeCheck(name, False, str(error), install)
    version = version_of(name) or version_of(f"{name}-gpu") or "version unknown"
    if not works:
        return RuntimeCheck(name, False, f"{version}, but it gives wrong numbers for an identity", install)
    return RuntimeCheck(name, True, version, install)


def noise_sources(machine: Mapping[str, Any], *, root: Path = ROOT) -> tuple[Noise, ...]:
    """What moves timings here: frequency scaling, other programs, a container's quota. Unknown things are left out."""
    sources = []
    cores, allowed, quota = machine["cores"], machine["cores_allowed"], machine["quota"]
    governor = machine["governor"]
    if governor is not None:
        slow = (
            ""
            if governor in STEADY_GOVERNORS
            else "the clock changes with the load: cpupower frequency-set -g performance"
        )
        sources.append(Noise("frequency governor", governor, slow))
    load = _first_number(root / "proc/loadavg")
    if load is not None:
        busy = load > BUSY_SHARE * (cores or 1)
        sources.append(
            Noise(
                "load, last minute",
                f"{load:.2f} on {cores} cores",
                "other programs run; wait or stop them" if busy else "",
            )
        )
    waiting = _pressure(root / "proc/pressure/cpu")
    if waiting is not None:
        sources.append(
            Noise(
                "CPU pressure, 10 s",
                f"{waiting:.1f} %",
                "programs wait for a core; stop some of them" if waiting > PRESSURE_PERCENT else "",
            )
        )
    if quota is not None:
        throttled = f"the container is stopped when it has used {quota:g} cores; use at most {allowed} threads"
        sources.append(Noise("container quota", f"{quota:g} cores", throttled))
    sources.append(
        Noise(
            "cores for this process",
            f"{allowed} of {cores}",
            "" if allowed > 1 else "one core: what measures shares it with what is measured",
        )
    )
    return tuple(sources)


def install_line(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'edgekd[{extra}]'"


def installed_version(package: str) -> str | None:
    """The version of an installed package, without importing it; None where it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _extra(name: str, found: set[str]) -> Extra:
    purpose, packages = EXTRAS[name]
    needed = (*packages, *(package for other in INCLUDED.get(name, ()) for package in EXTRAS[other][1]))
    return Extra(name, purpose, tuple(package for package in needed if package not in found), install_line(name))


def _first_number(path: Path) -> float | None:
    try:
        return float(path.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None


def _pressure(path: Path) -> float | None:
    """The share of the last ten seconds in which some program waited for a core, in per cent (kernel PSI)."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        fields = dict(field.split("=", 1) for field in line.split()[1:] if "=" in field)
        if line.startswith("some") and "avg10" in fields:
            return float(fields["avg10"])
    return None
