"""Node and the npm packages that the tests of the web and Node apps need, and how their absence is told.

EDGEKD_NODE_MODULES names a folder into which the packages of tests/javascript/package.json were installed:

    cp tests/javascript/package.json FOLDER && npm install --ignore-scripts --prefix FOLDER
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

PACKAGES = Path(__file__).parent / "javascript" / "package.json"


def node() -> str:
    """The program. Where CI is set, a missing one is a failure."""
    return shutil.which("node") or _absent("Node is not installed; install the package nodejs")


def node_modules(package: str) -> Path:
    """The folder `node_modules` that holds the npm package."""
    named = os.environ.get("EDGEKD_NODE_MODULES")
    if named is None:
        _absent(f"EDGEKD_NODE_MODULES names no folder with the npm packages of {PACKAGES}")
    folder = Path(named) / "node_modules"
    if not (folder / package / "package.json").is_file():
        _absent(f"{folder} has no {package}; install it with npm install --ignore-scripts")
    return folder


def run_node(*args: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A program in Node."""
    return subprocess.run([node(), *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=300)


def run_module(code: str, cwd: Path, *, given: Any = None) -> Any:
    """What the ES module `code` prints as JSON; it reads `given` as the constant `given`."""
    whole = f'import {{ readFileSync }} from "node:fs";\nconst given = JSON.parse(readFileSync(0, "utf8"));\n{code}'
    (cwd / "run.mjs").write_text(whole)
    done = subprocess.run(
        [node(), "run.mjs"], cwd=cwd, input=json.dumps(given), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _absent(reason: str) -> Any:
    assert os.environ.get("CI") != "true", reason
    pytest.skip(reason)
