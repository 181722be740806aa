"""Bundles: what is written is read, the same content gives the same bytes, nothing is lost when writing fails."""

from __future__ import annotations

import errno
import json
import zipfile

import numpy as np
import pytest
from device_models import linear_model, make_manifest, make_parts, weights, write_bundle

from edgekd.device.archive import arrays_from_bytes, arrays_to_bytes
from edgekd.device.bundle import Bundle
from edgekd.errors import BundleError, ModelError, StorageError, UsageError
from edgekd.files import sha256_bytes

SAMPLES = {"x": np.arange(96, dtype=np.uint8).reshape(6, 4, 4, 1), "y": np.arange(6, dtype=np.int64)}


def tree(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("as_zip", [False, True])
def test_what_is_written_is_read(tmp_path, as_zip):
    manifest, graphs, golden = make_parts()
    written = Bundle.write(tmp_path / "b", manifest, graphs, golden, SAMPLES, as_zip=as_zip)
    bundle = Bundle.open(str(tmp_path / "b"))
    assert bundle.manifest == written.manifest
    assert bundle.path == tmp_path / "b"
    assert bundle.variants == ("float32",)
    assert bundle.graph() == bundle.graph("main", "float32") == graphs["float32"]["main"]
    assert {key: (v.dtype, v.tolist()) for key, v in bundle.golden().items()} == {
        key: (v.dtype, v.tolist()) for key, v in golden.items()
    }
    x, y = bundle.samples()
    np.testing.assert_array_equal(x, SAMPLES["x"])
    np.testing.assert_array_equal(y, SAMPLES["y"])
    bundle.verify_files()
    assert (tmp_path / "b").is_file() == as_zip


def test_the_manifest_is_filled_in(tmp_path):
    bundle = write_bundle(tmp_path / "b", golden={"synthetic": False}, edgekd_version="0.0.9")
    manifest = bundle.manifest
    graph = bundle.graph()
    assert list(manifest)[:2] == ["version", "id"]
    assert manifest["version"] == 1
    assert manifest["edgekd_version"] == "0.0.9"
    assert manifest["created"] == "2026-01-02T03:04:05Z"
    assert manifest["variants"]["float32"]["graphs"] == {"main": "graphs/float32.onnx"}
    assert manifest["variants"]["float32"]["size_bytes"] == len(graph)
    assert manifest["files"]["graphs/float32.onnx"] == {"sha256": sha256_bytes(graph), "size_bytes": len(graph)}
    assert set(manifest["files"]) == {"graphs/float32.onnx", "golden.npz"}
    assert manifest["golden"] == {
        "file": "golden.npz",
        "inputs": ["x"],
        "outputs": {"float32": ["logits"]},
        "synthetic": False,
    }
    assert manifest["samples"] is None
    assert bundle.samples() is None


def test_golden_inputs_are_synthetic_unless_the_maker_says_otherwise(tmp_path):
    assert write_bundle(tmp_path / "b").manifest["golden"]["synthetic"] is True


def test_roles_and_variants_have_files_of_their_own(tmp_path):
    manifest, graphs, golden = make_parts(variants={"float32": {}, "int8_u8s8": {}})
    (tmp_path / "decoder.onnx").write_bytes(linear_model(weights(5, 2)))
    graphs["int8_u8s8"] = {"main": linear_model(weights(2, 2)), "decoder": tmp_path / "decoder.onnx"}
    bundle = Bundle.write(tmp_path / "b", manifest, graphs, golden)
    assert bundle.manifest["variants"]["int8_u8s8"]["graphs"] == {
        "main": "graphs/int8_u8s8.onnx",
        "decoder": "graphs/int8_u8s8.decoder.onnx",
    }
    assert bundle.graph("decoder", "int8_u8s8") == linear_model(weights(5, 2))
    assert bundle.manifest["variants"]["int8_u8s8"]["size_bytes"] == sum(
        map(len, (linear_model(weights(2, 2)), linear_model(weights(5, 2))))
    )
    with pytest.raises(UsageError, match=r"variant 'float32' of .* has no graph 'decoder'\. Known: main"):
        bundle.graph("decoder", "float32")
    with pytest.raises(UsageError, match=r"has no variant 'int8'\. Did you mean|has no variant 'int8'\. Known"):
        bundle.graph(variant="int8")


@pytest.mark.parametrize("as_zip", [False, True])
def test_the_same_content_gives_the_same_bytes(tmp_path, as_zip):
    first = write_bundle(tmp_path / "a", as_zip=as_zip, samples=SAMPLES)
    second = write_bundle(tmp_path / "b", as_zip=as_zip, samples=SAMPLES)
    if as_zip:
        assert first.path.read_bytes() == second.path.read_bytes()
    else:
        assert tree(first.path) == tree(second.path)


def test_the_id_names_the_content_and_not_the_time(tmp_path):
    first = write_bundle(tmp_path / "a")
    later = write_bundle(tmp_path / "b", created="2027-01-01T00:00:00Z")
    other = write_bundle(tmp_path / "c", labels=("cat", "dog", "emu"))
    assert first.manifest["id"] == later.manifest["id"] != other.manifest["id"]


@pytest.mark.parametrize(
    ("default", "kind", "expected"),
    [
        ({"x86_64-vnni": "a", "*": "b"}, "x86_64-vnni", "a"),
        ({"x86_64-vnni": "a", "*": "b"}, "aarch64", "b"),
        ({"x86_64*": "a", "x86_64-avx*": "c", "*": "b"}, "x86_64-avx2", "c"),
        ({"x86_64*": "a", "x86_64-avx*": "c", "*": "b"}, "x86_64-vnni", "a"),
        ({"x86_64-vnni": "a"}, "aarch64", "float32"),
        ({}, "aarch64", "float32"),
    ],
)
def test_the_variant_follows_the_cpu(tmp_path, default, kind, expected):
    variants = {name: {} for name in ("a", "b", "c", "float32")}
    bundle = write_bundle(tmp_path / "b", variants=variants, default=default)
    assert bundle.default_variant(kind) == expected


def test_without_float32_the_first_variant_is_the_last_resort(tmp_path):
    bundle = write_bundle(tmp_path / "b", variants={"int8": {}, "fp16": {}}, default={})
    assert bundle.default_variant("riscv64") == "int8"
    assert bundle.graph() == bundle.graph(variant="int8")


# --- places -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_zip", [False, True])
def test_an_older_bundle_is_replaced_whole(tmp_path, as_zip):
    write_bundle(tmp_path / "b", as_zip=as_zip, samples=SAMPLES)
    bundle = write_bundle(tmp_path / "b", as_zip=as_zip, labels=("x", "y", "z"))
    assert bundle.manifest["labels"] == ["x", "y", "z"]
    assert bundle.samples() is None
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    if not as_zip:
        assert set(tree(tmp_path / "b")) == {"bundle.json", "golden.npz", "graphs/float32.onnx"}


@pytest.mark.parametrize("as_zip", [False, True])
def test_what_is_no_bundle_is_never_replaced(tmp_path, as_zip):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"dear")
    (tmp_path / "letter.txt").write_bytes(b"dear")
    for name in ("photos", "letter.txt"):
        with pytest.raises(UsageError, match=f"{name} exists and is no bundle, so it is not replaced; choose another"):
            write_bundle(tmp_path / name, as_zip=as_zip)
    assert tree(tmp_path) == {"photos/a.jpg": b"dear", "letter.txt": b"dear"}


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "b").mkdir()
    write_bundle(tmp_path / "b").verify_files()


@pytest.mark.parametrize("as_zip", [False, True])
def test_a_full_disk_keeps_the_older_bundle(tmp_path, monkeypatch, as_zip):
    old = write_bundle(tmp_path / "b", as_zip=as_zip)

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="no space left while writing"):
        write_bundle(tmp_path / "b", as_zip=as_zip, labels=("x", "y", "z"))
    monkeypatch.undo()
    assert Bundle.open(tmp_path / "b").manifest == old.manifest
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_failed_rename_puts_the_older_bundle_back(tmp_path, monkeypatch):
    from pathlib import Path

    old, real = write_bundle(tmp_path / "b"), Path.rename

    def rename(self, target):
        if self.name == "new":
            raise OSError(errno.EACCES, "Permission denied")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(StorageError, match="cannot write"):
        write_bundle(tmp_path / "b", labels=("x", "y", "z"))
    monkeypatch.undo()
    assert Bundle.open(tmp_path / "b").manifest == old.manifest
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


# --- what must not be written -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"task": "guess"}, "task is 'guess', expected one of classification"),
        ({"labels": "cat"}, "labels is 'cat', expected a list"),
        ({"default": {"*": "int8"}}, r"default\['\*'\] is 'int8', expected one of float32"),
        ({"preprocess": [{"op": "resise"}]}, r"unknown op 'resise'\. Did you mean 'resize'"),
        ({"metrics": {"val": float("nan")}}, "the manifest cannot be written as JSON"),
        ({"metrics": {"val": np.float32(1)}}, "the manifest cannot be written as JSON"),
        ({"intended_use": "x" * 1_000_000}, "the manifest has .* bytes, expected at most 1000000"),
        ({"variants": {"float.32": {}}}, "variants is 'float.32', expected names of letters, digits, '_' and '-'"),
    ],
)
def test_a_manifest_that_could_not_be_read_is_not_written(tmp_path, change, text):
    manifest, graphs, golden = make_parts()
    if "variants" in change:
        graphs = {name: graphs["float32"] for name in change["variants"]}
        golden = {"input.x": golden["input.x"]}
    with pytest.raises(BundleError, match=text):
        Bundle.write(tmp_path / "b", {**manifest, **change}, graphs, golden)
    assert list(tmp_path.iterdir()) == []


def test_variants_and_graphs_must_be_the_same(tmp_path):
    manifest, graphs, golden = make_parts()
    with pytest.raises(BundleError, match=r"variants \['float32'\] but there are graphs for \['int8'\]; expected the"):
        Bundle.write(tmp_path / "b", manifest, {"int8": graphs["float32"]}, golden)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"output.int8.logits": np.zeros((6, 3))}, "golden holds 'output.int8.logits', expected raw, input.NAME or"),
        ({"note": np.zeros(6)}, "golden holds 'note', expected raw"),
        ({"raw": np.zeros((5, 4))}, "golden holds no arrays, or arrays of different lengths"),
        ({"raw": np.array(["a"] * 6)}, "the array 'raw' is <U1, expected numbers"),
        ({"raw": np.array([None] * 6)}, "the array 'raw' is object, expected numbers"),
    ],
)
def test_golden_arrays_are_checked(tmp_path, change, text):
    manifest, graphs, golden = make_parts()
    with pytest.raises(BundleError, match=text):
        Bundle.write(tmp_path / "b", manifest, graphs, {**golden, **change})


@pytest.mark.parametrize("samples", [{"x": np.zeros(3)}, {"x": np.zeros(3), "y": np.zeros(2)}, {}])
def test_samples_are_checked(tmp_path, samples):
    manifest, graphs, golden = make_parts()
    with pytest.raises(BundleError, match=r"samples hold .*, expected x and y of one length"):
        Bundle.write(tmp_path / "b", manifest, graphs, golden, samples)


def test_a_graph_that_is_not_there_is_named(tmp_path):
    manifest, _, golden = make_parts()
    with pytest.raises(ModelError, match=r"cannot read the graph .*gone\.onnx: No such file"):
        Bundle.write(tmp_path / "b", manifest, {"float32": {"main": tmp_path / "gone.onnx"}}, golden)


def test_the_arguments_are_not_changed(tmp_path):
    manifest, graphs, golden = make_parts()
    before = json.dumps(manifest)
    Bundle.write(tmp_path / "b", manifest, graphs, golden)
    assert json.dumps(manifest) == before
    assert make_manifest() == manifest


# --- arrays -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8", "int8", "int64", "bool", ">f4"])
@pytest.mark.parametrize("shape", [(3, 2), (0, 4), (1,), ()])
def test_arrays_survive(dtype, shape):
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    found = arrays_from_bytes(arrays_to_bytes({"a/b:0": array}), "x.npz")["a/b:0"]
    assert (found.shape, found.dtype) == (array.shape, array.dtype.newbyteorder("="))
    np.testing.assert_array_equal(found, array)


def test_numpy_reads_our_arrays_and_we_read_numpys(tmp_path):
    arrays = {"x": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "y": np.arange(3)}
    (tmp_path / "ours.npz").write_bytes(arrays_to_bytes(arrays))
    np.savez_compressed(tmp_path / "theirs.npz", **arrays)
    theirs = arrays_from_bytes((tmp_path / "theirs.npz").read_bytes(), "theirs.npz")
    with np.load(tmp_path / "ours.npz", allow_pickle=False) as ours:
        for name, array in arrays.items():
            np.testing.assert_array_equal(ours[name], array)
            np.testing.assert_array_equal(theirs[name], array)


def test_a_zip_opens_with_any_tool(tmp_path):
    bundle = write_bundle(tmp_path / "b.zip", as_zip=True)
    with zipfile.ZipFile(bundle.path) as archive:
        assert archive.testzip() is None
        # A time stamp, or a compression of the local zlib, would make other bytes of the same content.
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.namelist()[0] == "bundle.json"
        archive.extractall(tmp_path / "unpacked")
    assert Bundle.open(tmp_path / "unpacked").manifest == bundle.manifest
