"""What the C app needs besides its folder: the student as C99, and its golden vectors as a header."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from edgekd.device.bundle import Bundle
from edgekd.device.integer import IntegerProgram, run
from edgekd.device.postprocess import Denormalize, Sigmoid, Softmax, parse_post_steps
from edgekd.device.preprocess import split_steps
from edgekd.device.selftest import DEFAULT_TOLERANCE
from edgekd.errors import BundleError, ModelError
from edgekd.graph.c_source import RawBytes, c_float, numbers, raw_bytes, write_c
from edgekd.graph.integer_reading import read_program
from edgekd.spec import Array, parse_steps
from edgekd.stages.embedding import Generated

GOLDEN_INPUTS = 2  # float samples in golden.h where there are raw ones, which take a fiftieth of the text

USAGE = """#include "student.h"

#include <stddef.h>

static unsigned char arena[STUDENT_ARENA_BYTES];

const char *classify(const {type} sample[{size}]) {{
    float scores[STUDENT_OUTPUTS];
    if ({function}(sample, scores, arena) != STUDENT_OK) {{
        return NULL; /* NaN or infinity in the input */
    }}
    return student_labels[student_best(scores)];
}}"""

USAGE_OF_VECTORS = """#include "student.h"

static unsigned char arena[STUDENT_ARENA_BYTES];

int embed(const {type} sample[{size}], float vector[STUDENT_OUTPUTS]) {{
    return {function}(sample, vector, arena) == STUDENT_OK; /* not where NaN or infinity is in the input */
}}"""


def generate(bundle: Bundle, variant: str | None) -> Generated:
    """student.c, student.h and golden.h. Raises `ModelError` when no variant (or not this one) is all integers."""
    chosen, program = choose(bundle, variant)
    manifest = bundle.manifest
    golden = bundle.golden()
    spatial, arithmetic = split_steps(parse_steps(manifest["preprocess"]))
    name, output = manifest["inputs"][0]["name"], manifest["outputs"][0]["name"]
    for key in (f"input.{name}", f"output.{chosen}.{output}"):
        if key not in golden:
            raise BundleError(f"the golden arrays lack '{key}'; build the bundle again")
    raw = raw_bytes(program, arithmetic, golden["raw"]) if "raw" in golden else None
    title = f"{manifest['name']}, variant {chosen}, bundle {manifest.get('id', 'without id')}"
    written = write_c(program, labels=manifest["labels"], title=title, raw=raw)
    header = golden_header(bundle, chosen, program, raw)
    sample = f"{raw.num_bytes} bytes" if raw is not None else f"{program.num_inputs} floats, preprocessed"
    usage = (USAGE_OF_VECTORS if manifest["task"] == "embedding" else USAGE).format(
        type="float" if raw is None else "unsigned char",
        size="STUDENT_INPUTS" if raw is None else "STUDENT_RAW_BYTES",
        function="student_run" if raw is None else "student_run_bytes",
    )
    names = ", ".join(step.op for step in (spatial if raw is not None else (*spatial, *arithmetic)))
    told = (
        f"Before that, your code does what the bundle's preprocessing says: {names} (BUNDLE.md).\n\n" if names else ""
    )
    figures = {"constant_bytes": written.constant_bytes, "arena_bytes": written.arena_bytes}
    io_bytes = 4 * program.num_outputs + (4 * program.num_inputs if raw is None else raw.num_bytes)
    words = {"variant": chosen, "sample": sample, "usage": usage, "spatial": told, "io_bytes": f"{io_bytes:,}"}
    words |= {key: f"{value:,}" for key, value in figures.items()}
    files = {"student.c": written.source, "student.h": written.header, "golden.h": header}
    return Generated({key: text.encode() for key, text in files.items()}, words, figures)


def choose(bundle: Bundle, variant: str | None) -> tuple[str, IntegerProgram]:
    """The variant (default: the first that is all integers, this CPU's before others) as a program."""
    first = bundle.default_variant()
    names = [variant] if variant is not None else [first, *(name for name in bundle.variants if name != first)]
    problems = []
    for name in names:
        try:
            program = read_program(bundle.graph("main", name))
        except ModelError as error:
            problems.append(f"{name}: {error}")
            continue
        if program.num_outputs != len(bundle.manifest["labels"]):
            raise ModelError(f"{name} has {program.num_outputs} outputs for {len(bundle.manifest['labels'])} labels")
        return name, program
    raise ModelError(f"no variant of {bundle.path} can become C: {'; '.join(problems)}")


def golden_header(bundle: Bundle, variant: str, program: IntegerProgram, raw: RawBytes | None) -> str:
    """The golden vectors of the bundle, with what the integer reference makes of them."""
    manifest, golden = bundle.manifest, bundle.golden()
    inputs = golden[f"input.{manifest['inputs'][0]['name']}"]
    wanted = golden[f"output.{variant}.{manifest['outputs'][0]['name']}"]
    count = len(inputs)
    shown = inputs if raw is None else inputs[:GOLDEN_INPUTS]
    tolerance = {**DEFAULT_TOLERANCE, **manifest["variants"][variant].get("tolerance", {})}
    lines = [
        "/* The golden vectors of the bundle; expected: edgekd's integer reference. Written by edgekd. */",
        "#ifndef GOLDEN_H\n#define GOLDEN_H\n",
        f"#define GOLDEN_COUNT {count}",
        f"#define GOLDEN_INPUTS {len(shown)}",
        f"#define GOLDEN_CLASSIFIES {int(manifest['task'] == 'classification')}",
        *(f"#define GOLDEN_{key} {c_float(tolerance[name])}" for key, name in NAMES.items()),
        *_post(manifest),
        _table("float", "golden_input", shown, c_float),
    ]
    if raw is not None:
        lines.append(_table("unsigned char", "golden_raw", golden["raw"], int))
    lines.append(_table("float", "golden_expected", run(program, inputs), c_float))
    lines.append(_table("float", "golden_bundle", wanted, c_float))
    return "\n".join([*lines, "#endif\n"])


NAMES = {"ABS": "abs", "REL": "rel", "AGREEMENT": "label_agreement"}


def _post(manifest: dict[str, Any]) -> list[str]:
    """The postprocessing of the example program."""
    steps = parse_post_steps(manifest["postprocess"])
    num = len(manifest["labels"])
    scale, shift = np.ones(num), np.zeros(num)
    temperature = 1.0
    for step in steps:
        if isinstance(step, Denormalize):
            scale, shift = scale * np.array(step.std), shift * np.array(step.std) + np.array(step.mean)
        elif isinstance(step, Softmax):
            temperature = float(step.temperature)
    return [
        f"#define POST_VECTOR {int(manifest['task'] == 'embedding')}",
        f"#define POST_SOFTMAX {int(any(isinstance(step, Softmax) for step in steps))}",
        f"#define POST_SIGMOID {int(any(isinstance(step, Sigmoid) for step in steps))}",
        f"#define POST_TEMPERATURE {c_float(temperature)}",
        f"static const float post_scale[{num}] = {{\n{numbers(map(c_float, scale))}\n}};",
        f"static const float post_shift[{num}] = {{\n{numbers(map(c_float, shift))}\n}};",
    ]


def _table(c_type: str, name: str, values: Array, show: Any) -> str:
    rows = values.reshape(len(values), -1)

    def row(items: Iterable[Any]) -> str:
        return "{\n" + numbers(show(item) for item in items) + "\n}"

    body = ",\n".join(row(items) for items in rows)
    return f"static const {c_type} {name}[{len(rows)}][{rows.shape[1]}] = {{\n{body}\n}};\n"
