"""The runner as one file: `python bench.pyz student.edgekd` on a device without edgekd, from a stick or over ssh.

It holds the ground and the device side of this very installation, and nothing else: numpy and a runtime must be there.
"""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path

from edgekd import assets
from edgekd.device.archive import write_zip
from edgekd.device.suites import load_suite
from edgekd.files import write_bytes

MAX_BYTES = 1_000_000
_PACKAGE = Path(__file__).resolve().parents[1]
# The ground that the device side stands on.
GROUND = ("__init__.py", "assets.py", "errors.py", "files.py", "lazy.py", "rows.py", "spec.py", "toml.py", "version.py")
DATA = ("__init__.py", "npz.py")
SHEBANG = b"#!/usr/bin/env python3\n"
# It must be read by old Pythons too, which then say that they are too old.
MAIN = b"""\
import sys

if sys.version_info < (3, 10):
    sys.exit("error: this runner needs Python 3.10 or newer, found " + sys.version.split()[0])
try:
    import numpy
except ImportError:
    sys.exit("error: this runner needs numpy and an inference runtime: pip install numpy onnxruntime")
from edgekd.device.runner import main

if __name__ == "__main__":
    sys.exit(main())
"""


def write_runner(path: Path) -> Path:
    """Write the runner, executable. The same edgekd gives the same bytes."""
    write_bytes(path, runner_bytes())
    path.chmod(0o755)
    return path


def runner_bytes() -> bytes:
    """The zipapp, with a line before it that makes it executable."""
    contents = {"__main__.py": MAIN}
    for folder, names in (("", GROUND), ("data/", DATA)):
        contents |= {f"edgekd/{folder}{name}": (_PACKAGE / folder / name).read_bytes() for name in names}
    for file in sorted(file for kind in ("*.py", "*.mjs") for file in (_PACKAGE / "device").rglob(kind)):
        contents[f"edgekd/{file.relative_to(_PACKAGE).as_posix()}"] = file.read_bytes()
    suites = {name: asdict(load_suite(name)) for name in assets.names("benchmarks", "suites")}
    for suite in suites.values():
        del suite["name"]
    contents["edgekd/_runner/suites.json"] = json.dumps(suites, sort_keys=True).encode()
    whole = io.BytesIO()
    write_zip(whole, contents)
    return SHEBANG + whole.getvalue()
