"""Code in the environment of optimum, which needs an older transformers than the rest (tests/make_optimum.sh)."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def through_optimum(code: str, *arguments: object) -> Any:
    """What the code prints in its last line, as JSON. Without such an environment the test skips, and fails in CI."""
    python = os.environ.get("EDGEKD_OPTIMUM_PYTHON")
    if python is None:
        reason = "EDGEKD_OPTIMUM_PYTHON is not set: tests/make_optimum.sh makes such an environment"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    done = subprocess.run(
        [python, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
