"""PyTorch eager as a runtime: the module's own numbers, through the same session as every other runtime."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekd.device.runtimes import open_session
from edgekd.distill.models import build_model, save_weights
from edgekd.distill.torch_runtime import load_model_json, open_model, save_model_json
from edgekd.errors import ModelError, UsageError
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
    session = open_session(saved[0], runtime="torch-compiled", threads=1)
    eager = open_session(saved[0], runtime="torch", threads=1)
    assert isinstance(session._module, torch._dynamo.eval_frame.OptimizedModule)  # type: ignore[attr-defined]
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
    with pytest.raises(UsageError, match="runtime 'torch' knows the option 'compile' only, found spin"):
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
