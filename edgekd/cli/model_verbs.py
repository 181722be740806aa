"""Verbs on one model or bundle: export, quantize, verify, predict, inspect."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from edgekd.cli import tables
from edgekd.cli.options import Common, parse_pairs
from edgekd.doctor import require
from edgekd.errors import AnswerIsNo, UsageError, nearest

Samples = Annotated[
    Path | None,
    typer.Option(
        "--samples",
        metavar="FILE|FOLDER",
        help="Real inputs: an .npz with an array per input name; or with --preprocess a folder of images, or a file of "
        "texts.",
    ),
]

Preprocess = Annotated[
    str | None,
    typer.Option("--preprocess", metavar="JSON", help="Steps for images or texts, as in a recipe."),
]


def export(
    common: Common,
    model: Annotated[
        str,
        typer.Argument(
            help="A run folder, a built-in (edgekd recipes --models), torchvision:NAME, timm:NAME, hf:FOLDER, "
            "or package.module:function."
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT.onnx")],
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--inputs",
            metavar="NAME:N,1,28,28",
            help="Name, shape, and :int64 behind it for whole numbers; letters are symbolic axes. Once per input.",
        ),
    ] = None,
    outputs: Annotated[
        str, typer.Option("--outputs", metavar="NAME,...", help="Names of what the model returns.")
    ] = "logits",
    axes: Annotated[
        list[str] | None,
        typer.Option("--axes", metavar="L=4,8,16,...", help="Sizes at which to prove a symbolic axis; 5 or more."),
    ] = None,
    num_outputs: Annotated[
        int | None, typer.Option("--num-outputs", min=1, max=10_000_000, help="Classes or targets, where not 10.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", help="safetensors, or a state dict (never an arbitrary pickle).")
    ] = None,
    args: Annotated[
        str | None, typer.Option("--args", metavar="JSON", help="Arguments of the model's function.")
    ] = None,
    opset: Annotated[int, typer.Option("--opset", min=1, help="ONNX opset.")] = 18,
    ir_version: Annotated[
        int, typer.Option("--ir-version", min=3, max=20, help="ONNX IR version; 8 loads in onnxruntime 1.14.")
    ] = 8,
    target: Annotated[
        str | None, typer.Option("--target", help="Device kind, whose runtime may lower opset and IR.")
    ] = None,
    samples: Samples = None,
    labels: Annotated[
        Path | None, typer.Option("--labels", metavar="FILE.txt", help="A class per line, for the metadata.")
    ] = None,
    meta: Annotated[
        list[str] | None, typer.Option("--meta", metavar="KEY=VALUE", help="More metadata, such as license=MIT.")
    ] = None,
    exporter: Annotated[
        str, typer.Option("--exporter", help="torch, or optimum (hf: models); either is proven.")
    ] = "torch",
    preprocess_in_graph: Annotated[
        bool, typer.Option("--preprocess-in-graph", help="A run: the graph reads raw images, bytes of any size.")
    ] = False,
    postprocess_in_graph: Annotated[
        bool, typer.Option("--postprocess-in-graph", help="A run: the graph gives probabilities, best classes, labels.")
    ] = False,
) -> None:
    """PyTorch model to one ONNX file, proven against PyTorch at several sizes of every symbolic axis before it counts.

    Examples:

      edgekd export runs/digits student.onnx

      edgekd export torchvision:mobilenet_v3_small net.onnx --inputs input:N,3,224,224 --num-outputs 1000

      edgekd export mypkg.models:student net.onnx --inputs input:N,1,28,28 --weights student.safetensors

      edgekd export hf:my_bert net.onnx --axes L=8,16,32,64,128
    """
    require("train", "cpu", purpose="exporting")
    from edgekd.stages.exporting import ExportRequest, export_model, parse_axis, read_labels
    from edgekd.stages.inside import Inside

    arguments = parse_json(args, option="--args")
    if not (arguments is None or isinstance(arguments, dict)):
        raise UsageError(f"--args {args}: expected a JSON object, for example '{{\"width\": 8}}'")

    if exporter not in ("torch", "optimum"):
        raise UsageError(f"--exporter {exporter}: unknown. {nearest(exporter, ('torch', 'optimum'))}")
    more: dict[str, str] = {}
    for pair in meta or ():
        more |= parse_pairs(pair, option="--meta")
    request = ExportRequest(
        model,
        inputs=tuple(inputs or ()),
        outputs=tuple(name.strip() for name in outputs.split(",") if name.strip()),
        axes=dict(parse_axis(text) for text in axes or ()),
        num_outputs=num_outputs,
        weights=weights,
        args=arguments or {},
        opset=opset,
        ir_version=ir_version,
        target=target,
        samples=samples,
        seed=common.seed or 0,
        labels=() if labels is None else read_labels(labels),
        metadata=more,
        exporter="optimum" if exporter == "optimum" else "torch",
        inside=Inside(preprocess_in_graph, postprocess_in_graph),
    )
    result = export_model(request, out)
    if common.as_json:
        common.print_json(
            {
                "path": str(result.path),
                "size_bytes": result.size_bytes,
                "sha256": result.sha256,
                "opset": result.opset,
                "ir_version": result.ir_version,
                "max_abs_diff": result.max_abs_diff,
                "num_samples": result.num_samples,
                "batch_sizes": list(result.batch_sizes),
                "axes": {name: list(sizes) for name, sizes in result.axes.items()},
            }
        )
        return
    common.say(
        f"wrote {result.path}: {result.size_bytes / 1000:.1f} kB, opset {result.opset}, IR {result.ir_version}, "
        f"differs from PyTorch by at most {result.max_abs_diff:.1e}"
    )
    proven = {"batch": result.batch_sizes, **result.axes}
    sizes = "; ".join(f"{name} {', '.join(map(str, sorted(sizes)))}" for name, sizes in proven.items())
    common.say(f"proven on {result.num_samples} samples at {sizes}")
    tables.print_next(
        common,
        tables.command("inspect", out),
        tables.command(
            "quantize", out, out.with_suffix(".int8.onnx"), "--config", "int8_static", "--data", "samples.npz"
        ),
        tables.command("benchmark", out),
    )


def quantize(
    common: Common,
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx")],
    out: Annotated[Path, typer.Argument(metavar="OUT.onnx")],
    config: Annotated[
        str,
        typer.Option(
            "--config",
            help="int8_static (the target's for this CPU), int8_u8s8, int8_u8s8_per_tensor, int8_u8s7, int8_s8s8, "
            "int8_u8u8, int8_dynamic, fp16, int4_weight_only, mixed.",
        ),
    ] = "int8_static",
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="FILE|FOLDER",
            help="Calibration samples: an .npz as the model sees them (an array per input name), or with --preprocess "
            "a folder of images, or a file of texts (.txt, .csv, .tsv, .jsonl).",
        ),
    ] = None,
    preprocess: Preprocess = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE.json", help="Write what --json prints, missed limits too.")
    ] = None,
    target: Annotated[str, typer.Option("--target", help="Device kind; chooses the scheme of int8_static.")] = "cpu",
    limits: Annotated[
        str | None,
        typer.Option("--limits", metavar="K=V,...", help="Fail unless it holds: size_kb=..., label_agreement=..."),
    ] = None,
    mixed: Annotated[
        bool,
        typer.Option("--mixed", help="As --config mixed: layers that int8 breaks stay in float, found by measuring."),
    ] = False,
    calibration: Annotated[
        str | None, typer.Option("--calibration", metavar="METHOD", help="minmax, entropy, percentile or mse.")
    ] = None,
    calibration_cache: Annotated[
        Path | None,
        typer.Option("--calibration-cache", metavar="FILE.json", help="Keep the ranges here, and use those that are."),
    ] = None,
) -> None:
    """Float ONNX to a smaller one: static or dynamic int8, fp16, 4-bit weights. Works on anybody's ONNX file."""
    require("graph", "cpu", purpose="quantizing")
    from edgekd.stages.alone import quantize_model

    bounds = {
        key: number(value, option="--limits") for key, value in parse_pairs(limits or "", option="--limits").items()
    }
    if mixed and config not in ("int8_static", "mixed"):
        raise UsageError(f"--mixed and --config {config}: give one of them")
    result = quantize_model(
        model,
        out,
        config="mixed" if mixed else config,
        data=data,
        steps=parse_steps_option(preprocess, option="--preprocess"),
        report=report,
        target=target,
        limits=bounds,
        calibration_method=calibration,
        cache=calibration_cache,
    )
    if common.as_json:
        common.print_json(result)
        return
    common.say(
        f"wrote {out}: {result['size_bytes'] / 1000:.1f} kB ({result['ratio']:.2f}x smaller), "
        f"{result['num_quantized']} layers in {result['config']}"
    )
    if result["search"] is not None:
        search = result["search"]
        common.say(
            f"left in float: {', '.join(search['put_back']) or 'nothing'}; {search['evaluations']} evaluations of at "
            f"most {search['most_evaluations']}"
        )
    if result["label_agreement"] is not None:
        common.say(f"same answer as the float model on {result['label_agreement']:.2%} of the samples")
    tables.print_next(
        common,
        tables.command("verify", model, out, "--samples", "samples.npz" if data is None else data),
        tables.command("benchmark", model, out),
        tables.command("inspect", out),
    )


def verify(
    common: Common,
    first: Annotated[Path, typer.Argument(metavar="A", help="A bundle; or the reference model.")],
    second: Annotated[Path | None, typer.Argument(metavar="[B]", help="The model to compare with it.")] = None,
    samples: Samples = None,
    preprocess: Preprocess = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Two models: float tolerance instead of the quantized one.")
    ] = False,
    key: Annotated[
        Path | None,
        typer.Option("--key", metavar="KEY.pub.pem", help="One bundle: it must be signed with this key's other half."),
    ] = None,
) -> None:
    """One bundle: hashes, signature, golden vectors of every variant. Two models: parity at several batch sizes."""
    from edgekd.device.bundle import Bundle

    if second is None:
        if samples is not None or strict:
            raise UsageError(
                f"verify {first}: --samples and --strict are for two models; a bundle is judged by its own golden "
                "vectors and tolerances. Leave them out, or give a second model"
            )
        if first.suffix == ".onnx":
            raise UsageError(
                f"verify {first}: one ONNX file has nothing to be compared with; give a second, or a bundle"
            )
        from edgekd.device.selftest import self_test
        from edgekd.device.signing import check_signature, is_signed

        bundle = Bundle.open(first)
        if key is not None:
            check_signature(bundle, key)
        signed = is_signed(bundle)
        bundle.verify_files()
        rows = self_test(bundle, threads=common.threads or 1)
        ok = all(row["ok"] for row in rows)
        if common.as_json:
            signature = {"signed": signed, "signature_checked": key is not None}
            common.print_json({"bundle": str(first), "ok": ok, **signature, "variants": rows})
        else:
            cells = [
                (
                    row["variant"],
                    "ok" if row["ok"] else "WRONG",
                    f"{row['max_abs_diff']:.1e}",
                    f"{row['label_agreement']:.1%}",
                )
                for row in rows
            ]
            common.out.print(tables.plain_table(("variant", "golden", "max difference", "same answer"), cells, left=2))
            common.say(f"{len(bundle.manifest['files'])} files match their hashes; id {bundle.manifest.get('id', '-')}")
            if key is not None:
                common.say(f"signed with the key that belongs to {key}")
            elif signed:
                common.say("signed, by whom is not known: give the maker's public key with --key")
        if not ok:
            wrong = ", ".join(row["variant"] for row in rows if not row["ok"])
            raise AnswerIsNo(
                f"{first}: {wrong} does not give its golden outputs on this machine; do not use it here. "
                "Choose another variant, or report the CPU (edgekd doctor)"
            )
        return
    if key is not None:
        raise UsageError(f"verify {first} {second}: --key is for one bundle, models are not signed; leave it out")
    require("graph", "cpu", purpose="comparing two models")
    from edgekd.stages.alone import verify_models

    steps = parse_steps_option(preprocess, option="--preprocess")
    result = verify_models(first, second, samples=samples, steps=steps, strict=strict, seed=common.seed or 0)
    if common.as_json:
        common.print_json(result)
    else:
        agreement = "" if result["label_agreement"] is None else f", same answer on {result['label_agreement']:.2%}"
        common.say(
            f"{'same' if result['ok'] else 'DIFFERENT'}: at most {result['max_abs_diff']:.2e} apart{agreement}; "
            f"{result['num_samples']} samples ({result['samples']}), batch sizes {result['batch_sizes']}"
        )
    if not result["ok"]:
        raise AnswerIsNo("; ".join(result["problems"]))


def predict(
    common: Common,
    path: Annotated[Path, typer.Argument(metavar="BUNDLE")],
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Images, or .npy/.npz arrays of samples; for a model of texts the texts themselves, - for one per "
            "line of standard input.",
        ),
    ],
    variant: Annotated[str | None, typer.Option("--variant", help="Default: the bundle's choice for this CPU.")] = None,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="How many labels to give.")] = 1,
) -> None:
    """What the student says: label and score for images, arrays or texts. Needs no torch."""
    from edgekd.device.predictor import load
    from edgekd.device.programs import embed
    from edgekd.stages.inputs import read_inputs, read_texts

    with load(path, variant=variant, threads=common.threads) as predictor:
        rows: list[dict[str, Any]] = []
        manifest = predictor.bundle.manifest
        reads_text = any(step["op"] == "tokenize" for step in manifest["preprocess"])
        samples: Iterable[tuple[str, Any]] = read_texts(inputs) if reads_text else read_inputs([*map(Path, inputs)])
        for name, sample in samples:
            answer = predictor.predict(sample, top_k=top_k)
            rows.append(
                {
                    "input": name,
                    "label": answer.label,
                    "score": answer.score,
                    "top": [list(item) for item in answer.top],
                    "latency_ms": round(answer.latency_ms, 4),
                    **({"truncated": answer.truncated} if reads_text else {}),
                    "outputs": {key: value.tolist() for key, value in answer.outputs.items()},
                }
            )
    if common.as_json:
        common.print_json({"bundle": str(path), "predictions": rows})
        return
    for row in rows:
        said = "  ".join(f"{label} {score:.4g}" for label, score in row["top"])
        if manifest["task"] == "embedding":
            said = f"{embed.shown(row['outputs'][manifest['outputs'][0]['name']])} (--json: all)"
        common.say(f"{row['input']}: {said}")
        if row.get("truncated"):
            common.warn("this text is longer than the model reads: its end was not looked at")


def inspect(
    common: Common,
    path: Annotated[Path, typer.Argument(metavar="MODEL.onnx|BUNDLE")],
) -> None:
    """What is inside: operators, MACs, parameters, opset, shapes, runtimes that can read it; a bundle's manifest."""
    if path.is_file() and path.suffix == ".onnx":
        require("graph", purpose="inspecting an ONNX file")
        from edgekd.graph.inspection import inspect as inspect_model

        found = inspect_model(path).to_json()
        if importlib.util.find_spec("onnxruntime") is not None:
            from edgekd.stages.inspecting import ask_runtimes

            found["runtimes"] = ask_runtimes(path)
        if common.as_json:
            common.print_json(found)
        else:
            print_fields(common, found)
        return
    from edgekd.device.bundle import Bundle

    bundle = Bundle.open(path)
    manifest = bundle.manifest
    if common.as_json:
        common.print_json(manifest)
        return
    print_fields(
        common,
        {
            "name": manifest["name"],
            "task": manifest["task"],
            "id": manifest.get("id", "not stated"),
            "labels": manifest["labels"],
            "licence": manifest.get("licence") or "not stated",
            "intended use": manifest.get("intended_use") or "not stated",
            "teacher": origin(manifest, "teacher"),
            "data": origin(manifest, "data"),
            "default": f"{bundle.default_variant()} on this CPU",
            "preprocess": [step["op"] for step in manifest["preprocess"]],
            "postprocess": [step["op"] for step in manifest["postprocess"]],
        },
    )
    cells = [
        (
            name,
            f"{item['size_bytes'] / 1000:.1f}" if "size_bytes" in item else "-",
            str(item.get("opset", "-")),
            str(item.get("ir_version", "-")),
            str(item.get("min_runtime", {}).get("onnxruntime", "-")),
        )
        for name, item in manifest["variants"].items()
    ]
    common.out.print(tables.plain_table(("variant", "kB", "opset", "IR", "onnxruntime from"), cells))


def origin(manifest: dict[str, Any], what: str) -> str:
    """`name (licence)` of a bundle's teacher or data; readers may not count on either being there."""
    said = manifest.get("provenance", {}).get(what, {})
    return f"{said.get('name') or 'not stated'} ({said.get('licence') or 'not stated'})"


def print_fields(common: Common, fields: dict[str, Any]) -> None:
    """`name  value` lines; lists and dicts on one line each."""
    for key, value in fields.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        elif isinstance(value, (list, tuple)):
            value = ", ".join(v if isinstance(v, str) else json.dumps(v) for v in value)
        elif isinstance(value, int) and not isinstance(value, bool):
            value = f"{value:,}"
        common.say(f"{key:<14} {value}")


def parse_json(text: str | None, *, option: str) -> Any:
    """The value of an option that holds JSON."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError(
            f"{option}: {text!r} is not JSON ({error}); expected for example '{{\"width\": 8}}'"
        ) from error


def parse_steps_option(text: str | None, *, option: str) -> list[dict[str, Any]] | None:
    """The value of an option that holds a list of steps; None where it is not given."""
    steps = parse_json(text, option=option)
    if steps is not None and not (isinstance(steps, list) and all(isinstance(step, dict) for step in steps)):
        raise UsageError(f'{option} {text}: expected a list of steps, e.g. \'[{{"op":"scale"}}]\'')
    return steps


def number(text: str, *, option: str) -> float:
    """The value of an option that holds a number; not NaN, with which every comparison would pass."""
    try:
        value = float(text)
    except ValueError as error:
        raise UsageError(f"{option}: found '{text}', expected a number") from error
    if not math.isfinite(value):
        raise UsageError(f"{option}: found '{text}', expected a finite number")
    return value
