"""The user's own code: found in the right project, and hashed together with what it imports."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.errors import DataError, ModelError
from edgekd.references import code_sha256, import_reference


def test_the_error_is_the_callers(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no module 'nowhere_1' was found in"):
        import_reference("nowhere_1:make", search_path=tmp_path)
    with pytest.raises(DataError, match="no module 'nowhere_1' was found in"):
        import_reference("nowhere_1:make", search_path=tmp_path, refusal=DataError)


def test_a_namesake_from_elsewhere_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "namesake_1.py").write_text(f"def tell():\n    return '{name}'\n")
    monkeypatch.syspath_prepend(tmp_path / "one")
    assert __import__("namesake_1").tell() == "one", "imported by somebody else, not through edgekd"
    assert import_reference("namesake_1:tell", search_path=tmp_path / "two")() == "two"


PROJECT = {
    "models.py": "import torch\nfrom helpers import blocks\nimport package.inner as i\n",
    "helpers/__init__.py": "",
    "helpers/blocks.py": "from .deep import width\nfrom . import sizes\n",
    "helpers/deep.py": "width = 1\n",
    "helpers/sizes.py": "def f():\n    import lazy\n",
    "lazy.py": "import models\n",
    "package/inner.py": "",
    "stranger.py": "",
    "data.csv": "",
}


@pytest.mark.parametrize("changed", sorted(PROJECT))
def test_the_hash_follows_every_import_of_the_project(tmp_path: Path, changed: str) -> None:
    for name, text in PROJECT.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    before = code_sha256("models:build", tmp_path)
    assert before is not None
    assert code_sha256("models:other", tmp_path) == before
    (tmp_path / changed).write_text(PROJECT[changed] + "# changed\n")
    assert (code_sha256("models:build", tmp_path) != before) == (changed not in ("stranger.py", "data.csv"))


def test_code_that_cannot_be_parsed_is_hashed_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def (")
    before = code_sha256("broken:build", tmp_path)
    (tmp_path / "broken.py").write_text("def f(")
    assert before != code_sha256("broken:build", tmp_path)


def test_installed_packages_and_built_in_names_have_no_hash(tmp_path: Path) -> None:
    assert code_sha256("torchvision:resnet18", tmp_path) is None
    assert code_sha256("cnn_s", tmp_path) is None
    assert code_sha256("models:build", None) is None
