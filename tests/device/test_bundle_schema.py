"""The JSON Schema of bundle.json and edgekd's own reader agree: on real bundles, on wrong fields, on any change."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import jsonschema
import pytest
from device_models import write_bundle
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd import assets
from edgekd.device.manifest import parse_manifest
from edgekd.errors import BundleError
from edgekd.spec import STEPS

SCHEMA = json.loads((assets.folder("export", "schemas") / "bundle.schema.json").read_text(encoding="utf-8"))
HARMFUL = ("/x", "../x", "a/../x", "a//x", "a/", ".", "a\\x", "C:x", "x\x00", "bundle.json.sig", "x" * 256)
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def reads(manifest) -> bool:
    try:
        parse_manifest(json.dumps(manifest).encode())
    except BundleError:
        return False
    return True


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    provenance = {"teacher": {"name": "t", "licence": "MIT", "sha256": ""}, "data": {"name": "d"}, "seed": 3}
    options = {"provenance": provenance, "intended_use": "tests", "variants": {"float32": {}, "int8_u8s8": {}}}
    return write_bundle(tmp_path_factory.mktemp("schema") / "b", **options).manifest


def test_the_schema_is_one_and_holds_for_written_bundles(good, tmp_path):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    VALIDATOR.validate(good)
    post = [{"op": "denormalize", "mean": [1.0], "std": [2.0]}, {"op": "threshold", "value": 0.25}]
    VALIDATOR.validate(write_bundle(tmp_path / "c", postprocess=post).manifest)


def test_every_step_is_described_in_the_schema_and_in_the_text():
    text = (assets.folder("export", "schemas").parent / "BUNDLE.md").read_text(encoding="utf-8")
    steps = json.dumps(SCHEMA["$defs"]["step"])
    for op in STEPS:
        assert f'"{op}"' in steps
        assert re.search(rf"^\| `{op}[`(]", text, flags=re.M), op
    for field in SCHEMA["properties"]:
        assert f"`{field}`" in text, field


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(version=2),
        lambda m: m.update(version=True),
        lambda m: m.pop("labels"),
        lambda m: m.update(task="guess"),
        lambda m: m.update(licence=7),
        lambda m: m["provenance"].update(teacher={"licence": 7}),
        lambda m: m["provenance"].update(data="mine"),
        lambda m: m["inputs"][0].update(shape=[0]),
        lambda m: m["inputs"][0].update(dtype="object"),
        lambda m: m["preprocess"][0].update(op="exec"),
        lambda m: m["preprocess"][0].update(exif=1),
        lambda m: m["preprocess"][2].update(size=[1, 2, 3]),
        lambda m: m["preprocess"][2].update(size=100_000),
        lambda m: m["preprocess"][4].update(std=[0.0]),
        lambda m: m["preprocess"][4].update(mean="train"),
        lambda m: m["postprocess"][0].update(temperature=0),
        lambda m: m["variants"].update({"../x": m["variants"]["float32"]}),
        lambda m: m["variants"]["float32"].update(graphs={}),
        lambda m: m["variants"]["float32"].update(tolerance={"abs": -1}),
        lambda m: m["files"]["golden.npz"].update(sha256="0" * 63),
        lambda m: m["files"]["golden.npz"].update(size_bytes=1 << 32),
        *(
            lambda m, name=name: m["files"].update({name: m["files"]["golden.npz"]})
            for name in (
                "/x",
                "../x",
                "a/../x",
                "a//x",
                "a/",
                ".",
                "a\\x",
                "C:x",
                "x\x00",
                "bundle.json.sig",
                "x" * 256,
            )
        ),
        lambda m: m.update(samples={"file": "golden.npz"}),
    ],
)
def test_both_refuse_a_wrong_field(good, change):
    manifest = copy.deepcopy(good)
    change(manifest)
    assert not reads(manifest)
    assert not VALIDATOR.is_valid(manifest)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | st.sampled_from(["", "a", "..", "float32"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["op", "a", "main"]), inner, max_size=2)
    ),
    max_leaves=4,
)


def places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_what_the_reader_takes_fits_the_schema(good, data):
    """The other direction needs what a schema cannot say: that files are listed, and the order of the steps."""
    manifest = copy.deepcopy(good)
    *parents, last = data.draw(st.sampled_from([place for place in places(manifest) if place]))
    parent = manifest
    for key in parents:
        parent = parent[key]
    parent[last] = data.draw(VALUES)
    if reads(manifest):
        VALIDATOR.validate(manifest)


def test_the_openly_told_example_of_unknown_keys(good):
    manifest = {**copy.deepcopy(good), "later": {"any": "thing"}}
    assert reads(manifest)
    VALIDATOR.validate(manifest)


def test_bundles_of_finished_runs_fit():
    """Where a checkout holds runs: the bundles that users really get."""
    for place in Path(__file__).resolve().parents[2].glob("runs/*/student.edgekd/bundle.json"):
        VALIDATOR.validate(json.loads(place.read_text(encoding="utf-8")))
