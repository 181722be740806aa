"""Masks: a pure function of (seed, view, sample), in the shares of BERT; and the loss of what they hide."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgekd.distill.batches import PLAIN, Batches
from edgekd.distill.masking import ASKED, Masking, likelihoods
from edgekd.errors import UsageError
from edgekd.spec import Split, Trim

SIZE, PAD, CLS, SEP, MASK = 200, 0, 1, 2, 3
OTHERS = np.arange(4, SIZE)
MASKING = Masking(MASK, OTHERS, SIZE)


def texts(count: int, length: int = 40) -> np.ndarray:
    """Random ids with a first and a last special token, padded."""
    rng = np.random.default_rng(0)
    ids = rng.integers(4, SIZE, (count, length))
    ids[:, 0] = CLS
    for row, end in enumerate(rng.integers(2, length, count)):
        ids[row, end], ids[row, end + 1 :] = SEP, PAD
    return ids


def test_a_share_is_asked_for_and_shown_as_bert_shows_it() -> None:
    ids = texts(4000)
    x, y, asked_N = MASKING(torch.from_numpy(ids), np.arange(4000), seed=0, view=0)
    shown, asked = x[:, 0].numpy(), x[:, 1].numpy().astype(bool)
    may = np.isin(ids, OTHERS)
    assert not asked[~may].any()
    np.testing.assert_array_equal(asked.sum(axis=1), asked_N.numpy())
    assert (asked_N.numpy() >= 1)[may.any(axis=1)].all()
    np.testing.assert_array_equal(ids[asked], y.numpy())
    np.testing.assert_array_equal(shown[~asked], ids[~asked])
    long = may.sum(axis=1) > 20  # in short texts the one that is asked for at least raises the share
    assert asked[long].sum() / may[long].sum() == pytest.approx(0.15, abs=0.005)
    masked, same = (shown == MASK)[asked].mean(), (shown == ids)[asked].mean()
    assert masked == pytest.approx(0.8, abs=0.01)
    assert same == pytest.approx(0.1 + 0.1 / len(OTHERS), abs=0.01)
    assert np.isin(shown[asked & (shown != MASK)], OTHERS).all()


def test_each_view_hides_others_and_a_text_keeps_its_mask_in_any_company() -> None:
    ids, samples = texts(64), np.arange(100, 164)
    x, _, _ = MASKING(torch.from_numpy(ids), samples, seed=7, view=3)
    again, _, _ = MASKING(torch.from_numpy(ids[10:12, :25]), samples[10:12], seed=7, view=3)
    assert torch.equal(again, x[10:12, :, :25])
    for seed, view in ((8, 3), (7, 4), (7, PLAIN)):
        other, _, _ = MASKING(torch.from_numpy(ids), samples, seed=seed, view=view)
        assert not torch.equal(other, x)


def test_batches_hold_what_is_asked_for_and_validation_asks_the_same_each_time() -> None:
    split = Split(texts(30).astype(np.int32), np.zeros((30, 1), np.float32), np.arange(30))
    batches = Batches(split, (Trim(PAD),), batch_size=8, task="masked_lm", masking=MASKING)
    epochs = [list(batches.epoch(number)) for number in (0, 1, 0)]
    first, second, repeated = ([batch["x"] for batch in epoch] for epoch in epochs)
    assert all(torch.equal(a, b) for a, b in zip(first, repeated))
    assert batches.views is None
    for batch in epochs[1]:
        assert batch["x"].shape == (len(batch["id"]), 2, batch["mask"].shape[1])
        assert len(batch["y"]) == int(batch[ASKED].sum()) == int(batch["x"][:, 1].sum())
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, second))
    whole = [torch.cat([batch["y"] for batch in batches.full()]) for _ in range(2)]
    assert torch.equal(*whole)


def test_likelihoods_are_the_sums_of_each_text() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(5, 9, dtype=torch.float64), torch.tensor([3, 1, 8, 0, 0])
    found = likelihoods(logits, labels, torch.tensor([2, 0, 3]))
    right = torch.log_softmax(logits, dim=1)[torch.arange(5), labels]
    np.testing.assert_allclose(found[:, 0], [right[:2].sum(), 0.0, right[2:].sum()], rtol=1e-6)
    assert found[:, 1].tolist() == [2.0, 0.0, 3.0]


@pytest.mark.parametrize("probability", [0.0, 1.0, -0.1])
def test_a_share_of_nothing_or_all_is_refused(probability: float) -> None:
    with pytest.raises(UsageError, match="probability"):
        Masking(MASK, OTHERS, SIZE, probability)


def test_logits_of_all_tokens_come_where_they_are_tapped() -> None:
    """As DistilBERT's authors distil: by every token that is no padding, hidden or not."""
    from tiny_encoders import VOCABULARY, encoder, ids_of

    from edgekd.distill.models.masked import MaskedLanguageModel
    from edgekd.distill.objective import Objective, Term
    from edgekd.distill.taps import Taps
    from edgekd.spec import TensorSpec

    ids = ids_of(5, 9)
    asked = torch.zeros_like(ids)
    asked[:, 1] = 1
    x, mask = torch.stack([ids, asked], dim=1), ids != 0
    specs = (TensorSpec("input_ids", "int64", ("N", 2, "L")),)
    teacher, student = (
        MaskedLanguageModel(encoder(head="ForMaskedLM", hidden_size=size), specs, VOCABULARY, pad=0) for size in (16, 8)
    )
    with torch.no_grad():
        wanted = teacher.model(input_ids=ids, attention_mask=mask.long()).logits
        plain = teacher(x)
        with Taps(teacher, ["token_logits"]) as taps:
            tapped = teacher(x)
            tapped = {**taps.read(), **tapped}
    assert set(plain) == {"logits", "hidden"}
    torch.testing.assert_close(tapped["token_logits"], wanted)
    torch.testing.assert_close(tapped["logits"], wanted[:, 1])
    torch.testing.assert_close(plain["logits"], wanted[:, 1])
    with Taps(student, ["token_logits"]) as taps:
        given = student(x)
        given = {**taps.read(), **given}
    term = Term("kd", "kd", student_tap="token_logits", teacher_tap="token_logits", options={"temperature": 2.0})
    loss, _ = Objective([term])(given, {"token_logits": wanted}, {"x": x, "mask": mask}, 0.0)
    p, log_q = torch.softmax(wanted / 2, -1), torch.log_softmax(given["token_logits"] / 2, -1)
    expected = 4 * (p * (p.log() - log_q)).sum(-1)[mask].mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)
    assert expected > 0.01
