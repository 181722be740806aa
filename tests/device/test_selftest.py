"""The self-test says yes to a good bundle, and no, with the reason, to each way of being wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest
from device_models import linear_model, make_parts, weights, write_bundle

from edgekd.device.bundle import Bundle
from edgekd.device.selftest import self_test
from edgekd.errors import BundleError

TWO = {"float32": {"tolerance": {"abs": 1e-5, "rel": 1e-5, "label_agreement": 1.0}}, "int8": {}}


def write(path, change, **options):
    """A bundle whose golden arrays or graphs `change` has changed."""
    manifest, graphs, golden = make_parts(**options)
    change(manifest, graphs, golden)
    return Bundle.write(path, manifest, graphs, golden)


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
@pytest.mark.parametrize("as_zip", [False, True])
def test_a_good_bundle_passes(tmp_path, task, as_zip):
    rows = self_test(write_bundle(tmp_path / "b", task=task, variants=TWO, as_zip=as_zip))
    assert [row["variant"] for row in rows] == ["float32", "int8"]
    for row in rows:
        assert row["ok"] is True
        assert row["problem"] is None
        assert row["max_abs_diff"] < 1e-5
        assert row["label_agreement"] == 1.0
        assert set(row["tolerance"]) == {"abs", "rel", "label_agreement"}
    json.dumps(rows, allow_nan=False)


def test_only_the_wrong_variant_fails(tmp_path):
    def change(manifest, graphs, golden):
        golden["output.int8.logits"] = golden["output.int8.logits"].copy()
        golden["output.int8.logits"][2, 1] += 0.5

    good, bad = self_test(write(tmp_path / "b", change, variants=TWO))
    assert (good["ok"], bad["ok"]) == (True, False)
    assert bad["max_abs_diff"] == pytest.approx(0.5, abs=1e-4)
    assert "output 'logits' differs by up to 5.0e-01 in 1 of 18 numbers, expected at most" in bad["problem"]


def test_the_tolerance_is_the_variants_own(tmp_path):
    def change(manifest, graphs, golden):
        golden["output.float32.logits"] = golden["output.float32.logits"] + np.float32(0.05)

    for allowed, ok in ((0.06, True), (0.04, False)):
        variants = {"float32": {"tolerance": {"abs": allowed, "rel": 0.0, "label_agreement": 1.0}}}
        (row,) = self_test(write(tmp_path / "b", change, variants=variants))
        assert row["ok"] is ok


def test_the_relative_part_grows_with_the_number(tmp_path):
    def change(manifest, graphs, golden):
        golden["output.float32.logits"] = golden["output.float32.logits"] * np.float32(1.01)

    for rel, ok in ((0.011, True), (0.009, False)):
        variants = {"float32": {"tolerance": {"abs": 1e-6, "rel": rel, "label_agreement": 0.0}}}
        (row,) = self_test(write(tmp_path / "b", change, variants=variants))
        assert row["ok"] is ok


def test_changed_answers_fail_even_within_the_numbers(tmp_path):
    def change(manifest, graphs, golden):
        golden["output.float32.logits"] = golden["output.float32.logits"][:, ::-1].copy()

    tolerance = {"abs": 100.0, "rel": 0.0}
    (row,) = self_test(write(tmp_path / "b", change, variants={"float32": {"tolerance": tolerance}}))
    assert row["ok"] is False
    assert row["problem"].endswith("of the answers are the same, expected 100.0%")
    assert row["label_agreement"] < 1
    some = {"float32": {"tolerance": {**tolerance, "label_agreement": 0.0}}}
    assert self_test(write(tmp_path / "b", change, variants=some))[0]["ok"] is True


def test_other_preprocessing_than_the_makers_fails(tmp_path):
    def change(manifest, graphs, golden):
        golden["raw"] = golden["raw"].copy()
        golden["raw"][0, 0, 0, 0] ^= 1

    (row,) = self_test(write(tmp_path / "b", change))
    assert row["ok"] is False
    assert row["problem"].startswith("preprocessing differs by 1.6e-02, expected at most 1e-06")


def test_without_raw_samples_the_preprocessing_is_not_judged(tmp_path):
    (row,) = self_test(write(tmp_path / "b", lambda manifest, graphs, golden: golden.pop("raw")))
    assert row["ok"] is True


def test_nan_outputs_fail_and_are_still_json(tmp_path):
    def change(manifest, graphs, golden):
        graphs["float32"]["main"] = linear_model(np.full((16, 3), np.nan), shape=(1, 4, 4))

    (row,) = self_test(write(tmp_path / "b", change))
    assert row["ok"] is False
    assert row["problem"] == "output 'logits' holds NaN or infinite values"
    json.dumps(row, allow_nan=False)


def test_golden_arrays_that_do_not_fit_the_graph_are_refused(tmp_path):
    def wider(manifest, graphs, golden):
        golden["output.float32.logits"] = np.zeros((6, 4), np.float32)

    def nameless(manifest, graphs, golden):
        golden["output.float32.other"] = golden.pop("output.float32.logits")

    def without_input(manifest, graphs, golden):
        del golden["input.x"]

    def without_output(manifest, graphs, golden):
        del golden["output.float32.logits"]

    for change, text in (
        (wider, r"'logits' was expected with the shape \(6, 4\), found the shape \(6, 3\); build the bundle again"),
        (nameless, r"'other' was expected with the shape \(6, 3\), found none"),
        (without_input, r"the golden arrays lack 'input\.x', which the model reads"),
        (without_output, "the golden arrays hold no output of the variant 'float32'"),
    ):
        bundle = write(tmp_path / "b", change)
        with pytest.raises(BundleError, match=text):
            self_test(bundle)


def test_a_graph_of_fixed_batch_is_tested_too(tmp_path):
    def change(manifest, graphs, golden):
        graphs["float32"]["main"] = linear_model(weights(16, 3), shape=(1, 4, 4), batch=1)

    assert self_test(write(tmp_path / "b", change))[0]["ok"] is True
