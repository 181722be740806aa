"""Compiling generated C in the tests: plain and under sanitizers, every warning an error."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Wno-sign-conversion", "-Werror")
BUILDS = {
    "plain": ("-O2",),
    "sanitized": ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
}
# Reads samples from stdin, writes their outputs to stdout.
HARNESS = """#include "student.h"
#include <stdio.h>
#ifdef RAW
#define TYPE unsigned char
#define SIZE STUDENT_RAW_BYTES
#define RUN student_run_bytes
#else
#define TYPE float
#define SIZE STUDENT_INPUTS
#define RUN student_run
#endif
int main(void) {
    static TYPE input[SIZE];
    static float output[STUDENT_OUTPUTS];
    static unsigned char arena[STUDENT_ARENA_BYTES];
    while (fread(input, sizeof(TYPE), SIZE, stdin) == SIZE) {
        if (RUN(input, output, arena) != STUDENT_OK) {
            return 9;
        }
        fwrite(output, sizeof(float), STUDENT_OUTPUTS, stdout);
    }
    return 0;
}
"""


def compiler() -> str:
    """gcc; without it the test is skipped, and under CI=true it fails."""
    found = shutil.which("gcc")
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail("needs gcc; under CI=true it must be there")
        pytest.skip("needs gcc")
    return found


def compile_c(folder: Path, *sources: str, build: str = "plain", name: str = "program", flags: tuple = ()) -> Path:
    """A program from the C files in `folder`."""
    command = [compiler(), *WARNINGS, *BUILDS[build], *flags, *sources, "-o", name, "-lm"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / name


def run_c(
    folder: Path, samples: np.ndarray, num_outputs: int, *, build: str = "plain", raw: bool = False
) -> np.ndarray:
    """The outputs (N, num_outputs) of the student.c in `folder` for samples (N, ...), or raw bytes."""
    (folder / "harness.c").write_text(HARNESS)
    flags = ("-DRAW",) if raw else ()
    program = compile_c(folder, "harness.c", "student.c", build=build, name=f"harness_{build}_{raw}", flags=flags)
    given = np.ascontiguousarray(samples, np.uint8 if raw else np.float32)
    done = subprocess.run([program], input=given.tobytes(), capture_output=True)
    assert done.returncode == 0, (done.returncode, done.stderr.decode())
    return np.frombuffer(done.stdout, np.float32).reshape(len(samples), num_outputs)
