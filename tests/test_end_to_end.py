"""Whole runs on real data of every kind, through the command line: what the report says is what the bundle does."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import edgekd, ok, ok_json, refused
from ends import IRIS, job, rows_of, short, write_iris, write_table
from real_data import real_data

import edgekd as package
from edgekd.data.mnist import read_idx
from edgekd.data.registry import load_dataset
from edgekd.results import read_results

pytestmark = pytest.mark.slow

FAST = ("teacher.train.epochs=1", "distill.epochs=1")


@pytest.fixture(scope="session")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Options that keep a run to seconds."""
    return short(tmp_path_factory.mktemp("suite"))


@pytest.fixture(scope="session")
def iris(quick: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the irises, with the table that it read beside it."""
    folder = tmp_path_factory.mktemp("iris")
    table = write_iris(folder / "iris.csv")
    job("arrays", folder / "run", f"data.root={table}", *IRIS, options=quick)
    return folder / "run"


@pytest.mark.parametrize(
    ("recipe", "folder", "settings", "variants"),
    [
        ("mnist", "MNIST", (), ["int8_u8s8", "fp16", "int4_weight_only"]),
        ("fashion_mnist", "FashionMNIST", ("teacher.args={width=8,depth=8}", "student.model=cnn_s"), ["int8_u8s8"]),
    ],
)
def test_published_images_are_judged_alike_by_report_and_bundle(
    recipe: str, folder: str, settings: tuple[str, ...], variants: list[str], quick: tuple[str, ...], tmp_path: Path
) -> None:
    root = real_data(folder)
    results = job(
        recipe,
        tmp_path / "run",
        f"data.root={root.parent}",
        "data.limit=10000",
        f"quantize.variants={variants}",
        *FAST,
        *settings,
        options=quick,
    )
    x, y = (read_idx(root / "raw" / f"t10k-{name}-ubyte.gz") for name in ("images-idx3", "labels-idx1"))
    assert results["run"]["counts"]["test"] == len(y) == 10_000
    rows = rows_of(results)
    assert set(variants) <= set(rows)
    for name in ("float32", *variants):
        with package.load(tmp_path / "run" / "student.edgekd", variant=name) as predictor:
            right = [answer.index == label for answer, label in zip(predictor.predict_batch(list(x)), y, strict=True)]
        assert np.mean(right) == pytest.approx(rows[name]["accuracy"]["value"], abs=1e-12), name
        assert rows[name]["accuracy"]["n"] == len(y)
    assert rows["float32"]["accuracy"]["value"] > 0.3, "it learned"


CLASSES = ("airplane", "automobile", "ship")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real photographs in folders by class: PNG and JPEG, odd sizes, one on its side by EXIF, one in grey."""
    from PIL import Image

    archive = next(real_data("cifar10_lossless4k").glob("*.npz"))
    with np.load(archive) as data:
        images, labels = data["images"], data["labels"]
    root = tmp_path_factory.mktemp("pictures") / "photos"
    for name, number in zip(CLASSES, (0, 1, 8), strict=True):
        for index, pixels in enumerate(images[labels == number][:120]):
            folder = root / ("train" if index < 90 else "test") / name
            folder.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(pixels)
            if index % 10 == 1:
                picture.resize((37, 53)).save(folder / f"{index} odd.png")
            elif index % 10 == 2:
                turned = picture.transpose(Image.Transpose.ROTATE_90)
                exif = Image.Exif()
                exif[0x0112] = 6  # to be turned by 90 degrees clockwise for showing
                turned.save(folder / f"{index}_exif.jpg", quality=95, exif=exif)
            elif index % 10 == 3:
                picture.convert("L").save(folder / f"{index}_grey.png")
            elif index % 2:
                picture.save(folder / f"{index}.JPG", format="JPEG", quality=95)
            else:
                picture.save(folder / f"{index}.png")
    return root


SMALL_IMAGES = (
    "preprocess.steps.2.size=32",
    "preprocess.steps.3.size=[32,32]",
    "teacher.args={width=8,depth=8}",
    "student.model=dscnn_s",
    "teacher.train.epochs=4",
    "distill.epochs=4",
)


def test_a_folder_of_images(pictures: Path, quick: tuple[str, ...], tmp_path: Path) -> None:
    from PIL import Image, ImageOps

    run = tmp_path / "run"
    settings = (f"data.root={pictures}", "data.licence=for tests only", 'quantize.variants=["int8_u8s8"]')
    results = job("image_folder", run, *settings, *SMALL_IMAGES, options=quick)
    assert results["run"]["counts"]["test"] == 90
    files = sorted((pictures / "test").rglob("*.*"))
    bundle = run / "student.edgekd"
    answers = {item["input"]: item for item in ok_json("predict", bundle, *files)["predictions"]}
    assert len(answers) == len(files) == 90
    right = np.mean([answers[str(path)]["label"] == path.parent.name for path in files])
    chosen = rows_of(results)[results["run"]["chosen"]]
    assert right == pytest.approx(chosen["accuracy"]["value"], abs=1e-12)
    # The same pictures as arrays, upright and in colour, as an app that decodes by itself has them.
    with package.load(bundle) as predictor:
        for path in files:
            with Image.open(path) as image:
                array = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
            answer = predictor.predict(array)
            assert answer.label == answers[str(path)]["label"], path
            assert answer.score == pytest.approx(answers[str(path)]["score"], abs=1e-6), path
    assert json.loads((bundle / "bundle.json").read_text())["provenance"]["data"]["licence"] == "for tests only"


def test_every_unusable_image_is_named_at_once(pictures: Path, quick: tuple[str, ...], tmp_path: Path) -> None:
    """An empty and a damaged file, in whatever split they are; nothing is trained."""
    root = tmp_path / "photos"
    shutil.copytree(pictures, root)
    (root / "train" / "ship" / "nothing.png").write_bytes(b"")
    whole = next((root / "test" / "airplane").glob("*.JPG"))
    broken = root / "test" / "airplane" / "half.jpg"
    broken.write_bytes(whole.read_bytes()[:300])
    text = refused(
        3, "distill-and-export", "image_folder", *quick, f"--set=data.root={root}", "--out", tmp_path / "run"
    )
    assert "2 samples cannot be used; repair or remove" in text
    assert f"{root / 'train' / 'ship' / 'nothing.png'} is empty" in text
    assert f"{broken} cannot be decoded" in text
    assert not (tmp_path / "run" / "teacher").exists()


def test_a_table_of_classes(iris: Path) -> None:
    from sklearn.datasets import load_iris

    results = read_results(iris)
    chosen = rows_of(results)[results["run"]["chosen"]]
    assert results["run"]["counts"] == {"train": 90, "val": 30, "test": 30}
    manifest = ok_json("inspect", iris / "student.edgekd")
    assert manifest["labels"] == ["setosa", "versicolor", "virginica"]
    data = load_dataset(kind="arrays", root=iris.parent / "iris.csv", target=["species"])
    np.savez(iris.parent / "test.npz", x=data.test.x)
    answers = ok_json("predict", iris / "student.edgekd", iris.parent / "test.npz")["predictions"]
    right = [answer["label"] == data.labels[label] for answer, label in zip(answers, data.test.y, strict=True)]
    assert np.mean(right) == pytest.approx(chosen["accuracy"]["value"], abs=1e-12)
    assert np.mean(right) > 0.8
    assert len(load_iris().target) == sum(results["run"]["counts"].values())


def test_a_table_of_numbers_comes_back_in_its_own_units(quick: tuple[str, ...], tmp_path: Path) -> None:
    from sklearn.datasets import load_diabetes
    from sklearn.metrics import r2_score

    source = load_diabetes(scaled=False)
    table = write_table(
        tmp_path / "diabetes.csv", source.data, source.target, names=source.feature_names, target="progression"
    )
    results = job(
        "arrays",
        tmp_path / "run",
        f"data.root={table}",
        "data.target=progression",
        "task=regression",
        "teacher.train.epochs=10",
        "distill.epochs=30",
        options=quick,
    )
    data = load_dataset(kind="arrays", root=table, target=["progression"], task="regression")
    np.savez(tmp_path / "test.npz", x=data.test.x)
    answers = ok_json("predict", tmp_path / "run" / "student.edgekd", tmp_path / "test.npz")["predictions"]
    assert {answer["label"] for answer in answers} == {"progression"}
    predicted = np.array([answer["score"] for answer in answers])
    assert source.target.min() <= predicted.min() < predicted.max() <= source.target.max()
    chosen = rows_of(results)[results["run"]["chosen"]]
    assert results["run"]["metric"] == "r2"
    assert r2_score(data.test.y[:, 0], predicted) == pytest.approx(chosen["accuracy"]["value"], abs=1e-4)
    assert chosen["accuracy"]["value"] > 0.2


def test_several_marks_per_sample(quick: tuple[str, ...], tmp_path: Path) -> None:
    """Marks of handwritten digits: is it even, has it a closed loop, is it above four."""
    from sklearn.datasets import load_digits
    from sklearn.metrics import f1_score

    source = load_digits()
    marks = np.stack([source.target % 2 == 0, np.isin(source.target, (0, 6, 8, 9)), source.target > 4], axis=1)
    x, y = source.data.astype(np.float32), marks.astype(np.uint8)
    np.savez(tmp_path / "marks.npz", x=x[:1400], y=y[:1400], x_test=x[1400:], y_test=y[1400:])
    results = job(
        "arrays",
        tmp_path / "run",
        f"data.root={tmp_path / 'marks.npz'}",
        "task=multilabel",
        'data.labels=["even", "loop", "high"]',
        "teacher.train.epochs=4",
        "distill.epochs=10",
        'quantize.variants=["int8_u8s8"]',
        options=quick,
    )
    np.savez(tmp_path / "test.npz", x=x[1400:])
    answers = ok_json("predict", tmp_path / "run" / "student.edgekd", tmp_path / "test.npz")["predictions"]
    found = np.array(
        [[label in {name for name, _ in answer["top"]} for label in ("even", "loop", "high")] for answer in answers]
    )
    chosen = rows_of(results)[results["run"]["chosen"]]
    assert results["run"]["counts"]["test"] == 397
    assert f1_score(y[1400:], found, average="micro") == pytest.approx(chosen["accuracy"]["value"], abs=1e-9)
    assert chosen["accuracy"]["value"] > 0.7


def test_time_series(quick: tuple[str, ...], tmp_path: Path) -> None:
    """Digits row by row: eight steps of eight channels."""
    from sklearn.datasets import load_digits

    source = load_digits()
    x = source.images.astype(np.float32)
    np.savez(tmp_path / "rows.npz", x=x[:1400], y=source.target[:1400], x_test=x[1400:], y_test=source.target[1400:])
    results = job(
        "arrays",
        tmp_path / "run",
        f"data.root={tmp_path / 'rows.npz'}",
        "teacher.model=tcn_teacher",
        "student.model=tcn_s",
        "teacher.train.epochs=2",
        "distill.epochs=4",
        'quantize.variants=["int8_u8s8"]',
        options=quick,
    )
    np.savez(tmp_path / "test.npz", x=x[1400:])
    answers = ok_json("predict", tmp_path / "run" / "student.edgekd", tmp_path / "test.npz")["predictions"]
    right = np.mean([a["label"] == str(label) for a, label in zip(answers, source.target[1400:], strict=True)])
    chosen = rows_of(results)[results["run"]["chosen"]]
    assert right == pytest.approx(chosen["accuracy"]["value"], abs=1e-12)
    assert right > 0.5


@pytest.mark.parametrize(
    ("target", "kind", "variants"),
    [
        ("web", "*", {"float32", "int8_u8u8", "int8_dynamic"}),
        ("raspberry_pi", "aarch64", {"float32", "int8_u8s8", "int8_s8s8", "int8_dynamic"}),
    ],
)
def test_a_target_decides_the_variants(
    target: str, kind: str, variants: set[str], iris: Path, quick: tuple[str, ...], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(iris, run)
    done = edgekd(
        "distill-and-export", "arrays", *quick, f"--set=data.root={iris.parent / 'iris.csv'}",
        *(f"--set={setting}" for setting in IRIS), "--target", target, "--out", run, "-v",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "student: unchanged" in done.stderr, "another target trains nothing again"
    manifest = ok_json("inspect", run / "student.edgekd")
    assert set(manifest["variants"]) == variants
    assert kind in manifest["default"]
    assert all(name in variants for name in manifest["default"].values())
    assert all(item["opset"] <= 18 and item["ir_version"] <= 8 for item in manifest["variants"].values())
    assert ok_json("verify", run / "student.edgekd")["ok"]


def test_a_limit_that_nothing_proves(iris: Path, quick: tuple[str, ...], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(iris, run)
    command: list[str | Path] = ["distill-and-export", "arrays", *quick, f"--set=data.root={iris.parent / 'iris.csv'}"]
    # Thirty flowers prove no drop below some points, whatever the student does.
    command += [*(f"--set={setting}" for setting in IRIS), "--set=limits.accuracy_drop_points=4", "--out", run]
    done = edgekd(*command)
    assert done.returncode == 0, done.stderr
    assert "limit unproven accuracy_drop_points <= 4" in done.stdout
    assert "a proof takes about" in done.stderr
    for strict in ("--strict", "--set=limits.unproven=fail"):
        text = refused(1, *command, strict)
        assert "accuracy_drop_points <= 4" in text
        assert "n too small: a proof takes about" in text
    assert ok_json("verify", run / "student.edgekd")["ok"], "the bundle is there all the same"


def test_a_scaffolded_project_and_the_commands_that_it_prints(tmp_path: Path) -> None:
    text = ok("init", "my project", cwd=tmp_path)
    commands = [line.strip() for line in text.split("next\n")[1].splitlines() if line.strip()]
    assert commands[0] == "cd 'my project'"
    assert len(commands) == 3
    path = f"export PATH={Path(sys.executable).parent}:$PATH EDGEKD_THREADS=1"
    done = subprocess.run(
        ["bash", "-c", " && ".join([path, *commands])], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert ok_json("verify", tmp_path / "my project" / "runs" / "my-project" / "student.edgekd")["ok"]


def test_a_bundle_from_the_future(iris: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "student.edgekd"
    shutil.copytree(iris / "student.edgekd", bundle)
    manifest: dict[str, Any] = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps({**manifest, "version": 2}))
    np.savez(tmp_path / "x.npz", x=np.zeros((1, 4), np.float32))
    for command in (["verify", bundle], ["inspect", bundle], ["predict", bundle, tmp_path / "x.npz"]):
        text = refused(3, *command)
        assert "version 2" in text
        assert "upgrade" in text
