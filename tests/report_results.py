"""Hand-made results for the tests of the report: a whole run of eight candidates, and a plain benchmark."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from typing import Any


def interval(value: float, half: float, n: int | None = None) -> dict[str, Any]:
    """A symmetric interval as results.json writes it."""
    plain = {"value": value, "low": round(value - half, 9), "high": round(value + half, 9)}
    return plain if n is None else {**plain, "n": n}


# id: (runtime, p50 ms, speed-up, bytes, accuracy, drop in points, MB)
CANDIDATES: dict[str, tuple[str, float, float, int, float, float, float]] = {
    "teacher-pytorch": ("torch", 1.412, 0.43, 2_214_000, 0.9861, 0.0, 241.3),
    "teacher-onnx": ("onnxruntime", 0.6104, 1.0, 2_208_412, 0.9861, 0.0, 39.8),
    "student-alone": ("onnxruntime", 0.0512, 11.9, 88_120, 0.9639, 2.22, 27.4),
    "float32": ("onnxruntime", 0.0509, 12.0, 88_120, 0.9750, 1.11, 27.4),
    "int8_u8s8": ("onnxruntime", 0.0388, 15.7, 27_930, 0.9750, 1.11, 26.1),
    "int8_s8s8": ("onnxruntime", 0.0671, 9.1, 27_944, 0.9722, 1.39, 26.2),
    "int8_dynamic": ("onnxruntime", 0.0702, 8.7, 26_101, 0.9722, 1.39, 26.4),
    "fp16": ("onnxruntime", 0.0598, 10.2, 45_310, 0.9750, 1.11, 27.9),
}
ROLES = {name: name if name.startswith(("teacher", "student")) else "variant" for name in CANDIDATES}
RECIPE = """version = 1
name = "digits"
task = "classification"

[data]
kind = "digits"

[teacher]
model = "cnn_l"

[student]
model = "dscnn_s"

[limits]
size_kb = 50
latency_p90_ms = 0.05
accuracy_drop_points = 1.0
"""


def plain_results() -> dict[str, Any]:
    """What `edgekd benchmark` writes: no key "run"; one candidate has too few calls, one failed, one is WRONG."""
    return {
        "schema": "edgekd.results/1",
        "command": "edgekd benchmark a.onnx b.onnx c.onnx d.onnx --against a.onnx",
        "started": "2026-11-20T10:03:11+00:00",
        "versions": {"edgekd": "0.1.0", "python": "3.11.2", "numpy": "2.4.6", "onnxruntime": "1.31.1"},
        "machine": {
            "cpu": "AMD EPYC 9R14",
            "flags": ["fpu", "avx2", "avx512f", "avx512_vnni"],
            "cores_allowed": 2,
            "quota": None,
            "governor": "performance",
            "memory_mb": 24576,
            "os": "Debian GNU/Linux 12",
            "container": True,
        },
        "suite": {"name": "quick", "min_calls": 64, "max_seconds": 4.0, "block_ms": 20.0, "memory": True},
        "conditions": {"seconds": 3.1, "cores": 2, "steal_share": 0.0012, "pressure_share": None},
        "seed": 0,
        "candidates": [
            {
                "id": name,
                "model": f"{name}.onnx",
                "variant": None,
                "runtime": "onnxruntime",
                "threads": 1,
                "batch": 1,
                "golden": golden,
                **({"error": "the model needs opset 27; this onnxruntime reads up to 26"} if name == "d" else {}),
            }
            for name, golden in (("a", None), ("b", "ok"), ("c", "WRONG"), ("d", "ok"))
        ],
        "rows": [
            {
                "candidate": "a",
                "scenario": "single-stream",
                "n": 400,
                "latency_ms": {"p50": interval(2.41, 0.02), "p90": interval(2.60, 0.04), "p99": None},
                "throughput_per_s": 414.0,
                "load_ms": 8.1,
                "first_ms": 4.0,
                "cold_start_ms": interval(120.0, 6.0),
                "cpu_ms": 2.4,
                "memory_mb": {"load": 31.0, "first": 35.5, "steady": 35.2},
                "size_bytes": 5_301_000,
                "speedup": None,
            },
            {
                "candidate": "b",
                "scenario": "single-stream",
                "n": 40,
                "latency_ms": {"p50": interval(0.93, 0.01), "p90": None, "p99": None},
                "size_bytes": 1_402_000,
                "speedup": {**interval(2.59, 0.03), "against": "a"},
            },
            {
                "candidate": "c",
                "scenario": "single-stream",
                "n": 400,
                "latency_ms": {"p50": interval(0.31, 0.01), "p90": interval(0.35, 0.01), "p99": None},
                "size_bytes": 1_399_000,
                "speedup": {**interval(7.8, 0.1), "against": "a"},
            },
        ],
        "samples": {},
        "verdict": {"value": "VALID", "reasons": [], "advice": []},
    }


def run_results() -> dict[str, Any]:
    """What `edgekd distill-and-export` writes: the benchmark and the key "run"."""
    results = plain_results()
    results["command"] = "edgekd distill-and-export digits --out runs/digits"
    results["candidates"] = [
        {
            "id": name,
            "model": "student.edgekd" if ROLES[name] == "variant" else f"{name}.onnx",
            "variant": name if ROLES[name] == "variant" else None,
            "runtime": values[0],
            "threads": 1,
            "batch": 1,
            "golden": "ok",
        }
        for name, values in CANDIDATES.items()
    ]
    results["rows"] = [run_row(name) for name in CANDIDATES]
    results["run"] = {
        "name": "digits",
        "task": "classification",
        "metric": "accuracy",
        "recipe_toml": RECIPE,
        "chosen": "int8_u8s8",
        "confidence": 0.95,
        "limits": [
            {"name": "size_kb", "limit": 50, "value": 27.93, "interval": [27.93, 27.93], "verdict": "met"},
            {
                "name": "latency_p90_ms",
                "limit": 0.04,
                "value": 0.0421,
                "interval": [0.0417, 0.0428],
                "verdict": "missed",
            },
            {
                "name": "accuracy_drop_points",
                "limit": 1.0,
                "value": 0.35,
                "interval": [-0.61, 1.31],
                "verdict": "unproven",
                "needed_n": 1240,
            },
        ],
        "licences": {"teacher": "Apache-2.0", "data": "CC BY 4.0", "student": "Apache-2.0"},
        "budget": {
            "epochs": 30,
            "images_seen": 34_500,
            "teacher_passes": 34_500,
            "seconds": {"data": 0.41, "teacher": 21.2, "student": 14.6, "student_alone": 9.8, "benchmark": 13.9},
        },
        "counts": {"train": 1150, "val": 287, "test": 360},
        "training": {
            "teacher": training(20, 0.986, ("cross_entropy",), best=17),
            "student": training(30, 0.975, ("kd", "cross_entropy"), best=28),
            "student_alone": training(30, 0.964, ("cross_entropy",), best=24),
        },
        "validation": {},
        "roles": ROLES,
        "files": {"bundle": "student.edgekd", "teacher": "export/teacher.onnx", "report": "report.html"},
    }
    return results


def run_row(name: str) -> dict[str, Any]:
    """The row of one candidate of the run."""
    _, p50, speedup, size, accuracy, drop, memory = CANDIDATES[name]
    reference = name == "teacher-onnx"
    return {
        "candidate": name,
        "scenario": "single-stream",
        "n": 900,
        "latency_ms": {"p50": interval(p50, p50 * 0.012), "p90": interval(p50 * 1.09, p50 * 0.02), "p99": None},
        "throughput_per_s": 1000 / p50,
        "load_ms": 4.2,
        "first_ms": p50 * 3,
        "cold_start_ms": interval(96.0, 4.0),
        "cpu_ms": p50,
        "memory_mb": {"load": memory - 3, "first": memory - 1, "steady": memory},
        "size_bytes": size,
        "accuracy": {"value": accuracy, "low": accuracy - 0.021, "high": accuracy + 0.0085, "n": 360},
        "agreement": None if reference else 0.98,
        "drop_points": None if reference else interval(drop, 1.3),
        "speedup": None if reference else {**interval(speedup, speedup * 0.02), "against": "teacher-onnx"},
    }


def training(epochs: int, ceiling: float, terms: tuple[str, ...], *, best: int) -> dict[str, Any]:
    """A history that rises to `ceiling`, with a little ripple."""
    history = []
    for epoch in range(1, epochs + 1):
        share = 1 - math.exp(-epoch / 4)
        loss = 2.3 * math.exp(-epoch / 5) + 0.04 + 0.01 * math.sin(epoch * 2.1)
        values = {name: loss * (2.6 if name == "kd" else 1.0) for name in terms}
        history.append(
            {
                "epoch": epoch,
                "lr": 1e-3,
                "loss": sum(values.values()),
                "terms": values,
                "val": 0.35 + (ceiling - 0.35) * share + 0.004 * math.sin(epoch * 1.7),
                "seconds": 0.5,
            }
        )
    return {"history": history, "best_epoch": best, "epochs": epochs, "parameters": 21_840, "macs": 294_912}


HOSTILE = "<i></pre></title></svg><script>alert(1)</script><img src=x onerror=alert(2)>\"'&`|```"
# Values that decide what the report does; replacing them by nonsense would test something else.
FIXED = {"schema", "value", "verdict", "metric", "golden", "roles", "id", "candidate", "against", "chosen", "variant"}


class Page(HTMLParser):
    """Every element of a page with its attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def with_hostile_texts(value: Any, key: str = "") -> Any:
    """`value` with every free text, and every free key of a mapping, replaced by an attack."""
    if isinstance(value, str):
        return value if key in FIXED else f"{value}{HOSTILE}"
    if isinstance(value, list):
        return [with_hostile_texts(item, key) for item in value]
    if isinstance(value, dict):
        free = key in {"versions", "machine", "terms", "licences"}
        return {
            (f"{name}{HOSTILE}" if free else name): item if name == "roles" else with_hostile_texts(item, name)
            for name, item in value.items()
        }
    return value


def hostile_results() -> dict[str, Any]:
    """A run whose every text is an attack, the names of the candidates too."""
    results = with_hostile_texts(run_results())
    renamed = {name: f"{name}{HOSTILE}" for name in CANDIDATES if name not in ("teacher-onnx", "float32")}
    for entry in results["candidates"]:
        entry["id"] = renamed.get(entry["id"], entry["id"])
    for row in results["rows"]:
        row["candidate"] = renamed.get(row["candidate"], row["candidate"])
    run = results["run"]
    run["roles"] = {renamed.get(name, name): role for name, role in run["roles"].items()}
    run["chosen"] = renamed[run["chosen"]]
    results["verdict"] = {"value": "INVALID", "reasons": [HOSTILE], "advice": [HOSTILE]}
    return dict(results)


def charts(html: str) -> list[ElementTree.Element]:
    """The SVGs of a page, parsed as XML: a chart that is not well-formed fails here."""
    return [ElementTree.fromstring(text) for text in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]
