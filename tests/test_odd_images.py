"""Pictures of odd kinds where an app takes prepared arrays: C gets what numpy's spatial steps give, and agrees."""

from __future__ import annotations

import numpy as np
from c_builds import compiler, run_c
from commands import ok
from odd_images import images
from test_embed import STEPS, make_bundle

import edgekd
from edgekd.device.preprocess import apply_arithmetic, prepare, split_steps
from edgekd.spec import parse_steps

VARIANT = "int8_u8s8"


def test_c_answers_to_odd_pictures_as_edgekd_does(tmp_path):
    compiler()
    bundle = make_bundle(tmp_path / "made")
    ok("embed", bundle, "--app", "c", "--out", tmp_path / "app", "--variant", VARIANT)
    spatial, arithmetic = split_steps(parse_steps(STEPS))
    prepared = np.stack([prepare(spatial, data) for data in images().values()])
    assert prepared.dtype == np.uint8
    from_bytes = run_c(tmp_path / "app", prepared, 3, build="sanitized", raw=True)
    from_floats = run_c(tmp_path / "app", apply_arithmetic(arithmetic, prepared), 3)
    np.testing.assert_array_equal(from_bytes, from_floats)  # scale and layout in C are numpy's, to the bit
    with edgekd.load(bundle, variant=VARIANT) as student:
        answers = student.predict_batch(list(images().values()))
        step = max(np.abs(answer.outputs["logits"]).max() for answer in answers) / 100
        for said, answer, name in zip(from_bytes, answers, images(), strict=True):
            assert int(said.argmax()) == answer.index, name
            np.testing.assert_allclose(said, answer.outputs["logits"], atol=2 * step, err_msg=name)
