"""What quantization-aware distillation brings back of what post-training quantization loses, over several seeds.

    python benchmarks/quantization_aware.py --seeds 3 --work qat --out benchmarks/results/quantization_aware.json

5,000 Fashion-MNIST images of 14x14, a depthwise student (dscnn_s) taught by a plain CNN; accuracy on 5,000 test images
that no choice has seen. Every scheme begins with the same float student and is taught by the same float teacher for
the same epochs; "float, longer" is the float student after as many more. "Uneven" is the same float function with
channels of different size (1/8 to 8), as depthwise networks come to have them. The lines are printed as they come,
and a killed run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgekd.data.registry import load_dataset
from edgekd.device.machine import describe, versions
from edgekd.device.preprocess import apply_arithmetic, prepare, split_steps
from edgekd.distill import ModuleTeacher, Objective, Term, build_model, distill, export, fake_quantize, write_quantized
from edgekd.distill.qat import compare
from edgekd.files import write_json
from edgekd.graph import Int8QAT
from edgekd.graph.sessions import open_graph
from edgekd.spec import Array, Dataset, TensorSpec, parse_steps

STEPS = parse_steps([{"op": "resize", "size": [14, 14]}, {"op": "scale"}, {"op": "layout", "to": "CHW"}])
SHAPE = (1, 14, 14)
TRAIN, TEST = 5_000, 5_000
# scheme: (which float graph, configuration)
SCHEMES = {
    "int8, per channel": ("even", Int8QAT()),
    "int8, per tensor": ("even", Int8QAT(per_channel=False)),
    "int8, per tensor, uneven": ("uneven", Int8QAT(per_channel=False)),
    "4-bit weights, per channel": ("even", Int8QAT(weight_bits=4)),
    "4-bit weights, per tensor": ("even", Int8QAT(weight_bits=4, per_channel=False)),
}


def uneven(student: Any, *, seed: int) -> nn.Module:
    """The same function: what a batch norm multiplies a channel with, the depthwise convolution behind divides by."""
    changed: Any = copy.deepcopy(student)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for norm, convolution in ((changed[0][1], changed[1][0]), (changed[2][1], changed[3][0])):
            channels = norm.num_features
            factors = 2.0 ** torch.linspace(-3, 3, channels)[torch.randperm(channels, generator=generator)]
            norm.weight.mul_(factors)
            norm.bias.mul_(factors)
            convolution.weight.div_(factors[:, None, None, None])
    return changed


def accuracy(path: Path, x: Array, y: Array) -> float:
    """Percent of the samples that onnxruntime answers right."""
    session = open_graph(path)
    right = sum(
        int((session.run({"input": x[start : start + 500]})["logits"].argmax(1) == y[start : start + 500]).sum())
        for start in range(0, len(x), 500)
    )
    return 100 * right / len(x)


def measure(seed: int, work: Path, epochs: int, qat_epochs: int) -> dict[str, Any]:
    """One seed: accuracies before and after, and how far module and file agree."""
    spatial, arithmetic = split_steps(STEPS)
    data: Dataset = load_dataset(
        kind="fashion_mnist", seed=seed, limit=TRAIN, prepare=lambda raw: prepare(spatial, raw), val_fraction=0.1
    )
    x, y = apply_arithmetic(arithmetic, data.test.x[:TEST]), data.test.y[:TEST]
    calibration = {"input": apply_arithmetic(arithmetic, data.train.x[:256])}
    torch.manual_seed(seed)
    teacher, student = (build_model(name, num_outputs=10, input_shape=SHAPE) for name in ("cnn_m", "dscnn_s"))
    hard = Term("cross_entropy", "cross_entropy", weight=0.1)
    soft = Objective([Term("kd", "kd", weight=0.9), hard])
    common: dict[str, Any] = {"steps": arithmetic, "seed": seed, "threads": 1, "precision": "float32"}
    distill(teacher, [], data, Objective([hard]), epochs=epochs, lr=3e-3, run_dir=work / "teacher", **common)
    teachers = [ModuleTeacher(teacher)]
    distill(student, teachers, data, soft, epochs=epochs, lr=3e-3, run_dir=work / "student", **common)
    spec = TensorSpec("input", "float32", ("N", *SHAPE))
    floats = {"even": student, "uneven": uneven(student, seed=seed)}
    for name, module in floats.items():
        export(module, work / f"{name}.onnx", inputs=[spec], samples={"input": x[:256]})
    longer = copy.deepcopy(student)
    again: dict[str, Any] = {**common, "epochs": qat_epochs, "lr": 1e-3, "weight_decay": 0.0}
    distill(longer, teachers, data, soft, run_dir=work / "longer", **again)
    export(longer, work / "longer.onnx", inputs=[spec], samples={"input": x[:256]})
    found: dict[str, Any] = {
        "seed": seed,
        "float": accuracy(work / "even.onnx", x, y),
        "float, longer": accuracy(work / "longer.onnx", x, y),
        "schemes": {},
    }
    for index, (name, (source, config)) in enumerate(SCHEMES.items()):
        module = fake_quantize(work / f"{source}.onnx", config, calibration=calibration)
        path = work / f"{index}.onnx"
        write_quantized(module, path, samples={"input": x})
        before = accuracy(path, x, y)
        distill(module, teachers, data, soft, run_dir=work / f"qat-{index}", **again)
        result = write_quantized(module, path, samples={"input": x})
        with torch.no_grad():
            own = module(torch.from_numpy(x)).argmax(1).numpy()
        theirs = np.concatenate([open_graph(path).run({"input": x})["logits"]]).argmax(1)
        found["schemes"][name] = {
            "post_training": before,
            "aware": accuracy(path, x, y),
            "agreement": float((own == theirs).mean()),
            "largest_difference": compare(module, path, {"input": x}).max_rel_diff,
            "size_bytes": result.size_bytes,
        }
        print(seed, name, found["schemes"][name], flush=True)
    return found


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, in percent and points; `recovered` is the share of the loss that came back (None: no loss)."""
    summary: dict[str, Any] = {name: statistics.mean(row[name] for row in rows) for name in ("float", "float, longer")}
    for name in SCHEMES:
        lost = [row["float"] - row["schemes"][name]["post_training"] for row in rows]
        left = [row["float"] - row["schemes"][name]["aware"] for row in rows]
        summary[name] = {
            "lost_points": statistics.mean(lost),
            "left_points": statistics.mean(left),
            "lost_per_seed": lost,
            "left_per_seed": left,
            "recovered": 1 - sum(left) / sum(lost) if sum(lost) > 0 else None,
            "least_agreement": min(row["schemes"][name]["agreement"] for row in rows),
        }
    return summary


def main() -> None:
    """All seeds, a Markdown table, and the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--qat-epochs", type=int, default=5)
    parser.add_argument("--work", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    rows = []
    for seed in range(args.seeds):
        kept = args.work / f"{seed}.json"
        if not kept.is_file():
            write_json(kept, measure(seed, args.work / str(seed), args.epochs, args.qat_epochs))
        rows.append(json.loads(kept.read_text(encoding="utf-8")))
    summary = summarize(rows)
    print(f"float {summary['float']:.2f} %, after as many more epochs {summary['float, longer']:.2f} %\n")
    print("| scheme | post-training loses, points | left after training | comes back | module and file agree |")
    print("|---|---|---|---|---|")
    for name in SCHEMES:
        item = summary[name]
        back = "" if item["recovered"] is None else f"{item['recovered']:.0%}"
        cells = f"{item['lost_points']:.2f} | {item['left_points']:.2f} | {back} | {item['least_agreement']:.2%}"
        print(f"| {name} | {cells} |")
    if args.out is not None:
        facts = {"epochs": args.epochs, "qat_epochs": args.qat_epochs, "train": TRAIN, "test": TEST}
        write_json(args.out, {**facts, "machine": describe(), "versions": versions(), "summary": summary, "rows": rows})


if __name__ == "__main__":
    main()
