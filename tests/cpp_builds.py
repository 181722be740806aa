"""Building C++ in the tests: with CMake as a user does, or straight with a compiler; every warning an error."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Wno-sign-conversion", "-Werror")
SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def absent(reason: str) -> Any:
    """Skip; under CI=true fail."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}; under CI=true it must be there")
    pytest.skip(reason)


def tool(name: str) -> str:
    """The program `name`."""
    return shutil.which(name) or absent(f"needs {name}")


def package(name: str) -> Path:
    """The folder of an installed package."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        return absent(f"needs the package {name}")
    return Path(spec.origin).parent


def onnxruntime_root(folder: Path) -> Path:
    """A folder as releases of onnxruntime have it: the wheel's library, and a header of the tests' own."""
    root = folder / "onnxruntime"
    if not root.exists():
        (library,) = (package("onnxruntime") / "capi").glob("libonnxruntime.so.*")
        (root / "include").mkdir(parents=True)
        (root / "lib").mkdir()
        (root / "include" / "onnxruntime_c_api.h").symlink_to(HERE / "onnxruntime_abi" / "onnxruntime_c_api.h")
        for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
            (root / "lib" / name).symlink_to(library)
    return root


def cmake(source: Path, build: Path, *options: str) -> Path:
    """The program `app` of a CMake project, built."""
    for command in (
        [tool("cmake"), "-S", str(source), "-B", str(build), "-DSTUDENT_STRICT=ON", *options],
        [tool("cmake"), "--build", str(build)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return build / "app"


def with_openvino(source: Path, build: Path) -> Path:
    """`app` on OpenVINO."""
    return cmake(source, build, "-DSTUDENT_RUNTIME=openvino", f"-DOpenVINO_DIR={package('openvino') / 'cmake'}")


def with_onnxruntime(source: Path, build: Path, *options: str) -> Path:
    """`app` on onnxruntime."""
    return cmake(source, build, f"-DONNXRUNTIME_ROOT={onnxruntime_root(build.parent)}", *options)


def compile_cpp(source: Path, program: Path, *flags: str, compiler: str = "g++") -> Path:
    """A program from one file."""
    command = [tool(compiler), "-std=c++17", *WARNINGS, *flags, str(source), "-o", str(program), "-pthread"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return program
