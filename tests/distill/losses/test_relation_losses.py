"""Losses on relations, sequences, transformers, top-k and adversaries: against float64 numpy, and by property."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekd.distill.losses import adversarial, logits, relations, sequence, topk, transformers
from edgekd.errors import UsageError

Numbers = NDArray[np.float64]
RNG = np.random.default_rng(11)
S, T = RNG.normal(size=(7, 5)), RNG.normal(size=(7, 8))


def torched(x: Any) -> Tensor:
    return torch.from_numpy(np.asarray(x, np.float64).copy())


def soft(x: Numbers) -> Numbers:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    result: Numbers = e / e.sum(axis=-1, keepdims=True)
    return result


def smooth(d: Numbers) -> Numbers:
    result: Numbers = np.where(np.abs(d) < 1, 0.5 * d**2, np.abs(d) - 0.5)
    return result


def kl(p: Numbers, q: Numbers) -> Numbers:
    result: Numbers = (p * (np.log(p) - np.log(q))).sum(axis=-1)
    return result


def np_distance(s: Numbers, t: Numbers) -> float:
    def relative(x: Numbers) -> Numbers:
        d = np.array([[math.dist(a, b) for b in x] for a in x])
        result: Numbers = d / d[d > 0].mean()
        return result

    return float(smooth(relative(s) - relative(t)).mean())


def np_angle(s: Numbers, t: Numbers) -> float:
    def cosine(x: Numbers, i: int, j: int, k: int) -> float:
        a, b = x[i] - x[j], x[k] - x[j]
        norms = max(float(np.linalg.norm(a)), 1e-12) * max(float(np.linalg.norm(b)), 1e-12)
        return float(a @ b) / norms

    triples = itertools.product(range(len(s)), repeat=3)
    values = [smooth(np.array(cosine(s, *ijk) - cosine(t, *ijk))) for ijk in triples]
    return float(np.mean(values))


def np_pkt(s: Numbers, t: Numbers) -> float:
    def rows(x: Numbers) -> Numbers:
        u = x / np.linalg.norm(x, axis=1, keepdims=True)
        similar = (u @ u.T + 1) / 2
        result: Numbers = similar / similar.sum(axis=1, keepdims=True)
        return result

    a, b = rows(s), rows(t)
    return float((b * np.log((b + 1e-7) / (a + 1e-7))).mean())


def np_congruence(s: Numbers, t: Numbers) -> float:
    def kernel(x: Numbers) -> Numbers:
        series = sum((0.8**p / math.factorial(p)) * (x @ x.T) ** p for p in range(3))
        result: Numbers = math.exp(-0.8) * np.asarray(series)
        return result

    return float(np.linalg.norm(kernel(s) - kernel(t)) / len(s) ** 2)


RELATIONS: dict[str, tuple[Callable[..., Tensor], Callable[[Numbers, Numbers], float]]] = {
    "rkd_distance": (relations.rkd_distance, np_distance),
    "rkd_angle": (relations.rkd_angle, np_angle),
    "rkd": (relations.rkd, lambda s, t: 25 * np_distance(s, t) + 50 * np_angle(s, t)),
    "pkt": (relations.pkt, np_pkt),
    "correlation_congruence": (relations.correlation_congruence, np_congruence),
}


@pytest.mark.parametrize("name", RELATIONS)
def test_relations_by_value(name: str) -> None:
    loss, expected = RELATIONS[name]
    assert loss(torched(S), torched(T)).item() == pytest.approx(expected(S, T), rel=1e-7)
    assert loss(torched(S).float(), torched(T).float()).item() == pytest.approx(expected(S, T), rel=1e-3)


@pytest.mark.parametrize("name", RELATIONS)
def test_relations_at_equality(name: str) -> None:
    s = torched(T).requires_grad_()
    value = RELATIONS[name][0](s, torched(T))
    value.backward()  # type: ignore[no-untyped-call]
    assert value.item() == pytest.approx(0.0, abs=1e-12)
    assert s.grad is not None
    assert s.grad.abs().max() < 1e-6


@pytest.mark.parametrize("name", RELATIONS)
def test_relations_have_the_gradient_of_finite_differences(name: str) -> None:
    s, t = torched(S).requires_grad_(), torched(T).requires_grad_()
    loss = RELATIONS[name][0]
    assert torch.autograd.gradcheck(lambda x: loss(x, t.detach()), (s,), atol=1e-6)
    loss(s, t).backward()  # type: ignore[no-untyped-call]
    assert t.grad is None


@pytest.mark.parametrize("name", RELATIONS)
def test_relations_of_equal_samples_have_finite_gradients(name: str) -> None:
    s = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)
    RELATIONS[name][0](s, torched(T[:4])).backward()  # type: ignore[no-untyped-call]
    assert s.grad is not None
    assert torch.isfinite(s.grad).all()


@pytest.mark.parametrize("name", RELATIONS)
def test_relations_do_not_see_rotations(name: str) -> None:
    rotation, _ = np.linalg.qr(RNG.normal(size=(5, 5)))
    loss = RELATIONS[name][0]
    torch.testing.assert_close(loss(torched(S @ rotation), torched(T)), loss(torched(S), torched(T)))


@pytest.mark.parametrize("name", ["rkd_distance", "rkd_angle", "pkt"])
def test_relations_that_do_not_see_the_scale(name: str) -> None:
    loss = RELATIONS[name][0]
    torch.testing.assert_close(loss(torched(5 * S), torched(T)), loss(torched(S), torched(T)))


def test_angles_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = relations.rkd_angle(torched(S), torched(T))
    monkeypatch.setattr(relations, "CHUNK", 4)
    torch.testing.assert_close(relations.rkd_angle(torched(S), torched(T)), whole)


def test_contrastive_by_value() -> None:
    s, t = RNG.random((6, 9)), RNG.random((6, 9))
    noise = 8 / 50

    def one(p: Numbers) -> float:
        right = np.log(p[:, 0] / (p[:, 0] + noise + 1e-7)).sum()
        return float(-(right + np.log(noise / (p[:, 1:] + noise + 1e-7)).sum()) / 6)

    found = relations.contrastive(torched(s), torched(t), num_samples=50)
    assert found.item() == pytest.approx(one(s) + one(t), rel=1e-9)


# ---- transformers ----

HEADS = 2
MASK = np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
QS, QT = RNG.normal(size=(3, 3, 4, 6)), RNG.normal(size=(3, 3, 4, 10))


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_minilm_by_value(kind: str) -> None:
    def relation(x: Numbers, y: Numbers, head: int, length: int) -> Numbers:
        width = x.shape[1] // HEADS
        part = slice(head * width, (head + 1) * width)
        return soft(x[:length, part] @ y[:length, part].T / math.sqrt(width))

    pairs, weight = {"v2": ([(0, 0), (1, 1), (2, 2)], 1 / 3), "v1": ([(0, 1), (2, 2)], 1.0)}[kind]
    total = 0.0
    for (i, j), b, head in itertools.product(pairs, range(3), range(HEADS)):
        length = int(MASK[b].sum())
        values = kl(relation(QT[i, b], QT[j, b], head, length), relation(QS[i, b], QS[j, b], head, length))
        total += weight * values.sum() / (HEADS * length) / 3
    found = transformers.minilm_relation(
        list(torched(QS)),
        list(torched(QT)),
        mask=torch.from_numpy(MASK),
        heads=HEADS,
        relations=kind,  # type: ignore[arg-type]
    )
    assert found.item() == pytest.approx(total, rel=1e-9)


def test_minilm_does_not_see_what_the_mask_hides() -> None:
    noisy = QS.copy()
    noisy[:, MASK == 0] = 50.0
    arguments: dict[str, Any] = {"mask": torch.from_numpy(MASK), "heads": HEADS}
    torch.testing.assert_close(
        transformers.minilm_relation(list(torched(noisy)), list(torched(QT)), **arguments),
        transformers.minilm_relation(list(torched(QS)), list(torched(QT)), **arguments),
    )
    with pytest.raises(UsageError, match="pad on the right"):
        transformers.minilm_relation(
            list(torched(QS)), list(torched(QT)), mask=torch.from_numpy(MASK[:, ::-1].copy()), heads=HEADS
        )


def test_minilm_leaves_out_padding_between_tokens() -> None:
    """A text can hold the word [PAD], which reads as padding."""
    hole, last = MASK.copy(), [0, 2, 3, 1]
    hole[:, 1] = 0
    moved, kept = hole[:, last], {"heads": HEADS}
    assert hole.sum(axis=1).max() > 1, "the hole has tokens after it"
    torch.testing.assert_close(
        transformers.minilm_relation(list(torched(QS)), list(torched(QT)), mask=torch.from_numpy(hole), **kept),
        transformers.minilm_relation(
            list(torched(QS[:, :, last])), list(torched(QT[:, :, last])), mask=torch.from_numpy(moved), **kept
        ),
    )


def test_minilm_lets_no_gpu_wait() -> None:
    """Whoever looked at the values would raise: tensors on "meta" have none."""
    mask = torch.ones(2, 4, dtype=torch.bool, device="meta")
    assert transformers._lengths_mask(mask, 2, 4, mask.device).shape == (2, 4)


def test_attention_scores_of_masked_positions_do_not_count() -> None:
    s, t = RNG.normal(size=(2, 2, 3, 4, 4)), RNG.normal(size=(2, 2, 3, 4, 4))
    s[..., -1], t[..., -1] = -10_000.0, -1e9
    expected = sum(((a[..., :-1] - b[..., :-1]) ** 2).sum() / a.size for a, b in zip(s, t))
    assert transformers.attention_mse(list(torched(s)), list(torched(t))).item() == pytest.approx(expected)


def test_hidden_states_by_value() -> None:
    s, t = RNG.normal(size=(3, 4, 5)), RNG.normal(size=(3, 4, 5))
    plain = ((s - t) ** 2).mean()
    assert transformers.hidden_mse(torched(s), torched(t)).item() == pytest.approx(plain)
    masked = ((s - t) ** 2)[MASK == 1].sum() / (MASK.sum() * 5)
    assert transformers.hidden_mse(torched(s), torched(t), mask=torch.from_numpy(MASK)).item() == pytest.approx(masked)
    cosines = (s * t).sum(-1) / np.linalg.norm(s, axis=-1) / np.linalg.norm(t, axis=-1)
    expected = (1 - cosines)[MASK == 1].mean()
    found = transformers.cosine_embedding(torched(s), torched(t), mask=torch.from_numpy(MASK))
    assert found.item() == pytest.approx(expected)
    unit_s, unit_t = (x[:, 0] / np.linalg.norm(x[:, 0], axis=1, keepdims=True) for x in (s, t))
    assert transformers.patient(torched(s), torched(t)).item() == pytest.approx(((unit_s - unit_t) ** 2).mean())


# ---- sequences and top-k ----

LS, LT = RNG.normal(size=(3, 4, 6)), 2 * RNG.normal(size=(3, 4, 6))


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_generalized_jsd_by_value(beta: float, temperature: float) -> None:
    s, t = soft(LS / temperature), soft(LT / temperature)
    m = (1 - beta) * s + beta * t
    values = {0.0: kl(t, s), 1.0: kl(s, t)}.get(beta, beta * kl(t, m) + (1 - beta) * kl(s, m))
    arguments: dict[str, Any] = {"beta": beta, "temperature": temperature}
    found = sequence.generalized_jsd(torched(LS), torched(LT), **arguments)
    assert found.item() == pytest.approx(values.mean(), rel=1e-9)
    masked = sequence.generalized_jsd(torched(LS), torched(LT), mask=torch.from_numpy(MASK), **arguments)
    assert masked.item() == pytest.approx(values[MASK == 1].mean(), rel=1e-9)
    x = torched(LS).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sequence.generalized_jsd(x, torched(LT), **arguments), (x,))


def test_forward_jsd_is_kd() -> None:
    torch.testing.assert_close(
        sequence.generalized_jsd(torched(LS), torched(LT), beta=0.0), logits.kd(torched(LS), torched(LT), temperature=1)
    )


@pytest.mark.parametrize("missing", ["zero", "uniform"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_topk_kd_by_value(missing: str, temperature: float) -> None:
    log_t = np.log(soft(LT))
    indices = np.argsort(-log_t, axis=-1)[..., :3]
    top = np.take_along_axis(log_t, indices, -1)
    p = np.exp(top) ** (1 / temperature)
    q = np.take_along_axis(soft(LS / temperature), indices, -1)
    if missing == "uniform":
        p = np.concatenate([p, (1 - np.exp(top).sum(-1, keepdims=True)) ** (1 / temperature)], -1)
        q = np.concatenate([q, 1 - q.sum(-1, keepdims=True)], -1)
    p = p / p.sum(-1, keepdims=True)
    values = temperature**2 * kl(p, q)
    arguments: dict[str, Any] = {"temperature": temperature, "missing": missing}
    found = topk.topk_kd(torched(LS), torch.from_numpy(indices), torched(top), **arguments)
    assert found.item() == pytest.approx(values.mean(), rel=1e-9)
    found = topk.topk_kd(torched(LS), torch.from_numpy(indices), torched(top), mask=torch.from_numpy(MASK), **arguments)
    assert found.item() == pytest.approx(values[MASK == 1].mean(), rel=1e-9)


def test_topk_of_all_classes_is_kd() -> None:
    s, t = LS[:, 0], LT[:, 0]
    every = torch.arange(6).expand(3, 6)
    found = topk.topk_kd(torched(s), every, torched(np.log(soft(t))), temperature=2.0)
    torch.testing.assert_close(found, logits.kd(torched(s), torched(t), temperature=2.0))
    found = topk.topk_cross_entropy(torched(s), every, torched(soft(t)))
    torch.testing.assert_close(found, logits.soft_cross_entropy(torched(s), torched(t)))


def test_topk_cross_entropy_spreads_the_rest() -> None:
    s, t = LS[:, 0], soft(LT[:, 0])
    indices = np.argsort(-t, axis=-1)[:, :2]
    full = np.tile(((1 - np.take_along_axis(t, indices, -1).sum(-1)) / 4)[:, None], (1, 6))
    np.put_along_axis(full, indices, np.take_along_axis(t, indices, -1), -1)
    expected = -(full * np.log(soft(s))).sum(-1).mean()
    probabilities = torched(np.take_along_axis(t, indices, -1))
    found = topk.topk_cross_entropy(torched(s), torch.from_numpy(indices), probabilities)
    assert found.item() == pytest.approx(expected, rel=1e-9)
    with pytest.raises(UsageError, match="whole numbers per row"):
        topk.topk_cross_entropy(torched(s), torched(indices), probabilities)


# ---- adversaries and peers ----


def test_adversarial_by_value() -> None:
    a, b, c = RNG.normal(size=(3, 5, 1))
    sigmoid = [1 / (1 + np.exp(-x)) for x in (a, b, c)]
    expected = -np.log(sigmoid[0]).mean() - np.log(sigmoid[1]).mean() - np.log(1 - sigmoid[2]).mean()
    found = adversarial.adversarial(torched(a), torched(b), cut_student_score=torched(c))
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_mutual_by_value() -> None:
    s, p, r = RNG.normal(size=(3, 5, 4))
    y = np.array([0, 1, 2, 3, 0])
    expected = (kl(soft(p), soft(s)).mean() + kl(soft(r), soft(s)).mean()) / 2
    assert adversarial.mutual(torched(s), [torched(p), torched(r)]).item() == pytest.approx(expected, rel=1e-9)
    cohort = [s, p, r]
    for k in (1, 2):
        expected -= np.log(soft(cohort[k]))[np.arange(5), y].mean()
        others = [kl(soft(cohort[j]), soft(cohort[k])).mean() for j in range(3) if j != k]
        expected += sum(others) / 2
    found = adversarial.mutual_learning(torched(s), torch.from_numpy(y), peer_logits=[torched(p), torched(r)])
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_peers_teach_each_other_as_constants() -> None:
    s, p = torched(RNG.normal(size=(5, 4))).requires_grad_(), torched(RNG.normal(size=(5, 4))).requires_grad_()
    adversarial.mutual(s, [p]).backward()  # type: ignore[no-untyped-call]
    assert s.grad is not None
    assert p.grad is None
