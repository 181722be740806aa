"""What the bundle says about its variants, and which of them other kinds of CPU take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from spaces import make_space, record, write_project

from edgekd.errors import UsageError
from edgekd.stages import graphs, shipping
from edgekd.stages.choosing import equally_good_elsewhere


def verdict(name: str, kind: str, value: float, limit: float) -> dict[str, Any]:
    return {"name": name, "limit": limit, "value": value, "interval": [value, value], "verdict": kind}


DROP = "accuracy_drop_points"
MISSED, MET, ABOVE = verdict(DROP, "missed", 4, 1), verdict(DROP, "met", 0, 1), verdict(DROP, "unproven", 1.5, 1)
SLOW = verdict("latency_p90_ms", "missed", 9, 1)


def defaults(folder: Path, limits: dict[str, list[dict[str, Any]]], *, chosen: str, cpu: str) -> dict[str, str]:
    space = make_space(write_project(folder, "classification"))
    space.records["select"] = record({"chosen": chosen, "limits": limits, "ranking": list(limits)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shipping, "cpu_kind", lambda: cpu)
        return shipping.default_variants(space, tuple(limits))


def test_a_variant_that_misses_its_accuracy_here_is_preferred_nowhere(tmp_path: Path) -> None:
    limits = {"float32": [MET], "int8_u8s8": [MISSED], "int8_u8u8": [MISSED], "int8_dynamic": [MET]}
    found = defaults(tmp_path, limits, chosen="float32", cpu="x86_64-vnni")
    assert found == {
        "x86_64-vnni": "float32",
        "x86_64*": "float32",
        "aarch64": "int8_dynamic",
        "*": "float32",
    }


def test_what_is_slow_here_may_be_fast_elsewhere(tmp_path: Path) -> None:
    limits = {"float32": [MET], "int8_u8s8": [MET, SLOW]}
    assert defaults(tmp_path, limits, chosen="float32", cpu="x86_64-vnni")["aarch64"] == "int8_u8s8"


def test_an_unknown_cpu_gets_no_integer_kernels_for_the_sake_of_size(tmp_path: Path) -> None:
    large = verdict("size_kb", "missed", 40, 10)
    found = defaults(tmp_path, {"float32": [large], "int8_u8s8": [MET]}, chosen="int8_u8s8", cpu="x86_64-vnni")
    assert (found["x86_64-vnni"], found["aarch64"], found["*"]) == ("int8_u8s8", "int8_u8s8", "float32")


def test_only_shipped_variants_are_named(tmp_path: Path) -> None:
    found = defaults(tmp_path, {"int8_u8s8": [MET]}, chosen="int8_u8s8", cpu="x86_64-vnni")
    assert set(found.values()) == {"int8_u8s8"}


def test_no_machine_rules_out_what_was_not_judged() -> None:
    assert equally_good_elsewhere({"a": [], "b": []}) == ["a", "b"]
    assert equally_good_elsewhere({"a": [ABOVE], "b": [MET], "c": [MISSED], "d": [MET, SLOW]}) == ["b", "d"]


def test_a_graph_that_the_target_cannot_load_is_refused_before_training(tmp_path: Path) -> None:
    recipe = write_project(tmp_path, "classification")
    graphs.check(make_space(recipe, "target.name=raspberry_pi"))
    with pytest.raises(UsageError, match=r"export.opset = 20, but the target 'raspberry_pi' loads at most 18; add"):
        graphs.check(make_space(recipe, "target.name=raspberry_pi", "export.opset=20"))
    with pytest.raises(UsageError, match=r"export.ir_version = 10, but the target 'android' loads at most 8"):
        graphs.check(make_space(recipe, "target.name=android", "export.ir_version=10"))
