"""The adapter of ExecuTorch; that it gives golden outputs is proven where it is installed, in test_convert_verb."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from edgekd.device.runtimes import find_runtime, open_session, readers, why_missing
from edgekd.errors import MissingExtra, ModelError, UsageError

INSTALLED = find_spec("executorch") is not None


def test_it_reads_pte_files_and_has_no_options() -> None:
    assert readers(".pte") == ("executorch",)
    assert (why_missing("executorch") is None) == INSTALLED
    with pytest.raises(UsageError, match="runtime 'executorch' has no options, found spin"):
        find_runtime("executorch")(b"", threads=1, options={"spin": 1})


def test_without_the_package_the_line_that_installs_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.pte").write_bytes(b"junk")
    for name in ("executorch", "executorch.runtime", "executorch.extension.pybindings.portable_lib"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=r"pip install 'edgekd\[executorch\]'"):
        open_session(tmp_path / "a.pte", runtime="executorch")


@pytest.mark.skipif(not INSTALLED, reason="executorch is not installed: pip install 'edgekd[executorch]'")
def test_what_is_no_pte_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pte").write_bytes(b"junk" * 100)
    with pytest.raises(ModelError, match=r"executorch cannot load .*a\.pte: .* Expected a \.pte file"):
        open_session(tmp_path / "a.pte", runtime="executorch")
