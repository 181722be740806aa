"""The scheme of a CPU kind: the choice is run through what such a CPU computes, number by number."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import cnn, load, samples
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from edgekd.errors import UsageError
from edgekd.graph.quantization import VARIANTS, Int8Dynamic, Int8Static, MixedPrecision, quantize
from edgekd.graph.schemes import saturates, static_scheme
from edgekd.graph.targets import Target, load_target, target_names

KINDS = ["x86_64-vnni", "x86_64-avx512", "x86_64-avx2", "x86_64", "aarch64", "riscv64"]
WITHOUT_VNNI = KINDS[1:4]


def dot_on(kind: str, activation: np.ndarray, weight: np.ndarray) -> int:
    """The sum of products as the CPU kind's kernel adds it up.

    Without VNNI, unsigned with signed: vpmaddubsw adds pairs of products in 16 bits and saturates (Intel's Software
    Developer's Manual, PMADDUBSW). Signed activations arrive as unsigned ones with a zero point of 128.
    """
    a, w = activation.astype(np.int64), weight.astype(np.int64)
    shift = 128 if activation.dtype == np.int8 else 0
    products = (a + shift) * w
    if kind in WITHOUT_VNNI and weight.dtype == np.int8:
        pairs = np.clip(products.reshape(-1, 2).sum(axis=1), -32768, 32767)
        return int(pairs.sum() - shift * w.sum())
    return int(products.sum() - shift * w.sum())


def extremes(config: Int8Static, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Large numbers of the types of `config`, an even number of them."""
    rng = np.random.default_rng(seed)
    low, high = (-64, 64) if config.reduce_range else (-127, 127)
    a = rng.choice([0, 200, 255], 64).astype(np.uint8)
    w = rng.choice([low, 90 if high > 90 else 60, high], 64)
    if config.activation == "int8":
        a = (a.astype(np.int16) - 128).astype(np.int8)
    return a, (w + 128).astype(np.uint8) if config.weight == "uint8" else w.astype(np.int8)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(KINDS), st.sampled_from(["cpu", "web"]), st.integers(0, 10**6))
def test_the_chosen_scheme_adds_up_exactly_on_its_cpu(kind: str, target: str, seed: int) -> None:
    config = VARIANTS[static_scheme(load_target(target), kind)]
    assert isinstance(config, Int8Static)
    a, w = extremes(config, seed)
    assert dot_on(kind, a, w) == int(a.astype(np.int64) @ w.astype(np.int64))


@pytest.mark.parametrize("kind", WITHOUT_VNNI)
@pytest.mark.parametrize("name", ["int8_u8s8", "int8_s8s8"])
def test_signed_weights_would_saturate_without_vnni_and_are_never_chosen(kind: str, name: str) -> None:
    config = VARIANTS[name]
    assert isinstance(config, Int8Static)
    a, w = extremes(config, seed=1)
    assert dot_on(kind, a, w) != int(a.astype(np.int64) @ w.astype(np.int64)), "the emulation shows what is avoided"
    assert saturates(config, kind)
    assert saturates(MixedPrecision(base=config), kind)
    assert not saturates(config, "x86_64-vnni")
    assert not saturates(config, "aarch64")


def test_seven_bits_and_two_unsigned_numbers_never_saturate_and_dynamic_signed_weights_do() -> None:
    for name in ("int8_u8s7", "int8_u8u8"):
        config = VARIANTS[name]
        assert isinstance(config, Int8Static)
        for kind in KINDS:
            assert not saturates(config, kind)
            for seed in range(20):
                a, w = extremes(config, seed)
                assert dot_on(kind, a, w) == int(a.astype(np.int64) @ w.astype(np.int64))
    assert saturates(Int8Dynamic(), "x86_64-avx2")
    assert not saturates(Int8Dynamic(weight="uint8"), "x86_64-avx2")


@pytest.mark.parametrize("target", target_names())
@pytest.mark.parametrize("kind", KINDS)
def test_no_target_prefers_a_variant_that_saturates(target: str, kind: str) -> None:
    for name in load_target(target).preference(kind):
        assert name not in VARIANTS or not saturates(VARIANTS[name], kind), (target, kind, name)


@pytest.mark.parametrize(
    ("target", "kind", "name"),
    [
        ("cpu", "x86_64-vnni", "int8_u8s8"),
        ("cpu", "x86_64-avx512", "int8_u8u8"),
        ("cpu", "x86_64-avx2", "int8_u8u8"),
        ("cpu", "aarch64", "int8_u8s8"),
        ("raspberry_pi", "aarch64", "int8_u8s8"),
        ("web", "x86_64-vnni", "int8_u8u8"),
        ("web", "aarch64", "int8_u8u8"),
    ],
)
def test_the_scheme_of_each_kind(target: str, kind: str, name: str) -> None:
    assert static_scheme(load_target(target), kind) == name


def test_a_target_without_an_exact_scheme_says_so() -> None:
    only = Target("mine", "d", "onnxruntime", ("float32", "int8_u8s8"), {"*": ("float32",)}, max_opset=18, max_ir=8)
    assert static_scheme(only, "aarch64") == "int8_u8s8"
    with pytest.raises(
        UsageError, match="target mine names no static int8 scheme that is exact on x86_64-avx2; choose"
    ):
        static_scheme(only, "x86_64-avx2")


def test_the_file_holds_the_numbers_that_the_choice_promises(tmp_path) -> None:
    """The worst pair of products of each written weight, with the largest activations, fits into 16 bits."""

    def fits(name: str) -> bool:
        written = load(quantize(cnn(), tmp_path / name, VARIANTS[name], calibration=samples(cnn(), 40)).path)
        weights = [numpy_helper.to_array(t) for t in written.graph.initializer if t.name.endswith("_quantized")]
        signed = [w for w in weights if w.dtype == np.int8]
        return all(2 * 255 * int(np.abs(w.astype(int)).max()) <= 32767 for w in signed)

    assert not fits("int8_u8s8")
    assert fits("int8_u8s7")
    assert fits("int8_u8u8")
