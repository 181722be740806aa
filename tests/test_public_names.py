"""The names that edgekd promises, where it promises them, and what importing them costs."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

PROMISED = {
    "edgekd": "Bundle Prediction Predictor __version__ load open_session",
    "edgekd.device": "Bundle Candidate Prediction Predictor RUNTIMES Samples Session Suite load load_suite "
    "open_session self_test",
    "edgekd.graph": "Fp16 Inspection Int4WeightOnly Int8Dynamic Int8QAT Int8Static MixedPrecision QuantizeResult "
    "Target Tolerance VARIANTS VerifyResult inspect load_target quantize verify",
    "edgekd.distill": "CachedTeacher EnsembleTeacher ExportResult FakeQuantized HttpTeacher LOSSES LogitsFile MODELS "
    "ModuleTeacher Objective OnnxTeacher Schedule Stage Taps Teacher Term TrainResult build_model distill evaluate "
    "export fake_quantize list_taps write_quantized",
}


@pytest.mark.parametrize("package", PROMISED)
def test_promised_names_are_there_and_no_others(package: str) -> None:
    module = importlib.import_module(package)
    assert sorted(module.__all__) == sorted(PROMISED[package].split())
    for name in module.__all__:
        value = getattr(module, name)
        assert getattr(value, "__name__", name) == name, "the thing itself, not the module that it lies in"
    assert set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_names_that_are_functions_of_modules() -> None:
    from edgekd.device.benchmark import benchmark
    from edgekd.pipeline import distill_and_export

    assert callable(benchmark)
    assert callable(distill_and_export)


@pytest.mark.parametrize("package", PROMISED)
def test_importing_a_package_imports_nothing_heavy(package: str) -> None:
    code = f"import sys, {package}; print(sorted({{'torch', 'onnx', 'onnxruntime', 'pydantic'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
