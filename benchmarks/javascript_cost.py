"""What the web and Node apps cost beside the bare runtime: time to the first answer, peak memory, time per call.

    python benchmarks/javascript_cost.py runs/digits/student.edgekd --npm FOLDER [--out javascript_cost.json]

FOLDER holds node_modules with onnxruntime-web and onnxruntime-node (tests/javascript/package.json). Every case runs in
fresh processes, in turns, one at a time, on one thread, float32, with the same sample. In Node, start is from before
the process is made to its first answer, memory its own peak resident set. In Chromium (headless, a fresh profile, a
server on this machine) it is from the navigation to the first answer, memory the peak of the process that runs the
page, beside that of an empty page; "installed" is the page's second visit, out of its service worker's cache, with the
server gone. A call is the median of many. The bare runtime is handed a preprocessed array; the apps also check hashes,
preprocess, postprocess and name the label; of texts the sample is one sentence, which they tokenize as well. Browsers
round their clocks to 0.1 ms (5 us where isolated): their calls are timed in blocks of a hundred.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

LEAST_PROCESSES = 10
ON_CLOCK = """
const first = process.hrtime.bigint();
const times = [];
for (let at = 0; at < CALLS; at += 1) {
  const start = process.hrtime.bigint();
  await call();
  times.push(Number(process.hrtime.bigint() - start));
}
times.sort((a, b) => a - b);
console.log(String(first), times[times.length >> 1], process.resourceUsage().maxRSS);
"""
BARE_NODE = """
import ort from "onnxruntime-node";
import { readFileSync } from "node:fs";
const session = await ort.InferenceSession.create("FOLDER/model.onnx", { intraOpNumThreads: 1, interOpNumThreads: 1 });
const x = new ort.Tensor(...TYPED(JSON.parse(readFileSync("FOLDER/x.json"))), SHAPE);
const call = () => session.run({ INPUT: x });
await call();
"""
GLUE_NODE = """
import { readFileSync } from "node:fs";
import { openStudent } from "./index.js";
const student = await openStudent(undefined, { variant: "VARIANT" });
const raw = SAMPLE(JSON.parse(readFileSync("FOLDER/raw.json")));
const call = () => student.predict(raw);
await call();
"""
IN_PAGE = """
globalThis.first = performance.now();
const times = [];
for (let block = 0; block < CALLS / 100; block += 1) {
  const start = performance.now();
  for (let at = 0; at < 100; at += 1) await call();
  times.push((performance.now() - start) * 10);
}
times.sort((a, b) => a - b);
globalThis.call = times[times.length >> 1];
"""
BARE_PAGE = """
import * as ort from "./ort/ort.wasm.min.mjs";
ort.env.wasm.wasmPaths = new URL("ort/", location.href).href;
ort.env.wasm.numThreads = 1;
const graph = new Uint8Array(await (await fetch("student.edgekd/graphs/VARIANT.onnx")).arrayBuffer());
const session = await ort.InferenceSession.create(graph);
const x = new ort.Tensor(...TYPED(await (await fetch("x.json")).json()), SHAPE);
const call = () => session.run({ INPUT: x });
await call();
"""
GLUE_PAGE = """
import { openStudent } from "./web.js";
const student = await openStudent("student.edgekd", { variant: "VARIANT" });
const raw = SAMPLE(await (await fetch("raw.json")).json());
const call = () => student.predict(raw);
await call();
"""


def prepare(bundle: Path, variant: str, npm: Path, folder: Path, calls: int) -> tuple[Path, Path]:
    """The folders of the Node app and the web app, with the programs that are on the clock."""
    from apps_cost import sample_of

    from edgekd.device.bundle import Bundle
    from edgekd.stages.embedding import embed

    opened = Bundle.open(bundle)
    x, raw = sample_of(opened)
    name = opened.manifest["inputs"][0]["name"]
    typed = '((v) => ["int64", BigInt64Array.from(v, BigInt)])'
    sample = "((v) => v)"
    if not isinstance(raw, str):
        typed = '((v) => ["float32", Float32Array.from(v)])'
        sample = f"((v) => ({{ shape: {json.dumps(list(raw.shape))}, data: Uint8Array.from(v) }}))"
    node, web = folder / "node", folder / "web"
    embed(opened, "node", node)
    embed(opened, "web", web, variant=variant, runtime=npm / "node_modules" / "onnxruntime-web")
    (node / "node_modules").symlink_to(npm / "node_modules")
    words = {"CALLS": calls, "SHAPE": list(x.shape), "INPUT": name, "VARIANT": variant, "FOLDER": node}
    (node / "model.onnx").write_bytes(opened.graph("main", variant))
    for place in (node, web):
        (place / "x.json").write_text(json.dumps(x.ravel().tolist()))
        (place / "raw.json").write_text(json.dumps(raw if isinstance(raw, str) else raw.ravel().tolist()))

    def filled(text: str) -> str:
        text = text.replace("TYPED", typed).replace("SAMPLE", sample)
        for word, value in words.items():
            text = text.replace(word, str(value))
        return text

    for title, code in (("bare", BARE_NODE), ("glue", GLUE_NODE)):
        (node / f"{title}.mjs").write_text(filled(code + ON_CLOCK))
    for title, code in (("bare", BARE_PAGE), ("glue", GLUE_PAGE)):
        script = (
            f'<!doctype html><link rel="icon" href="data:,"><script type="module">{filled(code + IN_PAGE)}</script>'
        )
        (web / f"{title}.html").write_text(script)
    (web / "empty.html").write_text('<!doctype html><link rel="icon" href="data:,">')
    return node, web


def peak_of(page: Any) -> float:
    """The largest peak resident set of the browser's renderers, in MB: the page's, as the spare ones are empty."""
    from edgekd.device.memory import peak_resident_mb

    return max(peak_resident_mb(str(process)) or 0.0 for process in page.renderers())


def measure_page(web: Path, title: str) -> tuple[float, float, float]:
    """Milliseconds from the navigation to the first answer, microseconds per call and the page's peak memory in MB, in
    a fresh browser."""
    from browser import Server, browser

    server = Server(web)
    try:
        with tempfile.TemporaryDirectory() as profile, browser(Path(profile)) as page:
            page.open(f"{server.address}{title}.html", "globalThis.call > 0")
            return page.run("return first"), page.run("return globalThis.call"), peak_of(page)
    finally:
        server.stop()


def measure_empty(web: Path) -> float:
    """Peak memory of a page with nothing in it, in MB: what a page costs before it has a model."""
    from browser import Server, browser

    server = Server(web)
    try:
        with tempfile.TemporaryDirectory() as profile, browser(Path(profile)) as page:
            page.open(f"{server.address}empty.html", "document.readyState === 'complete'")
            return peak_of(page)
    finally:
        server.stop()


def measure_installed(web: Path) -> tuple[float, float]:
    """Milliseconds from the navigation until the page has answered once, offline, on its second visit; and the peak of
    its memory in MB, over both visits if one process served both."""
    from browser import Server, browser

    server = Server(web)
    with tempfile.TemporaryDirectory() as profile, browser(Path(profile)) as page:
        page.open(server.address, "document.getElementById('offline').textContent")
        server.stop()
        page.open(f"{server.address}?", "document.body.dataset.ready")
        found: float = page.run("return performance.getEntriesByName('student-ready')[0].startTime")
        return found, peak_of(page)


def main() -> int:
    """Measure, print a table, write JSON with every process."""
    from apps_cost import measure

    from edgekd.device.machine import describe, versions
    from edgekd.device.statistics import median_interval

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--npm", type=Path, required=True, help="the folder with node_modules")
    parser.add_argument("--variant", default="float32")
    parser.add_argument("--calls", type=int, default=2000, help="in each process")
    parser.add_argument("--processes", type=int, default=12)
    parser.add_argument("--out", type=Path, help="JSON with the figures of every process")
    arguments = parser.parse_args()
    if arguments.processes < LEAST_PROCESSES:
        parser.error(f"--processes {arguments.processes}: expected at least {LEAST_PROCESSES}, fewer give no interval")
    samples: dict[str, dict[str, list[float]]] = {}

    def note(case: str, **values: float) -> None:
        for key, value in values.items():
            samples.setdefault(case, {}).setdefault(key, []).append(value)

    with tempfile.TemporaryDirectory(prefix="edgekd-javascript-cost-") as name:
        npm = arguments.npm.resolve()
        node, web = prepare(arguments.bundle, arguments.variant, npm, Path(name), arguments.calls)
        for turn in range(arguments.processes + 1):
            for title, case in (("bare", "onnxruntime-node alone"), ("glue", "Node app")):
                start, call, peak = measure(["node", str(node / f"{title}.mjs")])
                if turn:  # the first fills the caches of the file system
                    note(case, start_ms=start, call_us=call, peak_mb=peak)
            for title, case in (("bare", "onnxruntime-web alone"), ("glue", "web app")):
                start, call, peak = measure_page(web, title)
                if turn:
                    note(case, start_ms=start, call_us=call, peak_mb=peak)
            installed, peak = measure_installed(web)
            empty = measure_empty(web)
            if turn:
                note("web page, installed", start_ms=installed, peak_mb=peak)
                note("an empty page", peak_mb=empty)
        packages = {
            package: json.loads((npm / "node_modules" / package / "package.json").read_text())["version"]
            for package in ("onnxruntime-node", "onnxruntime-web")
        }
    facts = {"bundle": arguments.bundle.name, "variant": arguments.variant}
    results: dict[str, Any] = {**facts, "machine": describe(), "versions": {**versions(), **packages}, "cases": {}}
    print(f"{'':26}{'start ms':>20}{'peak MB':>20}{'a call, us':>22}")
    for case, measured in samples.items():
        row: dict[str, Any] = {"samples": measured}
        cells = {}
        for key, values in measured.items():
            interval = median_interval(values)
            row[key] = interval.to_json() if interval is not None else {"value": statistics.median(values)}
            cells[key] = f"{row[key]['value']:.1f} [{row[key].get('low', 0):.1f}, {row[key].get('high', 0):.1f}]"
        results["cases"][case] = row
        print(f"{case:26}{cells.get('start_ms', ''):>20}{cells.get('peak_mb', ''):>20}{cells.get('call_us', ''):>22}")
    if arguments.out:
        arguments.out.write_text(json.dumps(results) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
