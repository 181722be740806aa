"""PyTorch eager as a runtime: the module's own numbers, through the same session as every other runtime."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from commands import edgekd, ok, refused
from torch import Tensor

from edgekd.assets import find
from edgekd.device.runtimes import open_session, why_missing, why_no_cuda
from edgekd.device.suites import load_suite
from edgekd.device.worker import OnDevice
from edgekd.distill.models import build_model, save_weights
from edgekd.distill.torch_runtime import Recorded, load_model_json, open_model, save_model_json
from edgekd.errors import MissingHere, ModelError, UsageError
from edgekd.results import read_results
from edgekd.spec import TensorSpec


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    torch.manual_seed(3)
    module = build_model("mlp", num_outputs=3, input_shape=(2, 2), args={"hidden": [5], "batch_norm": True}).eval()
    save_weights(module, tmp_path / "weights.safetensors")
    path = save_model_json(
        tmp_path / "model.json",
        reference="mlp",
        args={"hidden": [5], "batch_norm": True},
        num_outputs=3,
        input_shape=(2, 2),
        weights="weights.safetensors",
    )
    return path, module


def test_a_session_gives_what_the_module_gives(saved: tuple[Path, torch.nn.Module]) -> None:
    path, module = saved
    session = open_session(path, runtime="torch", threads=1)
    assert session.inputs == (TensorSpec("input", "float32", ("N", 2, 2)),)
    assert session.outputs == (TensorSpec("logits", "float32", ("N", 3)),)
    x = np.random.default_rng(0).normal(size=(4, 2, 2)).astype(np.float32)
    x.flags.writeable = False
    outputs = session.run({"input": x})
    assert list(outputs) == ["logits"]
    with torch.no_grad():
        np.testing.assert_array_equal(outputs["logits"], module(torch.tensor(x)).numpy())
    session.close()
    session.close()
    with pytest.raises(UsageError, match="this session is closed"):
        session.run({"input": x})


def test_threads_are_set_while_open_and_put_back(saved: tuple[Path, torch.nn.Module]) -> None:
    before = torch.get_num_threads()
    session = open_model(saved[0], threads=before + 1, options={})
    assert torch.get_num_threads() == before + 1
    session.close()
    assert torch.get_num_threads() == before


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
# torch's own compiler still uses what torch has deprecated.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning", "ignore:.*script_method:DeprecationWarning")
def test_compiled_gives_what_eager_gives(saved: tuple[Path, torch.nn.Module]) -> None:
    x = np.random.default_rng(0).normal(size=(4, 2, 2)).astype(np.float32)
    with patch.object(torch, "compile", wraps=torch.compile) as compiling:
        session = open_session(saved[0], runtime="torch-compiled", threads=1)
        eager = open_session(saved[0], runtime="torch", threads=1)
    compiling.assert_called_once()
    np.testing.assert_allclose(session.run({"input": x})["logits"], eager.run({"input": x})["logits"], atol=1e-5)
    session.close()
    eager.close()


def test_opening_leaves_the_random_generator_alone(saved: tuple[Path, torch.nn.Module]) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    loaded = load_model_json(saved[0])
    assert torch.equal(torch.rand(3), expected)
    assert not loaded.training
    assert all(torch.equal(value, saved[1].state_dict()[name]) for name, value in loaded.state_dict().items())


def test_a_model_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "own_net.py").write_text("import torch\n\ndef build():\n    return torch.nn.Identity()\n")
    path = save_model_json(
        tmp_path / "model.json",
        reference="own_net:build",
        num_outputs=2,
        input_shape=(2,),
        weights=None,
        search_path=tmp_path,
    )
    session = open_model(path, threads=1, options={})
    assert session.run({"input": np.ones((1, 2), np.float32)})["logits"].tolist() == [[1.0, 1.0]]
    session.close()


def test_wrong_feeds_and_options(saved: tuple[Path, torch.nn.Module]) -> None:
    session = open_model(saved[0], threads=1, options={})
    with pytest.raises(UsageError, match="found inputs 'x', expected 'input'"):
        session.run({"x": np.zeros((1, 2, 2), np.float32)})
    with pytest.raises(UsageError, match="input 'input' is float64, expected float32"):
        session.run({"input": np.zeros((1, 2, 2))})
    session.close()
    with pytest.raises(UsageError, match="runtime 'torch' knows the options compile, device, graphs, found spin"):
        open_model(saved[0], threads=1, options={"spin": 1})
    with pytest.raises(UsageError, match=r"opens a model.json beside its weights, found the bytes of a model"):
        open_model(b"", threads=1, options={})


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{", "is no JSON"),
        ("[]", "holds a list, expected the keys reference, args, num_outputs"),
        ('{"reference": 3}', "'reference' is 3, expected str"),
        ('{"reference": "mlp", "args": {}}', "'num_outputs' is None, expected int"),
    ],
)
def test_a_description_that_leads_nowhere(tmp_path: Path, content: str, text: str) -> None:
    path = tmp_path / "model.json"
    path.write_text(content)
    with pytest.raises(ModelError) as caught:
        open_model(path, threads=1, options={})
    assert text in str(caught.value)
    with pytest.raises(ModelError, match=r"no model description .*none.json; expected a model.json"):
        open_model(tmp_path / "none.json", threads=1, options={})


def test_weights_that_are_missing(saved: tuple[Path, torch.nn.Module]) -> None:
    described = json.loads(saved[0].read_text())
    saved[0].write_text(json.dumps({**described, "weights": "gone.safetensors"}))
    with pytest.raises(ModelError, match=r"no weights file .*gone.safetensors"):
        load_model_json(saved[0])


def test_a_recording_is_made_for_each_shape_and_fed_through_one_buffer(saved: tuple[Path, torch.nn.Module]) -> None:
    """With a recorder for the CPU in the place of CUDA's: what it gives must be read before the next call."""
    recorded: list[torch.Size] = []

    def on_cpu(forward: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
        recorded.append(x.shape)
        y = forward(x)

        def replay() -> Tensor:
            return y.copy_(forward(x))

        return replay

    module = saved[1]
    call = Recorded(module, "cpu", on_cpu)
    random = np.random.default_rng(0)
    inputs = [torch.from_numpy(random.normal(size=(n, 2, 2)).astype(np.float32)) for n in (1, 64, 1, 7, 64, 1)]
    with torch.inference_mode():
        outputs = [call(x) for x in inputs]
        for x, y in zip(inputs, outputs):
            torch.testing.assert_close(y, module(x))
    assert [size[0] for size in recorded] == [1, 64, 7]


def test_threads_of_one_recording_take_turns(saved: tuple[Path, torch.nn.Module]) -> None:
    module = saved[1]

    def slowly(forward: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
        def replay() -> Tensor:
            time.sleep(0.002)
            return forward(x)

        return replay

    call = Recorded(module, "cpu", slowly)
    inputs = [torch.full((1, 2, 2), float(value)) for value in range(40)]

    def ask(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return call(x)

    with ThreadPoolExecutor(8) as pool, torch.inference_mode():
        for x, y in zip(inputs, pool.map(ask, inputs)):
            torch.testing.assert_close(y, module(x))


def test_options_that_do_not_fit_are_refused(saved: tuple[Path, torch.nn.Module]) -> None:
    with pytest.raises(UsageError, match="graphs are CUDA's; expected the device 'cuda' with them"):
        open_model(saved[0], threads=1, options={"graphs": True})
    with pytest.raises(UsageError, match="found the device 'tpu', expected cpu or cuda"):
        open_model(saved[0], threads=1, options={"device": "tpu"})


CUDA = ("torch-cuda", "torch-cuda-compiled", "torch-cuda-graphs")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason=f"{why_no_cuda()}: run it on a GPU machine")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
@pytest.mark.parametrize("runtime", CUDA)
def test_without_cuda_the_reason_is_told_and_nothing_runs_on_the_cpu(
    runtime: str, saved: tuple[Path, torch.nn.Module]
) -> None:
    reason = why_missing(runtime)
    assert reason is not None
    assert torch.__version__ in reason
    assert "without CUDA" in reason or "sees no CUDA device" in reason
    with pytest.raises(MissingHere) as caught:
        open_session(saved[0], runtime=runtime)
    assert str(caught.value) == f"{reason}; leave the runtimes torch-cuda out"
    said = refused(1, "benchmark", saved[0], "--runtime", runtime, "--suite", "quick")
    assert f"model.json: {reason}" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_the_cuda_suite_leaves_out_what_is_not_here_and_says_why(
    saved: tuple[Path, torch.nn.Module], tmp_path: Path
) -> None:
    names = load_suite("cuda").runtimes
    assert set(CUDA) < set(names)
    text = (Path(find("benchmarks", "suites", "cuda"))).read_text()
    for key, value in {"max_seconds": "0.5", "cold_starts": "0", "launches": "1", "batches": "[1]"}.items():
        text = re.sub(rf"(?m)^{key} = .*", f"{key} = {value}", text)
    (tmp_path / "mine.toml").write_text(text)
    done = edgekd("benchmark", saved[0], "--suite", tmp_path / "mine.toml", "--json")
    assert done.returncode == 0, done.stderr
    for name in CUDA:
        assert f"left out of the suite mine: {name}: {why_missing(name)}" in done.stderr
    assert "left out of the suite mine: onnxruntime-cuda: none of the candidates is a file" in done.stderr
    assert [item["runtime"] for item in json.loads(done.stdout)["candidates"]] == ["torch"]


@needs_cuda
@pytest.mark.parametrize("runtime", CUDA)
def test_on_cuda_the_numbers_are_those_of_the_cpu(runtime: str, tmp_path: Path) -> None:
    path = save_model_json(
        tmp_path / "model.json",
        reference="cnn_m",
        num_outputs=10,
        input_shape=(1, 28, 28),
        weights="weights.safetensors",
    )
    save_weights(build_model("cnn_m", num_outputs=10, input_shape=(1, 28, 28)), tmp_path / "weights.safetensors")
    session, cpu = open_session(path, runtime=runtime), open_session(path, runtime="torch")
    random = np.random.default_rng(0)
    before = torch.backends.cudnn.allow_tf32
    for size in (1, 64, 1, 7):
        x = random.normal(size=(size, 1, 28, 28)).astype(np.float32)
        # Ten bits, as TF32 has them, would not be that close.
        np.testing.assert_allclose(session.run({"input": x})["logits"], cpu.run({"input": x})["logits"], atol=2e-5)
    assert isinstance(session, OnDevice)
    assert isinstance(cpu, OnDevice)
    memory = session.device_memory_mb()
    assert memory is not None
    assert memory > 0
    assert cpu.device_memory_mb() is None
    session.close()
    cpu.close()
    assert before == torch.backends.cudnn.allow_tf32


@needs_cuda
def test_the_cuda_suite_runs_on_a_gpu(saved: tuple[Path, torch.nn.Module], tmp_path: Path) -> None:
    out = tmp_path / "cuda.json"
    runtimes = ",".join(("torch", *CUDA))
    ok("benchmark", saved[0], "--runtime", runtimes, "--suite", "cuda", "--batch", "1,64", "--out", out)
    results = read_results(out)
    assert results["machine"]["gpu"]
    for candidate, row in zip(results["candidates"], results["rows"]):
        assert "error" not in row
        assert ("device_memory_mb" in row) == (candidate["runtime"] in CUDA)
