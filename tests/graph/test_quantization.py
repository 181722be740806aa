from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import (
    build,
    cnn,
    first_axis,
    load,
    mlp,
    op_types,
    run,
    samples,
    transformer_block,
    with_initializers_as_inputs,
    with_traces,
)
from onnx import ModelProto, helper

from edgekd.errors import AnswerIsNo, DataError, ModelError, UsageError
from edgekd.graph import quantization
from edgekd.graph.clean import clean, load_model
from edgekd.graph.quantization import Fp16, Int4WeightOnly, Int8Dynamic, Int8Static, MixedPrecision, quantize
from edgekd.graph.targets import Target
from edgekd.graph.verification import verify

# A budget that all of int8 holds: what a mixture leaves in float is test_mixed's.
VARIANTS = {**quantization.VARIANTS, "mixed": MixedPrecision(budget=50.0)}
STATIC = ["int8_u8s8", "int8_u8s8_per_tensor", "int8_u8s7", "int8_s8s8", "int8_u8u8", "mixed"]
PRECISION = {**dict.fromkeys(STATIC, "int8"), "int8_dynamic": "int8", "fp16": "float16", "int4_weight_only": "int4"}
# Conv, MatMul and Gemm layers: static and float16 take all, the others only matrix products with constant weights.
LAYERS = {mlp: (2, 2), cnn: (4, 1), transformer_block: (7, 5)}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("make", [mlp, cnn, transformer_block])
def test_every_variant_is_right_at_every_batch_size_and_keeps_its_axes(make, variant, tmp_path):
    model, feeds = make(), samples(make(), 150)
    result = quantize(model, tmp_path / "q.onnx", VARIANTS[variant], calibration=samples(make(), 200, seed=7))
    answer = verify(model.SerializeToString(), result.path, feeds, tolerance=PRECISION[variant])
    assert answer.ok, answer.problems
    assert answer.batch_sizes == (1, 2, 3, 5, 8, 16)
    written = load(result.path)
    onnx.checker.check_model(written)
    assert first_axis(written) == ["N", "N"]
    assert [value.name for value in written.graph.input] == ["x"]
    assert [value.name for value in written.graph.output] == ["logits"]
    assert {value.type.tensor_type.elem_type for value in (*written.graph.input, *written.graph.output)} == {1}
    assert written.ir_version == 8
    assert {item.domain: item.version for item in written.opset_import}[""] == 18
    assert result.size_bytes == result.path.stat().st_size
    assert result.sha256 == hashlib.sha256(result.path.read_bytes()).hexdigest()
    assert result.config == VARIANTS[variant]
    everything, matrices = LAYERS[make]
    if variant == "fp16":
        everything = matrices if make is transformer_block else everything  # q x k and p x v hold no weights
    assert result.num_quantized == (everything if variant in (*STATIC, "fp16") else matrices)
    assert [item.name for item in tmp_path.iterdir()] == ["q.onnx"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_weights_are_stored_in_the_type_that_the_variant_names(variant, tmp_path):
    wanted = {"int8_u8s8": "INT8", "int8_s8s8": "INT8", "int8_u8u8": "UINT8", "int8_dynamic": "INT8", "fp16": "FLOAT16"}
    wanted |= {"int8_u8s8_per_tensor": "INT8", "int8_u8s7": "INT8", "mixed": "INT8"}
    wanted["int4_weight_only"] = "UINT8"  # two 4-bit numbers in a byte
    written = load(quantize(mlp(), tmp_path / "q.onnx", VARIANTS[variant], calibration=samples(mlp(), 64)).path)
    matrices = [t for t in written.graph.initializer if len(t.dims) >= 2 and "scale" not in t.name]
    types = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in matrices}
    assert types == {wanted[variant]}
    if variant in STATIC:
        zero_types = {
            tensor.data_type for tensor in written.graph.initializer if tensor.name.startswith("x_zero_point")
        }
        assert zero_types == {onnx.TensorProto.INT8 if variant == "int8_s8s8" else onnx.TensorProto.UINT8}


def test_sizes_shrink_as_promised(tmp_path):
    """With weights that outweigh the declarations: a quarter, a half, an eighth."""
    random = np.random.default_rng(0)
    weight = random.normal(0, 0.05, (512, 512)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = build([node], {"w": weight}, inputs={"x": ["N", 512]}, outputs={"y": ["N", 512]})
    full = model.ByteSize()
    sizes = {
        name: quantize(model, tmp_path / name, config, calibration=samples(model, 32)).size_bytes / full
        for name, config in VARIANTS.items()
    }
    assert all(0.24 < sizes[name] < 0.27 for name in [*STATIC, "int8_dynamic"]), sizes
    assert 0.49 < sizes["fp16"] < 0.51
    assert 0.12 < sizes["int4_weight_only"] < 0.17


def test_batch_normalization_is_folded_before_ranges_are_measured(tmp_path):
    assert op_types(cnn()).count("BatchNormalization") == 3
    for name in STATIC:
        written = load(quantize(cnn(), tmp_path / name, VARIANTS[name], calibration=samples(cnn(), 64)).path)
        assert "BatchNormalization" not in op_types(written)
        assert op_types(written).count("Conv") == 3


def test_scales_per_channel_are_vectors_and_per_tensor_are_scalars(tmp_path):
    def scale_sizes(per_channel):
        config = Int8Static(per_channel=per_channel)
        written = load(quantize(mlp(), tmp_path / "q.onnx", config, calibration=samples(mlp(), 64)).path)
        return {t.name: tuple(t.dims) for t in written.graph.initializer if t.name in ("w1_scale", "w2_scale")}

    assert scale_sizes(True) == {"w1_scale": (24,), "w2_scale": (5,)}
    assert scale_sizes(False) == {"w1_scale": (), "w2_scale": ()}


def test_ranges_come_from_the_calibration_samples(tmp_path):
    def scale_of_x(feeds, **options):
        written = load(quantize(mlp(), tmp_path / "q.onnx", Int8Static(**options), calibration=feeds).path)
        return {t.name: onnx.numpy_helper.to_array(t) for t in written.graph.initializer}["x_scale"]

    x = np.random.default_rng(0).uniform(-1, 1, (400, 16)).astype(np.float32)
    x[0, 0], x[1, 0] = -1, 1
    assert scale_of_x({"x": x}) == pytest.approx(2 / 255, rel=1e-3)
    assert scale_of_x({"x": x * 10}) == pytest.approx(20 / 255, rel=1e-3)
    outlier = x.copy()
    outlier[399, 3] = 100  # in the last batch: every batch is fed
    assert scale_of_x({"x": outlier}) == pytest.approx(101 / 255, rel=1e-2)
    for method in ("entropy", "percentile"):
        assert scale_of_x({"x": outlier[:397]}, calibration=method) == pytest.approx(2 / 255, rel=0.1)
    tail = samples(mlp(), 400)["x"]
    tail[5, 5] = 12
    seen, kept = scale_of_x({"x": tail}), scale_of_x({"x": tail}, calibration="entropy")
    assert kept < 0.8 * seen, "the least entropy is lost by cutting the one far number off"


def test_an_iterable_of_batches_calibrates_like_one_array(tmp_path):
    feeds = samples(mlp(), 96)
    batches = ({"x": feeds["x"][start : start + 24]} for start in range(0, 96, 24))
    whole = quantize(mlp(), tmp_path / "a.onnx", Int8Static(), calibration=feeds)
    parts = quantize(mlp(), tmp_path / "b.onnx", Int8Static(), calibration=batches)
    assert whole.sha256 == parts.sha256


def test_reduce_range_keeps_the_weights_in_seven_bits(tmp_path):
    def largest(reduce_range):
        config = Int8Static(reduce_range=reduce_range)
        written = load(quantize(mlp(), tmp_path / "q.onnx", config, calibration=samples(mlp(), 64)).path)
        return max(
            np.abs(onnx.numpy_helper.to_array(t).astype(int)).max()
            for t in written.graph.initializer
            if len(t.dims) == 2
        )

    assert largest(True) <= 64
    assert largest(False) == 127


@pytest.mark.parametrize(("opset", "ir_version"), [(11, 3), (11, 6), (13, 7), (15, 8), (17, 8), (20, 9), (21, 10)])
def test_somebody_elses_file_of_another_opset_and_ir_works(opset, ir_version, tmp_path):
    model = cnn(opset=opset, ir_version=max(ir_version, 4))
    if ir_version == 3:
        model = with_initializers_as_inputs(model)
    model = with_traces(model, "/home/other")
    del model.graph.value_info[:], model.graph.initializer[-1]  # what does not belong to this graph
    path = tmp_path / "theirs.onnx"
    onnx.save(model, path)
    feeds = samples(cnn(), 40)
    for name, config in VARIANTS.items():
        result = quantize(path, tmp_path / f"{name}.onnx", config, calibration=feeds)
        written = load(result.path)
        assert written.ir_version == 8
        assert b"/home/other" not in result.path.read_bytes()
        assert {item.domain: item.version for item in written.opset_import}[""] == max(opset, 13)
        answer = verify(clean(model).SerializeToString(), result.path, feeds, tolerance=PRECISION[name])
        assert answer.ok, (name, answer.problems)


@pytest.mark.parametrize("name", ["int8_u8s8", "int8_dynamic", "fp16", "int4_weight_only"])
def test_a_model_of_one_fixed_batch_size_stays_one(name, tmp_path):
    model = cnn(batch=4)
    result = quantize(model, tmp_path / "q.onnx", VARIANTS[name], calibration=samples(cnn(), 10))
    assert first_axis(load(result.path)) == [4, 4]
    assert verify(model.SerializeToString(), result.path, samples(cnn(), 10), tolerance=PRECISION[name]).ok


_BUILD_ALL = """
import logging, sys
sys.path.insert(0, sys.argv[1])
from graphs import cnn, transformer_block, samples
from edgekd.graph.quantization import VARIANTS, quantize
for make in (cnn, transformer_block):
    for name, config in VARIANTS.items():
        print(name, quantize(make(), f"{make.__name__}-{name}.onnx", config, calibration=samples(make(), 70)).sha256)
print("torch" in sys.modules, logging.getLogger().handlers)
"""


def test_two_processes_in_other_folders_with_other_hash_seeds_write_the_same_bytes_and_load_no_torch(tmp_path):
    here = Path(__file__).resolve()
    answers = []
    for seed in ("1", "2024"):
        folder = tmp_path / f"somewhere-{seed}"
        (folder / "tmp").mkdir(parents=True)
        environment = {
            **os.environ,
            "PYTHONHASHSEED": seed,
            "PYTHONPATH": str(here.parents[2]),
            "TMPDIR": str(folder / "tmp"),
        }
        done = subprocess.run(
            [sys.executable, "-c", _BUILD_ALL, str(here.parent)],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        answers.append(done.stdout)
        # .ses is onnxruntime's own: its reporting client writes it when onnxruntime is imported.
        left = [item.name for item in (folder / "tmp").iterdir() if item.name != ".ses"]
        assert not left, "temporary files were left behind"
        assert len(list(folder.iterdir())) == 1 + 2 * len(VARIANTS), "something else was written"
        for file in folder.glob("*.onnx"):
            assert b"somewhere" not in file.read_bytes()
    assert answers[0] == answers[1]
    assert answers[0].endswith("False []\n")
    assert len(answers[0].splitlines()) == 2 * len(VARIANTS) + 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_is_printed_and_logging_stays_as_it_was(variant, tmp_path, capfd):
    root = logging.getLogger()
    before, disabled, level = list(root.handlers), logging.root.manager.disable, root.level
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        quantize(cnn(), tmp_path / "q.onnx", VARIANTS[variant], calibration=samples(cnn(), 40))
    assert (root.handlers, logging.root.manager.disable, root.level) == (before, disabled, level)
    assert capfd.readouterr() == ("", "")
    assert [str(item.message) for item in seen] == []


def test_the_model_that_was_given_is_not_changed(tmp_path):
    model = cnn()
    before = model.SerializeToString(deterministic=True)
    for config in VARIANTS.values():
        quantize(model, tmp_path / "q.onnx", config, calibration=samples(model, 40))
    assert model.SerializeToString(deterministic=True) == before


def test_only_four_bit_weights_need_onnxruntimes_own_operators(tmp_path):
    for name, config in VARIANTS.items():
        result = quantize(mlp(gemm=False), tmp_path / "q.onnx", config, calibration=samples(mlp(), 40))
        domains = {item.domain for item in load(result.path).opset_import}
        if name == "int4_weight_only":
            assert domains == {"", "com.microsoft"}
            assert result.notes == ("needs the operators of the domain com.microsoft, version 1",)
        else:
            assert domains == {""}
            assert result.notes == ()


def _only_relu() -> ModelProto:
    return build([helper.make_node("Relu", ["x"], ["y"])], {}, inputs={"x": ["N", 4]}, outputs={"y": ["N", 4]})


def _only_conv() -> ModelProto:
    weight = np.ones((2, 1, 3, 3), np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    return build([node], {"w": weight}, inputs={"x": ["N", 1, 8, 8]}, outputs={"y": ["N", 2, 6, 6]})


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_graph_without_layers_to_quantize_is_answered_with_no(variant, tmp_path):
    out = tmp_path / "q.onnx"
    said = r"found no layer that it can quantize: expected at least one .*keep the float32|no Conv, MatMul"
    with pytest.raises(AnswerIsNo, match=said):
        quantize(_only_relu(), out, VARIANTS[variant], calibration=samples(_only_relu(), 8))
    if variant in ("int8_dynamic", "int4_weight_only"):
        with pytest.raises(AnswerIsNo, match="expected at least one MatMul or Gemm with constant weights"):
            quantize(_only_conv(), out, VARIANTS[variant])
    assert not out.exists()


def test_what_is_wrong_with_the_calibration_is_said(tmp_path):
    out, x = tmp_path / "q.onnx", samples(mlp(), 40)["x"]
    with pytest.raises(UsageError, match="Int8Static needs calibration samples: give calibration="):
        quantize(mlp(), out, Int8Static())
    with pytest.raises(UsageError, match=r"the samples name the inputs \['images'\], but the model has .*x float32"):
        quantize(mlp(), out, Int8Static(), calibration={"images": x})
    with pytest.raises(UsageError, match=r"samples for 'x' are float64 \[40, 16\]"):
        quantize(mlp(), out, Int8Static(), calibration={"x": x.astype(np.float64)})
    with pytest.raises(UsageError, match="the calibration holds no batch"):
        quantize(mlp(), out, Int8Static(), calibration=[])
    bad = x.copy()
    bad[37, 2] = np.nan
    with pytest.raises(DataError, match=r"calibration for 'x' holds NaN or infinite numbers \(first in sample 37\)"):
        quantize(mlp(), out, Int8Static(), calibration={"x": bad})
    assert not out.exists()


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (Int8Static(activation="int4"), "Int8Static: activation is 'int4'; expected one of uint8, int8"),
        (Int8Static(calibration="magic"), "calibration is 'magic'; expected one of minmax, entropy, percentile, mse"),
        (Int8Static(activation="int8", weight="uint8"), "int8 activations with uint8 weights have no kernel"),
        (Int8Dynamic(weight="float"), "Int8Dynamic: weight is 'float'; expected one of int8, uint8"),
        (Int8Static(symmetric=True), "symmetric activations are int8, found activation = 'uint8'"),
        (MixedPrecision(budget=-1), "MixedPrecision: budget is -1; expected points of the metric from 0 to 100"),
        (MixedPrecision(fallback="int4"), "MixedPrecision: fallback is 'int4'; expected one of float32, float16"),
        (MixedPrecision(base=Int8Static(weight="x")), "Int8Static: weight is 'x'"),
        (Int4WeightOnly(block_size=7), "Int4WeightOnly: block_size is 7; expected one of 16, 32, 64, 128, 256"),
        ("int8_u8s8", "found the configuration 'int8_u8s8'; expected one of VARIANTS: int8_u8s8, "),
    ],
)
def test_wrong_configurations_are_refused(config, text, tmp_path):
    with pytest.raises(UsageError) as caught:
        quantize(mlp(), tmp_path / "q.onnx", config, calibration=samples(mlp(), 8))
    assert text in str(caught.value)


def test_a_target_refuses_what_it_cannot_load(tmp_path):
    old = Target("old_board", "a board", "onnxruntime", ("float32",), {"*": ("float32",)}, max_opset=17, max_ir=8)
    with pytest.raises(
        UsageError, match="the model has opset 18, but the target 'old_board' takes at most 17; export it"
    ):
        quantize(mlp(), tmp_path / "q.onnx", Fp16(), target=old)
    assert quantize(mlp(opset=17), tmp_path / "q.onnx", Fp16(), target=old).num_quantized == 2
    older = Target("older", "a board", "onnxruntime", ("float32",), {"*": ("float32",)}, max_opset=18, max_ir=7)
    with pytest.raises(UsageError, match="the result has IR 8, but the target 'older' takes at most 7"):
        quantize(mlp(), tmp_path / "q.onnx", Fp16(), target=older)
    assert quantize(mlp(), tmp_path / "q.onnx", Fp16(), target="raspberry_pi").num_quantized == 2
    with pytest.raises(UsageError, match=r"no target is called 'rasberry_pi'\. Did you mean 'raspberry_pi'\?"):
        quantize(mlp(), tmp_path / "q.onnx", Fp16(), target="rasberry_pi")


def test_garbage_is_refused_and_an_older_result_stays(tmp_path):
    out = tmp_path / "q.onnx"
    before = quantize(mlp(), out, Fp16()).sha256
    with pytest.raises(ModelError, match="is not an ONNX file"):
        quantize(b"garbage", out, Fp16())
    assert hashlib.sha256(out.read_bytes()).hexdigest() == before
    assert run(load_model(out), samples(mlp(), 2))["logits"].dtype == np.float32


def _fused_ops(path: Path) -> list[str]:
    """The operators that onnxruntime really runs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(path) + ".fused"
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return op_types(load(options.optimized_model_filepath))


@pytest.mark.parametrize("variant", STATIC)
def test_layers_run_in_integer_kernels_and_the_last_one_gives_more_than_256_numbers(variant, tmp_path):
    path = quantize(mlp(), tmp_path / "q.onnx", VARIANTS[variant], calibration=samples(mlp(), 200)).path
    assert _fused_ops(path) == ["QuantizeLinear", "QGemm", "QGemm"]
    assert len(np.unique(run(path.read_bytes(), samples(mlp(), 2000, seed=5))["logits"])) > 1000
    path = quantize(cnn(), tmp_path / "c.onnx", VARIANTS[variant], calibration=samples(cnn(), 64)).path
    fused = _fused_ops(path)
    assert (fused.count("QLinearConv"), fused.count("QGemm")) == (3, 1)
    assert not {"Conv", "Gemm", "BatchNormalization"} & set(fused)


@pytest.mark.parametrize("per_channel", [True, False])
def test_unsigned_weights_have_one_zero_point(per_channel, tmp_path):
    """onnxruntime refuses a convolution whose channels have zero points of their own."""
    config = Int8Static(weight="uint8", per_channel=per_channel)
    written = load(quantize(cnn(), tmp_path / "q.onnx", config, calibration=samples(cnn(), 64)).path)
    points = [t for t in written.graph.initializer if "weight" in t.name and t.name.endswith("zero_point")]
    assert len(points) == 4
    assert {int(value) for t in points for value in np.atleast_1d(onnx.numpy_helper.to_array(t))} == {128}


def test_biases_carry_no_zero_points_and_weights_do(tmp_path):
    written = load(quantize(cnn(), tmp_path / "q.onnx", Int8Static(), calibration=samples(cnn(), 64)).path)
    types = {tensor.name: tensor.data_type for tensor in written.graph.initializer}
    inputs = {onnx.TensorProto.INT32: set(), onnx.TensorProto.INT8: set()}
    for node in written.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in types:
            inputs[types[node.input[0]]].add(len(node.input))
    assert inputs == {onnx.TensorProto.INT32: {2}, onnx.TensorProto.INT8: {3}}
    assert not any(name.endswith("bias_quantized_zero_point") for name in types)


def test_an_output_that_other_nodes_read_keeps_its_rounding(tmp_path):
    """Two outputs, one of them also read by the next layer: nothing may be cut out of that way."""
    model = mlp()
    model.graph.node[1].input[0] = "features"
    model.graph.node[0].output[0] = "features"
    model.graph.output.append(helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, ["N", 24]))
    feeds = samples(mlp(), 100)
    result = quantize(model, tmp_path / "q.onnx", Int8Static(), calibration=feeds)
    answer = verify(model.SerializeToString(), result.path, feeds, tolerance="int8", labels=False)
    assert answer.ok, answer.problems
