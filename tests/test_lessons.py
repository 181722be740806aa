"""What students see in training on real digits: other images, wrong labels, few labels."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import edgekd, refused

from edgekd.errors import DataError, RecipeError
from edgekd.pipeline import train
from edgekd.recipe import load_recipe

pytestmark = pytest.mark.slow

TINY = (
    "threads=1", "data.limit=200", "teacher.model=mlp", "teacher.args={hidden=[32]}", "teacher.train.epochs=4",
    "student.model=mlp", "student.args={hidden=[16]}", "distill.epochs=3", "data.augment={}",
    'distill.terms=[{loss="kd"}]',
)  # fmt: skip
HARD = 'distill.terms=[{loss="kd"}, {loss="cross_entropy"}]'
SYNTHETIC = 'transfer={kind="synthetic", source="strokes", limit=150}'


def history(path: Path, name: str = "student") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((path / name / "history.json").read_text())["history"]
    return found


def weights(path: Path, name: str) -> bytes:
    return (path / name / "weights.safetensors").read_bytes()


def run(path: Path, *settings: str, **options: Any) -> list[str]:
    """Which stages had to work."""
    return train("digits", out=path, overrides=[*TINY, *settings], **options)[2]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "run"
    run(path, HARD)
    return path


def changed(plain: Path, folder: Path, *settings: str) -> tuple[Path, list[str]]:
    """The run `plain`, copied and run again with other settings."""
    shutil.copytree(plain, folder / "run")
    return folder / "run", run(folder / "run", *settings)


def test_synthetic_images_in_place_of_the_data(plain: Path, tmp_path: Path) -> None:
    path, cache = tmp_path / "run", tmp_path / "cache"
    arguments = [f"--set={item}" for item in (*TINY, SYNTHETIC, "distill.cache=true")]
    done = edgekd("distill", "digits", *arguments, "--out", path, "--cache", cache)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert "learned from 150 synthetic images (strokes) in place of the data" in said
    assert "150 answers in" in said
    # The teacher and the student alone saw none of them; that one has as much to see, in epochs of 200 samples.
    assert weights(path, "teacher") == weights(plain, "teacher")
    assert (len(history(path)), len(history(path, "student_alone"))) == (3, 2)
    assert "as many samples as the student saw" in said
    alone, _ = changed(plain, tmp_path / "shorter", "distill.epochs=2")
    assert weights(path, "student_alone") == weights(alone, "student_alone")
    assert weights(path, "student") != weights(plain, "student")
    # Live, the same answers; and the next run finds those that were kept.
    live, worked = changed(plain, tmp_path / "live", SYNTHETIC)
    assert worked == ["student", "student_alone"]
    assert weights(live, "student") == weights(path, "student")
    assert run(path, SYNTHETIC, "distill.cache=true", cache=cache) == []


def test_images_of_something_else_beside_the_data(plain: Path, tmp_path: Path) -> None:
    from PIL import Image

    colours = np.random.default_rng(0).integers(0, 256, (30, 20, 20, 3), dtype=np.uint8)
    for number, image in enumerate(colours):
        place = tmp_path / "photos" / ("a" if number % 2 else "b")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(place / f"{number}.png")
    transfer = f'transfer={{kind="image_folder", root="{tmp_path / "photos"}", with_train=true}}'
    more = ("data.views=2", "data.augment={shift=1}", "distill.mixup=0.2")
    path, worked = changed(plain, tmp_path, HARD, transfer, *more)
    assert "student" in worked
    assert history(path)[0]["terms"]["cross_entropy"] > 0
    with pytest.raises(RecipeError, match=r"'cross_entropy' learns from labels, but the samples of \[transfer\] have"):
        run(tmp_path / "other", HARD, transfer.replace(", with_train=true", ""))


def test_wrong_labels_are_seen_by_students_alone(plain: Path, tmp_path: Path) -> None:
    path, worked = changed(plain, tmp_path, HARD, "data.wrong_labels=0.5")
    assert worked == ["student", "student_alone"]
    alone = [history(one, "student_alone")[-1]["loss"] for one in (plain, path)]
    assert alone[1] > alone[0] + 0.05


def test_few_labels_and_none(plain: Path, tmp_path: Path) -> None:
    path, worked = changed(plain, tmp_path, HARD, "data.labelled=0.1")
    assert worked == ["student", "student_alone"]
    assert weights(path, "student_alone") != weights(plain, "student_alone")
    # What no label says is not learned from: wrong labels that nobody sees change no byte.
    none = ("data.labelled=0.0", "distill.baseline=false")
    run(tmp_path / "none", *none)
    run(tmp_path / "wrong", *none, "data.wrong_labels=0.9")
    assert weights(tmp_path / "none", "student") == weights(tmp_path / "wrong", "student")


def test_nothing_to_learn_from(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data.labelled = 0: the student alone has no label to learn from; add "):
        run(tmp_path / "alone", "data.labelled=0.0")
    arguments = [f"--set={item}" for item in (*TINY, HARD, "data.labelled=0.0")]
    text = refused(2, "distill", "digits", *arguments, "--out", tmp_path / "run")
    assert "'cross_entropy' learns from labels, but data.labelled = 0; remove the term" in text


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (("data.wrong_labels=1.5",), "data.wrong_labels"),
        (('transfer={kind="sinthetic"}',), "transfer.kind: found 'sinthetic'. Did you mean 'synthetic'?"),
        (('transfer={kind="synthetic", source="leaves"}',), "transfer.source: found 'leaves'."),
        (('transfer={kind="image_folder"}',), "transfer.root is missing: transfer.kind = 'image_folder' needs"),
        (('transfer={kind="mnist", sauce="a"}',), "sauce"),
    ],
)
def test_what_does_not_fit(settings: Sequence[str], expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("digits", overrides=[*TINY, *settings])
    assert expected in str(caught.value)


def test_samples_of_another_form(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", x=np.zeros((40, 7, 7, 1), np.uint8), y=np.arange(40) % 4)
    steps = 'preprocess.steps=[{op="scale"}, {op="layout", to="CHW"}]'
    transfer = f'transfer={{kind="arrays", root="{tmp_path / "other.npz"}"}}'
    expected = (
        r"samples of 'arrays' are \[7, 7, 1\] of uint8 after the spatial steps, but those of the data \[8, 8, 1\]"
    )
    with pytest.raises(DataError, match=expected):
        run(tmp_path / "run", steps, transfer)
