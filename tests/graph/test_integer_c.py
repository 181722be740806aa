"""Students as integers and as C: bit for bit the same, and with onnxruntime's labels, on real digits."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess

import graphs
import numpy as np
import onnx
import onnxruntime
import pytest
from c_builds import BUILDS, compile_c, compiler, run_c
from onnx import helper
from real_data import real_data

from edgekd.device.integer import (
    Add,
    Bounds,
    Convolution,
    Dequantize,
    IntegerProgram,
    Pool,
    Quantize,
    Tensor,
    largest_sum,
    run,
)
from edgekd.device.preprocess import apply_arithmetic
from edgekd.errors import DataError, ModelError
from edgekd.graph import Int8Dynamic, Int8Static, quantize
from edgekd.graph.arena import plan_arena, sources
from edgekd.graph.c_source import c_text, raw_bytes, write_c
from edgekd.graph.integer_reading import read_program
from edgekd.spec import parse_steps

LABELS = [str(index) for index in range(10)]
STEPS = {
    "mlp_s": [{"op": "scale"}, {"op": "normalize", "mean": [0.3], "std": [0.4]}, {"op": "layout", "to": "flat"}],
    "cnn_s": [{"op": "scale"}, {"op": "layout", "to": "CHW"}],
    "dscnn_s": [{"op": "scale"}, {"op": "layout", "to": "CHW"}],
    "resnet_s": [{"op": "scale"}, {"op": "layout", "to": "CHW"}],
}


def onnxruntime_answers(model: bytes, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # x86 without VNNI saturates products of U8S8 otherwise: the numbers of all other CPUs.
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def trained(name: str, kind: str, folder, epochs: int):
    """(quantized ONNX, steps, test split) of a student that has learnt a little."""
    from edgekd.data.registry import load_dataset
    from edgekd.distill import Objective, Term, build_model, distill, export
    from edgekd.spec import TensorSpec

    data = load_dataset(kind=kind)
    steps = parse_steps(STEPS[name])
    shape = apply_arithmetic(steps, data.test.x[:1]).shape[1:]
    model = build_model(name, num_outputs=10, input_shape=shape)
    objective = Objective([Term("ce", "cross_entropy")])
    distill(model, [], data, objective, steps=steps, epochs=epochs, batch_size=32, lr=5e-3, threads=1)
    x = apply_arithmetic(steps, data.train.x[:200])
    export(model, folder / "net.onnx", inputs=[TensorSpec("input", "float32", ("N", *shape))], samples={"input": x})
    quantize(folder / "net.onnx", folder / "int8.onnx", Int8Static(), calibration={"input": x})
    return (folder / "int8.onnx").read_bytes(), steps, data.test


@pytest.fixture(scope="module", params=list(STEPS))
def student(request, tmp_path_factory):
    return trained(request.param, "digits", tmp_path_factory.mktemp(request.param), 3)


def write(folder, program: IntegerProgram, *, labels=None, raw=None):
    made = write_c(program, labels=labels or [str(i) for i in range(program.num_outputs)], title="test", raw=raw)
    (folder / "student.c").write_text(made.source)
    (folder / "student.h").write_text(made.header)
    return made


def assert_same_bits(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_array_equal(found.view(np.int32), wanted.view(np.int32))


def test_students_are_the_same_in_numpy_in_c_and_nearly_in_onnxruntime(student, tmp_path):
    model, steps, test = student
    program = read_program(model)
    x = apply_arithmetic(steps, test.x)
    reference = run(program, x)
    labels = onnxruntime_answers(model, x).argmax(axis=1)
    assert (reference.argmax(axis=1) == labels).mean() >= 0.999
    assert (labels == test.y).mean() > 0.5  # it did learn: ten alike answers would agree too
    raw = raw_bytes(program, steps, test.x)
    made = write(tmp_path, program, raw=raw)
    for build in BUILDS:
        assert_same_bits(run_c(tmp_path, x, 10, build=build), reference)
        assert_same_bits(run_c(tmp_path, test.x, 10, build=build, raw=True), reference)
    assert made.constant_bytes == program.constant_bytes + raw.tables.size


def test_an_mlp_on_mnist(tmp_path):
    real_data("MNIST")
    model, steps, test = trained("mlp_s", "mnist", tmp_path, 1)
    program = read_program(model)
    x = apply_arithmetic(steps, test.x)
    reference = run(program, x)
    assert len(x) == 10_000
    assert (reference.argmax(axis=1) == onnxruntime_answers(model, x).argmax(axis=1)).mean() >= 0.999
    assert (reference.argmax(axis=1) == test.y).mean() > 0.9
    write(tmp_path, program)
    assert_same_bits(run_c(tmp_path, x, 10), reference)


@pytest.mark.parametrize("config", [Int8Static(activation="int8"), Int8Static(weight="uint8", per_channel=False)])
def test_other_schemes_become_the_same_bytes(tmp_path, config):
    onnx.save(graphs.cnn(), tmp_path / "net.onnx")
    feeds = graphs.samples(graphs.cnn(), 64)
    quantize(tmp_path / "net.onnx", tmp_path / "int8.onnx", config, calibration=feeds)
    model = (tmp_path / "int8.onnx").read_bytes()
    program = read_program(model)
    reference = run(program, feeds["x"])
    wanted = onnxruntime_answers(model, feeds["x"])
    assert np.abs(reference - wanted).max() <= 0.02 * np.abs(wanted).max()
    write(tmp_path, program)
    assert_same_bits(run_c(tmp_path, feeds["x"], program.num_outputs, build="sanitized"), reference)


def pooled() -> onnx.ModelProto:
    """x (N, 6, 2) -> turned round -> Conv1d -> Clip; and an image: max pool, mean pool, Reshape, MatMul + bias."""
    random = np.random.default_rng(0)
    node = helper.make_node
    nodes = [
        node("Transpose", ["x"], ["turned"], perm=[0, 3, 1, 2]),
        node("Conv", ["turned", "w", "b"], ["c"], pads=[1, 1, 1, 1], strides=[1, 1]),
        node("Clip", ["c", "zero", "six"], ["r"]),
        node("MaxPool", ["r"], ["m"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        node("AveragePool", ["m"], ["a"], kernel_shape=[2, 2], strides=[1, 1]),
        node("Reshape", ["a", "shape"], ["flat"]),
        node("MatMul", ["flat", "v"], ["logits"]),
    ]
    weights = {
        "w": random.normal(0, 0.5, (4, 2, 3, 3)).astype(np.float32),
        "b": random.normal(0, 0.5, 4).astype(np.float32),
        "v": random.normal(0, 0.5, (16, 3)).astype(np.float32),
        "zero": np.float32(0.0),
        "six": np.float32(1.5),
        "shape": np.array([-1, 16]),
    }
    return graphs.build(nodes, weights, inputs={"x": ["N", 6, 6, 2]}, outputs={"logits": ["N", 3]})


def test_pools_clips_and_a_turned_input(tmp_path):
    onnx.save(pooled(), tmp_path / "net.onnx")
    x = np.random.default_rng(1).normal(size=(80, 6, 6, 2)).astype(np.float32)
    quantize(tmp_path / "net.onnx", tmp_path / "int8.onnx", Int8Static(), calibration={"x": x})
    model = (tmp_path / "int8.onnx").read_bytes()
    program = read_program(model)
    assert {layer.kind for layer in program.layers if isinstance(layer, Pool)} == {"max", "mean"}
    reference, wanted = run(program, x), onnxruntime_answers(model, x)
    assert np.abs(reference - wanted).max() <= 0.02 * np.abs(wanted).max()
    write(tmp_path, program)
    for build in BUILDS:
        assert_same_bits(run_c(tmp_path, x, 3, build=build), reference)


def halves(*bounds: int) -> IntegerProgram:
    """y = round(x / 2) for whole x from -100 to 155: every second one is a tie."""
    tensors = (Tensor((256, 1, 1), 1.0, 100), Tensor((256, 1, 1), 1.0, 100))
    layers = (Quantize(0), Add((0, 0), 1, (np.float32(0.5), np.float32(0)), Bounds(*bounds)), Dequantize(1))
    return IntegerProgram(256, 256, tensors, layers)


@pytest.mark.parametrize("bounds", [(0, 255), (100, 120)])
def test_ties_go_to_even(tmp_path, bounds):
    x = (np.arange(256, dtype=np.float32) - 100)[np.newaxis]
    wanted = np.clip(np.array([round(value / 2) for value in range(-100, 156)]), bounds[0] - 100, bounds[1] - 100)
    program = halves(*bounds)
    np.testing.assert_array_equal(run(program, x)[0], wanted)
    write(tmp_path, program)
    np.testing.assert_array_equal(run_c(tmp_path, x, 256)[0], wanted)


def test_what_is_not_finite_is_refused_and_what_is_large_saturates(tmp_path):
    program = halves()
    write(tmp_path, program)
    large = np.full((1, 256), np.finfo(np.float32).max)
    assert run(program, large).tolist() == run_c(tmp_path, large, 256).tolist() == [[78.0] * 256]
    program_c = compile_c(tmp_path, "harness.c", "student.c")
    for value in (np.nan, np.inf, -np.inf):
        bad = large.copy()
        bad[0, 200] = value
        with pytest.raises(DataError, match="found NaN or infinity in the input; check the sensor"):
            run(program, bad)
        assert subprocess.run([program_c], input=bad.tobytes(), capture_output=True).returncode == 9
    with pytest.raises(DataError, match="found 3 numbers per sample, expected 256"):
        run(program, np.zeros((1, 3)))


def test_no_two_tensors_that_live_at_once_share_a_byte(student):
    program = read_program(student[0])
    offsets, total = plan_arena(program)
    lives: dict[int, list[int]] = {}
    for at, layer in enumerate(program.layers):
        made = getattr(layer, "target", None)
        for index in (*sources(layer), *([] if made is None else [made])):
            lives.setdefault(index, []).append(at)
    for one, other in itertools.combinations(lives, 2):
        at_once = min(lives[one]) <= max(lives[other]) and min(lives[other]) <= max(lives[one])
        apart = (
            offsets[one] + program.tensors[one].size <= offsets[other]
            or offsets[other] + program.tensors[other].size <= offsets[one]
        )
        assert apart or not at_once
    sizes = [tensor.size for tensor in program.tensors]
    assert max(sizes) <= total <= sum(sizes)
    assert len(sizes) == 2 or total < sum(sizes)


def test_the_object_file_holds_what_was_said_and_no_memory_of_its_own(student, tmp_path):
    made = write(tmp_path, read_program(student[0]))
    subprocess.run([compiler(), "-std=c99", "-Os", "-c", "student.c"], cwd=tmp_path, check=True)
    said = subprocess.run(["size", "student.o"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    text, data, bss = (int(number) for number in said.splitlines()[1].split()[:3])
    assert bss == 0
    assert made.constant_bytes <= text + data <= made.constant_bytes + 8000
    symbols = subprocess.run(["nm", "-u", "student.o"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert set(symbols.split()) - {"U", "_GLOBAL_OFFSET_TABLE_", "memset", "memcpy"} == set()


def test_labels_of_any_text_come_out_as_they_are(tmp_path):
    labels = ['a"b', "back\\slash", "tab\t??/", "Straße", "日本", "%d", "12", ""]
    base = halves()
    program = dataclasses.replace(base, num_outputs=8, tensors=tuple(Tensor((8, 1, 1), 1.0, 0) for _ in range(2)))
    program = dataclasses.replace(program, num_inputs=8)
    write(tmp_path, program, labels=labels)
    (tmp_path / "main.c").write_text(
        '#include "student.h"\n#include <stdio.h>\nint main(void) { int i; for (i = 0; i < STUDENT_OUTPUTS; i++) '
        '{ printf("%s\\n", student_labels[i]); } return 0; }\n'
    )
    done = subprocess.run([compile_c(tmp_path, "main.c", "student.c")], capture_output=True, check=True)
    assert done.stdout.decode().split("\n")[:-1] == labels
    assert c_text("a1") == '"a1"'
    assert c_text("é1") == r'"\303\2511"'


def test_raw_bytes_of_colours_go_through_tables(tmp_path):
    steps = parse_steps(
        [{"op": "scale"}, {"op": "normalize", "mean": [0.1, 0.5, 0.9], "std": [0.2, 0.3, 0.4]}, {"op": "layout"}]
    )
    raw = np.random.default_rng(0).integers(0, 256, (20, 12, 12, 3), dtype=np.uint8)
    feeds = {"x": apply_arithmetic(steps, raw)}
    onnx.save(graphs.cnn(), tmp_path / "net.onnx")
    quantize(tmp_path / "net.onnx", tmp_path / "int8.onnx", Int8Static(), calibration=feeds)
    program = read_program(tmp_path / "int8.onnx")
    found = raw_bytes(program, steps, raw)
    assert found is not None
    assert (found.planar, found.tables.shape) == (True, (3, 256))
    write(tmp_path, program, raw=found)
    assert_same_bits(run_c(tmp_path, raw, 7, raw=True), run(program, feeds["x"]))
    assert raw_bytes(program, steps, raw.astype(np.float32)) is None


def test_what_is_not_all_integers_is_refused(tmp_path):
    onnx.save(graphs.cnn(), tmp_path / "net.onnx")
    with pytest.raises(ModelError, match=r"Conv computes in float \('x' is not quantized\); quantize it with: edgekd"):
        read_program(tmp_path / "net.onnx")
    onnx.save(graphs.mlp(), tmp_path / "mlp.onnx")
    quantize(tmp_path / "mlp.onnx", tmp_path / "dynamic.onnx", Int8Dynamic())
    with pytest.raises(ModelError, match="DynamicQuantizeLinear has no integer layer here, expected one of Add"):
        read_program(tmp_path / "dynamic.onnx")
    onnx.save(graphs.transformer_block(), tmp_path / "block.onnx")
    with pytest.raises(ModelError, match=r"has open axes besides the batch; export it with fixed ones"):
        read_program(tmp_path / "block.onnx")


def test_a_sum_beyond_32_bits_is_refused():
    weights = np.full((1, 70_000, 1, 1), -128, np.int8)
    layer = Convolution(0, None, (70_000, 1, 1), (1, 1, 1), weights, np.zeros(1, np.int32), np.ones(1, np.float32))
    assert largest_sum(layer, 0) == 70_000 * 128 * 255 > 1 << 31
    assert largest_sum(layer, 128) == 70_000 * 128 * 128
