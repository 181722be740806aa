"""A teacher behind a URL as a stage asks it: whose answers are kept for whom, and of which texts it is asked."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spaces import make_space, write_project, write_texts

sys.path.insert(0, str(Path(__file__).parents[1] / "distill"))
from endpoints import serving

from edgekd.errors import ModelError, UsageError
from edgekd.stages import fingerprints
from edgekd.stages.caching import build, facts_of, header_facts
from edgekd.stages.training import work_on_teacher

CREDENTIALS = ("Authorization", "Proxy-Authorization", "Cookie", "X-Api-Key", "apikey", "X-AuthToken", "X_Secret")


def behind(recipe: Path, url: str, request: str = "") -> Path:
    """The recipe with its teacher behind `url`."""
    before, rest = recipe.read_text().split("[teacher]\n")
    teacher = f'[teacher]\nurl = "{url}"\nlicence = "MIT"\n{request}\n'
    recipe.write_text(f"{before}{teacher}[student]\n{rest.split('[student]')[1][1:]}")
    return recipe


def zeros(x: np.ndarray, ids: list[int]) -> Mapping[str, Any]:
    return {"labels": [0] * len(x)}


def test_another_model_behind_the_same_url_is_asked_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKD_CACHE", str(tmp_path / "answers"))
    monkeypatch.setenv("MODEL", "model-one")
    monkeypatch.setenv("KEY", "very-secret")
    with serving(zeros) as server:
        request = 'request = {headers = {X-Model = "MODEL", Authorization = "KEY"}}'
        space = make_space(behind(write_project(tmp_path, "classification"), server.url, request))
        _, asked = build(space, "val")
        assert asked == len(space.prepared.dataset.val)
        fingerprint = fingerprints.teacher(space)
        monkeypatch.setenv("KEY", "another-secret")
        assert fingerprints.teacher(space) == fingerprint
        assert build(space, "val")[1] == 0, "a new credential, the same answers"
        monkeypatch.setenv("MODEL", "model-two")
        assert fingerprints.teacher(space) != fingerprint, "or the run folder would skip the stage"
        assert build(space, "val")[1] == asked
        assert {headers["X-Model"] for headers in server.headers} == {"model-one", "model-two"}
    monkeypatch.setenv("MODEL", "model-one")
    monkeypatch.delenv("KEY")
    assert build(space, "val")[1] == 0, "those of the first are still there, and nobody has to be asked"
    monkeypatch.delenv("MODEL")
    with pytest.raises(UsageError, match=r"headers\.X-Model: the environment variable MODEL is not set"):
        build(space, "val")
    kept = b"".join(path.read_bytes() for path in (tmp_path / "answers").rglob("*") if path.is_file())
    assert b"x-model" in kept
    assert b"model-one" not in kept
    assert b"secret" not in kept


def test_credentials_change_no_facts(tmp_path: Path) -> None:
    named = dict.fromkeys(CREDENTIALS, "KEY")
    assert header_facts({}, {}) == header_facts(named, {"KEY": "a"}) == {}
    both = header_facts({**named, "X-Max-Tokens": "MOST"}, {"KEY": "a", "MOST": "9"})
    assert both == header_facts({"x-max-tokens": "MOST"}, {"MOST": "9"})
    assert both != header_facts({"x-max-tokens": "MOST"}, {"MOST": "8"})
    request = 'request = {headers = {Authorization = "NOT_SET"}}'
    space = make_space(behind(write_project(tmp_path, "classification"), "https://h/x", request))
    assert facts_of(space, "val")["teacher"] == {"url": "https://h/x"}, "as in caches that are there already"


def test_an_endpoint_cannot_know_the_ids_of_a_cut_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tokenizers", reason="tokenizers (the extra text) is not installed: no texts")
    monkeypatch.setenv("EDGEKD_CACHE", str(tmp_path / "answers"))
    with serving(zeros) as server:
        recipe = behind(write_texts(tmp_path), server.url)
        cut = recipe.read_text().replace("max_length = 12", "max_length = 12, vocabulary = 30")
        space = make_space(recipe)
        tokens = space.prepared.dataset.tokens
        work_on_teacher(space)
        ids = server.bodies[0]["inputs"]
        assert {type(number) for row in ids for number in row} == {int}
        assert {tokens[number] for row in ids for number in row} <= {
            "[CLS]",
            "[SEP]",
            "[PAD]",
            "good",
            "fine",
            "bad",
            "dull",
        }
        server.headers.clear()
        recipe.write_text(cut)
        space = make_space(recipe)
        assert len(space.prepared.dataset.tokens) == 30
        with pytest.raises(
            ModelError, match=r"the teacher http://127.*keep 30 of the tokenizer's.*Remove 'vocabulary'"
        ):
            work_on_teacher(space)
    assert server.headers == []
