"""The reject option through the command line: digits of which three are "none of these"."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from commands import edgekd, ok, ok_json, refused
from digit_files import digits
from ends import SUITE, job, rows_of

from edgekd.data.digits import LABELS
from edgekd.device.bundle import Bundle
from edgekd.device.rejection import log_confidence, reject
from edgekd.device.runtimes import open_session
from edgekd.distill.evaluation import evaluate
from edgekd.errors import RecipeError
from edgekd.graph.rejection import find_rule, without_rule
from edgekd.recipe import load_recipe
from edgekd.report import to_html
from edgekd.run_folder import Silence
from edgekd.stages.training import load_trained
from edgekd.stages.workspace import Workspace

RECIPE = """
version = 1
name = "rejecting"
[data]
kind = "arrays"
root = "digits_and_none.npz"
labels = ["0", "1", "2", "none", "3", "4", "5", "6"]
[preprocess]
steps = [{op = "scale"}, {op = "layout", to = "CHW"}]
[postprocess]
steps = [{op = "softmax", temperature = "calibrated"}]
[teacher]
model = "cnn_s"
train = {epochs = 8, batch_size = 32, lr = 3e-3}
[student]
model = "mlp_s"
[distill]
epochs = 12
batch_size = 32
lr = 3e-3
[export]
reject = {label = "none", keep = 0.9}
formats = ["ort", "openvino"]
[quantize]
variants = ["int8_u8s8", "int8_qat"]
qat = {epochs = 2}
[benchmark]
suite = "tiny.toml"
"""
NONE = 3


def digits_and_none() -> dict[str, np.ndarray]:
    """7, 8 and 9 are none of the others; training shows twelve of them, validation and test many."""
    x, digit = digits()
    y = np.where(digit > 6, NONE, np.where(digit > 2, digit + 1, digit))
    unknown = np.flatnonzero(y == NONE)
    train = np.concatenate([np.flatnonzero((y != NONE) & (np.arange(len(y)) < 1000)), unknown[:12]])
    rest = np.setdiff1d(np.arange(len(y)), train)
    places = {"": train, "_val": rest[::2], "_test": rest[1::2]}
    return {
        f"{name}{split}": values[place]
        for split, place in places.items()
        for name, values in {"x": x[..., None], "y": y}.items()
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rejecting")
    np.savez(folder / "digits_and_none.npz", **digits_and_none())
    (folder / "tiny.toml").write_text(SUITE)
    (folder / "recipe.toml").write_text(RECIPE)
    job(folder / "recipe.toml", folder / "run", options=("--threads", "1"))
    return folder / "run"


def workspace(run: Path) -> Workspace:
    loaded = load_recipe(run.parent / "recipe.toml", environ={})
    return Workspace(loaded.recipe, loaded.folder, run, Silence(), "cpu", 1, "", "")


def stage(run: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "stages" / f"{name}.json").read_text())["result"]
    return found


def results_of(run: Path) -> dict[str, Any]:
    from edgekd.results import read_results

    return read_results(run)


def outputs(path: Path, feeds: dict[str, Any]) -> Any:
    session = open_session(path, threads=1)
    try:
        return session.run(feeds)["logits"]
    finally:
        session.close()


def test_every_exported_graph_follows_the_rule_with_its_own_threshold(run: Path) -> None:
    space = workspace(run)
    val, found = space.prepared.dataset.val, stage(run, "export")
    thresholds = set()
    for name in ("teacher", "student", "student_alone"):
        threshold = found[name]["reject"]
        plain = evaluate(load_trained(space, name), val, space.prepared.arithmetic)
        certain = np.exp(log_confidence(plain[val.y != NONE], NONE))
        assert (certain >= threshold["value"]).mean() == pytest.approx(threshold["kept"])
        assert 0.9 <= threshold["kept"] < 0.92
        assert threshold["n"] == (val.y != NONE).sum()
        given = outputs(run / "export" / f"{name}.onnx", space.prepared.feeds(val))
        np.testing.assert_allclose(given, reject(plain, NONE, threshold["value"]), rtol=1e-4, atol=1e-4)
        unknown = val.y == NONE
        before, after = ((answer.argmax(axis=1) == NONE)[unknown].mean() for answer in (plain, given))
        assert after > before + 0.1, "more of what is none of these is recognized"
        thresholds.add(threshold["value"])
    assert len(thresholds) == 3


def test_variants_golden_vectors_and_the_teacher_in_pytorch_hold(run: Path) -> None:
    results = results_of(run)
    rows = rows_of(results)
    assert {"teacher-pytorch", "teacher-onnx", "student-alone", "float32", "int8_u8s8", "int8_qat"} <= rows.keys()
    assert {item["golden"] for item in results["candidates"]} == {None, "ok"}
    assert rows["teacher-pytorch"]["accuracy"] == rows["teacher-onnx"]["accuracy"]
    assert rows["teacher-pytorch"]["agreement"] == 1.0
    parity = stage(run, "verify")["parity"]
    assert {name: item["ok"] for name, item in parity.items()} == dict.fromkeys(parity, True)
    assert {"float32", "int8_u8s8", "int8_qat"} == parity.keys()
    assert ok_json("verify", run / "student.edgekd")["ok"]
    for name in ("int8_u8s8", "int8_qat"):
        rule = find_rule(onnx.load(run / "variants" / f"{name}.onnx"))
        assert rule is not None
        assert rule.nodes[0].op_type == "ReduceMax"
    made = stage(run, "bundle")["formats"]
    assert not made["refused"]


def test_training_variants_goes_on_from_the_logits_before_the_rule(run: Path) -> None:
    space = workspace(run)
    model = onnx.load(run / "variants" / "int8_qat.onnx")
    rule = find_rule(model)
    assert rule is not None
    network = run / "network.onnx"
    onnx.save(without_rule(model, rule), network)
    session = open_session(network, threads=1)
    val = space.prepared.dataset.val
    plain = next(iter(session.run(space.prepared.feeds(val)).values()))
    session.close()
    network.unlink()
    known = val.y != NONE
    assert (plain.argmax(axis=1) == val.y)[known].mean() > 0.9


def test_the_temperature_is_fitted_behind_the_rule(run: Path) -> None:
    calibration = stage(run, "verify")["calibration"]
    assert calibration["nll_after"] <= calibration["nll_before"]
    answers = json.loads((run / "student.edgekd" / "bundle.json").read_text())["postprocess"]
    assert answers == [{"op": "softmax", "temperature": calibration["temperature"]}]


def test_predict_gives_that_label_for_what_is_rejected(run: Path, tmp_path: Path) -> None:
    space = workspace(run)
    test = space.prepared.dataset.test
    given = outputs(run / "export" / "student.onnx", space.prepared.feeds(test)).argmax(axis=1)
    plain = evaluate(load_trained(space, "student"), test, space.prepared.arithmetic).argmax(axis=1)
    changed, kept = np.flatnonzero((given == NONE) & (plain != NONE))[0], np.flatnonzero(given != NONE)[0]
    labels = Bundle.open(run / "student.edgekd").manifest["labels"]
    for number, place in enumerate((changed, kept)):
        path = tmp_path / f"{number}.npy"
        np.save(path, np.asarray(test.x[[place]]))
        told = ok_json("predict", run / "student.edgekd", path, "--variant", "float32")
        label = (told["predictions"] if isinstance(told, dict) else told)[0]["label"]
        assert label == ("none" if number == 0 else labels[given[place]])


def test_export_of_the_run_has_the_rule_too(run: Path, tmp_path: Path) -> None:
    ok("export", run, tmp_path / "student.onnx")
    space = workspace(run)
    feeds = space.prepared.feeds(space.prepared.dataset.test)
    given, wanted = (outputs(path, feeds) for path in (tmp_path / "student.onnx", run / "export" / "student.onnx"))
    assert (given == wanted).all()


def test_the_report_says_what_is_rejected(run: Path) -> None:
    results = results_of(run)
    told = results["run"]["reject"]
    assert (told["label"], told["keep"]) == ("none", 0.9)
    assert {name: item["value"] for name, item in told["models"].items()} == {
        name: stage(run, "export")[name]["reject"]["value"] for name in ("teacher", "student", "student_alone")
    }
    text = (run / "report.md").read_text()
    value = told["models"]["student"]["value"]
    assert "## Reject option" in text
    assert f"* student: below {value:.3g} the answer is none; " in text
    assert "it keeps 90 % of the validation samples of other classes" in text
    space = workspace(run)
    test = space.prepared.dataset.test
    given = outputs(run / "export" / "teacher.onnx", space.prepared.feeds(test)).argmax(axis=1)
    known = test.y != NONE
    right, recall = (100 * (given == test.y)[which].mean() for which in (known, ~known))
    assert f"on test: {right:.1f} % of {known.sum()} of other classes right, {recall:.1f} % of " in text
    assert "Reject option" in to_html(results)


def test_another_share_trains_nothing_again(run: Path) -> None:
    def todo(*sets: str) -> list[str]:
        options = ["--threads", "1", *(f"--set={item}" for item in sets), "--out", run, "--dry-run"]
        rows = ok_json("distill-and-export", run.parent / "recipe.toml", *options)["stages"]
        return [row["stage"] for row in rows if row["state"] == "to do"]

    assert todo() == []
    # A variant that is trained begins with the exported graph.
    assert todo("export.reject.keep=0.8")[:3] == ["export", "int8_qat", "quantize"]


def test_c_refuses_it(run: Path, tmp_path: Path) -> None:
    done = edgekd("embed", run / "student.edgekd", "--app", "c", "--out", tmp_path / "c")
    assert done.returncode != 0
    assert "ends in the reject option ([export] reject)" in " ".join(done.stderr.split())


def test_a_teacher_that_is_a_graph_stays_as_it_is(run: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher.onnx"
    teacher.write_bytes((run / "export" / "teacher.onnx").read_bytes())
    out = tmp_path / "run"
    settings = (
        f'teacher={{onnx="{teacher}", licence="mine"}}',
        "distill.baseline=false",
        "distill.epochs=2",
        "quantize.variants=[]",
        "quantize.qat={}",
        "export.formats=[]",
    )
    results = job(run.parent / "recipe.toml", out, *settings, options=("--threads", "1"))
    assert results["run"]["reject"]["models"].keys() == {"teacher", "student"}
    assert results["run"]["reject"]["models"]["teacher"] is None
    assert (out / "export" / "teacher.onnx").read_bytes() == teacher.read_bytes()
    assert "* teacher: as it is: the rule is put into models of PyTorch only" in (out / "report.md").read_text()


def test_wrong_recipes_are_told_before_anything_runs(run: Path, tmp_path: Path) -> None:
    recipe = run.parent / "recipe.toml"
    said = refused(2, "distill-and-export", recipe, "--set", "export.reject.label=noen", "--out", tmp_path / "r")
    assert "export.reject: the data has no label 'noen'. Did you mean 'none'?" in said
    arrays, other = digits_and_none(), tmp_path / "only_none.npz"
    arrays["y_val"] = np.full_like(arrays["y_val"], NONE)
    np.savez(other, **arrays)
    said = refused(3, "distill-and-export", recipe, "--set", f"data.root={other}", "--out", tmp_path / "r")
    assert "validation samples are of the class 'none'; expected some of another" in said


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (['export.reject={label="3", keep=1.0}'], "export.reject.keep"),
        (['export.reject={label="3", keep=0.0}'], "export.reject.keep"),
        (["export.reject={keep=0.9}"], "export.reject.label"),
        (['export.reject={label="3", kep=0.9}'], "unknown key 'export.reject.kep'. Did you mean 'keep'?"),
        (
            ["task=regression", "data.kind=arrays", 'export.reject={label="3"}'],
            "export.reject gives a sample to one of several classes, but task = 'regression'",
        ),
    ],
)
def test_contradictions_are_refused(overrides: list[str], text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("digits", overrides=overrides, environ={}, check_files=False)
    assert text in str(caught.value)
    assert len(LABELS) == 10
