"""What holds for every loss on relations, tokens, top-k and scores, and how a term gives each loss its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edgekd.distill.losses import ADAPTER_OF, DEFAULT_WEIGHTS, EQUAL_SHAPES, LOSSES, find_loss
from edgekd.distill.losses.adversarial import discriminator_loss, generator_loss, mutual
from edgekd.distill.losses.relations import rkd_angle, rkd_distance
from edgekd.distill.losses.topk import topk_kd
from edgekd.distill.objective import Objective, Term
from edgekd.errors import UsageError

RNG = np.random.default_rng(5)
N, L, D, C = 6, 4, 8, 5


def draw(*shape: int) -> Tensor:
    return torch.from_numpy(RNG.normal(size=shape))


MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]] * 2)
INDICES = torch.from_numpy(np.argsort(RNG.random((N, C)))[:, :3].copy())
SURE = torch.softmax(draw(N, 4), dim=1)[:, :3]
LABELS = torch.arange(N) % C
# name: (student's tensors, teacher's tensors, options); a list is one argument of several tensors.
Case = tuple[Any, tuple[Any, ...], dict[str, Any]]
CASES: dict[str, Case] = {
    "rkd_distance": (draw(N, D), (draw(N, C),), {}),
    "rkd_angle": (draw(N, D), (draw(N, C),), {}),
    "rkd": (draw(N, D), (draw(N, C),), {}),
    "pkt": (draw(N, D), (draw(N, C),), {}),
    "correlation_congruence": (draw(N, D), (draw(N, C),), {}),
    "contrastive": (draw(N, D).exp(), (draw(N, D).exp(),), {"num_samples": 20}),
    "fsp": ([draw(N, 2, 6, 6), draw(N, 3, 3, 3)], ([draw(N, 2, 6, 6), draw(N, 3, 3, 3)],), {}),
    "attention_mse": ([draw(N, 2, L, L), draw(N, 2, L, L)], ([draw(N, 2, L, L), draw(N, 2, L, L)],), {}),
    "hidden_mse": (draw(N, L, D), (draw(N, L, D),), {"mask": MASK}),
    "minilm_relation": ([draw(N, L, D) for _ in "qkv"], ([draw(N, L, 6) for _ in "qkv"],), {"heads": 2, "mask": MASK}),
    "patient": ([draw(N, D), draw(N, D)], ([draw(N, D), draw(N, D)],), {}),
    "cosine_embedding": (draw(N, L, D), (draw(N, L, D),), {"mask": MASK}),
    "generalized_jsd": (draw(N, L, C), (draw(N, L, C),), {"mask": MASK, "temperature": 2.0}),
    "topk_kd": (draw(N, C), (INDICES, SURE.log()), {"temperature": 2.0, "missing": "uniform"}),
    "topk_cross_entropy": (draw(N, C), (INDICES, SURE), {}),
}
# Where student and teacher may be the same tensors, and then nothing is left to learn.
ALIKE = {"rkd_distance", "rkd_angle", "rkd", "pkt", "correlation_congruence", "fsp", "attention_mse", "hidden_mse",
         "minilm_relation", "patient", "cosine_embedding", "generalized_jsd"}  # fmt: skip


def each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return [change(item) for item in value] if isinstance(value, list) else change(value)


def several(value: Any) -> list[Tensor]:
    return value if isinstance(value, list) else [value]


def narrow(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


@pytest.mark.parametrize("name", CASES)
def test_gradient_is_that_of_finite_differences_and_the_teacher_gets_none(name: str) -> None:
    student, teachers, options = CASES[name]
    loss, leaves = find_loss(name), [item.clone().requires_grad_() for item in several(student)]

    def of(*tensors: Tensor) -> Tensor:
        return loss(list(tensors) if isinstance(student, list) else tensors[0], *teachers, **options)

    assert torch.autograd.gradcheck(of, leaves, atol=1e-6)
    if name == "contrastive":  # its teacher's scores come from a projection that learns
        return
    own = [each(t, lambda x: x.clone().requires_grad_(x.is_floating_point())) for t in teachers]
    loss(leaves if isinstance(student, list) else leaves[0], *own, **options).backward()  # type: ignore[no-untyped-call]
    assert all(item.grad is None for value in own for item in several(value))
    assert all(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in leaves)


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_autocast_computes_in_float32(name: str) -> None:
    student, teachers, options = CASES[name]
    loss = find_loss(name)
    exact = loss(student, *teachers, **options)
    single = loss(each(student, narrow), *(each(t, narrow) for t in teachers), **options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = loss(each(student, narrow), *(each(t, narrow) for t in teachers), **options)
    assert single.dtype is cast.dtype is torch.float32
    assert single.item() == pytest.approx(exact.item(), rel=1e-4)
    assert cast.item() == pytest.approx(single.item(), rel=1e-5)
    half = each(student, lambda x: x.bfloat16())
    rounded = loss(
        half, *(each(t, lambda x: x.bfloat16() if x.is_floating_point() else x) for t in teachers), **options
    )
    assert rounded.dtype is torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=0.1)


@pytest.mark.parametrize("name", sorted(ALIKE))
def test_zero_and_flat_at_equality(name: str) -> None:
    student, _, options = CASES[name]
    teacher = each(student, lambda x: x.clone())
    leaves = each(student, lambda x: x.clone().requires_grad_())
    value = find_loss(name)(leaves, teacher, **options)
    value.backward()  # type: ignore[no-untyped-call]
    assert value.item() == pytest.approx(0.0, abs=1e-9)
    for leaf in several(leaves):
        assert leaf.grad is not None
        assert leaf.grad.abs().max() < 1e-6  # and no NaN


@pytest.mark.parametrize("name", CASES)
def test_the_order_of_the_samples_does_not_matter(name: str) -> None:
    student, teachers, options = CASES[name]
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = {key: value[order] if isinstance(value, Tensor) else value for key, value in options.items()}
    expected = find_loss(name)(student, *teachers, **options)
    found = find_loss(name)(
        each(student, lambda x: x[order]), *(each(t, lambda x: x[order]) for t in teachers), **shuffled
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", CASES)
def test_nothing_but_zeros_has_finite_gradients(name: str) -> None:
    student, teachers, options = CASES[name]
    leaves = each(student, lambda x: torch.zeros_like(x).requires_grad_())
    if name == "contrastive":  # scores are above 0
        leaves = torch.full_like(student, 1e-30).requires_grad_()
    find_loss(name)(leaves, *teachers, **options).backward()  # type: ignore[no-untyped-call]
    assert all(leaf.grad is not None and torch.isfinite(leaf.grad).all() for leaf in several(leaves))


def test_a_single_sample_has_finite_gradients() -> None:
    for name in ("rkd", "pkt", "correlation_congruence", "similarity_preserving", "pearson_features"):
        shape = (1, 3, 1, 1) if name in ("similarity_preserving", "pearson_features") else (1, 3)
        s = torch.randn(shape, requires_grad=True)
        value = find_loss(name)(s, torch.randn(shape))
        value.backward()  # type: ignore[no-untyped-call]
        assert s.grad is not None
        assert torch.isfinite(value), name
        assert torch.isfinite(s.grad).all(), name


@pytest.mark.parametrize("missing", ["zero", "uniform"])
def test_hard_labels_are_a_top_1(missing: str) -> None:
    """What an endpoint that only names the class gives: probability 1, and 0 for what it lists beside it."""
    s = draw(N, C).requires_grad_()
    told = torch.tensor([[1.0, 0.0]] * N, dtype=torch.float64).log()
    ids = torch.stack([LABELS, (LABELS + 1) % C], dim=1)
    value = topk_kd(s, ids, told, missing=missing)  # type: ignore[arg-type]
    value.backward()  # type: ignore[no-untyped-call]
    assert s.grad is not None
    assert torch.isfinite(s.grad).all()
    expected = torch.nn.functional.cross_entropy(s, LABELS)
    assert value.item() == pytest.approx(expected.item(), abs=1e-5)


def test_angles_beyond_the_chunk() -> None:
    """More than 256 samples, whose pieces are computed again in the backward pass: value and gradient of the whole."""
    s, t = draw(300, 4).float().requires_grad_(), draw(300, 3).float()
    value = rkd_angle(s, t)
    value.backward()  # type: ignore[no-untyped-call]

    def cosines(x: Tensor) -> Tensor:
        unit = torch.nn.functional.normalize(x[None] - x[:, None], dim=2)
        return unit @ unit.transpose(1, 2)

    again = s.detach().clone().requires_grad_()
    whole = torch.nn.functional.smooth_l1_loss(cosines(again), cosines(t))
    whole.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(value, whole, rtol=1e-4, atol=0.0)
    torch.testing.assert_close(s.grad, again.grad, rtol=1e-3, atol=1e-8)


def test_distances_far_from_the_origin_keep_their_precision() -> None:
    s, t = draw(N, D), draw(N, D)
    expected = rkd_distance(s, t)
    torch.testing.assert_close(rkd_distance((s + 1000.0).float(), t.float()).double(), expected, rtol=1e-3, atol=0.0)


def test_the_players_have_opposite_aims() -> None:
    real, fake = draw(N, 1), draw(N, 1).requires_grad_()
    detection, fooling = discriminator_loss(real, fake), generator_loss(fake)
    p_real, p_fake = torch.sigmoid(real), torch.sigmoid(fake)
    torch.testing.assert_close(detection, -(p_real.log() + (1 - p_fake).log()).mean())
    torch.testing.assert_close(fooling, -p_fake.log().mean())
    slopes = [torch.autograd.grad(value, fake)[0] for value in (detection, fooling)]
    assert (slopes[0] > 0).all()
    assert (slopes[1] < 0).all()


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "relations of other samples": (lambda: rkd_distance(draw(4, 3), draw(5, 3)), r"\[4, 3\] of the student and \[5"),
    "pkt": (lambda: find_loss("pkt")(draw(4), draw(4)), r"expected embeddings \(N, D\)"),
    "congruence": (lambda: find_loss("correlation_congruence")(draw(4, 3), draw(4, 3), gamma=0.0), "gamma above 0"),
    "similarity": (lambda: find_loss("similarity_preserving")(draw(4, 3), draw(5, 3)), "the same samples"),
    "scores": (lambda: find_loss("contrastive")(draw(4, 3), draw(4, 2), num_samples=9), "1 \\+ negatives"),
    "flow": (lambda: find_loss("fsp")([draw(4, 2, 3, 3), draw(5, 2, 3, 3)], [draw(4, 2, 3, 3)] * 2), "two maps"),
    "flow widths": (lambda: find_loss("fsp")([draw(4, 2, 3, 3)] * 2, [draw(4, 3, 3, 3)] * 2), "equal widths"),
    "channel_wise": (lambda: find_loss("channel_wise")(draw(4, 3), draw(4, 3)), "feature maps"),
    "channel_correlation": (lambda: find_loss("channel_correlation")(draw(4, 3), draw(4, 3)), "feature maps"),
    "factors": (lambda: find_loss("factor_transfer")(draw(4, 2, 3, 3), draw(4, 2, 3, 3), p1=1.5), "found p1 = 1.5"),
    "context": (lambda: find_loss("hierarchical_context")([draw(4, 2, 3, 3)], []), "lists of different length"),
    "context of one": (lambda: find_loss("hierarchical_context")(draw(4, 2, 3, 3), [draw(4, 2, 3, 3)]), "several maps"),
    "layers": (lambda: find_loss("attention_mse")([draw(4, 2, 3, 3)] * 2, [draw(4, 2, 3, 3)]), "2 layers of"),
    "states": (lambda: find_loss("hidden_mse")(draw(4, 3, 2), draw(4, 3, 5)), "the adapter 'linear'"),
    "states' mask": (lambda: find_loss("hidden_mse")(draw(4, 3, 2), draw(4, 3, 2), mask=MASK), "the mask is"),
    "classes": (lambda: find_loss("patient")(draw(4, 2), draw(4, 5)), "expected equal shapes"),
    "cosines": (lambda: find_loss("cosine_embedding")(draw(4, 3, 2), draw(4, 3, 5)), "expected equal shapes"),
    "heads": (lambda: find_loss("minilm_relation")([draw(2, 4, 6)] * 3, [draw(2, 4, 6)] * 3, heads=4), "D a multiple"),
    "tokens": (lambda: find_loss("minilm_relation")([draw(2, 4, 6)] * 3, [draw(2, 5, 6)] * 3, heads=2), "same B and L"),
    "qkv": (lambda: find_loss("minilm_relation")([draw(2, 4, 6)] * 2, [draw(2, 4, 6)] * 3), "queries, keys and values"),
    "kind": (lambda: find_loss("minilm_relation")([draw(2, 4, 6)] * 3, [draw(2, 4, 6)] * 3, relations="v3"), "'v2' or"),
    "vocabulary": (lambda: find_loss("generalized_jsd")(draw(2, 4, 6), draw(2, 4, 7)), "the same classes"),
    "beta": (lambda: find_loss("generalized_jsd")(draw(2, 6), draw(2, 6), beta=1.5), "found beta = 1.5"),
    "missing": (lambda: topk_kd(draw(N, C), INDICES, SURE.log(), missing="no"), "'zero' or 'uniform'"),  # type: ignore[arg-type]
    "top 3 of 2": (lambda: topk_kd(draw(N, 2), INDICES, SURE.log()), "the 3 most likely of 2 classes"),
    "no peers": (lambda: mutual(draw(N, C), []), "no peers"),
    "peers": (lambda: mutual(draw(N, C), [draw(N, 3)]), "the same classes"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_said(name: str) -> None:
    call, text = WRONG[name]
    with pytest.raises(UsageError, match=text):
        call()


# ---- how terms give losses their tensors ----

MAPS = {name: {"student_tap": "map", "teacher_tap": "map"} for name in (
    "hint", "attention_transfer", "similarity_preserving", "neuron_selectivity", "hierarchical_context",
    "activation_boundary", "channel_wise", "pearson_features", "channel_correlation", "factor_transfer",
    "variational_information",
)}  # fmt: skip
TERMS: dict[str, dict[str, Any]] = {
    **MAPS,
    "overhaul_partial_l2": {"student_tap": "map", "teacher_tap": "map"},
    "fsp": {"student_tap": ("low", "high"), "teacher_tap": ("low", "high")},
    **{
        name: {"student_tap": "vector", "teacher_tap": "vector"} for name in ("rkd_distance", "rkd_angle", "rkd", "pkt")
    },
    "correlation_congruence": {"student_tap": "vector", "teacher_tap": "vector"},
    "contrastive": {"student_tap": "vector", "teacher_tap": "vector", "adapter_options": {"negatives": 5}},
    "attention_mse": {"student_tap": ("a0", "a1"), "teacher_tap": ("a0", "a1")},
    "hidden_mse": {"student_tap": ("t0", "t1"), "teacher_tap": ("t0", "t1"), "adapter": "linear"},
    "minilm_relation": {
        "student_tap": ("q", "k", "v"),
        "teacher_tap": ("q", "k", "v"),
        "options": {"heads": 2},
    },
    "patient": {"student_tap": "t0", "teacher_tap": "t0"},
    "cosine_embedding": {"student_tap": "t0", "teacher_tap": "t0"},
    "topk_kd": {"teacher_tap": ("indices", "log_probabilities")},
    "topk_cross_entropy": {"teacher_tap": ("indices", "probabilities")},
    "adversarial": {},
    "mutual_learning": {},
}
TARGETS = {"binary_cross_entropy", "mean_squared_error", "regression_kd"}


def named(width: int) -> dict[str, Tensor]:
    """What a model of this width gives."""
    torch.manual_seed(width)
    shapes = {
        "logits": (C,), "map": (width, 6, 6), "low": (2, 6, 6), "high": (3, 3, 3), "vector": (width,), "a0": (2, L, L),
        "a1": (2, L, L), "t0": (L, width), "t1": (L, width), "q": (L, width), "k": (L, width), "v": (L, width),
    }  # fmt: skip
    return {name: torch.randn(N, *shape, requires_grad=True) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", LOSSES)
def test_a_term_gives_every_loss_what_it_takes(name: str) -> None:
    student = named(8)
    answer: Mapping[str, Tensor] = {key: value.detach() for key, value in named(12).items()}
    teacher = {**answer, "indices": INDICES, "probabilities": SURE.float(), "log_probabilities": SURE.float().log()}
    batch = {"x": torch.randn(N, 3), "y": torch.rand(N, C) if name in TARGETS else LABELS, "index": torch.arange(N)}
    net, norm = torch.nn.Linear(3, C), torch.nn.BatchNorm2d(12)
    term = Term("it", name, weight=DEFAULT_WEIGHTS.get(name, 1.0), **TERMS.get(name, {}))
    objective = Objective([term]).build(
        student, teacher, student_module=lambda tap: net, teacher_module=lambda tap: norm, num_samples=N
    )
    loss, values = objective(student, teacher, batch, 0.5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss)
    assert values["it"] == loss
    taps = objective.student_taps
    assert all(student[tap].grad is not None and student[tap].grad.abs().sum() > 0 for tap in taps)  # type: ignore[union-attr]
    assert bool(objective.modules) == (name in ADAPTER_OF or name in EQUAL_SHAPES)
