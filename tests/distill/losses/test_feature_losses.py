"""Losses on feature maps: against float64 numpy written from the formulas, by property, by finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgekd.distill.losses import features
from edgekd.errors import ModelError, UsageError

Numbers = NDArray[np.float64]
RNG = np.random.default_rng(7)
S, T = RNG.normal(size=(4, 3, 6, 6)), RNG.normal(size=(4, 3, 6, 6))
RHO = RNG.normal(size=3)
MARGIN = -RNG.random(3)


def torched(x: Numbers) -> Tensor:
    return torch.from_numpy(np.asarray(x, np.float64).copy())


def pooled(x: Numbers, size: int) -> Numbers:
    """Average pooling to (size, size) of maps whose size is a multiple of it."""
    n, k, h, w = x.shape
    mean: Numbers = x.reshape(n, k, size, h // size, size, w // size).mean(axis=(3, 5))
    return mean


def unit(x: Numbers) -> Numbers:
    result: Numbers = x / np.sqrt((x**2).sum(axis=-1, keepdims=True))
    return result


def np_attention(s: Numbers, t: Numbers, power: float = 2.0) -> float:
    maps = [unit((np.abs(x) ** power).mean(axis=1).reshape(len(x), -1)) for x in (s, t)]
    return float(((maps[0] - maps[1]) ** 2).mean())


def np_similarity(s: Numbers, t: Numbers) -> float:
    grams = []
    for x in (s, t):
        flat = x.reshape(len(x), -1)
        grams.append(unit(flat @ flat.T))
    return float(((grams[0] - grams[1]) ** 2).sum() / len(s) ** 2)


def np_selectivity(s: Numbers, t: Numbers) -> float:
    a, b = (unit(x.reshape(*x.shape[:2], -1)) for x in (s, t))

    def kernel(x: Numbers, y: Numbers) -> float:
        values = [(x[n, i] @ y[n, j]) ** 2 for n in range(len(x)) for i in range(x.shape[1]) for j in range(y.shape[1])]
        return float(sum(values) / len(values))

    return float(kernel(b, b) + kernel(a, a) - 2 * kernel(a, b))


def np_hcl(s: Numbers, t: Numbers) -> float:
    """Maps of 6x6: the levels 4, 2 and 1 are used; 4 does not divide 6, so torch's rule of windows is written out."""

    def adaptive(x: Numbers, size: int) -> Numbers:
        edges = [(math.floor(i * 6 / size), math.ceil((i + 1) * 6 / size)) for i in range(size)]
        out = np.empty((*x.shape[:2], size, size))
        for i, (top, bottom) in enumerate(edges):
            for j, (left, right) in enumerate(edges):
                out[:, :, i, j] = x[:, :, top:bottom, left:right].mean(axis=(2, 3))
        return out

    loss, total = ((s - t) ** 2).mean(), 1.0
    for weight, size in ((0.5, 4), (0.25, 2), (0.125, 1)):
        loss += weight * ((adaptive(s, size) - adaptive(t, size)) ** 2).mean()
        total += weight
    return float(loss / total)


def np_boundary(s: Numbers, t: Numbers, margin: float = 1.0) -> float:
    off = (s + margin) ** 2 * ((s > -margin) & (t <= 0))
    on = (s - margin) ** 2 * ((s <= margin) & (t > 0))
    return float(3 / 1000 * (off + on).sum() / len(s))


def np_partial(s: Numbers, t: Numbers) -> float:
    m = MARGIN[None, :, None, None]
    total = ((s - m) ** 2 * ((s > m) & (t <= m))).sum()
    total += ((s - t) ** 2 * ((s > t) & (m < t) & (t <= 0))).sum() + ((s - t) ** 2 * (t > 0)).sum()
    return float(total / len(s))


def np_vid(s: Numbers, t: Numbers) -> float:
    variance = (np.log1p(np.exp(RHO)) + 1e-5)[None, :, None, None]
    return float((0.5 * ((s - t) ** 2 / variance + np.log(variance))).mean())


def np_channel_wise(s: Numbers, t: Numbers, temperature: float = 1.0) -> float:
    def soft(x: Numbers) -> Numbers:
        e = np.exp(x.reshape(*x.shape[:2], -1) / temperature)
        result: Numbers = e / e.sum(axis=-1, keepdims=True)
        return result

    p, q = soft(t), soft(s)
    return float(temperature**2 * (p * np.log(p / q)).sum() / (s.shape[0] * s.shape[1]))


def np_pearson(s: Numbers, t: Numbers) -> float:
    def standard(x: Numbers) -> Numbers:
        out = np.empty_like(x)
        for k in range(x.shape[1]):
            out[:, k] = (x[:, k] - x[:, k].mean()) / (x[:, k].std(ddof=1) + 1e-6)
        return out

    return float(((standard(s) - standard(t)) ** 2).mean() / 2)


def np_channel_correlation(s: Numbers, t: Numbers) -> float:
    total = 0.0
    for n in range(len(s)):
        a, b = s[n].reshape(s.shape[1], -1), t[n].reshape(t.shape[1], -1)
        total += ((unit(a @ a.T) - unit(b @ b.T)) ** 2).sum()
    return float(total / (s.shape[1] * len(s) ** 2))


def np_factor(s: Numbers, t: Numbers) -> float:
    a, b = (unit((x**2).mean(axis=1).reshape(len(x), -1)) for x in (s, t))
    return float(np.abs(a - b).mean())


CASES: dict[str, tuple[Callable[..., Tensor], Callable[..., float], dict[str, Any]]] = {
    "hint": (features.hint, lambda s, t: float(((s - t) ** 2).mean()), {}),
    "attention_transfer": (features.attention_transfer, np_attention, {}),
    "similarity_preserving": (features.similarity_preserving, np_similarity, {}),
    "neuron_selectivity": (features.neuron_selectivity, np_selectivity, {}),
    "hierarchical_context": (features.hierarchical_context, np_hcl, {}),
    "factor_transfer": (features.factor_transfer, np_factor, {}),
    "activation_boundary": (features.activation_boundary, np_boundary, {}),
    "overhaul_partial_l2": (features.overhaul_partial_l2, np_partial, {"margin": torched(MARGIN)}),
    "variational_information": (features.variational_information, np_vid, {"rho": torched(RHO)}),
    "channel_wise": (features.channel_wise, np_channel_wise, {}),
    "pearson_features": (features.pearson_features, np_pearson, {}),
    "channel_correlation": (features.channel_correlation, np_channel_correlation, {}),
}
# Losses that are not 0 where student and teacher agree.
NOT_ZERO = {"activation_boundary", "overhaul_partial_l2", "variational_information"}
# Losses that compare what does not depend on the number of channels.
ANY_CHANNELS = {"attention_transfer", "similarity_preserving", "neuron_selectivity", "factor_transfer"}


@pytest.mark.parametrize("name", CASES)
def test_value(name: str) -> None:
    loss, expected, options = CASES[name]
    assert loss(torched(S), torched(T), **options).item() == pytest.approx(expected(S, T), rel=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_single_precision_and_autocast(name: str) -> None:
    loss, expected, options = CASES[name]
    options = {key: value.float() for key, value in options.items()}
    value = loss(torched(S).float(), torched(T).float(), **options)
    assert value.dtype is torch.float32
    assert value.item() == pytest.approx(expected(S, T), rel=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = loss(torched(S).float(), torched(T).float(), **options)
    assert narrow.item() == pytest.approx(value.item(), rel=1e-5), "nothing in it is computed in bfloat16"
    assert loss(torched(S).bfloat16(), torched(T).bfloat16(), **options).dtype is torch.float32


@pytest.mark.parametrize("name", CASES)
def test_gradient(name: str) -> None:
    loss, _, options = CASES[name]
    s, t = torched(S).requires_grad_(), torched(T).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, t.detach(), **options), (s,), atol=1e-6)
    loss(s, t, **options).backward()  # type: ignore[no-untyped-call]
    assert t.grad is None, "the teacher is a constant"


@pytest.mark.parametrize("name", sorted(set(CASES) - NOT_ZERO))
def test_zero_and_flat_where_both_agree(name: str) -> None:
    loss, _, options = CASES[name]
    s = torched(T).requires_grad_()
    value = loss(s, torched(T), **options)
    value.backward()  # type: ignore[no-untyped-call]
    assert value.item() == pytest.approx(0.0, abs=1e-12)
    assert s.grad is not None
    assert torch.isfinite(s.grad).all()
    assert s.grad.abs().max() < 1e-6 or name == "factor_transfer"


@pytest.mark.parametrize("name", CASES)
def test_dead_maps_have_finite_gradients(name: str) -> None:
    loss, _, options = CASES[name]
    s = torch.zeros(4, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    loss(s, torched(T), **options).backward()  # type: ignore[no-untyped-call]
    assert s.grad is not None
    assert torch.isfinite(s.grad).all()


@pytest.mark.parametrize("name", sorted(set(CASES) - {"similarity_preserving"}))
def test_the_larger_map_is_pooled(name: str) -> None:
    loss, expected, options = CASES[name]
    large = RNG.normal(size=(4, 3, 12, 12))
    assert loss(torched(large), torched(T), **options).item() == pytest.approx(expected(pooled(large, 6), T), rel=1e-9)
    assert loss(torched(S), torched(large), **options).item() == pytest.approx(expected(S, pooled(large, 6)), rel=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_other_channels(name: str) -> None:
    loss, expected, options = CASES[name]
    wide = RNG.normal(size=(4, 5, 6, 6))
    if name in ANY_CHANNELS:
        assert loss(torched(S), torched(wide), **options).item() == pytest.approx(expected(S, wide), rel=1e-9)
    else:
        with pytest.raises(UsageError, match="add an adapter"):
            loss(torched(S), torched(wide), **options)


def test_attention_of_another_power() -> None:
    value = features.attention_transfer(torched(S), torched(T), power=4.0)
    assert value.item() == pytest.approx(np_attention(S, T, 4.0), rel=1e-9)


def test_attention_does_not_see_the_scale() -> None:
    assert features.attention_transfer(torched(S), torched(3.0 * S)).item() == pytest.approx(0.0, abs=1e-15)


def test_small_maps_skip_levels_and_keep_the_weights_in_order() -> None:
    s, t = RNG.normal(size=(2, 3, 2, 2)), RNG.normal(size=(2, 3, 2, 2))
    expected = ((s - t) ** 2).mean() + 0.5 * ((s - t).mean(axis=(2, 3)) ** 2).mean()
    assert features.hierarchical_context(torched(s), torched(t)).item() == pytest.approx(expected / 1.5, rel=1e-9)


def test_several_levels_are_added() -> None:
    one = features.hierarchical_context(torched(S), torched(T))
    both = features.hierarchical_context([torched(S), torched(T)], [torched(T), torched(T)])
    torch.testing.assert_close(both, one)


def test_flow() -> None:
    bottom, top = RNG.normal(size=(2, 4, 3, 12, 12)), RNG.normal(size=(2, 4, 5, 6, 6))
    flows = []
    for low, high in zip(bottom, top):
        flows.append(np.einsum("nkhw,nlhw->nkl", pooled(low, 6), high) / 36)
    expected = ((flows[0] - flows[1]) ** 2).mean()
    pairs = [[torched(low), torched(high)] for low, high in zip(bottom, top)]
    assert features.fsp(*pairs).item() == pytest.approx(expected, rel=1e-9)
    with pytest.raises(UsageError, match="two maps"):
        features.fsp(pairs[0][:1], pairs[1])


def test_margin_is_the_mean_of_what_is_negative() -> None:
    norm = nn.BatchNorm2d(4).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -2.0, 0.5, 0.1]))
        norm.bias.copy_(torch.tensor([0.0, 1.0, -0.3, 5.0]))
    margin = features.overhaul_margin(norm)
    draws = np.random.default_rng(0).normal(size=4_000_000)
    for k, (weight, bias) in enumerate([(1.0, 0.0), (2.0, 1.0), (0.5, -0.3)]):
        values = bias + weight * draws
        assert margin[k].item() == pytest.approx(values[values < 0].mean(), abs=5e-3)
    assert margin[3].item() == pytest.approx(-0.3), "hardly ever negative: -3 standard deviations"
    with pytest.raises(ModelError, match="affine"):
        features.overhaul_margin(nn.BatchNorm2d(4, affine=False))


def test_vectors_are_no_maps() -> None:
    with pytest.raises(UsageError, match="feature maps"):
        features.attention_transfer(torch.zeros(2, 3), torch.zeros(2, 3))


def test_hints_may_be_vectors() -> None:
    s, t = RNG.normal(size=(2, 5)), RNG.normal(size=(2, 5))
    assert features.hint(torched(s), torched(t)).item() == pytest.approx(((s - t) ** 2).mean())
