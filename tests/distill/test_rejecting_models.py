"""The reject option as a part of a model: the rule's answers, exported, opened by its description, trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from edgekd.device.rejection import reject
from edgekd.device.runtimes import open_session
from edgekd.distill.qat import fake_quantize, write_quantized
from edgekd.distill.rejection import Rejecting
from edgekd.distill.to_onnx import export
from edgekd.distill.torch_runtime import load_model_json, open_model, save_model_json
from edgekd.errors import ModelError
from edgekd.graph.quantization import Int8QAT
from edgekd.spec import Array, TensorSpec

CLASSES, INPUTS = 7, 16


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(INPUTS, 32), nn.ReLU(), nn.Linear(32, CLASSES)).eval()


def samples(count: int = 64) -> Array:
    return (6 * np.random.default_rng(0).standard_normal((count, INPUTS))).astype(np.float32)


def exported(path: Path, *, rejected: int = 3, threshold: float = 0.3) -> Path:
    module = Rejecting(network(), rejected=rejected, num_classes=CLASSES, threshold=threshold)
    spec = TensorSpec("input", "float32", ("N", INPUTS))
    return export(module, path, inputs=(spec,), samples={"input": samples()}).path


@pytest.mark.parametrize("rejected", [0, 3, 6])
@pytest.mark.parametrize("count", [1, 200])
def test_the_module_gives_the_rules_logits(rejected: int, count: int) -> None:
    logits = (3 * np.random.default_rng(1).standard_normal((count, CLASSES))).astype(np.float32)
    module = Rejecting(nn.Identity(), rejected=rejected, num_classes=CLASSES, threshold=0.4)
    with torch.no_grad():
        found = module(torch.from_numpy(logits)).numpy()
    wanted = reject(logits, rejected, 0.4)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)
    assert (np.delete(found, rejected, axis=1) == np.delete(logits, rejected, axis=1)).all()
    assert (found.argmax(axis=1) == wanted.argmax(axis=1)).all()


def test_extreme_logits_do_not_overflow() -> None:
    logits = torch.tensor([[1e38, -1e38, 0.0], [-1e5, -1e5, -1e5], [1e5, 1e5, 1e5], [90.0, 0.0, -90.0]])
    found = Rejecting(nn.Identity(), rejected=1, num_classes=3, threshold=0.9)(logits)
    assert torch.isfinite(found).all()
    assert found.argmax(dim=1).tolist() == [0, 1, 1, 0]


def test_a_model_that_gives_a_mapping_is_taken() -> None:
    class Named(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": x, "hidden": x + 1}

    x = torch.zeros(2, 3)
    assert Rejecting(Named(), rejected=2, num_classes=3, threshold=0.5)(x).argmax(dim=1).tolist() == [2, 2]


def test_the_graph_has_the_rule_of_standard_operators_and_an_open_batch(tmp_path: Path) -> None:
    path = exported(tmp_path / "net.onnx")
    graph = onnx.load(path)
    assert {node.domain for node in graph.graph.node} == {""}
    assert graph.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "N"
    x = samples(100)
    with torch.no_grad():
        wanted = reject(network()(torch.from_numpy(x)).numpy(), 3, 0.3)
    session = open_session(path, threads=1)
    for count in (1, 2, 7, 100):
        found = session.run({"input": x[:count]})["logits"]
        np.testing.assert_allclose(found, wanted[:count], rtol=1e-4, atol=1e-4)
    session.close()
    rejects = found.argmax(axis=1) == 3
    assert rejects.sum() > (network()(torch.from_numpy(x)).argmax(dim=1) == 3).sum(), "the rule is at work"


def described(folder: Path, **reject: object) -> Path:
    return save_model_json(
        folder / "model.json",
        reference="mlp_s",
        num_outputs=CLASSES,
        input_shape=[INPUTS],
        weights=None,
        reject=reject or None,
    )


def test_a_description_may_hold_the_rule(tmp_path: Path) -> None:
    path = described(tmp_path, **{"class": 2, "threshold": 0.999})
    assert isinstance(load_model_json(path), Rejecting)
    session = open_model(path, threads=1, options={})
    assert (session.run({"input": samples(5)})["logits"].argmax(axis=1) == 2).all(), "untrained, it is never certain"
    session.close()
    assert not isinstance(load_model_json(described(tmp_path)), Rejecting)


@pytest.mark.parametrize(
    "rule", [{"class": 7, "threshold": 0.5}, {"class": 0, "threshold": 1.0}, {"threshold": 0.5}, {"class": 1}, "oos"]
)
def test_a_description_of_another_rule_is_refused(tmp_path: Path, rule: object) -> None:
    path = described(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "reject": rule}))
    with pytest.raises(ModelError, match=r"'reject' is .*, expected the number of a 'class' and a 'threshold'"):
        load_model_json(path)


def test_quantization_aware_training_sees_the_logits_before_the_rule(tmp_path: Path) -> None:
    x = samples()
    module = fake_quantize(exported(tmp_path / "net.onnx", threshold=0.9), Int8QAT(), calibration={"input": x})
    inputs = torch.from_numpy(x)
    with torch.no_grad():
        before, after = module.train()(inputs).numpy(), module.eval()(inputs).numpy()
    np.testing.assert_allclose(after, reject(before, 3, 0.9), rtol=1e-5, atol=1e-5)
    assert (before != after).any()
    module.train()(inputs).square().mean().backward()
    trained = [name for name, value in module.named_parameters() if value.grad is not None]
    assert sum("weight" in name for name in trained) >= 2
    result = write_quantized(module.eval(), tmp_path / "int8_qat.onnx", samples={"input": x})
    session = open_session(result.path, threads=1)
    assert (session.run({"input": x})["logits"].argmax(axis=1) == after.argmax(axis=1)).mean() > 0.98
    session.close()
