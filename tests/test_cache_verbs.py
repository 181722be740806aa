"""Teachers' answers through the command line: built once, used by every student, verified, listed, deleted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import edgekd, ok, ok_json, refused
from ends import short

from edgekd.results import read_results

pytestmark = pytest.mark.slow

SETTINGS = ("teacher.model=cnn_s", "teacher.args={}", "teacher.train.epochs=2", "distill.epochs=3", "data.views=2")
ANSWERS = 2 * 1079  # views, training samples of the digits


def sets(*settings: str) -> list[str]:
    return [f"--set={setting}" for setting in (*SETTINGS, "threads=1", *settings)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that trained a teacher, in `run`, and its answers, in `answers`."""
    folder = tmp_path_factory.mktemp("built")
    told = ok_json(
        "cache", "build", "--recipe", "digits", *sets(), "--out", folder / "run", "--cache", folder / "answers"
    )
    assert told["asked"] == ANSWERS
    assert told["complete"]
    return folder


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    shutil.copytree(built, tmp_path / "copy")
    return tmp_path / "copy"


def of(folder: Path) -> Sequence[str | Path]:
    return ("--recipe", "digits", *sets(), "--out", folder / "run", "--cache", folder / "answers")


def key_of(folder: Path) -> str:
    [path] = (folder / "answers").iterdir()
    return path.name


def test_built_once(built: Path) -> None:
    told = ok_json("cache", "build", *of(built))
    assert told["asked"] == 0
    assert (told["num_samples"], told["views"]) == (1079, 2)
    assert told["size_bytes"] >= ANSWERS * 10 * 4
    assert told["facts"]["augment"] == {"shift": 1}
    text = ok("cache", "build", *of(built))
    assert "it was there: nothing was asked" in text
    assert "edgekd distill-and-export digits" in text


def test_two_students_cost_one_teacher(tmp_path: Path) -> None:
    """The second run, with another student, asks the teacher nothing: seen in its results."""
    options = [*short(tmp_path), *sets("distill.cache=true", "quantize.variants=['int8_dynamic']")]
    budgets, weights = [], []
    for number, student in enumerate(("cnn_s", "dscnn_s")):
        run = tmp_path / str(number)
        done = edgekd(
            "distill-and-export", "digits", *options, f"--set=student.model={student}", "--out", run,
            env={"EDGEKD_CACHE": str(tmp_path / "kept")},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        budgets.append(read_results(run)["run"]["budget"])
        weights.append((run / "student" / "weights.safetensors").read_bytes())
    assert [budget["teacher_passes"] for budget in budgets] == [ANSWERS, 0]
    assert [budget["images_seen"] for budget in budgets] == [3 * 1079] * 2
    assert len(list((tmp_path / "kept" / "teachers").iterdir())) == 1
    # And what it learned is what the live teacher teaches over the same views, to the last bit.
    ok("distill", "digits", *(o for o in options if "cache" not in o), "--student-only", "--out", tmp_path / "live")
    assert (tmp_path / "live" / "student" / "weights.safetensors").read_bytes() == weights[0]


def test_in_bfloat16_the_answers_are_the_live_teachers_too(tmp_path: Path) -> None:
    """Whether they are kept changes no bit of the student; answers in other numbers are others."""
    options = ["--student-only", *sets("distill.precision=bfloat16")]
    kept = ("--set=distill.cache=true", "--cache", tmp_path / "answers")
    ok("distill", "digits", *options, "--out", tmp_path / "live")
    ok("distill", "digits", *options, *kept, "--out", tmp_path / "run")
    live, learned = ((tmp_path / name / "student" / "weights.safetensors").read_bytes() for name in ("live", "run"))
    assert learned == live
    [row] = ok_json("cache", "info", "--cache", tmp_path / "answers")["caches"]
    assert row["facts"]["teacher"]["precision"] == "bfloat16"
    logits = np.concatenate([np.load(path) for path in sorted((tmp_path / "answers").rglob("*.0.npy"))])
    assert not logits.view(np.uint16)[:, ::2].any(), "every one is a bfloat16"
    where = ("--recipe", "digits", *options[1:], "--out", tmp_path / "run", "--cache", tmp_path / "answers")
    assert ok_json("cache", "verify", *where)["ok"]
    weights = f"teacher.weights={tmp_path / 'run' / 'teacher' / 'weights.safetensors'}"
    other = (*where[:-4], f"--set={weights}", "--out", tmp_path / "other", "--cache", tmp_path / "answers")
    assert ok_json("cache", "build", *other)["asked"] == 0, "the same teacher, finished"
    assert ok_json("cache", "build", *other, "--set=distill.precision=float32")["asked"] == ANSWERS


def test_a_run_finds_what_was_deleted_meanwhile_missing_and_asks_again(copied: Path) -> None:
    arguments = ("distill", "digits", "--student-only", *sets("distill.cache=true"))
    where = ("--out", copied / "run", "--cache", copied / "answers")
    assert ok_json(*arguments, *where)["stages"]["cache"]["teacher_passes"] == ANSWERS, "as the build said"
    shutil.rmtree(copied / "answers")
    told = ok_json(*arguments, "--set=distill.lr=0.001", *where)
    assert told["worked"] == ["student"]
    assert told["stages"]["student"]["teacher_passes"] == 0
    assert key_of(copied), "built again on the way"


def test_verify_asks_the_teacher_again(built: Path) -> None:
    told = ok_json("cache", "verify", *of(built), "--samples", "50")
    assert (told["ok"], told["compared"]) == (True, 50)
    assert told["max_abs_diff"]["logits"] <= told["tolerance"]["logits"]
    assert "hashes hold; 64 answers asked for again" in ok("cache", "verify", *of(built))


def test_verify_finds_answers_of_another_teacher(copied: Path) -> None:
    """With hashes that hold: somebody put them there."""
    folder = copied / "answers" / key_of(copied)
    index = json.loads((folder / "index.json").read_text())
    described = index["shards"][0]["files"]["logits"]
    values = np.load(folder / described["file"])
    np.save(folder / described["file"], np.roll(values, 1, axis=1))
    import hashlib

    described["sha256"] = hashlib.sha256((folder / described["file"]).read_bytes()).hexdigest()
    (folder / "index.json").write_text(json.dumps(index))
    told = refused(1, "cache", "verify", *of(copied))
    assert "the teacher now gives other answers to" in told
    assert f"edgekd cache prune {folder.name}" in told


def test_what_was_built_for_something_else_is_not_used_and_the_difference_is_named(copied: Path) -> None:
    told = refused(3, "cache", "verify", *of(copied), "--set=data.augment={shift=1,flip=true}")
    assert "holds no answers of this teacher to this data; the nearest cache" in told
    assert 'augment {"shift": 1} there, {"shift": 1, "flip": true} here' in told
    assert "teacher.weights" in told, "trained with another augmentation, the teacher is another too"
    assert "views" not in told


def test_damage_is_refused_by_verify_and_by_a_run(copied: Path) -> None:
    path = next((copied / "answers").rglob("00000.0.npy"))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    told = refused(3, "cache", "verify", "--cache", copied / "answers")
    assert "00000.0.npy was changed: its sha256 is another" in told
    told = refused(
        3, "distill", "digits", *sets("distill.cache=true"), "--out", copied / "run", "--cache", copied / "answers"
    )
    assert f"drop it with `edgekd cache prune {key_of(copied)}`, and it is built again" in told
    assert f"deleted {key_of(copied)}" in ok("cache", "prune", key_of(copied), "--cache", copied / "answers")
    assert ok_json("cache", "build", *of(copied))["asked"] == ANSWERS


def test_info(built: Path, tmp_path: Path) -> None:
    told = ok_json("cache", "info", "--cache", built / "answers")
    [row] = told["caches"]
    assert (row["key"], row["name"], row["views"]) == (key_of(built), "digits train", 2)
    assert row["tensors"] == {
        "logits": {"dtype": "float32", "shape": [10]},
        "pixels": {"dtype": "float32", "shape": []},
    }
    assert row["unused_days"] < 1
    text = ok("cache", "info", "--cache", built / "answers")
    assert "1,079 x 2" in text
    assert "cnn_s" in text
    assert "hashes hold" in ok("cache", "verify", "--cache", built / "answers")
    assert "0 caches in" in ok("cache", "info", "--cache", tmp_path / "nothing")


def test_prune(copied: Path) -> None:
    where = ("--cache", copied / "answers")
    assert "0 caches deleted" in ok("cache", "prune", "--older-than-days", "1", *where)
    index = next((copied / "answers").rglob("index.json"))
    os.utime(index, (1e9, 1e9))
    told = ok_json("cache", "prune", "--older-than-days", "1", *where)
    assert told["removed"] == [index.parent.name]
    assert told["freed_bytes"] > ANSWERS * 40
    assert list((copied / "answers").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("build",), "--recipe is missing; a shipped recipe"),
        (("build", "somekey", "--recipe", "digits"), "KEY is for cache verify and info and prune"),
        (("prune",), "say what to delete: KEY"),
        (("prune", "--recipe", "digits"), "--recipe is for cache build and verify"),
        (("prune", "nothing"), "has no cache 'nothing'; `edgekd cache info` lists them"),
        (("info", "nothing"), "has no cache 'nothing'. Known: none"),
        (("info", "--max-size-mb", "3"), "--max-size-mb is for cache prune"),
        (("verify", "somekey", "--recipe", "digits"), "found a recipe and the cache somekey, expected one of them"),
        (("build", "--recipe", "digits"), "data.views is missing: distill.cache keeps the teacher's answers"),
    ],
)
def test_what_does_not_fit(arguments: Sequence[str], expected: str, tmp_path: Path) -> None:
    assert expected in refused(2, "cache", *arguments, "--cache", tmp_path / "none")


def test_a_dry_run_says_what_the_answers_take(tmp_path: Path) -> None:
    told = ok_json("distill-and-export", "digits", *sets("distill.cache=true"), "--dry-run", "--out", tmp_path / "run")
    assert told["cache_mb"] == pytest.approx(ANSWERS * 44 / 1e6)
    assert "cache" in [row["stage"] for row in told["stages"]]
    few = ok_json(
        "distill-and-export",
        "digits",
        *sets("distill.cache=true", "distill.cache_top_k=2"),
        "--dry-run",
        "--out",
        tmp_path,
    )
    assert few["cache_mb"] == pytest.approx(ANSWERS * (2 * 2 + 2 * 4 + 4 + 4) / 1e6)
    none = ok_json("distill-and-export", "digits", *sets(), "--dry-run", "--out", tmp_path / "run")
    assert none["cache_mb"] == 0


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    told = refused(
        2, "cache", "build", "--recipe", "digits", *sets(), "--out", tmp_path / "r", "--cache", tmp_path / "file"
    )
    assert "is there a file where a folder should be" in told


def test_a_killed_build_goes_on(tmp_path: Path, built: Path) -> None:
    """Killed as soon as the first shard is there; nothing of it is asked for again, and the bytes are the same."""
    shutil.copytree(built / "run", tmp_path / "run")
    slow = tmp_path / "slow.py"
    slow.write_text(
        "import os, signal\n"
        "from edgekd.distill import cache_build\n"
        "cache_build.SHARD_ROWS = 500\n"
        "write = cache_build.write_json  # the index, which names the shard\n"
        "def killed(*args):\n"
        "    write(*args)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "cache_build.write_json = killed\n"
        "from edgekd.cli import main\n"
        "main()\n"
    )
    arguments = ["cache", "build", *map(str, of(tmp_path))]
    done = subprocess.run([sys.executable, slow, *arguments], capture_output=True, text=True, timeout=600)
    assert done.returncode == -signal.SIGKILL, done.stderr
    shutil.rmtree(tmp_path / "run" / "stages" / "cache.json", ignore_errors=True)
    half = ok_json("cache", "info", "--cache", tmp_path / "answers")["caches"][0]
    assert not half["complete"]
    told: Any = ok_json(*arguments)
    assert 0 < told["asked"] < ANSWERS
    answers = [np.concatenate([np.load(p) for p in sorted(f.rglob("*.0.npy"))]) for f in (built, tmp_path)]
    np.testing.assert_array_equal(answers[0], answers[1])


def test_an_adapter_reads_the_teacher_that_is_only_remembered(tmp_path: Path) -> None:
    """OFD's margins come of the weights of the teacher's norm: those of the trained one, as without a cache."""
    terms = "distill.terms=[{loss='kd'}, {loss='overhaul_partial_l2', student_tap='2.1', teacher_tap='2.1'}]"
    options = ["--student-only", *sets("teacher.model=cnn_m", terms)]
    kept = ("--set=distill.cache=true", "--cache", tmp_path / "answers")
    live = ok_json("distill", "digits", *options, "--out", tmp_path / "live")["stages"]["student"]
    told = ok_json("distill", "digits", *options, *kept, "--out", tmp_path / "run")["stages"]["student"]
    assert (live["teacher_passes"], told["teacher_passes"]) == (3 * 1079, 0)
    for one, other in zip(live["history"], told["history"], strict=True):
        assert other["terms"] == pytest.approx(one["terms"], rel=1e-2)


def test_what_no_cache_can_hold_is_said_before_the_teacher_is_trained(tmp_path: Path) -> None:
    kept = ("--set=distill.cache=true", "--cache", tmp_path / "answers")
    options = ("--student-only", *sets("distill.cache_top_k=10"), *kept, "--out", tmp_path / "run")
    assert "distill.cache_top_k = 10, but there are 10 classes" in refused(2, "distill", "digits", *options)
    assert not (tmp_path / "run" / "teacher").exists()
    # And what only a cache gives can be looked at.
    largest = "{loss='topk_cross_entropy', teacher_tap=['topk_indices', 'topk_probabilities']}"
    options = ("--student-only", *sets("distill.cache_top_k=3", f"distill.terms=[{largest}]"), *kept)
    ok("distill", "digits", *options, "--set=distill.epochs=1", "--out", tmp_path / "run")


def test_features_are_kept_too(tmp_path: Path) -> None:
    """A term on what a layer gives: as the live teacher's, but for half precision; mixed samples as well."""
    feature = "{loss='logit_mse', name='feature', student_tap='2', teacher_tap='2', adapter='auto'}"
    terms = f"distill.terms=[{{loss='kd'}}, {feature}]"
    options = ["--student-only", *sets("teacher.model=cnn_m", terms, "distill.mixup=0.4")]
    kept = ("--set=distill.cache=true", "--cache", tmp_path / "answers")
    live = ok_json("distill", "digits", *options, "--out", tmp_path / "live")["stages"]["student"]
    told = ok_json("distill", "digits", *options, *kept, "--out", tmp_path / "run")["stages"]
    assert (live["teacher_passes"], told["student"]["teacher_passes"]) == (3 * 1079, 0)
    for one, other in zip(live["history"], told["student"]["history"], strict=True):
        assert other["terms"]["feature"] > 0
        assert other["terms"] == pytest.approx(one["terms"], rel=1e-2)
    [row] = ok_json("cache", "info", "--cache", tmp_path / "answers")["caches"]
    assert row["tensors"]["2"]["dtype"] == "float16"
    assert row["facts"]["mixing"] == [0.4, 0.0]
    planned = ok_json("distill-and-export", "digits", *options[1:], *kept[:1], "--dry-run", "--out", tmp_path / "plan")
    # A student that looks at less of the same teacher finds what was kept for this one.
    fewer = (*kept, "--set=distill.terms=[{loss='kd'}]", "--set=student.model=dscnn_s")
    assert ok_json("distill", "digits", *options, *fewer, "--out", tmp_path / "run")["stages"]["cache"] == {
        **told["cache"], "teacher_passes": 0,
    }  # fmt: skip
    size = sum(int(np.prod(item["shape"])) * np.dtype(item["dtype"]).itemsize for item in row["tensors"].values())
    assert planned["cache_mb"] == pytest.approx(ANSWERS * size / 1e6)
