"""Bundles from strangers: whatever is in the file, the answer is a BundleError or a bundle, and nothing is unpacked."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import os
import pickle
import shutil
import stat
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from device_models import make_parts, write_bundle
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgekd.device.archive import arrays_from_bytes, arrays_to_bytes, name_problem
from edgekd.device.bundle import Bundle
from edgekd.device.manifest import parse_manifest
from edgekd.device.predictor import load
from edgekd.device.selftest import self_test
from edgekd.errors import BundleError, EdgekdError
from edgekd.files import sha256_bytes

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.floats(),
    st.sampled_from(["", "x", "float32", "../x", "/etc/passwd", "golden.npz", "train", "\udc00", "N", "bundle.json"]),
    st.lists(st.integers(-2, 20), max_size=3),
    st.just({}),
    st.just([[]]),
    st.just({"op": "resize"}),
    st.just({"op": "normalize", "mean": [[1]], "std": [[]]}),
    st.just({"graphs": {"main": ["golden.npz"]}}),
)


@functools.cache
def good_files() -> dict[str, bytes]:
    """The files of a good bundle with samples."""
    with tempfile.TemporaryDirectory() as folder:
        samples = {"x": np.zeros((2, 4, 4, 1), np.uint8), "y": np.zeros(2, np.int64)}
        root = write_bundle(Path(folder) / "b", samples=samples).path
        return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def good_manifest():
    return json.loads(good_files()["bundle.json"])


def write_folder(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_zip(path, files, *, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def directory_entry(content, name):
    """Where the central directory's record of a file starts in the bytes of a zip."""
    end = content.rindex(b"PK\x05\x06")
    return content.index(name.encode(), int.from_bytes(content[end + 16 : end + 20], "little")) - 46


def rehashed(changed: dict[str, bytes]) -> dict[str, bytes]:
    """A bundle whose maker changed these files and the hashes with them."""
    files, manifest = {**good_files(), **changed}, good_manifest()
    for name, data in changed.items():
        manifest["files"][name] = {"sha256": sha256_bytes(data), "size_bytes": len(data)}
    return {**files, "bundle.json": json.dumps(manifest).encode()}


def use_everything(path):
    """Open, and ask for all there is. Only errors of ours may come out."""
    try:
        bundle = Bundle.open(path)
    except BundleError:
        return
    for ask in (
        bundle.verify_files,
        bundle.golden,
        bundle.samples,
        bundle.graph,
        lambda: bundle.default_variant("aarch64"),
        lambda: self_test(bundle),
        lambda: load(path).predict(np.zeros((4, 4), np.uint8)),
    ):
        try:
            ask()
        except EdgekdError:
            continue


# --- any change at all ------------------------------------------------------------------------------------------------


def places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_changed_manifest_opens_or_is_refused(data):
    manifest = good_manifest()
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(list(places(manifest))))
        value = copy.deepcopy(data.draw(VALUES))
        if not place:
            manifest = value
            break
        *parents, last = place
        parent = functools.reduce(lambda table, key: table[key], parents, manifest)
        action = data.draw(st.sampled_from(["replace", "replace", "remove", "wrap", "add"]))
        if action == "replace":
            parent[last] = value
        elif action == "remove":
            del parent[last]
        elif action == "wrap":
            parent[last] = [parent[last]]
        elif isinstance(parent, dict):
            parent[data.draw(st.sampled_from(["", "x", "../x", "*", "x" * 300, "float32"]))] = value
        else:
            parent.append(value)
    with tempfile.TemporaryDirectory() as folder:
        use_everything(write_folder(Path(folder), {**good_files(), "bundle.json": json.dumps(manifest).encode()}))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_changed_text_opens_or_is_refused(data):
    text = bytearray(good_files()["bundle.json"])
    for _ in range(data.draw(st.integers(1, 4))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BundleError):
        parse_manifest(bytes(text[: data.draw(st.integers(len(text) - 2, len(text)))]))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
@example(b"")
@example(b"\xff\xfe{\x00}\x00")
@example(b"[" * 100_000)
@example(b"1" * 10_000)
@example(b'{"version": 1' + b"0" * 5000 + b"}")
@example(b'{"version": 1e999}')
@example(b'{"version": NaN}')
@example(b'{"version": true}')
@example(b'{"a": 1, "a": 1}')
@example(b'{"version": 1, "name": "\\ud800"}')
def test_any_bytes_for_a_manifest_are_refused(content):
    with pytest.raises(BundleError, match=r"bundle\.json"):
        parse_manifest(content)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
def test_any_changed_zip_opens_or_is_refused(data, compression):
    with tempfile.TemporaryDirectory() as folder:
        path = write_zip(Path(folder) / "b.zip", good_files(), compression=compression)
        content = bytearray(path.read_bytes())
        directory = directory_entry(content, next(iter(good_files())))
        for _ in range(data.draw(st.integers(1, 5))):
            # Half of the changes hit the central directory, where the names, sizes and flags are.
            low = data.draw(st.sampled_from([0, directory]))
            content[data.draw(st.integers(low, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content)
        use_everything(path)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_changed_arrays_with_the_right_hash_open_or_are_refused(data):
    content = bytearray(good_files()["golden.npz"])
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        use_everything(write_folder(Path(folder), rehashed({"golden.npz": bytes(content)})))


# --- one change each --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["golden.npz", "graphs/float32.onnx", "samples.npz"])
@pytest.mark.parametrize("as_zip", [False, True])
def test_a_changed_byte_is_refused_and_named(tmp_path, name, as_zip):
    files = good_files()
    changed = bytearray(files[name])
    changed[len(changed) // 2] ^= 1
    files = {**files, name: bytes(changed)}
    path = write_zip(tmp_path / "b.zip", files) if as_zip else write_folder(tmp_path / "b", files)
    bundle = Bundle.open(path)
    with pytest.raises(
        BundleError, match=rf"{name} in .* was changed after the bundle was written: sha256 .*fresh copy"
    ):
        bundle.verify_files()
    ask = {"golden.npz": bundle.golden, "samples.npz": bundle.samples, "graphs/float32.onnx": bundle.graph}[name]
    with pytest.raises(BundleError, match=f"{name} in .* was changed"):
        ask()


def test_another_length_and_a_missing_file_are_noticed_at_once(tmp_path):
    root = write_folder(tmp_path, good_files())
    with (root / "golden.npz").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match=r"golden\.npz in .* has \d+ bytes, expected \d+; get a fresh copy"):
        Bundle.open(root)
    (root / "golden.npz").unlink()
    with pytest.raises(BundleError, match=r"golden\.npz is missing in .*; get a fresh copy"):
        Bundle.open(root)


@pytest.mark.parametrize("version", [2, 99])
def test_a_newer_version_asks_for_an_upgrade(version):
    # Nothing else of it may be looked at: a later version may have changed everything.
    text = json.dumps({"version": version, "task": "telepathy"}).encode()
    with pytest.raises(BundleError, match=rf"version {version}, but this edgekd reads version 1; upgrade it with: pip"):
        parse_manifest(text)


@pytest.mark.parametrize("version", [0, -1, "1", 1.0, True, None])
def test_what_is_no_version_is_refused(version):
    with pytest.raises(BundleError, match=r"version is .*, expected the number 1"):
        parse_manifest(json.dumps({**good_manifest(), "version": version}).encode())


@pytest.mark.parametrize(
    ("addition", "text"),
    [
        (b'"later": 9223372036854775808', "a whole number is too large"),
        (b'"later": [1e999]', "a number is too large"),
        (b'"later": NaN', "NaN is not a number"),
        (b'"later": "\\ud800"', "surrogates not allowed"),
        (b'"name": "other"', "a key stands twice in one table"),
        (b'"later": {"a": 1, "a": 2}', "a key stands twice in one table"),
    ],
)
def test_what_other_readers_may_read_otherwise_is_refused(addition, text):
    """A manifest that two readers understand differently could show one of them another file."""
    with pytest.raises(BundleError, match=rf"bundle\.json is not readable as JSON \(.*{text}"):
        parse_manifest(good_files()["bundle.json"].rstrip()[:-1] + b", " + addition + b"}")


def test_unknown_keys_are_ignored():
    manifest = {**good_manifest(), "signature": {"key": "x"}, "later": [1]}
    manifest["variants"]["float32"]["later"] = 2
    assert parse_manifest(json.dumps(manifest).encode())["later"] == [1]


def test_a_manifest_of_more_than_a_megabyte_is_refused(tmp_path):
    manifest = {**good_manifest(), "later": "x" * 1_000_000}
    files = {**good_files(), "bundle.json": json.dumps(manifest).encode()}
    for path in (write_folder(tmp_path / "b", files), write_zip(tmp_path / "b.zip", files)):
        with pytest.raises(BundleError, match=r"bundle\.json is longer than 1000000 bytes"):
            Bundle.open(path)


NAMES = [
    "../secret",
    "a/../../secret",
    "/etc/passwd",
    "C:/windows",
    "C:secret",
    "..\\secret",
    "\\\\host\\share",
    "a//b",
    "./a",
    "a/.",
    "a\x00b",
    "a\nb",
    "",
    "x" * 256,
    "a/",
    "*",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    (tmp_path / "secret").write_bytes(b"secret")
    manifest = good_manifest()
    manifest["files"][name] = {"sha256": sha256_bytes(b"secret"), "size_bytes": 6}
    root = write_folder(tmp_path / "b", {**good_files(), "bundle.json": json.dumps(manifest).encode()})
    with pytest.raises(BundleError, match=r"files names .*: expected"):
        Bundle.open(root)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("", "a/", "a\x00b", "x" * 256)])
def test_a_zip_that_holds_such_a_name_is_refused(tmp_path, name):
    with pytest.raises(BundleError, match=r"holds the entry .*: expected"):
        Bundle.open(write_zip(tmp_path / "b.zip", {**good_files(), name: b"x"}))


@pytest.mark.parametrize("name", ["a", "graphs/int8_u8s8.decoder.onnx", "tokenizer.json", "dir/ä ö.txt"])
def test_ordinary_names_are_allowed(name):
    assert name_problem(name) is None


def test_links_are_refused_in_folders(tmp_path):
    secret = tmp_path / "secret.npz"
    secret.write_bytes(good_files()["golden.npz"])
    root = write_folder(tmp_path / "b", good_files())
    (root / "golden.npz").unlink()
    (root / "golden.npz").symlink_to(secret)
    with pytest.raises(BundleError, match=r"golden\.npz is \(or lies behind\) a symbolic link, expected a plain file"):
        Bundle.open(root)


def test_linked_folders_and_manifests_are_refused(tmp_path):
    real = write_folder(tmp_path / "real", good_files())
    root = write_folder(tmp_path / "b", good_files())
    shutil.rmtree(root / "graphs")
    (root / "graphs").symlink_to(real / "graphs")
    with pytest.raises(BundleError, match="lies behind"):
        Bundle.open(root)
    (root / "bundle.json").unlink()
    (root / "bundle.json").symlink_to(real / "bundle.json")
    with pytest.raises(BundleError, match=r"bundle\.json is \(or lies behind\) a symbolic link"):
        Bundle.open(root)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_does_not_block(tmp_path):
    root = write_folder(tmp_path / "b", good_files())
    (root / "golden.npz").unlink()
    os.mkfifo(root / "golden.npz")
    with pytest.raises(BundleError, match=r"golden\.npz is not a plain file"):
        Bundle.open(root)


def test_links_are_refused_in_zips(tmp_path):
    path = tmp_path / "b.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in good_files().items():
            entry = zipfile.ZipInfo(name)
            if name == "golden.npz":
                entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
                data = b"/etc/passwd"
            archive.writestr(entry, data)
    with pytest.raises(BundleError, match=r"holds the entry 'golden\.npz': expected a plain file, no link"):
        Bundle.open(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_comes_twice_is_refused(tmp_path):
    path = write_zip(tmp_path / "b.zip", good_files())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("golden.npz", good_files()["golden.npz"])
    with pytest.raises(BundleError, match=r"holds 'golden\.npz' twice, expected each name once"):
        Bundle.open(path)


def test_encrypted_and_oddly_packed_entries_are_refused(tmp_path):
    path = write_zip(tmp_path / "b.zip", good_files(), compression=zipfile.ZIP_LZMA)
    with pytest.raises(BundleError, match="expected it stored or deflated"):
        Bundle.open(path)
    content = bytearray(write_zip(path, good_files()).read_bytes())
    content[directory_entry(content, "bundle.json") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="expected no encryption"):
        Bundle.open(path)


def test_a_zip_bomb_is_not_inflated(tmp_path, monkeypatch):
    bomb = b"\0" * 50_000_000
    files = {**good_files(), "golden.npz": bomb}
    path = write_zip(tmp_path / "b.zip", files, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 200_000
    with pytest.raises(BundleError, match=r"golden\.npz in .* has 50000000 bytes, expected"):
        Bundle.open(path)
    # An archive that lies about the size in its directory: at most the promised bytes come out.
    content = bytearray(path.read_bytes())
    at = directory_entry(content, "golden.npz")
    content[at + 24 : at + 28] = len(good_files()["golden.npz"]).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"golden\.npz"):
        Bundle.open(path).golden()


def test_sizes_beyond_any_graph_are_refused():
    manifest = good_manifest()
    manifest["files"]["golden.npz"]["size_bytes"] = 1 << 40
    with pytest.raises(BundleError, match=r"golden\.npz would have 1099511627776 bytes, expected at most 2147483648"):
        parse_manifest(json.dumps(manifest).encode())


def npz(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def npy(header, data=b""):
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


class Bomb:
    def __reduce__(self):
        return os.abort, ()


def test_a_pickle_is_never_loaded():
    header = "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    with pytest.raises(BundleError, match="found an array header that is none of plain numbers"):
        arrays_from_bytes(npz(x=npy(header, pickle.dumps([Bomb()]))), "golden.npz")
    with pytest.raises(BundleError, match=r"golden\.npz is no readable \.npz file"):
        arrays_from_bytes(pickle.dumps(Bomb()), "golden.npz")


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 1099511627776), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
        "{'descr': '|V9', 'fortran_order': False, 'shape': (0,), }",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (0,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "(" * 5000,
        "__import__('os').abort()",
        "[1, 2",
    ],
)
def test_headers_that_lie_are_refused_before_memory_is_taken(header):
    with pytest.raises(BundleError, match=r"golden\.npz is no readable \.npz file of numbers"):
        arrays_from_bytes(npz(x=npy(header)), "golden.npz")


def test_arrays_that_inflate_beyond_the_limit_are_refused():
    data = arrays_to_bytes({"a": np.zeros(1000), "b": np.zeros(1000)})
    assert len(arrays_from_bytes(data, "golden.npz", limit=20_000)) == 2
    with pytest.raises(BundleError, match=r"b in golden\.npz is longer than \d+ bytes"):
        arrays_from_bytes(data, "golden.npz", limit=10_000)


def test_golden_arrays_that_the_manifest_names_must_be_there(tmp_path):
    _, _, golden = make_parts()
    del golden["output.float32.logits"]
    root = write_folder(tmp_path, rehashed({"golden.npz": arrays_to_bytes(golden)}))
    with pytest.raises(BundleError, match=r"golden\.npz lacks 'output\.float32\.logits', which bundle\.json names"):
        Bundle.open(root).golden()


def test_samples_need_x_and_y(tmp_path):
    root = write_folder(tmp_path, rehashed({"samples.npz": arrays_to_bytes({"x": np.zeros(2)})}))
    with pytest.raises(BundleError, match=r"samples\.npz holds x, expected x and y of one length"):
        Bundle.open(root).samples()


def test_what_is_no_bundle_at_all(tmp_path):
    with pytest.raises(BundleError, match=r"no bundle at .*nowhere; check the path"):
        Bundle.open(tmp_path / "nowhere")
    (tmp_path / "model.onnx").write_bytes(good_files()["graphs/float32.onnx"])
    with pytest.raises(
        BundleError, match=r"is no bundle: expected a folder or a zip with a bundle.json; build one with"
    ):
        Bundle.open(tmp_path / "model.onnx")
    wrapped = {f"b.edgekd/{name}": data for name, data in good_files().items()}
    with pytest.raises(BundleError, match=r"bundle\.json is missing in .*\(its files lie at the root of the zip\)"):
        Bundle.open(write_zip(tmp_path / "b.zip", wrapped))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda m: m.update(task="guess"), "task is 'guess', expected one of classification, multilabel"),
        (lambda m: m["inputs"][0].update(shape=[-1]), r"inputs\[0\]\.shape is \[-1\], expected whole numbers from 1"),
        (lambda m: m["inputs"].append(m["inputs"][0]), r"inputs is \['x', 'x'\], expected each name once"),
        (lambda m: m["inputs"][0].update(dtype="object"), r"inputs\[0\]\.dtype is 'object', expected one of float16"),
        (lambda m: m["preprocess"][0].update(op="resample"), "unknown op 'resample'.*newer edgekd may know it: pip"),
        (lambda m: m["preprocess"].reverse(), "stands after .*expected decode"),
        (
            lambda m: m["golden"].update(file="other.npz"),
            "golden.file is 'other.npz', expected a file that 'files' lists",
        ),
        (lambda m: m["files"]["golden.npz"].update(sha256="0" * 63), "sha256 is '0+', expected 64 hexadecimal digits"),
        (lambda m: m["files"].update({"bundle.json": m["files"]["golden.npz"]}), "files names 'bundle.json'"),
        (lambda m: m.update(variants={}), "variants is {}, expected at least one variant"),
        (
            lambda m: m["variants"]["float32"].update(tolerance={"abs": -1}),
            r"tolerance\['abs'\] is -1, expected a number",
        ),
        (lambda m: m["labels"].append(3), r"labels\[3\] is 3, expected a text"),
    ],
)
def test_wrong_fields_are_named(change, text):
    manifest = good_manifest()
    change(manifest)
    with pytest.raises(BundleError, match=text):
        parse_manifest(json.dumps(manifest).encode())
