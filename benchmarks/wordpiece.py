"""Tokenizers of BERT's kind side by side: how many texts per second, and how many texts they tokenize differently.

    python benchmarks/wordpiece.py exactness --npm FOLDER [--out wordpiece.json]
    python benchmarks/wordpiece.py speed --npm FOLDER [--out wordpiece.json]

All read BERT's vocabulary of 30,522 tokens and the same texts, untruncated, one text per call, on one thread. Right is
what Hugging Face's tokenizers (Rust) gives. Real: 10,000 sentences, questions, news, reviews and paragraphs of books
from EDGEKD_DATA; hostile: characters of all planes, marks, special tokens written out, very long words. Speed: texts
per second on every fourth of the real ones, the median of three passes after one that is not counted, each case in a
process of its own.
FOLDER holds node_modules with @huggingface/tokenizers (npm install --ignore-scripts @huggingface/tokenizers).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests")]
PASSES = 3
REAL, HOSTILE = 10_000, 2_000
ENOUGH = 1_000_000  # tokens: nothing is cut
SLOW = """import sys; sys.path.insert(0, {benchmarks!r})
from wordpiece import {function}, in_python
in_python({function}, sys.argv[1:])
"""
IN_NODE = """
import { readFileSync as read, writeFileSync as write } from "node:fs";
const [texts, out, passes] = [JSON.parse(read("TEXTS", "utf8")), "OUT", Number("PASSES")];
const start = performance.now();
OPEN
const load = performance.now() - start;
const rates = [];
let ids;
for (let at = 0; at <= passes; at += 1) {
  const from = performance.now();
  ids = texts.map((text) => ENCODE);
  rates.push(texts.length / (performance.now() - from) * 1000);
}
write(out, JSON.stringify({ rates: rates.slice(1), load_ms: load, ids: ids.map((one) => [...one]) }));
"""
OURS = (
    'import { Tokenizer } from "STUDENT/tokenizer.js"; const tokenizer = new Tokenizer(read("TOKENIZER"));',
    "tokenizer.encode(text, 1000000).ids",
)
THEIRS = (
    'import { Tokenizer } from "@huggingface/tokenizers"; '
    'const tokenizer = new Tokenizer(JSON.parse(read("TOKENIZER", "utf8")), {});',
    "tokenizer.encode(text).ids",
)
IN_CPP = r"""
#include "edgekd.hpp"
#include <iostream>
int main(int, char **argv) {
    using Clock = std::chrono::steady_clock;
    const auto seconds = [](Clock::time_point from) {
        return std::chrono::duration<double>(Clock::now() - from).count();
    };
    std::vector<std::string> texts;
    const edgekd::Json given = edgekd::Json::parse(edgekd::read_file(argv[1], edgekd::max_file));
    for (const edgekd::Json &text : given.items()) texts.push_back(text.text(""));
    Clock::time_point start = Clock::now();
    const edgekd::Tokenizer tokenizer(edgekd::read_file(argv[2], edgekd::max_file));
    std::ofstream out(argv[3]);
    out << "{\"load_ms\": " << 1000 * seconds(start) << ", \"rates\": [";
    std::vector<edgekd::Tokens> found(texts.size());
    for (int pass = 0; pass <= std::stoi(argv[4]); pass++) {
        start = Clock::now();
        for (std::size_t i = 0; i < texts.size(); i++) found[i] = tokenizer.encode(texts[i], 1000000);
        if (pass > 0) out << (pass > 1 ? ", " : "") << double(texts.size()) / seconds(start);
    }
    out << "], \"ids\": [";
    for (std::size_t i = 0; i < found.size(); i++) {
        out << (i > 0 ? ", [" : "[");
        for (std::size_t k = 0; k < found[i].ids.size(); k++) out << (k > 0 ? ", " : "") << found[i].ids[k];
        out << "]";
    }
    out << "]}\n";
}
"""

IN_JAVA = """
package edgekd;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Paths;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

public final class Speed {
    public static void main(String[] paths) throws IOException {
        List<?> texts = (List<?>) Json.parse(Files.readAllBytes(Paths.get(paths[0])), paths[0]);
        long start = System.nanoTime();
        Tokenizer tokenizer = new Tokenizer(Files.readAllBytes(Paths.get(paths[1])));
        double load = (System.nanoTime() - start) / 1e6;
        List<Double> rates = new ArrayList<>();
        List<String> ids = new ArrayList<>();
        int[][] found = new int[texts.size()][];
        for (int pass = 0; pass <= Integer.parseInt(paths[3]); pass++) {
            start = System.nanoTime();
            for (int i = 0; i < found.length; i++) {
                found[i] = tokenizer.encode((String) texts.get(i), 1000000).ids;
            }
            rates.add(found.length * 1e9 / (System.nanoTime() - start));
        }
        for (int[] one : found) {
            ids.add(Arrays.toString(one));
        }
        String speed = "{\\"load_ms\\": " + load + ", \\"rates\\": " + rates.subList(1, rates.size());
        Files.write(Paths.get(paths[2]), (speed + ", \\"ids\\": " + ids + "}").getBytes());
    }
}
"""

Encode = Callable[[str], Sequence[int]]


def rust(tokenizer: str) -> Encode:
    """Hugging Face's tokenizers: what the others are compared with."""
    from tokenizers import Tokenizer

    opened = Tokenizer.from_file(tokenizer)
    return lambda text: opened.encode(text).ids


def transformers_slow(tokenizer: str) -> Encode:
    """BERT's tokenizer in plain Python, as transformers has it."""
    from transformers import BertTokenizerLegacy

    vocabulary = json.loads(Path(tokenizer).read_text("utf-8"))["model"]["vocab"]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "vocab.txt"
        place.write_text("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)) + "\n", "utf-8")
        opened = BertTokenizerLegacy(str(place), do_lower_case=True)
    return lambda text: opened.encode(text)


def extensions(tokenizer: str) -> Encode:
    """The operator BertTokenizer of onnxruntime-extensions, in a graph of its own."""
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper
    from onnxruntime_extensions import get_library_path

    vocabulary = json.loads(Path(tokenizer).read_text("utf-8"))["model"]["vocab"]
    lines = "\n".join(sorted(vocabulary, key=vocabulary.__getitem__)) + "\n"
    node = helper.make_node(
        "BertTokenizer",
        ["text"],
        ["ids", "types", "mask"],
        domain="ai.onnx.contrib",
        vocab_file=lines,
        do_lower_case=1,
        strip_accents=1,
    )
    graph = helper.make_graph(
        [node],
        "tokenizer",
        [helper.make_tensor_value_info("text", TensorProto.STRING, ["N"])],
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["L"])],
    )
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.contrib", 1)]
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(get_library_path())
    options.intra_op_num_threads = 1
    model = helper.make_model(graph, opset_imports=domains, ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return lambda text: session.run(["ids"], {"text": np.array([text], object)})[0].tolist()


def in_python(case: Callable[[str], Encode], paths: Sequence[str]) -> None:
    """Time a case of Python in this process, and write what it gave."""
    texts = json.loads(Path(paths[0]).read_text("utf-8"))
    start = time.perf_counter()
    encode = case(paths[1])
    load_ms = 1000 * (time.perf_counter() - start)
    rates, ids = [], []
    for _ in range(int(paths[3]) + 1):
        start = time.perf_counter()
        ids = [encode(text) for text in texts]
        rates.append(len(texts) / (time.perf_counter() - start))
    Path(paths[2]).write_text(json.dumps({"rates": rates[1:], "load_ms": load_ms, "ids": ids}))


def commands(folder: Path, npm: Path) -> dict[str, Callable[[Path, Path, Path, int], list[str]]]:
    """The program of each case: texts, tokenizer, where to write, passes."""
    source = folder / "speed.cpp"
    source.write_text(IN_CPP)
    flags = ["-std=c++17", "-O2", "-pthread", f"-I{ROOT / 'export' / 'apps' / 'cpp'}"]
    subprocess.run(["g++", *flags, str(source), "-o", str(folder / "speed")], check=True)
    (folder / "Speed.java").write_text(IN_JAVA)
    java = sorted((ROOT / "export" / "apps" / "android" / "java" / "edgekd").glob("*.java"))
    compiled = ["javac", "--release", "17", "-d", str(folder / "classes"), str(folder / "Speed.java"), *map(str, java)]
    subprocess.run(compiled, check=True)
    (folder / "node_modules").symlink_to(npm.resolve() / "node_modules")
    (folder / "student").symlink_to(ROOT / "export" / "apps" / "javascript")

    def python(function: str) -> Callable[[Path, Path, Path, int], list[str]]:
        code = SLOW.format(benchmarks=str(ROOT / "benchmarks"), function=function)
        return lambda texts, tokenizer, out, passes: [
            *(sys.executable, "-c", code, str(texts), str(tokenizer), str(out), str(passes))
        ]

    def node(parts: tuple[str, str]) -> Callable[[Path, Path, Path, int], list[str]]:
        def command(texts: Path, tokenizer: Path, out: Path, passes: int) -> list[str]:
            code = IN_NODE.replace("OPEN", parts[0].split("; ", 1)[1]).replace("ENCODE", parts[1])
            code = parts[0].split("; ", 1)[0] + ";\n" + code
            for name, value in (("TEXTS", texts), ("OUT", out), ("PASSES", passes), ("TOKENIZER", tokenizer)):
                code = code.replace(f'"{name}"', json.dumps(str(value)))
            place = folder / f"{out.stem}.mjs"
            place.write_text(code.replace("STUDENT", "./student"))
            return ["node", str(place)]

        return command

    return {
        "tokenizers (Rust), from Python": python("rust"),
        "edgekd.hpp (C++)": lambda texts, tokenizer, out, passes: [
            *(str(folder / "speed"), str(texts), str(tokenizer), str(out), str(passes))
        ],
        "edgekd's tokenizer.js (Node)": node(OURS),
        "edgekd's Tokenizer.java (JDK)": lambda texts, tokenizer, out, passes: [
            *("java", "-XX:ActiveProcessorCount=1", "-cp", str(folder / "classes"), "edgekd.Speed"),
            *(str(texts), str(tokenizer), str(out), str(passes)),
        ],
        "@huggingface/tokenizers (Node)": node(THEIRS),
        "onnxruntime-extensions, from Python": python("extensions"),
        "transformers' slow BertTokenizer (Python)": python("transformers_slow"),
    }


def measure(npm: Path, *, timed: bool) -> dict[str, dict[str, Any]]:
    """What each case gave: how many texts differ, or how fast it is."""
    from tokenizer_files import bert_tokenizer, hostile_texts, real_texts

    rows: dict[str, dict[str, Any]] = {}
    environ = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer, out = bert_tokenizer(folder / "tokenizer.json"), folder / "out.json"
        real = real_texts(REAL)
        sets = {"timed": real[::4]} if timed else {"real": real, "hostile": hostile_texts(HOSTILE)}
        for key, texts in sets.items():
            (folder / f"{key}.json").write_text(json.dumps(texts, ensure_ascii=False), "utf-8")
        right: dict[str, list[list[int]]] = {}
        for case, command in commands(folder, npm).items():
            rows[case] = {}
            for key, texts in sets.items():
                given = command(folder / f"{key}.json", tokenizer, out, PASSES if timed else 0)
                subprocess.run(given, check=True, cwd=folder, env=environ, stdout=subprocess.DEVNULL)
                told = json.loads(out.read_text())
                if timed:
                    rows[case] = {"texts_per_s": statistics.median(told["rates"])} | {
                        name: told[name] for name in ("rates", "load_ms")
                    }
                else:
                    wanted = right.setdefault(key, told["ids"])
                    differ = sum(a != b for a, b in zip(told["ids"], wanted, strict=True))
                    rows[case] |= {f"{key}_texts": len(texts), f"{key}_differ": differ}
            print(case, json.dumps(rows[case]), flush=True)
    return rows


def main() -> None:
    """Measure, print, and put it beside what the file has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("exactness", "speed"))
    parser.add_argument("--npm", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "wordpiece.json")
    chosen = parser.parse_args()
    rows = measure(chosen.npm, timed=chosen.what == "speed")
    packages = {name: version(name) for name in ("tokenizers", "transformers", "onnxruntime-extensions", "onnxruntime")}
    described = json.loads((chosen.npm / "node_modules" / "@huggingface" / "tokenizers" / "package.json").read_text())
    packages["@huggingface/tokenizers"] = described["version"]
    for name, word in (("node", 0), ("java", 1)):
        told = subprocess.run([name, "--version"], capture_output=True, text=True, check=True).stdout
        packages[name] = told.split()[word]
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    known = json.loads(chosen.out.read_text())["rows"] if chosen.out.exists() else {}
    both = {case: {**known.get(case, {}), **row} for case, row in rows.items()}
    measured = {"cpu": cpu.split(": ")[1], "packages": packages, "passes": PASSES, "rows": both}
    chosen.out.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
