"""The doctor: what it says about packages, runtimes and noise, on this machine and on made-up ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from edgekd import toml
from edgekd.doctor import (
    EXTRAS,
    INCLUDED,
    check_runtime,
    diagnose,
    installed_version,
    noise_sources,
    to_json,
)

ROOT = Path(__file__).parent.parent
MACHINE = {"cores": 4, "cores_allowed": 4, "quota": None, "governor": None}


def test_the_extras_are_those_of_the_package() -> None:
    project = toml.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {name: extra for name, extra in project["optional-dependencies"].items() if name != "dev"}
    assert set(EXTRAS) == set(declared)
    for name, requirements in declared.items():
        own = [re.split(r"[><=;\[ ]", text)[0] for text in requirements if not text.startswith("edgekd[")]
        assert EXTRAS[name][1] == tuple(own)
        included = [text for text in requirements if text.startswith("edgekd[")]
        assert sorted(INCLUDED.get(name, ())) == sorted(",".join(included)[7:-1].split(",") if included else [])


def test_this_machine_runs_onnx_models() -> None:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    check = check_runtime("onnxruntime")
    assert check.works, check.detail
    assert check.detail == installed_version("onnxruntime")


def test_a_runtime_that_is_not_there_is_told_with_its_cure() -> None:
    check = check_runtime("abacus")
    assert not check.works
    assert "abacus" in check.detail
    assert check.install == "pip install 'edgekd[cpu]'"


def test_missing_packages_are_named_with_the_exact_line() -> None:
    diagnosis = diagnose(version_of={"numpy": "2.0", "onnxruntime": "1.31", "torch": "2.13"}.get)
    extras = {extra.name: extra for extra in diagnosis.extras}
    assert extras["cpu"].installed
    assert extras["gpu"].missing == ("onnxruntime-gpu",)
    assert not extras["train"].installed
    assert {"torchvision", "onnx", "pillow", "jinja2"} <= set(extras["train"].missing)
    assert "torch" not in extras["train"].missing
    assert extras["train"].install == "pip install 'edgekd[train]'"
    assert {package.name: package.version for package in diagnosis.packages}["torch"] == "2.13"
    assert diagnosis.problems == ()


def test_two_builds_of_one_module_are_a_problem() -> None:
    diagnosis = diagnose(version_of={"onnxruntime": "1.31", "onnxruntime-gpu": "1.31"}.get)
    assert len(diagnosis.problems) == 1
    assert "pip uninstall onnxruntime onnxruntime-gpu" in diagnosis.problems[0]


def test_it_is_plain_json() -> None:
    plain = json.loads(json.dumps(to_json(diagnose())))
    assert plain["extras"][0]["name"] == "cpu"
    assert isinstance(plain["extras"][0]["installed"], bool)
    assert "flags" not in plain["machine"]


def made_up(tmp_path: Path, *, load: str, pressure: str) -> Path:
    (tmp_path / "proc/pressure").mkdir(parents=True)
    (tmp_path / "proc/loadavg").write_text(f"{load} 1.0 1.0 1/100 4242\n")
    (tmp_path / "proc/pressure/cpu").write_text(
        f"some avg10={pressure} avg60=99.00 avg300=99.00 total=1\nfull avg10=88.00 avg60=0.00 avg300=0.00 total=0\n"
    )
    return tmp_path


def test_a_quiet_machine_gets_no_advice(tmp_path: Path) -> None:
    root = made_up(tmp_path, load="0.10", pressure="0.50")
    sources = noise_sources({**MACHINE, "governor": "performance"}, root=root)
    assert {source.name: source.value for source in sources} == {
        "frequency governor": "performance",
        "load, last minute": "0.10 on 4 cores",
        "CPU pressure, 10 s": "0.5 %",
        "cores for this process": "4 of 4",
    }
    assert [source.advice for source in sources] == ["", "", "", ""]


def test_a_noisy_machine_is_told_what_to_do(tmp_path: Path) -> None:
    root = made_up(tmp_path, load="3.20", pressure="42.00")
    machine = {"cores": 4, "cores_allowed": 1, "quota": 1.5, "governor": "powersave"}
    advice = {source.name: source.advice for source in noise_sources(machine, root=root)}
    assert "cpupower frequency-set -g performance" in advice["frequency governor"]
    assert "other programs run" in advice["load, last minute"]
    assert "stop some of them" in advice["CPU pressure, 10 s"]
    assert "1.5 cores" in advice["container quota"]
    assert "one core" in advice["cores for this process"]


def test_what_the_system_does_not_tell_is_left_out(tmp_path: Path) -> None:
    assert [source.name for source in noise_sources(MACHINE, root=tmp_path)] == ["cores for this process"]
