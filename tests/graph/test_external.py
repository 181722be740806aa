"""Weights in files beside the model are read; whatever leads out of its folder, or is not what it says, is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import cnn, mlp, run, samples
from onnx import ModelProto, TensorProto, helper

from edgekd.errors import ModelError
from edgekd.graph.clean import load_model
from edgekd.graph.inspection import inspect
from edgekd.graph.quantization import VARIANTS, quantize
from edgekd.graph.verification import verify


def external(folder: Path, model: ModelProto | None = None, **change: str) -> Path:
    """A model with its weights in folder/m.data; `change` overwrites entries of the first tensor."""
    folder.mkdir(exist_ok=True)
    path = folder / "m.onnx"
    onnx.save(model or mlp(), path, save_as_external_data=True, location="m.data", size_threshold=0)
    if change:
        stored = onnx.load(path, load_external_data=False)
        entries = {entry.key: entry.value for entry in stored.graph.initializer[0].external_data} | change
        del stored.graph.initializer[0].external_data[:]
        for key, value in entries.items():
            stored.graph.initializer[0].external_data.add(key=key, value=value)
        path.write_bytes(stored.SerializeToString())
    return path


def test_weights_beside_the_model_are_read_and_everything_works_on_it(tmp_path: Path) -> None:
    path = external(tmp_path / "a", cnn())
    loaded = load_model(path)
    assert loaded == cnn()
    found = inspect(path)
    assert found.size_bytes >= (tmp_path / "a/m.data").stat().st_size
    assert found.parameters == inspect(cnn().SerializeToString()).parameters
    assert verify(path, cnn().SerializeToString(), samples(cnn(), 5)).max_abs_diff == 0
    quantize(path, tmp_path / "q.onnx", VARIANTS["int8_u8s8"], calibration=samples(cnn(), 32))
    assert run((tmp_path / "q.onnx").read_bytes(), samples(cnn(), 2))["logits"].shape == (2, 7)


def test_several_files_in_a_folder_below_and_four_bit_numbers(tmp_path: Path) -> None:
    path = external(tmp_path / "a")
    (tmp_path / "a/deep").mkdir()
    (tmp_path / "a/m.data").rename(tmp_path / "a/deep/m.data")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "deep/m.data"
    path.write_bytes(model.SerializeToString())
    assert load_model(path) == mlp()
    whole = mlp(opset=21, ir_version=10)
    whole.graph.initializer.append(helper.make_tensor("four", TensorProto.INT4, [5], [1, -2, 3, 4, 5]))
    whole.graph.initializer[-1].raw_data = np.array([0xE1, 0x43, 0x05], np.uint8).tobytes()
    whole.graph.initializer[-1].ClearField("int32_data")
    loaded = load_model(external(tmp_path / "b", whole)).graph.initializer[-1]
    assert loaded.raw_data == bytes([0xE1, 0x43, 0x05])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"location": "/etc/passwd"}, "said to lie in '/etc/passwd', which is not inside the model's folder"),
        ({"location": "../m.data"}, "said to lie in '../m.data', which is not inside the model's folder"),
        ({"location": "deep/../../m.data"}, "which is not inside the model's folder"),
        ({"location": "..\\m.data"}, "which is not inside the model's folder"),
        ({"location": "C:m.data"}, "which is not inside the model's folder"),
        ({"location": ""}, "which is not inside the model's folder"),
        ({"location": "none.data"}, "which cannot be read: No such file or directory; copy it beside the model"),
        ({"location": "."}, "which is no file; expected a file beside the model"),
        ({"offset": "99999999"}, "but that file has"),
        ({"offset": "-4"}, "with the offset '-4'; expected a whole number"),
        ({"offset": "9" * 40}, "expected a whole number"),
        ({"length": "8"}, "with 8 bytes, expected 1,536 for FLOAT [24, 16]"),
        ({"length": "1e3"}, "with the length '1e3'; expected a whole number"),
    ],
)
def test_a_location_that_is_not_what_it_must_be(tmp_path: Path, change: dict[str, str], text: str) -> None:
    (tmp_path / "m.data").write_bytes(b"\0" * 100_000)  # what "../m.data" would reach
    with pytest.raises(ModelError) as caught:
        load_model(external(tmp_path / "a", **change))
    assert text in str(caught.value)


@pytest.mark.skipif(os.name != "posix", reason="symbolic links and pipes are POSIX")
def test_links_and_pipes(tmp_path: Path) -> None:
    path = external(tmp_path / "a")
    data = tmp_path / "a/m.data"
    inside, outside = tmp_path / "a/real.data", tmp_path / "secret.data"
    data.rename(inside)
    data.symlink_to("real.data")
    assert load_model(path) == mlp(), "a link within the folder leads nowhere else"
    inside.rename(outside)
    data.unlink()
    data.symlink_to(outside)
    with pytest.raises(ModelError, match=r"a symbolic link out of the model's folder \(to .*secret.data\); expected"):
        load_model(path)
    data.unlink()
    os.mkfifo(data)  # opening it would wait for ever
    with pytest.raises(ModelError, match="which is no file"):
        load_model(path)
    data.unlink()
    data.symlink_to("m.data")
    with pytest.raises(ModelError, match=r"cannot be read|leads nowhere"):
        load_model(path)


def test_sizes_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    """Files with holes: they say 3 GB and hold nothing; reading them would take that much memory."""
    huge = tmp_path / "huge.onnx"
    with huge.open("wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(ModelError, match=r"has 3,221,225,472 bytes, but one ONNX file holds at most 2,147,483,647"):
        load_model(huge)
    model = mlp()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.dims[:] = [3 << 10, 1 << 18]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="m.data")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with (tmp_path / "m.data").open("wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(ModelError, match=r"m\.onnx and its weights have 3,\d{3},\d{3},\d{3} bytes, but one ONNX file"):
        load_model(tmp_path / "m.onnx")


def test_bytes_have_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"keeps its weights in another file .*give its path"):
        load_model(external(tmp_path / "a").read_bytes())
