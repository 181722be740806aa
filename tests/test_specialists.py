"""Whole runs whose further teacher has outputs for some of the digits only: a model, ONNX, a file, a URL.

What the student learns must be what it learns from one file of answers, in which numpy has put the two together.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from commands import ok_json, refused
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).parent / "distill"))
from endpoints import Server, serving

from edgekd.data.registry import load_dataset
from edgekd.spec import Dataset

pytestmark = pytest.mark.slow

OWN = (8, 3, 9)  # in an order that is not the data's
LABELS = 'labels = ["8", "3", "9"]'
WEIGHT, TEMPERATURE = 3.0, 2.0
RECIPE = """
[data]
kind = "digits"

[preprocess]
steps = [{op = "scale"}, {op = "layout", to = "flat"}]

[teacher]
logits = "TEACHER"
licence = "MIT"
MORE
[student]
model = "mlp_s"

[distill]
epochs = 2
lr = 0.01
baseline = false

[[distill.terms]]
loss = "kd"
options = {temperature = 2.0}
"""
MODULES = """
from torch import nn


def linear(num_outputs):
    return nn.Sequential(nn.Linear(64, num_outputs))


def three():
    return nn.Sequential(nn.Linear(64, 3))
"""


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(kind="digits")


@pytest.fixture(scope="module")
def place(digits: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two linear teachers, one of all digits and one of three: their answers, and the second as a model
    and as a graph."""
    import torch

    folder = tmp_path_factory.mktemp("specialists")
    (folder / "modules.py").write_text(MODULES)
    x, y = flat(digits.train.x), digits.train.y
    rows = np.isin(y, OWN)
    # Of quite another opinion, so that it shows who counts how much.
    models = {"all": fitted(x, y, range(10), c=0.05), "own": fitted(x[rows], y[rows], OWN, c=1000.0)}
    for name, (weight, bias) in models.items():
        state = {"0.weight": torch.from_numpy(weight), "0.bias": torch.from_numpy(bias)}
        torch.save(state, folder / f"{name}.pt")
        np.savez(folder / f"{name}.npz", **answers(models[name], digits))
    save_graph(folder / "own.onnx", models["own"])
    save_graph(folder / "own_p.onnx", models["own"], softmax=True)
    named = onnx.load(folder / "own.onnx")
    helper.set_model_props(named, {"names": "['3', '8', '9']"})
    onnx.save(named, folder / "named.onnx")
    for ensemble in ("logits", "probabilities"):
        np.savez(folder / f"{ensemble}.npz", **merged(folder, digits, ensemble))
    return folder


Linear = tuple[np.ndarray, np.ndarray]


def flat(x: np.ndarray) -> np.ndarray:
    """Digits as the recipe prepares them."""
    scaled: np.ndarray = (x[:].astype(np.float32) * np.float32(1 / 255)).reshape(len(x), -1)
    return scaled


def fitted(x: np.ndarray, y: np.ndarray, classes: Any, *, c: float) -> Linear:
    """A logistic regression whose i-th output is the i-th of `classes`."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=c, max_iter=200).fit(x, y)
    order = [list(model.classes_).index(number) for number in classes]
    return model.coef_[order].astype(np.float32), model.intercept_[order].astype(np.float32)


def said(model: Linear, x: np.ndarray) -> np.ndarray:
    found: np.ndarray = flat(x) @ model[0].T + model[1]
    return found


def answers(model: Linear, digits: Dataset) -> dict[str, np.ndarray]:
    splits = (digits.train, digits.val)
    return {
        "ids": np.concatenate([split.ids for split in splits]),
        "logits": np.concatenate([said(model, split.x) for split in splits]),
    }


def save_graph(path: Path, model: Linear, *, softmax: bool = False) -> None:
    nodes = [helper.make_node("Gemm", ["input", "w", "b"], ["scores"], transB=1)]
    nodes.append(helper.make_node("Softmax" if softmax else "Identity", ["scores"], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "own",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(value, name) for name, value in zip("wb", model)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    shares: np.ndarray = e / e.sum(axis=1, keepdims=True)
    return shares


def merged(folder: Path, digits: Dataset, ensemble: str) -> dict[str, np.ndarray]:
    """Both teachers as one, by the formulas: of a sample of its three digits the specialist says how these share what
    the other gives them; of all other samples it says nothing."""
    whole, own = (dict(np.load(folder / f"{name}.npz")) for name in ("all", "own"))
    z, own_z = whole["logits"].astype(np.float64), own["logits"].astype(np.float64)
    columns, rows = list(OWN), np.isin(np.concatenate([digits.train.y, digits.val.y]), OWN)
    if ensemble == "logits":
        level = z[:, columns].mean(axis=1, keepdims=True) - own_z.mean(axis=1, keepdims=True)
        told = (z[:, columns] + WEIGHT * (own_z + level)) / (1 + WEIGHT)
        z[np.ix_(rows, columns)] = told[rows]
        return {"ids": whole["ids"], "logits": z.astype(np.float32)}
    p = softmax(z / TEMPERATURE)
    given = p[:, columns].sum(axis=1, keepdims=True) * softmax(own_z / TEMPERATURE)
    told = (p[:, columns] + WEIGHT * given) / (1 + WEIGHT)
    p[np.ix_(rows, columns)] = told[rows]
    return {"ids": whole["ids"], "logits": (TEMPERATURE * np.log(p)).astype(np.float32)}


@pytest.fixture
def server(place: Path, digits: Dataset) -> Iterator[Server]:
    import torch

    state = torch.load(place / "own.pt", weights_only=True)
    model = (state["0.weight"].numpy(), state["0.bias"].numpy())
    with serving(lambda x, ids: {"logits": (x @ model[0].T + model[1]).tolist(), "classes": list("839")}) as found:
        yield found


def write(place: Path, name: str, more: str = "", *, teacher: str = "all.npz") -> Path:
    path = place / f"{name}.toml"
    path.write_text(RECIPE.replace("TEACHER", teacher).replace("MORE", more))
    return path


def specialist(source: str) -> str:
    return f"[[teachers]]\n{source}\nlicence = 'MIT'\nweight = {WEIGHT}\n{LABELS}\n"


def losses(recipe: Path, out: Path, *options: str | Path) -> list[float]:
    """What the student's training came to, epoch by epoch."""
    stages = ok_json("distill", recipe, "--student-only", "--set=threads=1", *options, "--out", out)["stages"]
    assert "outputs" not in stages["teacher"]
    if "teacher_2" in stages:
        assert stages["teacher_2"]["outputs"] == 3
        assert stages["teacher_2"]["best"] > 0.9, "judged by its own digits"
    return [epoch["loss"] for epoch in stages["student"]["history"]]


@pytest.fixture(scope="module")
def expected(place: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """The losses with one teacher, both as numpy has put them together, and those with the first one alone."""
    out = tmp_path_factory.mktemp("expected")
    return {
        name: losses(write(place, f"one_{name}", teacher=f"{name}.npz"), out / name)
        for name in ("logits", "probabilities", "all")
    }


SOURCES = {
    "model": 'model = "modules:linear"\nweights = "own.pt"',
    "model of one width": 'model = "modules:three"\nweights = "own.pt"',
    "onnx": 'onnx = "own.onnx"',
    "onnx of probabilities": 'onnx = "own_p.onnx"',
    "file": 'logits = "own.npz"',
    "parquet": 'logits = "own.parquet"',
}


@pytest.mark.parametrize("ensemble", ["logits", "probabilities"])
@pytest.mark.parametrize("source", SOURCES)
def test_a_specialist_from_anywhere_teaches_what_numpy_puts_together(
    source: str, ensemble: str, place: Path, expected: dict[str, list[float]], tmp_path: Path
) -> None:
    if source == "parquet":
        pyarrow = pytest.importorskip("pyarrow", reason="pyarrow (the extra hf) is not installed: no Parquet to read")
        from pyarrow import parquet

        found = {name: value.tolist() for name, value in np.load(place / "own.npz").items()}
        parquet.write_table(pyarrow.table(found), place / "own.parquet")
    recipe = write(place, f"{source}_{ensemble}".replace(" ", "_"), specialist(SOURCES[source]))
    got = losses(recipe, tmp_path / "run", f"--set=distill.ensemble={ensemble}")
    assert got == pytest.approx(expected[ensemble], rel=1e-4)
    assert got != pytest.approx(expected["all"], rel=1e-2), "the specialist counts"
    other = next(name for name in ("logits", "probabilities") if name != ensemble)
    assert got != pytest.approx(expected[other], rel=1e-2)


def test_a_specialist_behind_a_url_is_asked_once_for_all_students(
    server: Server, place: Path, expected: dict[str, list[float]], tmp_path: Path
) -> None:
    recipe = write(place, "url", specialist(f'url = "{server.url}"\nrequest = {{batch_size = 400}}'))
    where = ("--cache", tmp_path / "answers")
    assert losses(recipe, tmp_path / "run", *where) == pytest.approx(expected["logits"], rel=1e-4)
    assert len(server.ids) == 1079 + 359, "each sample once"
    server.bodies.clear()
    again = losses(recipe, tmp_path / "other", *where, "--set=distill.ensemble=probabilities")
    assert again == pytest.approx(expected["probabilities"], rel=1e-4)
    losses(recipe, tmp_path / "third", *where, "--set=student.model=mlp_m", "--set=distill.cache_top_k=5")
    assert server.ids == [], "another mean, another student, and five of its three outputs: all is there"
    told = ok_json("cache", "info", *where)["caches"]
    assert {tuple(row["tensors"]["logits"]["shape"]) for row in told} == {(3,)}, "its own outputs, whole"
    assert {row["name"] for row in told} == {"digits train", "digits val"}
    # Two of three say all: what they leave is the third's.
    few = losses(recipe, tmp_path / "few", *where, "--set=distill.cache_top_k=2")
    assert few == pytest.approx(expected["logits"], rel=1e-4)
    assert len(server.ids) == 1079


def test_another_mean_trains_the_student_again(place: Path, tmp_path: Path) -> None:
    recipe, run = write(place, "again", specialist(SOURCES["model"])), tmp_path / "run"
    losses(recipe, run)
    arguments = ("distill", recipe, "--student-only", "--set=threads=1", "--out", run)
    assert ok_json(*arguments)["worked"] == []
    for option in ("--set=distill.ensemble=probabilities", "--set=teachers.0.weight=1"):
        assert ok_json(*arguments, option)["worked"] == ["student"]
    told = refused(3, *arguments, '--set=teachers.0.labels=["3", "8", "9"]')
    assert "teacher_2 does not follow its labels: right for" in told


@pytest.mark.parametrize(
    ("code", "source", "labels", "options", "told"),
    [
        (3, SOURCES["model"], '["8", "3"]', (), "own.pt fits the model neither with 10 outputs"),
        (3, SOURCES["onnx"], '["8", "3"]', (), "teacher_2 gives [359, 3] for 359 samples, but the data has 10 labels,"),
        (3, SOURCES["onnx"], "[]", (), "teacher_2 gives [359, 3] for 359 samples, but the data has 10 labels; is this"),
        (3, SOURCES["file"], '["8", "3"]', (), "own.npz gives 3 numbers for each sample, expected 10, one for each"),
        (3, SOURCES["file"], '["3", "8", "9"]', (), 'does not follow its labels: right for'),
        (3, SOURCES["onnx"], '["3", "8", "9"]', (), 'Expected labels = ["8", "3", "9"]'),
        (3, 'onnx = "named.onnx"', '["8", "3", "9"]', (), 'has other outputs than its labels say: its file names ["3"'),
        (2, SOURCES["onnx"], '["8", "3", "nine"]', (), "a teacher's labels: the data has no label 'nine'"),
        (
            2,
            SOURCES["onnx"],
            '["8", "3", "9"]',
            (
                "--set=distill.ensemble=probabilities",
                "--set=distill.terms=[{loss='kd'}, {loss='dkd', options={temperature=1.0}}]",
            ),
            "is not the same for all: 4 ('kd'), 1 ('dkd'); give them one",
        ),
        (
            2,
            SOURCES["model"],
            '["8", "3", "9"]',
            (
                "--set=distill.mixup=0.2",
                "--set=teacher={model='modules:linear', weights='all.pt', labels=['0', '1']}",
            ),
            "distill.mixup and cutmix blend samples of two classes: teacher_2 has outputs for its own labels alone",
        ),
        (
            3,
            SOURCES["onnx"],
            '["8", "3", "9"]',
            ("--set=teacher={onnx='own.onnx', licence='MIT', labels=['8', '3', '9']}",),
            "the teacher has 3 outputs, for teacher.labels alone, but with the first teacher all others are compared",
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit(
    code: int, source: str, labels: str, options: tuple[str, ...], told: str, place: Path, tmp_path: Path
) -> None:
    recipe = write(place, "wrong", specialist(source).replace('["8", "3", "9"]', labels))
    options = tuple(option.replace("'own.onnx'", f"'{place / 'own.onnx'}'") for option in options)
    options = tuple(option.replace("'all.pt'", f"'{place / 'all.pt'}'") for option in options)
    assert told in refused(code, "distill", recipe, "--student-only", *options, "--out", tmp_path / "run")
