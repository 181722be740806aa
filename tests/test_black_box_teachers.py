"""Whole runs whose teacher is known by its answers only: a file of them, or a URL. Real digits, the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import edgekd, ok, ok_json, refused
from ends import job, rows_of, short

sys.path.insert(0, str(Path(__file__).parent / "distill"))
from endpoints import Server, serving

from edgekd.data.registry import load_dataset
from edgekd.results import read_results
from edgekd.spec import Dataset

pytestmark = pytest.mark.slow

SETTINGS = (
    "threads=1", "teacher.model=cnn_m", "teacher.args={}", "teacher.train.epochs=8", "distill.epochs=10",
)  # fmt: skip


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    return (*short(tmp_path_factory.mktemp("suite")), '--set=quantize.variants=["int8_dynamic"]')


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset(kind="digits")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained teacher as somebody else's ONNX file: what answers behind the URL and wrote the file."""
    folder = tmp_path_factory.mktemp("trained")
    said = ok(
        "distill", "digits", *(f"--set={item}" for item in (*SETTINGS, "distill.epochs=1")), "--out", folder / "run"
    )
    assert f"distill-and-export {folder / 'run' / 'recipe.toml'}" in said, "the next command has all that --set said"
    weights = folder / "run" / "teacher" / "weights.safetensors"
    ok("export", "cnn_m", folder / "teacher.onnx", "--inputs", "input:N,1,8,8", "--weights", weights)
    return folder / "teacher.onnx"


def answers_of(model: Path, x: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(model)
    logits: np.ndarray = session.run(None, {"input": x.astype(np.float32)})[0]
    return logits


def ready(x: np.ndarray) -> np.ndarray:
    """Digits as the recipe prepares them: 0..1, channels first."""
    return (x.astype(np.float32) * np.float32(1 / 255)).transpose(0, 3, 1, 2)


@pytest.fixture
def server(trained: Path) -> Iterator[Server]:
    def answer(x: np.ndarray, ids: list[int]) -> Mapping[str, Any]:
        return {"logits": answers_of(trained, x).tolist(), "ids": ids}

    with serving(answer) as found:
        yield found


def black_box(folder: Path, teacher: str) -> Path:
    """The recipe `digits` with another teacher."""
    text = ok("recipes", "digits")
    before, rest = text.split("[teacher]\n")
    path = folder / "black_box.toml"
    path.write_text(f"{before}[teacher]\n{teacher}\n\n[student]\n{rest.split('[student]')[1][1:]}")
    return path


def outputs_on_validation(run: Path) -> np.ndarray:
    found: np.ndarray = np.load(run / "outputs" / "teacher.npy")
    return found


# Behind a URL


def test_a_teacher_behind_a_url(server: Server, trained: Path, digits: Dataset, quick: Any, tmp_path: Path) -> None:
    request = "request = {batch_size = 200, concurrency = 3}"
    recipe = black_box(tmp_path, f'url = "{server.url}"\nlicence = "MIT"\n{request}')
    settings = ("distill.epochs=10", "data.views=2", "distill.baseline=true")
    environment = ("--cache", tmp_path / "answers")
    results = job(recipe, tmp_path / "run", *settings, options=(*quick, *environment))
    train, val = 1079, 359
    assert len(server.ids) == 2 * train + val, "each view of each training sample, each validation sample, once"
    budget = results["run"]["budget"]
    assert budget["teacher_passes"] == 2 * train
    assert budget["images_seen"] == 10 * train
    rows = rows_of(results)
    assert not {name for name in rows if name.startswith("teacher")}, "nobody can time it"
    assert rows[results["run"]["chosen"]]["accuracy"]["value"] > 0.85, "the student learned"
    np.testing.assert_allclose(
        outputs_on_validation(tmp_path / "run"), answers_of(trained, ready(digits.val.x)), rtol=0, atol=1e-5
    )
    validation = results["run"]["validation"]
    assert validation["teacher"]["accuracy"]["value"] > 0.85
    assert results["run"]["licences"]["teacher"] == "MIT"
    manifest = ok_json("inspect", tmp_path / "run" / "student.edgekd")
    assert manifest["provenance"]["teacher"]["name"] == "black box"
    assert "teacher" in (tmp_path / "run" / "report.html").read_text().lower()

    # Another student, another run: nobody is asked.
    server.bodies.clear()
    again = job(recipe, tmp_path / "again", *settings, "student.model=dscnn_s", options=(*quick, *environment))
    assert server.ids == []
    assert again["run"]["budget"]["teacher_passes"] == 0
    listed = ok_json("cache", "info", *environment)["caches"]
    assert {row["name"] for row in listed} == {"digits train", "digits val"}
    assert {row["facts"]["teacher"]["url"] for row in listed} == {server.url}
    checked = ok_json(
        "cache", "verify", "--recipe", recipe, *(f"--set={item}" for item in settings), "--out", tmp_path / "run",
        "--samples", "30", *environment,
    )  # fmt: skip
    assert checked["ok"]
    assert len(server.ids) == 30


def test_the_run_goes_on_where_the_server_died(server: Server, tmp_path: Path) -> None:
    recipe = black_box(tmp_path, f'url = "{server.url}"\nlicence = "MIT"\nrequest = {{batch_size = 100, retries = 0}}')
    answer = server.answer
    server.answer = lambda x, ids: answer(x, ids) if len(server.bodies) <= 9 else {"error": "out of memory"}
    arguments = ("distill", recipe, "--set=data.views=1", "--set=distill.epochs=2", "--set=distill.baseline=false",
                 "--set=threads=1", "--out", tmp_path / "run", "--cache", tmp_path / "answers")  # fmt: skip
    told = refused(5, *arguments)
    assert f"{server.url} answered an object with error" in told
    assert "it says 'out of memory'; answers so far are kept" in told
    answered = server.ids[: 359 + 500]
    assert len(answered) == len(server.ids) - 100
    server.bodies.clear()
    server.answer = answer
    ok(*arguments)
    assert not set(server.ids) & set(answered)
    assert len(server.ids) + len(answered) == 359 + 1079


def test_hard_labels_and_a_credential_from_the_environment(server: Server, tmp_path: Path) -> None:
    answer = server.answer
    server.answer = lambda x, ids: {"labels": [str(row) for row in np.argmax(answer(x, ids)["logits"], axis=1)]}
    teacher = (
        f'url = "{server.url}"\nlicence = "MIT"\nrequest = {{headers = {{Authorization = "MY_KEY"}}, encoding = "npy"}}'
    )
    recipe = black_box(tmp_path, teacher)
    arguments = ("distill", recipe, "--student-only", "--set=data.views=1", "--set=distill.epochs=8", "--set=threads=1",
                 "--out", tmp_path / "run", "--cache", tmp_path / "answers")  # fmt: skip
    told = refused(2, *arguments)
    assert "teacher.request.headers.Authorization: the environment variable MY_KEY is not set" in told
    assert server.headers == []
    done = edgekd(*arguments, "--json", env={"MY_KEY": "Bearer very-secret"})
    assert done.returncode == 0, done.stderr
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer very-secret"}
    assert json.loads(done.stdout)["stages"]["student"]["best"] > 0.8
    written = [path for folder in ("run", "answers") for path in (tmp_path / folder).rglob("*") if path.is_file()]
    assert written
    assert not [path for path in written if b"very-secret" in path.read_bytes()]
    index = next(path for path in written if path.name == "index.json" and b'"digits train"' in path.read_bytes())
    assert json.loads(index.read_text())["tensors"]["topk_indices"]["shape"] == [1]


# In a file


@pytest.mark.parametrize("kind", ["logits", "probabilities", "topk", "labels"])
def test_a_teacher_that_is_a_file(kind: str, trained: Path, digits: Dataset, tmp_path: Path) -> None:
    ids = np.concatenate([digits.train.ids, digits.val.ids])
    logits = answers_of(trained, ready(np.concatenate([digits.train.x, digits.val.x])))
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    top = np.argsort(-p, axis=1)[:, :3]
    arrays = {
        "logits": {"logits": logits},
        "probabilities": {"probabilities": p},
        "topk": {"topk_indices": top, "topk_probabilities": np.take_along_axis(p, top, axis=1)},
        "labels": {"labels": p.argmax(axis=1)},
    }[kind]
    np.savez(tmp_path / "answers.npz", ids=ids, classes=np.array(digits.labels), **arrays)
    recipe = black_box(tmp_path, 'logits = "answers.npz"\nlicence = "MIT"')
    told = ok_json(
        "distill", recipe, "--student-only", "--set=distill.epochs=8", "--set=threads=1", "--out", tmp_path / "run"
    )
    assert told["stages"]["teacher"]["best"] == pytest.approx((p.argmax(axis=1)[1079:] == digits.val.y).mean())
    assert told["stages"]["student"]["best"] > 0.8
    assert told["stages"]["student"]["teacher_passes"] == 0


def test_a_whole_run_from_a_file(trained: Path, digits: Dataset, quick: Any, tmp_path: Path) -> None:
    ids = np.concatenate([digits.train.ids, digits.val.ids])
    logits = answers_of(trained, ready(np.concatenate([digits.train.x, digits.val.x])))
    np.savez(tmp_path / "answers.npz", ids=ids, logits=logits)
    recipe = black_box(tmp_path, 'logits = "answers.npz"\nlicence = "MIT"')
    results = job(recipe, tmp_path / "run", "distill.epochs=10", options=quick)
    assert results["run"]["budget"]["teacher_passes"] == 0
    assert set(results["run"]["roles"].values()) == {"variant"}
    done = edgekd("distill-and-export", recipe, *quick, "--set=distill.epochs=10", "--out", tmp_path / "run")
    assert "nothing changed" in done.stdout
    np.testing.assert_array_equal(outputs_on_validation(tmp_path / "run"), logits[1079:].astype(np.float32))
    # Answers in another order of the classes would teach every class wrongly.
    np.savez(tmp_path / "answers.npz", ids=ids, logits=logits[:, ::-1])
    told = refused(3, "distill", recipe, *quick, "--set=distill.epochs=10", "--out", tmp_path / "run")
    assert "in another order than the data: right for" in told
    # Other answers: teacher and student again.
    np.savez(tmp_path / "answers.npz", ids=ids, logits=logits / 2)
    told = refused(
        3,
        "distill",
        recipe,
        *quick,
        "--set=data.limit=2000",
        "--set=teacher.logits=nowhere.npz",
        "--out",
        tmp_path / "x",
    )
    assert "teacher.logits: there is no file" in told
    worked = ok_json("distill", recipe, *quick, "--set=distill.epochs=10", "--out", tmp_path / "run")["worked"]
    assert worked == ["teacher", "student"]


def test_a_file_that_does_not_cover_the_data(digits: Dataset, tmp_path: Path) -> None:
    ids = digits.train.ids
    np.savez(tmp_path / "answers.npz", ids=ids, logits=np.zeros((len(ids), 10), np.float32))
    recipe = black_box(tmp_path, 'logits = "answers.npz"\nlicence = "MIT"')
    told = refused(3, "distill", recipe, "--out", tmp_path / "run")
    first = ", ".join(map(str, digits.val.ids[:5]))
    assert f"has no answers for 359 of 359 samples of val, with the ids {first} and 354 more" in told
    assert "expected one for every sample of train and val" in told


def test_augmentation_and_a_file_are_warned_about(digits: Dataset, tmp_path: Path) -> None:
    ids = np.concatenate([digits.train.ids, digits.val.ids])
    np.savez(tmp_path / "answers.npz", ids=ids, labels=np.concatenate([digits.train.y, digits.val.y]))
    recipe = black_box(tmp_path, 'logits = "answers.npz"\nlicence = "MIT"')
    done = edgekd(
        "distill", recipe, "--student-only", "--set=distill.epochs=1", "--set=threads=1", "--out", tmp_path / "r"
    )
    assert done.returncode == 0, done.stderr
    assert "each augmented sample gets the answer to the original" in " ".join(done.stderr.split())


def test_results_name_what_was_asked(server: Server, quick: Any, tmp_path: Path) -> None:
    """A cached run keeps its budget when it is run again: nothing is asked, and nothing is told otherwise."""
    recipe = black_box(tmp_path, f'url = "{server.url}"\nlicence = "MIT"')
    options = (
        *quick,
        "--set=data.views=1",
        "--set=distill.epochs=2",
        "--cache",
        tmp_path / "answers",
        "--out",
        tmp_path / "run",
    )
    for _ in range(2):
        done = edgekd("distill-and-export", recipe, *options)
        assert done.returncode == 0, done.stderr
        assert read_results(tmp_path / "run")["run"]["budget"]["teacher_passes"] == 1079
    assert "nothing changed" in done.stdout
