from __future__ import annotations

import dataclasses

import pytest

from edgekd.device.runtimes import RUNTIMES
from edgekd.errors import UsageError
from edgekd.graph.quantization import VARIANTS
from edgekd.graph.targets import Target, load_target, target_names

KINDS = ["x86_64-vnni", "x86_64-avx512", "x86_64-avx2", "x86_64", "aarch64", "riscv64"]


def test_the_targets_that_ship_are_there():
    assert {"cpu", "raspberry_pi", "android", "web"} <= set(target_names())


@pytest.mark.parametrize("name", target_names())
def test_every_target_names_known_runtimes_and_variants_and_answers_for_every_cpu(name):
    target = load_target(name)
    assert target.name == name
    assert target.description
    assert target.runtime in RUNTIMES
    assert "float32" in target.variants
    assert set(target.variants) <= {"float32", *VARIANTS}
    for kind in KINDS:
        assert target.preference(kind)
        assert set(target.preference(kind)) <= set(target.variants)
    assert target.max_opset >= 18, "edgekd exports opset 18"
    assert target.max_ir >= 8


def test_signed_with_unsigned_is_never_first_where_its_products_saturate():
    for name in target_names():
        for kind in ("x86_64-avx512", "x86_64-avx2", "x86_64"):
            assert load_target(name).preference(kind)[0] != "int8_u8s8"
    assert load_target("cpu").preference("x86_64-vnni")[0] == "int8_u8s8"


def test_the_longest_pattern_that_matches_counts():
    default = {"*": ("float32",), "x86_64*": ("int8_u8u8",), "x86_64-vnni": ("int8_u8s8",)}
    target = Target("t", "d", "onnxruntime", ("float32",), default, max_opset=18, max_ir=8)
    assert target.preference("x86_64-vnni") == ("int8_u8s8",)
    assert target.preference("x86_64-avx2") == ("int8_u8u8",)
    assert target.preference("x86_64") == ("int8_u8u8",)
    assert target.preference("aarch64") == ("float32",)
    with pytest.raises(dataclasses.FrozenInstanceError):
        target.name = "other"  # type: ignore[misc]


GOOD = """
version = 1
description = "mine"
runtime = "onnxruntime"
variants = ["float32", "int8_u8s8"]
max_opset = 18
max_ir = 8
[default]
"*" = ["int8_u8s8", "float32"]
"""


def test_a_file_of_ones_own_is_read(tmp_path):
    path = tmp_path / "my_board.toml"
    path.write_text(GOOD)
    target = load_target(path)
    assert target == load_target(str(path))
    assert (target.name, target.variants) == ("my_board", ("float32", "int8_u8s8"))
    assert target.preference("aarch64") == ("int8_u8s8", "float32")


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("max_opset", "max_opsett", "mine.toml: unknown key 'max_opsett'. Did you mean 'max_opset'?"),
        ("max_ir = 8\n", "", "mine.toml: the key 'max_ir' is missing; expected the keys version, description"),
        ("version = 1", "version = 2", "mine.toml: version is 2, expected 1"),
        ("max_opset = 18", "max_opset = '18'", "mine.toml: max_opset is '18', expected a whole number"),
        ("max_opset = 18", "max_opset = true", "mine.toml: max_opset is True, expected a whole number"),
        ('"mine"', "3", "mine.toml: description is 3, expected a text"),
        (
            '["float32", "int8_u8s8"]',
            '["float32", "int8_u8s9"]',
            "unknown variant 'int8_u8s9'. Did you mean 'int8_u8s8'?",
        ),
        ('["float32", "int8_u8s8"]', '["int8_u8s8"]', "mine.toml: variants lack 'float32'"),
        ('["float32", "int8_u8s8"]', '"float32"', "mine.toml: variants is 'float32', expected a list of variants"),
        ('["float32", "int8_u8s8"]', '["float32", "float32"]', "mine.toml: variants names a variant twice"),
        ('"*" =', '"aarch64" =', "mine.toml: [default] lacks the pattern '*'"),
        ('"*" = ["int8_u8s8", "float32"]', '"*" = ["fp16"]', "mine.toml: default.*: unknown variant 'fp16'"),
        ("[default]", "[default", "mine.toml is not TOML:"),
    ],
)
def test_what_is_wrong_with_a_target_file_is_said(old, new, text, tmp_path):
    assert old in GOOD
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(UsageError) as caught:
        load_target(path)
    assert text in str(caught.value)


def test_an_unknown_target_names_the_nearest(tmp_path):
    with pytest.raises(UsageError, match=r"no target is called 'andriod'\. Did you mean 'android'\?"):
        load_target("andriod")
    with pytest.raises(UsageError, match=r"there is no target file .*none\.toml"):
        load_target(tmp_path / "none.toml")
