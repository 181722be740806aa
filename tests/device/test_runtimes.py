"""Sessions: what they compute, what they refuse, and that every adapter keeps the same promises."""

from __future__ import annotations

import json
import sys
import threading

import numpy as np
import pytest
from device_models import linear_model, to_bytes, weights, write_bundle
from make_models import litert_model
from onnx import TensorProto, helper

from edgekd.device import runtimes
from edgekd.device.runtimes import RUNTIMES, check_feeds, find_runtime, open_session
from edgekd.device.runtimes.chunks import run_in_chunks
from edgekd.errors import BundleError, MissingExtra, MissingHere, ModelError, UsageError
from edgekd.spec import TensorSpec

MATRIX = weights(4, 3)


def fake_model(**more):
    plain = {
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["N", 4]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["N", 3]}],
        "weights": {"logits": MATRIX.tolist()},
        **more,
    }
    return json.dumps(plain).encode()


MODELS = {
    "onnxruntime": linear_model(MATRIX),
    "onnxruntime-mobile": linear_model(MATRIX),
    "openvino": linear_model(MATRIX),
    "litert": litert_model(MATRIX, shape=(4,)),
    "fake": fake_model(),
}


@pytest.fixture(params=sorted(MODELS))
def runtime(request):
    return request.param


def batch(n=5):
    return np.random.default_rng(2).normal(size=(n, 4)).astype(np.float32)


def test_a_session_names_its_tensors_and_computes(runtime):
    session = open_session(MODELS[runtime], runtime=runtime)
    for specs, name, size in ((session.inputs, "x", 4), (session.outputs, "logits", 3)):
        # Some runtimes forget what the symbolic axis is called.
        assert [(spec.name, spec.dtype, spec.shape[1:]) for spec in specs] == [(name, "float32", (size,))]
        assert isinstance(specs[0].shape[0], str)
    for n in (1, 5, 2):
        found = session.run({"x": batch(n)})
        assert list(found) == ["logits"]
        np.testing.assert_allclose(found["logits"], batch(n) @ MATRIX, atol=1e-5)


def test_path_and_bytes_are_the_same(runtime, tmp_path):
    (tmp_path / "model.bin").write_bytes(MODELS[runtime])
    for source in (tmp_path / "model.bin", str(tmp_path / "model.bin"), MODELS[runtime]):
        found = open_session(source, runtime=runtime).run({"x": batch()})["logits"]
        np.testing.assert_allclose(found, batch() @ MATRIX, atol=1e-5)


@pytest.mark.parametrize(
    ("feeds", "text"),
    [
        ({"y": batch()}, "found inputs 'y', expected 'x'"),
        ({}, "found inputs none, expected 'x'"),
        ({"x": batch(), "y": batch()}, "found inputs 'x', 'y', expected 'x'"),
        ({"x": batch().astype(np.float64)}, r"input 'x' is float64, expected float32; use \.astype\('float32'\)"),
        ({"x": batch()[0]}, r"input 'x' has the shape \(4,\), expected \(\w+, 4\)"),
        ({"x": batch()[:, :3]}, r"input 'x' has the shape \(5, 3\), expected \(\w+, 4\); check the preprocessing"),
        ({"x": "text"}, "input 'x' is a str, expected a numpy array of float32"),
    ],
)
def test_feeds_that_do_not_fit_are_refused_in_words(runtime, feeds, text):
    session = open_session(MODELS[runtime], runtime=runtime)
    with pytest.raises(UsageError, match=text):
        session.run(feeds)
    assert session.run({"x": batch()})["logits"].shape == (5, 3)  # and the session still works


def test_a_shared_symbolic_axis_has_one_size():
    specs = (TensorSpec("a", "float32", ("N", 2)), TensorSpec("b", "float32", ("N",)))
    check_feeds(specs, {"a": np.zeros((3, 2), np.float32), "b": np.zeros(3, np.float32)})
    with pytest.raises(UsageError, match=r"input 'b' has the shape \(4,\), expected \(N\)"):
        check_feeds(specs, {"a": np.zeros((3, 2), np.float32), "b": np.zeros(4, np.float32)})


def test_a_closed_session_says_so(runtime):
    session = open_session(MODELS[runtime], runtime=runtime)
    session.close()
    session.close()
    with pytest.raises(UsageError, match="this session is closed; open another one"):
        session.run({"x": batch()})


def test_threads_share_a_session(runtime):
    session = open_session(MODELS[runtime], runtime=runtime)
    found = {}

    def work(number):
        found[number] = [session.run({"x": batch(number)})["logits"] for _ in range(50)]

    workers = [threading.Thread(target=work, args=(number,)) for number in range(1, 5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for number in range(1, 5):
        for logits in found[number]:
            np.testing.assert_allclose(logits, batch(number) @ MATRIX, atol=1e-5)


@pytest.mark.parametrize("content", [b"", b"garbage" * 20, linear_model(MATRIX)[:-40]])
def test_what_is_no_model_is_refused(runtime, content, tmp_path):
    (tmp_path / "broken.onnx").write_bytes(content)
    for source in (content, tmp_path / "broken.onnx"):
        with pytest.raises(ModelError, match=r"cannot load|not a model of the fake runtime"):
            open_session(source, runtime=runtime)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"no model and no bundle at .*nowhere\.onnx; check the path"):
        open_session(tmp_path / "nowhere.onnx")


def test_a_folder_that_is_no_bundle(tmp_path):
    with pytest.raises(BundleError, match=r"bundle\.json is missing"):
        open_session(tmp_path)


@pytest.mark.parametrize("as_zip", [False, True])
def test_bundles_open_by_path_and_by_value(tmp_path, as_zip):
    bundle = write_bundle(tmp_path / "b.edgekd", as_zip=as_zip)
    golden = bundle.golden()
    for source in (bundle, bundle.path, str(bundle.path)):
        found = open_session(source, variant="float32").run({"x": golden["input.x"]})["logits"]
        np.testing.assert_allclose(found, golden["output.float32.logits"], atol=1e-5)
    with pytest.raises(UsageError, match=r"has no variant 'float23'\. Did you mean 'float32'"):
        open_session(bundle, variant="float23")


def test_a_bare_model_has_no_variants():
    with pytest.raises(
        UsageError, match="variant 'int8' was asked of a bare model file, which has none; pass a bundle"
    ):
        open_session(MODELS["onnxruntime"], variant="int8")


def test_unknown_runtimes_are_named():
    with pytest.raises(UsageError, match=r"unknown runtime 'onnxrt'\. Did you mean 'onnxruntime'\?"):
        open_session(b"", runtime="onnxrt")
    with pytest.raises(UsageError, match=r"runtime 'no\.such:thing' cannot be found .*package\.module:function"):
        open_session(b"", runtime="no.such:thing")


def test_a_runtime_of_ones_own():
    own = "edgekd.device.runtimes.fake:open_model"
    found = open_session(MODELS["fake"], runtime=own).run({"x": batch()})["logits"]
    np.testing.assert_allclose(found, batch() @ MATRIX, atol=1e-5)


@pytest.mark.parametrize("name", sorted(RUNTIMES))
def test_every_row_of_the_table_leads_to_a_function(name):
    if name == "torch":
        pytest.importorskip("torch", reason="the runtime 'torch' needs torch")
    assert callable(find_runtime(name))


@pytest.mark.parametrize("threads", [0, -1, 100_000])
def test_impossible_thread_counts_are_refused(threads):
    with pytest.raises(UsageError, match=f"threads={threads}"):
        open_session(MODELS["fake"], runtime="fake", threads=threads)


# --- onnxruntime ------------------------------------------------------------------------------------------------------


@pytest.fixture
def seen(monkeypatch):
    """What the adapter hands to onnxruntime."""
    import onnxruntime

    real, seen = onnxruntime.InferenceSession, {}

    def spy(model, options, providers):
        seen.update(options=options, providers=providers)
        return real(model, options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    monkeypatch.setattr(runtimes, "resolve_threads", lambda threads: threads or 1)
    return seen


@pytest.mark.parametrize("threads", [None, 1, 2])
def test_threads_and_spinning(seen, threads):
    open_session(MODELS["onnxruntime"], threads=threads)
    options = seen["options"]
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (threads or 1, 1)
    assert seen["providers"] == [("CPUExecutionProvider", {})]
    if threads == 2:
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    else:
        with pytest.raises(RuntimeError, match="allow_spinning"):  # not set
            options.get_session_config_entry("session.intra_op.allow_spinning")


def test_session_config_is_handed_on_and_unknown_options_are_refused(seen):
    config = {"session.intra_op.allow_spinning": "1", "session.x64quantprecision": "1"}
    open_session(MODELS["onnxruntime"], threads=2, options={"session_config": config})
    for key, value in config.items():
        assert seen["options"].get_session_config_entry(key) == value
    with pytest.raises(UsageError, match=r"unknown option 'sesion_config'\. Did you mean 'session_config'"):
        open_session(MODELS["onnxruntime"], options={"sesion_config": {}})
    with pytest.raises(UsageError, match="session_config is 3, expected a table"):
        open_session(MODELS["onnxruntime"], options={"session_config": 3})


def test_a_provider_that_fell_back_is_noticed(monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnxruntime.InferenceSession, "get_providers", lambda self: ["OtherExecutionProvider"])
    with pytest.raises(MissingHere, match=r"chose \['OtherExecutionProvider'\], expected CPUExecutionProvider first"):
        open_session(MODELS["onnxruntime"])


def test_without_onnxruntime_the_pip_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtra, match=r"runtime 'onnxruntime' needs .*pip install 'edgekd\[cpu\]'"):
        open_session(MODELS["onnxruntime"])


def test_an_error_inside_the_graph_is_a_model_error(capfd):
    model = to_bytes(
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [("x", TensorProto.FLOAT, ["N"])],
        [("y", TensorProto.FLOAT, [2, "M"])],
        [("shape", np.array([2, -1], np.int64))],
    )
    session = open_session(model)
    with pytest.raises(ModelError, match=r"the model failed while running: .*; does it fit this input\?"):
        session.run({"x": np.zeros(3, np.float32)})
    assert capfd.readouterr().err == ""  # the text is in the exception, not on the screen


def test_integer_inputs_and_unnamed_axes_have_specs():
    model = to_bytes(
        [helper.make_node("Identity", ["ids"], ["same"])],
        [("ids", TensorProto.INT64, [None, 7])],
        [("same", TensorProto.INT64, [None, 7])],
    )
    session = open_session(model)
    assert session.inputs == (TensorSpec("ids", "int64", ("ids_0", 7)),)
    with pytest.raises(UsageError, match="input 'ids' is float32, expected int64"):
        session.run({"ids": np.zeros((1, 7), np.float32)})


def test_text_tensors_go_in_and_out_and_numbers_for_text_are_refused():
    model = to_bytes(
        [helper.make_node("Identity", ["words"], ["same"])],
        [("words", TensorProto.STRING, ["N"])],
        [("same", TensorProto.STRING, ["N"])],
    )
    session = open_session(model)
    assert session.inputs == (TensorSpec("words", "str", ("N",)),)
    assert session.run({"words": np.array(["a", "ß"])})["same"].tolist() == ["a", "ß"]
    with pytest.raises(UsageError, match="input 'words' is float32, expected str"):
        session.run({"words": np.zeros(2, np.float32)})


def test_what_is_no_tensor_is_refused():
    sequence = helper.make_tensor_sequence_value_info("parts", TensorProto.FLOAT, None)
    graph = helper.make_graph(
        [helper.make_node("SequenceConstruct", ["x"], ["parts"])],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N"])],
        [sequence],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    with pytest.raises(ModelError, match=r"'parts' is seq\(tensor\(float\)\), expected a tensor of numbers"):
        open_session(model.SerializeToString())


# --- fake -------------------------------------------------------------------------------------------------------------


def test_the_fake_fails_when_it_is_told_to():
    with pytest.raises(ModelError, match="no such operator"):
        open_session(fake_model(fail={"load": "no such operator"}), runtime="fake")
    session = open_session(fake_model(fail={"run": "out of range"}), runtime="fake")
    with pytest.raises(ModelError, match="out of range"):
        session.run({"x": batch()})


def test_the_fake_adds_its_bias():
    session = open_session(fake_model(bias={"logits": [1, 2, 3]}), runtime="fake")
    np.testing.assert_allclose(session.run({"x": np.zeros((1, 4), np.float32)})["logits"], [[1, 2, 3]])


# --- chunks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", ["N", 1, 4])
@pytest.mark.parametrize("n", [1, 3, 4, 9])
def test_chunks_give_every_sample_once(axis, n):
    session = open_session(linear_model(MATRIX, batch=axis))
    found = run_in_chunks(session, {"x": batch(n)}, size=2)["logits"]
    assert found.shape == (n, 3)
    np.testing.assert_allclose(found, batch(n) @ MATRIX, atol=1e-5)


def test_chunks_of_nothing_are_refused():
    session = open_session(MODELS["fake"], runtime="fake")
    with pytest.raises(UsageError, match=r"inputs of the lengths \[0\], expected one length of at least 1"):
        run_in_chunks(session, {"x": batch(0)})
