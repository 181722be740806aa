"""The command line as a user types it: every verb in a process of its own, on one small real run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import edgekd, ok, ok_json, refused

from edgekd.results import read_results

QUICK = (
    "--set=teacher.train.epochs=2",
    "--set=teacher.args={width=8,depth=8}",
    "--set=distill.epochs=3",
)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished run on the embedded digits."""
    path = tmp_path_factory.mktemp("run") / "digits"
    done = edgekd("distill-and-export", "digits", *QUICK, "--set=limits.accuracy_drop_points=90", "--out", path)
    assert done.returncode == 0, done.stderr
    (path / "stdout.txt").write_text(done.stdout)
    (path / "stderr.txt").write_text(done.stderr)
    return path


@pytest.fixture(scope="session")
def samples(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real digits as the model sees them, and as an app has them."""
    from edgekd.data.registry import load_dataset
    from edgekd.device.bundle import Bundle
    from edgekd.device.preprocess import apply_arithmetic, split_steps
    from edgekd.spec import parse_steps

    test = load_dataset(kind="digits").test
    steps = split_steps(parse_steps(Bundle.open(run / "student.edgekd").manifest["preprocess"]))[1]
    folder = tmp_path_factory.mktemp("samples")
    np.savez(folder / "model.npz", input=apply_arithmetic(steps, test.x))
    np.savez(folder / "raw.npz", x=test.x, y=test.y)
    return folder


VERBS = (
    "distill-and-export", "recipes", "init", "distill", "export", "quantize", "verify", "bundle", "benchmark",
    "compare", "report", "cache", "predict", "inspect", "runner", "doctor",
)  # fmt: skip


def test_help_names_every_verb() -> None:
    text = ok("--help")
    for verb in VERBS:
        assert verb in text


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_each_verb_teaches_and_imports_nothing_heavy(verb: str) -> None:
    code = (
        "import sys\nfrom edgekd.cli import main\n"
        f"sys.argv = ['edgekd', {verb!r}, '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'matplotlib', 'sklearn', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout
    assert "--debug" in done.stdout


def test_no_arguments_show_help_and_unknown_verb_is_a_usage_error() -> None:
    assert "distill-and-export" in edgekd().stdout
    done = edgekd("distil-and-export")
    assert done.returncode == 2
    assert "distill-and-export" in done.stderr
    assert "Traceback" not in done.stderr


def test_version() -> None:
    from edgekd import __version__

    assert ok("--version").strip() == f"edgekd {__version__}"


def test_run_prints_table_paths_limits_and_next_commands(run: Path) -> None:
    text = (run / "stdout.txt").read_text()
    for row in ("teacher", "student alone", "float32", "int8"):
        assert row in text.lower(), row
    assert "limit met" in text or "limit unproven" in text
    assert str(run / "student.edgekd") in text
    assert str(run / "report.html") in text
    assert text.count("  edgekd ") == 3
    assert "\x1b[" not in text, "colours only on a terminal"


def test_run_folder_holds_what_the_readme_says(run: Path) -> None:
    for name in (
        "recipe.toml", "report.html", "report.md", "student.edgekd/bundle.json",
        "student.edgekd/golden.npz", "export/teacher.onnx", "export/student.onnx", "export/student_alone.onnx",
        "student/weights.safetensors",
    ):  # fmt: skip
        assert (run / name).is_file(), name
    assert not list(run.rglob(".tmp-*"))
    assert (run / "report.html").read_text().count("<svg") >= 2


def test_results_follow_the_schema_and_test_is_not_in_the_bundle(run: Path) -> None:
    results = read_results(run)
    assert results["schema"] == "edgekd.results/1"
    assert results["verdict"]["value"] in ("VALID", "INVALID")
    rows = {row["candidate"]: row for row in results["rows"]}
    assert {"teacher-pytorch", "teacher-onnx", "student-alone", "float32"} <= set(rows)
    counts = results["run"]["counts"]
    assert rows["float32"]["accuracy"]["n"] == counts["test"]
    assert rows["teacher-onnx"]["drop_points"] is None, "it is the reference"
    assert rows["float32"]["drop_points"]["low"] <= rows["float32"]["drop_points"]["value"]
    assert rows["float32"]["speedup"]["against"] == "teacher-onnx"
    assert len(results["samples"]["float32"]["latency_ns"]) == rows["float32"]["n"]
    manifest = json.loads((run / "student.edgekd" / "bundle.json").read_text())
    assert "test" not in json.dumps(manifest["variants"]["float32"]["metrics"])
    assert manifest["samples"] is None


def test_second_run_does_nothing_and_says_so(run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    done = edgekd("distill-and-export", "digits", *QUICK, "--set=limits.accuracy_drop_points=90", "--out", run)
    assert done.returncode == 0, done.stderr
    assert "nothing changed" in done.stdout
    changed = {path.name for path in before if before[path] != path.stat().st_mtime_ns}
    assert changed <= {"run.lock"}


def test_changed_limits_choose_again_without_training(run: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    done = edgekd("distill-and-export", "digits", *QUICK, "--set=limits.size_kb=0.5", "--out", copy, "-v")
    assert done.returncode == 1
    assert "size_kb <= 0.5" in done.stderr
    assert "missed by" in done.stderr
    assert "teacher: unchanged" in done.stderr
    assert "student: unchanged" in done.stderr
    assert (copy / "student.edgekd" / "bundle.json").is_file(), "nothing is lost"
    assert (copy / "report.html").is_file()


def test_dry_run_says_stages_time_and_disk_and_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    text = ok("distill-and-export", "digits", *QUICK, "--out", out, "--dry-run")
    for word in ("teacher", "student_alone", "benchmark", "to do", " MB in ", "nothing was written"):
        assert word in text
    assert not out.exists()
    plan = ok_json("distill-and-export", "digits", *QUICK, "--out", out, "--dry-run")
    assert plan["seconds"] > 0
    assert plan["disk_mb"] > 0


def test_dry_run_of_a_finished_run(run: Path) -> None:
    plan = ok_json("distill-and-export", *QUICK, "--set=limits.accuracy_drop_points=90", "--out", run, "--dry-run")
    assert {row["state"] for row in plan["stages"]} == {"done"}


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (("--set", "distill.temprature=4"), 2, "unknown key 'distill.temprature'"),
        (("--set", "distill.epochs=many"), 2, "distill.epochs"),
        (("--set", "student.model=cnn_xs"), 3, "unknown model 'cnn_xs'. Did you mean 'cnn_s'?"),
        (("--set", "data.kind=digit"), 2, "Did you mean 'digits'?"),
        (("--target", "moon"), 2, "moon"),
        (("--device", "gpu"), 2, "unknown device 'gpu'. Did you mean 'cpu'? Known: auto, cpu, cuda, mps"),
        (("--threads", "4096"), 2, "4096"),
        (("--force", "trian"), 2, "there is no such stage"),
        (("--set", "teacher.weights=nowhere.safetensors"), 3, "nowhere.safetensors"),
    ],
)
def test_mistakes_end_in_a_sentence(tmp_path: Path, args: tuple[str, ...], code: int, text: str) -> None:
    done = edgekd("distill-and-export", "digits", *QUICK, "--out", tmp_path / "run", *args)
    assert done.returncode == code, done.stderr
    assert text in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = edgekd("distill-and-export", "digits", "--set", "nope=1", "--out", tmp_path / "run", "--debug")
    assert "Traceback" in done.stderr
    assert done.returncode != 0


def test_verify_bundle_and_refusal_of_a_changed_byte(run: Path, tmp_path: Path) -> None:
    import shutil

    result = ok_json("verify", run / "student.edgekd")
    assert result["ok"]
    assert {row["variant"] for row in result["variants"]} >= {"float32"}
    copy = tmp_path / "student.edgekd"
    shutil.copytree(run / "student.edgekd", copy)
    graph = next(copy.rglob("*.onnx"))
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(bytes(data))
    done = edgekd("verify", copy)
    assert done.returncode == 3
    assert graph.name in done.stderr


def test_predict_reads_arrays_and_images(run: Path, samples: Path, tmp_path: Path) -> None:
    from PIL import Image

    answers = ok_json("predict", run / "student.edgekd", samples / "raw.npz", "--top-k", "3")["predictions"]
    with np.load(samples / "raw.npz") as data:
        labels, first = data["y"], data["x"][0]
    assert len(answers) == len(labels)
    assert all(len(answer["top"]) == 3 for answer in answers)
    right = np.mean([answer["label"] == str(label) for answer, label in zip(answers, labels, strict=True)])
    expected = read_results(run)
    chosen = next(row for row in expected["rows"] if row["candidate"] == expected["run"]["chosen"])
    assert right == pytest.approx(chosen["accuracy"]["value"], abs=1e-9), "the app sees what the report says"
    picture = tmp_path / "digit.png"
    Image.fromarray(np.asarray(first[..., 0], dtype=np.uint8)).resize((64, 64)).save(picture)
    assert ok("predict", run / "student.edgekd", picture).startswith(str(picture))


def test_export_quantize_verify_inspect_alone(run: Path, samples: Path, tmp_path: Path) -> None:
    student = tmp_path / "student.onnx"
    exported = ok_json("export", run, student)
    assert exported["opset"] == 18
    assert exported["ir_version"] == 8
    assert student.read_bytes() == (run / "export" / "student.onnx").read_bytes(), "built twice, the same bytes"
    small = tmp_path / "int8.onnx"
    quantized = ok_json("quantize", student, small, "--config", "int8_static", "--data", samples / "model.npz")
    assert quantized["num_quantized"] > 0
    assert quantized["label_agreement"] > 0.5
    compared = ok_json("verify", student, student, "--samples", samples / "model.npz")
    assert compared["ok"]
    assert compared["max_abs_diff"] == 0
    other = edgekd(
        "verify", student, run / "export" / "student_alone.onnx", "--strict", "--samples", samples / "model.npz"
    )
    assert other.returncode == 1
    found = ok_json("inspect", student)
    assert found["opset"] == 18
    assert found["macs"] > 0
    assert ok_json("inspect", run / "student.edgekd")["version"] == 1


def test_export_of_a_builtin_needs_its_shape(tmp_path: Path) -> None:
    done = edgekd("export", "cnn_s", tmp_path / "a.onnx")
    assert done.returncode == 2
    assert "--inputs input:N,1,28,28" in done.stderr
    assert ok_json("export", "cnn_s", tmp_path / "a.onnx", "--inputs", "image:N,1,28,28")["size_bytes"] > 0


def test_limits_of_quantize_put_the_file_aside(run: Path, tmp_path: Path) -> None:
    done = edgekd(
        "quantize",
        run / "export" / "student.onnx",
        tmp_path / "q.onnx",
        "--config",
        "int8_dynamic",
        "--limits",
        "size_kb=0.1",
    )
    assert done.returncode == 1
    assert not (tmp_path / "q.onnx").exists()
    assert (tmp_path / "q.rejected.onnx").exists()


def test_bundle_of_a_run_as_zip_with_samples(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "student.edgekd"
    ok("bundle", run, out, "--zip", "--samples", "20")
    assert out.is_file()
    assert ok_json("verify", out)["ok"]
    assert ok_json("inspect", out)["samples"]["count"] == 20


def test_bundle_of_somebody_elses_model(run: Path, tmp_path: Path) -> None:
    model, out = run / "export" / "student.onnx", tmp_path / "other.edgekd"
    done = edgekd("bundle", model, out)
    assert done.returncode == 2
    assert "--licence" in done.stderr
    labels = ",".join("abcdefghij")
    ok(
        "bundle",
        model,
        out,
        "--licence",
        "MIT",
        "--labels",
        labels,
        "--preprocess",
        '[{"op":"scale","factor":0.0625},{"op":"layout","to":"CHW"}]',
    )
    assert ok_json("verify", out)["ok"]
    manifest = ok_json("inspect", out)
    assert manifest["labels"] == list("abcdefghij")
    assert manifest["licence"] == "MIT"


def test_benchmark_of_a_bundle_against_its_teacher(run: Path, samples: Path, tmp_path: Path) -> None:
    out = tmp_path / "here.json"
    results = ok_json(
        "benchmark",
        run / "student.edgekd",
        "--against",
        run / "export" / "teacher.onnx",
        "--data",
        samples / "raw.npz",
        "--out",
        out,
    )
    assert results == read_results(out)
    rows = {row["candidate"]: row for row in results["rows"]}
    assert "teacher.onnx" in rows
    assert rows["student.edgekd:float32"]["speedup"]["against"] == "teacher.onnx"
    assert rows["student.edgekd:float32"]["accuracy"]["n"] > 300
    ok("report", out, "--html", tmp_path / "r.html", "--md", tmp_path / "r.md", "--csv", tmp_path / "r.csv")
    assert "teacher.onnx" in (tmp_path / "r.md").read_text()


def test_benchmark_refuses_what_is_not_there(run: Path) -> None:
    done = edgekd("benchmark", "nowhere.edgekd")
    assert done.returncode == 3
    assert "nowhere.edgekd is not there" in done.stderr
    done = edgekd("benchmark", f"{run / 'student.edgekd'}:int9")
    assert done.returncode == 2
    assert "no variant 'int9'" in done.stderr


def test_report_of_a_run_and_of_something_else(run: Path, tmp_path: Path) -> None:
    ok("report", run, "--md", tmp_path / "r.md")
    assert "float32" in (tmp_path / "r.md").read_text()
    (tmp_path / "x.json").write_text('{"schema": "other"}')
    done = edgekd("report", tmp_path / "x.json")
    assert done.returncode == 3
    assert "edgekd.results/1" in done.stderr


def test_recipes_list_show_copy(tmp_path: Path) -> None:
    text = ok("recipes")
    for name in ("digits", "mnist", "fashion_mnist", "image_folder", "arrays"):
        assert name in text
    shown = ok("recipes", "digits")
    copy = tmp_path / "my.toml"
    ok("recipes", "digits", "--copy", copy)
    assert copy.read_text() == shown
    assert edgekd("recipes", "digits", "--copy", copy).returncode == 2, "an existing file is not overwritten"
    for more in ((), ("--losses",), ("--losses", "kd"), ("--models",)):
        assert "--copy copies a recipe, by its name" in refused(2, "recipes", *more, "--copy", tmp_path / "new.toml")
    assert not (tmp_path / "new.toml").exists()
    assert edgekd("recipes", "digit").returncode == 2
    models = ok_json("recipes", "--models")
    assert {"cnn_s", "cnn_m", "cnn_l"} <= {row["model"] for row in models}
    assert all(row["parameters"] > 0 and row["macs"] > 0 for row in models)


def test_distill_alone_and_going_on_from_it(tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = ok_json("distill", "digits", *QUICK, "--student-only", "--out", out)
    assert result["worked"] == ["data", "teacher", "student"]
    assert (out / "student" / "weights.safetensors").is_file()
    assert not (out / "student_alone").exists()
    again = ok("distill", "digits", *QUICK, "--student-only", "--out", out)
    assert "nothing changed" in again
    assert ok_json("export", out, tmp_path / "s.onnx")["size_bytes"] > 0


def test_doctor() -> None:
    text = ok("doctor")
    assert "onnxruntime" in text
    assert "pip install" in text or "installed" in text
    found = ok_json("doctor")
    assert found["python"]


def test_seed_option_changes_the_run(tmp_path: Path) -> None:
    for seed in ("1", "2"):
        ok("distill", "digits", *QUICK, "--student-only", "--out", tmp_path / seed, "--seed", seed)
    first, second = ((tmp_path / seed / "student" / "weights.safetensors").read_bytes() for seed in ("1", "2"))
    assert first != second
