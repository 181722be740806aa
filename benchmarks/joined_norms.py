"""What onnxruntime's SkipLayerNormalization costs beside the nodes that it stands for.

    python benchmarks/joined_norms.py --out joined_norms.json

Twenty norms in a row, each behind two additions (a bias and a residual), over texts of 22 tokens: as the joined
operator, as Add, Add, LayerNormalization (which onnxruntime joins when it loads the file), and as edgekd writes them
(`edgekd.graph.fusion.norms_apart`). One thread, interleaved, times of the whole graph.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgekd.device.benchmark import benchmark
from edgekd.device.candidates import Candidate
from edgekd.files import write_json
from edgekd.graph.fusion import norms_apart

NORMS, TOKENS = 20, 22
WIDTHS = (128, 384, 768)
DOMAIN = "com.microsoft"
JOINED, ADDED, APART = "joined", "added", "apart"


def chain(width: int, *, joined: bool) -> onnx.ModelProto:
    """x, y (1, TOKENS, width) -> n times norm(x + bias + y)."""
    random, weights, nodes, last = np.random.default_rng(0), {}, list[NodeProto](), "x"
    for number in range(NORMS):
        names = [f"{part}{number}" for part in ("gamma", "beta", "bias")]
        weights |= {name: random.normal(size=width).astype(np.float32) for name in names}
        gamma, beta, bias = names
        if joined:
            reads = [last, "y", gamma, beta, bias]
            norm = helper.make_node("SkipLayerNormalization", reads, [f"n{number}"], f"norm{number}", domain=DOMAIN)
            nodes.append(norm)
        else:
            nodes.append(helper.make_node("Add", [last, bias], [f"b{number}"]))
            nodes.append(helper.make_node("Add", [f"b{number}", "y"], [f"s{number}"]))
            nodes.append(helper.make_node("LayerNormalization", [f"s{number}", gamma, beta], [f"n{number}"]))
        last = f"n{number}"
    shape = [1, TOKENS, width]
    graph = helper.make_graph(
        nodes,
        "norms",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy"],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def main() -> None:
    """A table, and the measurements as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default="full")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    measured = {}
    print("| width | joined, µs a norm | added | apart | joined / apart |\n|---|---|---|---|---|")
    for width in WIDTHS:
        graphs = {JOINED: chain(width, joined=True), ADDED: chain(width, joined=False)}
        graphs[APART] = norms_apart(chain(width, joined=True))
        with tempfile.TemporaryDirectory() as folder:
            paths = {name: Path(folder, f"{name}.onnx") for name in graphs}
            for name, graph in graphs.items():
                onnx.save(graph, paths[name])
            candidates = [Candidate(name, str(path)) for name, path in paths.items()]
            result = benchmark(candidates, suite=args.suite, against=JOINED)
        rows = {row["candidate"]: row for row in result["rows"]}
        times = [1000 * rows[name]["latency_ms"]["p50"]["value"] / NORMS for name in (JOINED, ADDED, APART)]
        speedup = rows[APART]["speedup"]
        interval = f"{speedup['value']:.1f} [{speedup['low']:.1f}, {speedup['high']:.1f}]"
        print(f"| {width} | {' | '.join(f'{time:.1f}' for time in times)} | {interval} | {result['verdict']['value']}")
        measured[str(width)] = result
    if args.out is not None:
        write_json(args.out, measured)


if __name__ == "__main__":
    main()
