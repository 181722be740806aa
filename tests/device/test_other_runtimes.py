"""OpenVINO, LiteRT, ncnn, .ort files, mobile settings and execution providers: each gives the golden outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from device_models import linear_model, to_bytes, weights, write_bundle
from make_models import FOLDER, litert_model, ncnn_model
from onnx import TensorProto, helper

from edgekd.device import runtimes
from edgekd.device.bundle import Bundle
from edgekd.device.runtimes import PRESETS, READS, RUNTIMES, open_session, readers, why_missing
from edgekd.device.selftest import check_variant, self_test
from edgekd.errors import MissingExtra, MissingHere, ModelError, UsageError
from edgekd.spec import TensorSpec

FILES = {"litert": FOLDER / "linear.tflite", "ncnn": FOLDER / "linear.param"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "a.edgekd")


def ort_file(folder: Path, model: bytes) -> Path:
    """The model as ONNX Runtime's own format, as its converter writes it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return folder / "model.ort"


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime-mobile"])
@pytest.mark.parametrize("threads", [1, 2])
def test_runtimes_of_onnx_give_the_golden_outputs_of_a_bundle(bundle: Bundle, runtime: str, threads: int) -> None:
    (row,) = self_test(bundle, runtime=runtime, threads=min(threads, runtimes.resolve_threads(None)))
    assert row["ok"], row


@pytest.mark.parametrize("runtime", sorted(FILES))
def test_converted_files_give_the_golden_outputs_of_the_bundle(bundle: Bundle, runtime: str) -> None:
    session = open_session(FILES[runtime], runtime=runtime)
    assert check_variant(bundle, "float32", session)["ok"]
    session.close()
    with pytest.raises(UsageError, match="this session is closed"):
        session.run({"x": np.zeros((1, 1, 4, 4), np.float32)})


def test_the_committed_files_are_those_that_their_command_makes() -> None:
    assert (FOLDER / "linear.tflite").read_bytes() == litert_model(weights(16, 3))
    param, binary = ncnn_model(weights(16, 3))
    assert ((FOLDER / "linear.param").read_text(), (FOLDER / "linear.bin").read_bytes()) == (param, binary)


@pytest.mark.parametrize("runtime", ["onnxruntime", "onnxruntime-mobile"])
def test_ort_files_are_read(bundle: Bundle, tmp_path: Path, runtime: str) -> None:
    session = open_session(ort_file(tmp_path, bundle.graph()), runtime=runtime)
    assert check_variant(bundle, "float32", session)["ok"]


def test_a_file_with_wrong_weights_is_noticed(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "wrong.tflite").write_bytes(litert_model(weights(16, 3) * 1.01))
    row = check_variant(bundle, "float32", open_session(tmp_path / "wrong.tflite", runtime="litert"))
    assert not row["ok"]
    assert "differs by up to" in row["problem"]


def test_golden_arrays_fit_by_place_where_a_converter_renamed_them(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "renamed.tflite").write_bytes(litert_model(weights(16, 3), signed=False))
    session = open_session(tmp_path / "renamed.tflite", runtime="litert")
    assert [spec.name for spec in session.inputs] == ["serving_default_x:0"]
    assert [spec.name for spec in session.outputs] == ["StatefulPartitionedCall:0"]
    assert check_variant(bundle, "float32", session, converted=True)["ok"]
    with pytest.raises(UsageError, match="found inputs 'x', expected 'serving_default_x:0'"):
        check_variant(bundle, "float32", session)


def test_mobile_settings_are_those_of_an_app(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    seen = {}
    real = onnxruntime.InferenceSession

    def spy(model: object, options: object, **more: object) -> object:
        seen["options"] = options
        return real(model, options, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    open_session(linear_model(weights()), runtime="onnxruntime-mobile")
    options = seen["options"]
    assert not options.enable_cpu_mem_arena
    assert not options.enable_mem_pattern
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    open_session(linear_model(weights()))
    assert seen["options"].enable_cpu_mem_arena


def test_openvino_computes_in_float32_and_says_what_it_cannot_read() -> None:
    rng = np.random.default_rng(0)
    wide = rng.standard_normal((512, 8)).astype(np.float32)
    x = rng.standard_normal((4, 512)).astype(np.float32)
    found = open_session(linear_model(wide), runtime="openvino").run({"x": x})["logits"]
    # bfloat16, the default on CPUs that have it, would be off by a hundred times as much.
    np.testing.assert_allclose(found, x @ wide, atol=2e-4)
    with pytest.raises(ModelError, match=r"openvino 20\d\d\.\d.* cannot load the model: .* Expected an ONNX model"):
        open_session(b"junk", runtime="openvino")


def test_openvino_keeps_the_names_of_tensors_that_it_melts_together() -> None:
    nodes = [helper.make_node("Identity", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    nodes += [helper.make_node("Identity", ["b"], ["logits"])]
    model = to_bytes(nodes, [("x", TensorProto.FLOAT, ["N", 2])], [("logits", TensorProto.FLOAT, ["N", 2])])
    session = open_session(model, runtime="openvino")
    assert [spec.name for spec in (*session.inputs, *session.outputs)] == ["x", "logits"]
    assert session.run({"x": np.array([[-1, 2]], np.float32)})["logits"].tolist() == [[0, 2]]


@pytest.mark.parametrize("runtime", ["openvino", "litert", "onnxruntime"])
def test_batches_may_change_between_prepared_calls_and_runs(bundle: Bundle, runtime: str) -> None:
    session = open_session(FILES.get(runtime, bundle.path), runtime=runtime)
    x = np.random.default_rng(0).standard_normal((6, 1, 4, 4)).astype(np.float32)
    expected = x.reshape(6, 16) @ weights(16, 3)
    for count in (1, 6, 2):
        call = session.prepare({"x": x[:count]})  # type: ignore[attr-defined]
        given = call()
        value = given["logits"] if isinstance(given, dict) else given[0]
        np.testing.assert_allclose(np.asarray(value), expected[:count], atol=1e-5)
        for size in (3, 5):
            np.testing.assert_allclose(session.run({"x": x[:size]})["logits"], expected[:size], atol=1e-5)


@pytest.mark.parametrize("runtime", ["openvino", "litert", "ncnn"])
def test_prepared_calls_give_what_run_gives(bundle: Bundle, runtime: str) -> None:
    session = open_session(FILES.get(runtime, bundle.path), runtime=runtime)
    feed = {"x": np.random.default_rng(0).standard_normal((1, 1, 4, 4)).astype(np.float32)}
    expected = session.run(feed)["logits"]
    call = session.prepare(feed)  # type: ignore[attr-defined]
    for _ in range(2):
        given = call()
        value = next(iter(given.values())) if isinstance(given, dict) else given[0]
        np.testing.assert_array_equal(np.asarray(value).reshape(expected.shape), expected)
    with pytest.raises(UsageError, match="input 'x' is float64"):
        session.prepare({"x": np.zeros((1, 1, 4, 4))})  # type: ignore[attr-defined]


def test_ncnn_reads_images_whose_channels_it_pads(tmp_path: Path) -> None:
    """ncnn aligns every channel to 16 bytes; 5 x 5 floats are 100."""
    (tmp_path / "m.param").write_text(
        "7767517\n3 3\nInput x 0 1 x 0=5 1=5 2=3\nReLU r 1 1 x mid\nBinaryOp b 1 1 mid out 0=0 1=1 2=1.0\n"
    )
    (tmp_path / "m.bin").write_bytes(b"")
    session = open_session(tmp_path / "m.param", runtime="ncnn")
    assert session.inputs == (TensorSpec("x", "float32", (1, 3, 5, 5)),)
    x = np.random.default_rng(0).standard_normal((1, 3, 5, 5)).astype(np.float32)
    kept = x.copy()
    np.testing.assert_allclose(session.run({"x": x})["out"], np.maximum(x, 0) + 1, atol=1e-6)
    np.testing.assert_array_equal(x, kept)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("garbage", r"does not begin with 7767517; expected a \.param file"),
        ("7767517\n1 1\n", "has no Input layer"),
        ("7767517\n1 1\nInput in0 0 1 in0\n", r"tells no shape; write it in, e\.g\. 'Input in0 0 1 in0 0=28 1=28 2=1'"),
        ("7767517\n2 2\nInput x 0 1 x 0=4\nNoSuchLayer a 1 1 x y\n", "ncnn cannot load"),
    ],
)
def test_ncnn_files_that_are_wrong_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.param").write_text(text)
    (tmp_path / "m.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=message):
        open_session(tmp_path / "m.param", runtime="ncnn")


def test_ncnn_needs_its_weights_and_a_path(tmp_path: Path) -> None:
    (tmp_path / "m.param").write_text("7767517\n1 1\nInput x 0 1 x 0=4\n")
    with pytest.raises(ModelError, match=r"m\.bin is not there; expected the weights of m\.param beside it"):
        open_session(tmp_path / "m.param", runtime="ncnn")
    with pytest.raises(UsageError, match=r"runtime 'ncnn' opens a \.param file"):
        open_session(b"7767517", runtime="ncnn")


@pytest.mark.parametrize("runtime", sorted(FILES))
def test_runtimes_without_options_refuse_them(runtime: str) -> None:
    with pytest.raises(UsageError, match=f"runtime '{runtime}' has no options, found spin"):
        open_session(FILES[runtime], runtime=runtime, options={"spin": 1})


@pytest.mark.parametrize(
    ("runtime", "module", "extra"),
    [
        ("openvino", "openvino", "openvino"),
        ("litert", "ai_edge_litert.interpreter", "litert"),
        ("ncnn", "ncnn", "ncnn"),
    ],
)
def test_a_runtime_that_is_not_installed_says_how_to(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, runtime: str, module: str, extra: str
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=rf"pip install 'edgekd\[{extra}\]'"):
        open_session(FILES.get(runtime, bundle.path), runtime=runtime)


@pytest.mark.parametrize("runtime", [name for name, row in PRESETS.items() if "provider" in row])
def test_a_provider_that_is_not_built_in_is_refused_not_replaced(runtime: str) -> None:
    if why_missing(runtime) is None:
        pytest.skip(f"this onnxruntime has {PRESETS[runtime]['provider']}")
    provider = PRESETS[runtime]["provider"]
    with pytest.raises(MissingHere, match=f"has no {provider} here, only .*CPUExecutionProvider"):
        open_session(linear_model(weights()), runtime=runtime)
    assert f"has no {provider}" in (why_missing(runtime) or "")


def test_provider_options_must_be_a_table() -> None:
    with pytest.raises(UsageError, match="provider_options is 'fast', expected a table"):
        open_session(linear_model(weights()), options={"provider_options": "fast"})


def test_the_tables_fit_each_other() -> None:
    assert set(PRESETS) <= set(RUNTIMES)
    assert {place.partition(":")[0].rpartition(".")[2] for place in RUNTIMES.values()} == set(READS)
    assert readers(".onnx")[:2] == ("onnxruntime", "onnxruntime-mobile")
    assert "openvino" in readers(".onnx")
    assert readers(".tflite") == ("litert",)
    assert readers(".param") == ("ncnn",)
    assert readers(".json")[0] == "torch"
    assert readers(".txt") == ()
    assert why_missing("onnxruntime") is None


def test_why_a_runtime_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes.importlib.util, "find_spec", lambda name: None)
    assert why_missing("openvino") == "openvino is not installed"
    assert why_missing("fake") is None
