"""A few graphs of the table in benchmarks/: those that others wrote pass, or are refused with a reason."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import onnx
import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = runpy.run_path(str(ROOT / "benchmarks/foreign_graphs.py"), run_name="foreign_graphs")


def test_a_net_of_onnx_own_zoo_passes_every_step(tmp_path: Path) -> None:
    path = next(path for path in SCRIPT["light_models"]() if path.stem == "light_shufflenet")
    assert SCRIPT["examine"](path, tmp_path) == dict.fromkeys(SCRIPT["STEPS"], "passes")


@pytest.mark.parametrize("damage", ["foreign operator", "lost weights"])
def test_what_cannot_be_used_is_refused_with_a_reason(tmp_path: Path, damage: str) -> None:
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"], domain="com.example" if damage.startswith("f") else "")
    weight = onnx.numpy_helper.from_array(np.full((4, 4), 0.5, np.float32), "w")
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", 4]) for name in "xy"]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:], [weight])
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.example", 1)]
    path = tmp_path / "m.onnx"
    lost = damage == "lost weights"
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.save(model, path, save_as_external_data=lost, location="m.data", size_threshold=0)
    if lost:
        answers = SCRIPT["examine"](path, tmp_path)
        assert set(answers.values()) == {"passes"}
        (tmp_path / "m.data").unlink()
        answers = SCRIPT["examine_apart"](path, 300)
        assert all("copy it beside the model" in answer for answer in answers.values())
    else:
        answers = SCRIPT["examine"](path, tmp_path)
        assert answers.pop("inspect") == "passes", "its problems say that no runtime here knows the operator"
        assert all(answer.startswith("refused: ") for answer in answers.values())


def test_the_published_table_has_no_failure() -> None:
    table = json.loads((ROOT / "benchmarks/results/foreign_graphs.json").read_text())
    assert table["failed"] == []
    for row in table["rows"].values():
        assert tuple(row) == SCRIPT["STEPS"]
        assert all(value == "passes" or value.startswith(("refused: ", "no graph: ")) for value in row.values())
