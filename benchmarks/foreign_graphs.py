"""Graphs that we did not write, through every part that reads graphs: each passes, or is refused with a reason.

    python benchmarks/foreign_graphs.py --out foreign_graphs.json
    python benchmarks/foreign_graphs.py --torchvision all --out foreign_graphs.json      # every one of its models
    python benchmarks/foreign_graphs.py --only regnet --add --out foreign_graphs.json    # into the rows that are there

onnx's own backend test models (`light_*`: the nets of its zoo, whose weights are made by ConstantOfShape nodes),
torchvision's classification models with random weights, a transformer encoder at every opset from 11 on, and one whose
weights lie beside it. Each model has a process of its own. Exit code 1 where something neither passes nor is refused.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnx
from onnx import version_converter

from edgekd.device.machine import versions
from edgekd.device.runtimes import open_session
from edgekd.errors import EdgekdError
from edgekd.files import write_json
from edgekd.graph.clean import clean, load_model
from edgekd.graph.inspection import inspect
from edgekd.graph.quantization import VARIANTS, quantize
from edgekd.graph.verification import verify
from edgekd.stages.alone import random_feeds

STEPS = ("inspect", "clean, verify", "int8_dynamic", "int8_u8s8", "benchmark load")
# At least one of each family.
TORCHVISION = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
    "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "regnet_x_400mf",
    "regnet_y_400mf", "resnet18", "resnet50", "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t",
    "swin_v2_t", "vgg11", "vit_b_16", "wide_resnet50_2",
)  # fmt: skip
# Where 64 x 64 is too small, or the model is made for one size.
SIZES = {"alexnet": 224, "inception_v3": 96, "maxvit_t": 224, "vgg11": 224}
FIRST_OPSET, TRACED_OPSET, LAST_OPSET = 11, 17, 26
SAMPLES = 4


def light_models() -> list[Path]:
    """The nets in the onnx package."""
    return sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx"))


def export_torch(
    module: Any, path: Path, names: list[str], example: tuple[Any, ...], axes: dict[int, str], opset: int = 17
) -> Path:
    """The module by torch's own exporter, as somebody else would do it."""
    import torch

    torch.onnx.export(
        module.eval(), example, str(path), dynamo=False, opset_version=opset, input_names=names,
        output_names=["logits"], dynamic_axes={name: axes for name in (*names, "logits")},
    )  # fmt: skip
    return path


def torchvision_graph(name: str, folder: Path) -> Path:
    """A classification model with random weights, traced at 64 x 64 where it takes that."""
    import torch

    from edgekd.distill.models.vision import torchvision_model

    torch.manual_seed(0)
    size = SIZES.get(name, 64)
    args: dict[str, Any] = {"image_size": size} if name.startswith("vit_") else {}
    if name in ("googlenet", "inception_v3"):
        args = {"aux_logits": False, "init_weights": False}
    module = torchvision_model(name, num_outputs=10, args=args)
    return export_torch(module, folder / f"{name}.onnx", ["input"], (torch.zeros(2, 3, size, size),), {0: "N"})


def encoder_graph(path: Path, opset: int) -> Path:
    """Two transformer layers, (N, 12, 32) -> (N, 12, 32); old opsets have neither LayerNormalization nor its kin."""
    import torch
    from torch import nn

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(32, 32) for _ in range(3))
            self.first, self.second = nn.LayerNorm(32), nn.LayerNorm(32)
            self.wide = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weights = (self.query(x) @ self.key(x).transpose(1, 2) / 32**0.5).softmax(-1)
            x = self.first(x + weights @ self.value(x))
            return self.second(x + self.wide(x))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    module = nn.Sequential(Layer(), Layer())
    return export_torch(module, path, ["x"], (torch.zeros(2, 12, 32),), {0: "N"}, opset)


def collect(folder: Path, torchvision: list[str]) -> dict[str, Callable[[], Path | str]]:
    """Name -> what gives its file, or why there is none."""
    found: dict[str, Callable[[], Path | str]] = {path.stem: partial(Path, path) for path in light_models()}
    for name in torchvision:
        found[f"torchvision {name}"] = partial(torchvision_graph, name, folder)
    for opset in range(FIRST_OPSET, LAST_OPSET + 1):
        found[f"encoder, opset {opset}"] = partial(encoder_at, folder, opset)
    found["encoder, weights beside it"] = partial(encoder_beside, folder)
    return found


def encoder_at(folder: Path, opset: int) -> Path | str:
    """The encoder at an opset: traced there, or lifted to it where torch's tracer is too old; or why there is none."""
    path = folder / f"encoder_{opset}.onnx"
    if opset <= TRACED_OPSET:
        return encoder_graph(path, opset)
    older = onnx.load(encoder_graph(folder / "traced.onnx", TRACED_OPSET))
    try:
        onnx.save(version_converter.convert_version(older, opset), path)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        return f"onnx cannot convert it: {str(error).splitlines()[0]}"
    return path


def encoder_beside(folder: Path) -> Path:
    """The encoder whose weights lie in a file of their own."""
    path = folder / "beside.onnx"
    encoder = onnx.load(encoder_graph(folder / "traced.onnx", TRACED_OPSET))
    onnx.save(encoder, path, save_as_external_data=True, location="beside.data", size_threshold=0)
    return path


def examine(path: Path, folder: Path) -> dict[str, str]:
    """What each step says of one model: "passes", or why it is refused."""
    try:
        feeds = random_feeds(inspect(path).inputs, SAMPLES, seed=0)
    except EdgekdError as error:
        return dict.fromkeys(STEPS, f"refused: {error}")

    def cleaned() -> None:
        model = load_model(path)
        kept = clean(model, ir_version=max(model.ir_version, 8))
        result = verify(path, kept.SerializeToString(), feeds, batch_sizes=(1, 2, 3))
        if not result.ok:
            raise EdgekdError("; ".join(result.problems))

    def load() -> None:
        session = open_session(path, threads=1)
        session.run({name: array[: fixed_batch(session)] for name, array in feeds.items()})
        session.close()

    steps: dict[str, Callable[[], object]] = {
        "inspect": lambda: inspect(path),
        "clean, verify": cleaned,
        **{
            name: lambda name=name: quantize(path, folder / "q.onnx", VARIANTS[name], calibration=feeds)
            for name in ("int8_dynamic", "int8_u8s8")
        },
        "benchmark load": load,
    }
    answers = {}
    for name, step in steps.items():
        try:
            step()
            answers[name] = "passes"
        except EdgekdError as error:
            answers[name] = f"refused: {error}".replace(str(folder), "").replace(str(path.parent), "")
    return answers


def fixed_batch(session: Any) -> int:
    """The batch size that a session takes."""
    return next((spec.shape[0] for spec in session.inputs if spec.shape and isinstance(spec.shape[0], int)), SAMPLES)


def examine_apart(path: Path, seconds: float) -> dict[str, str]:
    """`examine` in a process of its own: a crash of a native library is an answer, too."""
    command = [sys.executable, __file__, "--one", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return dict.fromkeys(STEPS, f"FAILED: not done after {seconds:g} s")
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return dict.fromkeys(STEPS, f"FAILED: {last}")
    found: dict[str, str] = json.loads(done.stdout)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torchvision", default=",".join(TORCHVISION), help="names with commas between, or all")
    parser.add_argument("--only", default="", help="words with commas between: models whose names hold one of them")
    parser.add_argument("--seconds", type=float, default=600, help="for one model")
    parser.add_argument("--add", action="store_true", help="keep the rows that --out has already, but for those named")
    parser.add_argument("--out", type=Path, default=Path("foreign_graphs.json"))
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="edgekd-") as name:
        if given.one is not None:
            print(json.dumps(examine(given.one, Path(name))))
            return 0
        names = [item for item in given.torchvision.split(",") if item]
        if names == ["all"]:
            from edgekd.distill.models.vision import import_torchvision

            models = import_torchvision().models
            names = models.list_models(module=models)
        rows: dict[str, dict[str, str]] = json.loads(given.out.read_text())["rows"] if given.add else {}
        words = given.only.split(",")
        for title, make in collect(Path(name), names).items():
            if not any(word in title for word in words):
                continue
            source = make()
            rows[title] = (
                dict.fromkeys(STEPS, f"no graph: {source}")
                if isinstance(source, str)
                else examine_apart(source, given.seconds)
            )
            if isinstance(source, Path) and source.parent == Path(name):
                source.unlink(missing_ok=True)
            print(f"{title}: {', '.join(f'{key} {value[:70]}' for key, value in rows[title].items())}", flush=True)
            failed = [title for title, row in rows.items() if any(value.startswith("FAILED") for value in row.values())]
            write_json(given.out, {"versions": versions(), "rows": rows, "failed": failed})
    return 1 if any(value.startswith("FAILED") for row in rows.values() for value in row.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
