"""What ranges of activations are measured on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from spaces import make_space, write_project, write_texts

from edgekd.stages.graphs import calibration_feeds


def test_texts_are_calibrated_without_padding_each_length_by_itself(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="models of texts need the extra text")
    space = make_space(write_texts(tmp_path), "quantize.calibration_samples=80")
    groups = [group["input_ids"] for group in calibration_feeds(space)]
    assert len({group.shape[1] for group in groups}) == len(groups) > 5
    assert all((group != 0).all() for group in groups), "no place is padding"
    assert [len(group) for group in groups] == sorted((len(group) for group in groups), reverse=True)
    train = space.prepared.dataset.train.x
    wanted = [tuple(row[row != 0]) for row in train[np.linspace(0, len(train) - 1, 80).astype(int)]]
    assert sorted(tuple(row) for group in groups for row in group) == sorted(wanted)
    again = [group["input_ids"] for group in calibration_feeds(space)]
    assert all(np.array_equal(one, other) for one, other in zip(groups, again, strict=True))


def test_texts_of_a_graph_of_one_length_and_numbers_are_one_group(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="models of texts need the extra text")
    assert [
        group["input_ids"].shape[1] for group in calibration_feeds(make_space(write_texts(tmp_path, trim=False)))
    ] == [12]
    space = make_space(write_project(tmp_path, "classification"))
    (group,) = calibration_feeds(space)
    assert len(group["input"]) == len(space.prepared.dataset.train)
