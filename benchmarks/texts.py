"""Students of texts beside their teacher: accuracy, bytes, parameters and speed, over several seeds.

    python benchmarks/texts.py sst2 --work runs/texts --out texts_sst2.json
    python benchmarks/texts.py intents_clinc150 --work runs/intents --seeds 3 --out texts_clinc150.json
    python benchmarks/texts.py sentence_embedding --work runs/vectors --out texts_embedding.json
    python benchmarks/texts.py reject --work runs/intents --out texts_reject.json

The teacher is trained once (seed 0). Per seed: the student alone and the distilled one, of equal budget, exported,
quantized, and all timed together with the teacher as float ONNX on one thread, batch 1, texts of the test split's
lengths. Of intents two figures: accuracy among the intents, and the share of the out-of-scope questions that are
recognized as such. Of vectors: the mean cosine with the teacher's, Spearman's rank correlation with the teacher of the
cosines of held-out pairs, and how many of the teacher's ten nearest the student's ten hold. A killed run goes on where
it stopped.

`reject` trains nothing: it judges the graphs of finished runs of intents with and without the reject option ([export]
reject). Each float graph has its own threshold, found on validation; int8 graphs have the distilled student's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from scipy.stats import spearmanr

from edgekd.device.machine import describe, versions
from edgekd.device.rejection import find_threshold, reject
from edgekd.device.runtimes import open_session
from edgekd.device.runtimes.chunks import answer_name, rows_at_once, run_in_chunks
from edgekd.files import sha256_bytes, write_json
from edgekd.graph.rejection import find_rule, without_rule
from edgekd.pipeline import distill_and_export
from edgekd.recipe import load_recipe
from edgekd.spec import Array, Dataset, Split
from edgekd.stages.workspace import Prepared, prepare_data

OUT_OF_SCOPE = "oos"
FLOATS = ("teacher", "alone", "distilled")
PAIRS, QUERIES, NEAREST = 20_000, 1000, 10


def graphs(run: Path) -> dict[str, Path]:
    """The ONNX files that are judged, of the run in that folder."""
    made = {path.stem: path for path in sorted((run / "variants").glob("*.onnx"))}
    exported = run / "export"
    files = {"teacher": exported / "teacher.onnx", "alone": exported / "student_alone.onnx"}
    files |= {"distilled": exported / "student.onnx", **made}
    return {name: path for name, path in files.items() if path.is_file()}


def answers(graph: Path | bytes, prepared: Prepared, split: Split) -> Array:
    """Outputs (N, D) for a split, texts of like length together; one by one where neighbours change an answer."""
    session, size = open_session(graph, threads=1), rows_at_once(graph, 64)
    name, answer = session.inputs[0].name, answer_name(session)
    order = np.argsort((split.x[:] != 0).sum(axis=1), kind="stable")
    found = np.empty((len(order), prepared.dataset.num_outputs), np.float32)
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        found[rows] = run_in_chunks(session, {name: prepared.samples(split.take(rows))})[answer]
    session.close()
    return found


def judge(path: Path, prepared: Prepared) -> dict[str, float]:
    """Percent right on test; of intents among those in scope, with the share of the others that is recognized."""
    data: Dataset = prepared.dataset
    outputs = answers(path, prepared, data.test)
    if data.task == "embedding":
        return nearness(outputs, data.test.y)
    if OUT_OF_SCOPE not in data.labels:
        return {"accuracy": 100 * float((outputs.argmax(axis=1) == data.test.y).mean())}
    return scope(outputs, data.test.y, data.labels.index(OUT_OF_SCOPE))


def scope(outputs_NC: Array, y_N: Array, rejected: int) -> dict[str, float]:
    """Percent right in scope, and of the questions out of scope that are recognized."""
    right, outside = outputs_NC.argmax(axis=1) == y_N, y_N == rejected
    return {"in_scope": 100 * float(right[~outside].mean()), "out_of_scope_recall": 100 * float(right[outside].mean())}


def nearness(found_ND: Array, wanted_ND: Array) -> dict[str, float]:
    """How alike two sets of unit vectors order the texts; pairs and queries are drawn from a fixed seed."""
    random = np.random.default_rng(0)
    first, second = random.integers(0, len(found_ND), (2, PAIRS))
    pairs = [(values[first] * values[second]).sum(axis=1) for values in (found_ND, wanted_ND)]
    queries = random.choice(len(found_ND), min(QUERIES, len(found_ND)), replace=False)
    tops = []
    for values in (found_ND, wanted_ND):
        near = values[queries] @ values.T
        near[np.arange(len(queries)), queries] = -2  # not itself
        tops.append(np.argpartition(-near, NEAREST, axis=1)[:, :NEAREST])
    shared = [len(set(one) & set(other)) / NEAREST for one, other in zip(*tops)]
    return {
        "cosine": float((found_ND * wanted_ND).sum(axis=1).mean()),
        "spearman": float(spearmanr(*pairs).statistic),
        "recall_at_10": 100 * float(np.mean(shared)),
    }


def measure(recipe: str, seed: int, overrides: list[str], work: Path) -> dict[str, Any]:
    """One seed: figures of every graph, and what the training said."""
    is_trained = load_recipe(recipe, overrides=overrides).recipe.task != "embedding"
    teacher = (
        []
        if seed == 0 or not is_trained
        else [f"teacher.weights={(work / '0/teacher/weights.safetensors').absolute()}"]
    )
    chosen = [*overrides, *teacher, f"seed={seed}"]
    run = distill_and_export(recipe, out=work / str(seed), overrides=chosen)
    loaded = load_recipe(recipe, overrides=chosen)
    prepared = prepare_data(loaded.recipe, loaded.folder)
    rows = {row["candidate"]: row for row in run.results["rows"]}
    names = {"teacher": "teacher-onnx", "alone": "student-alone", "distilled": "float32"}
    judged: dict[str, Any] = {}
    for name, path in graphs(run.path).items():
        row = rows.get(names.get(name, name), {})
        latency = row.get("latency_ms", {})
        judged[name] = {
            **judge(path, prepared),
            "size_kb": path.stat().st_size / 1000,
            "p50_ms": (latency.get("p50") or {}).get("value"),
            "p90_ms": (latency.get("p90") or {}).get("value"),
            "speedup": row.get("speedup"),
        }
    training = run.results["run"]["training"]
    parameters = {name: item["parameters"] for name, item in training.items()}
    verdict = run.results["verdict"]
    return {
        "seed": seed,
        "graphs": judged,
        "parameters": parameters,
        "budget": run.results["run"]["budget"],
        "verdict": verdict,
    }


def judge_rejecting(run: Path, keep: float, known: dict[tuple[str, str, str], Array]) -> dict[str, Any]:
    """One finished run: each graph on test, in percent, without the rule (`plain`) and with it (`rejecting`).

    `known` holds the answers of graphs that are the same in several runs, as the teacher is.
    """
    loaded = load_recipe(run / "recipe.toml", check_files=False)
    prepared = prepare_data(loaded.recipe, loaded.folder)
    data: Dataset = prepared.dataset
    rejected = data.labels.index(OUT_OF_SCOPE)
    judged: dict[str, Any] = {}

    def told_of(graph: bytes, split: Literal["val", "test"]) -> Array:
        key = sha256_bytes(graph), data.sha256, split
        if key not in known:
            known[key] = answers(graph, prepared, getattr(data, split))
        return known[key]

    for name, path in graphs(run).items():
        print(f"{run}: {name}", file=sys.stderr, flush=True)
        model = onnx.load(path)
        rule = find_rule(model)
        graph = (model if rule is None else without_rule(model, rule)).SerializeToString()
        if name in FLOATS:
            threshold = find_threshold(told_of(graph, "val"), data.val.y, rejected, keep=keep).value
        else:
            threshold = judged["distilled"]["threshold"]
        outputs = told_of(graph, "test")
        judged[name] = {"threshold": threshold}
        for kind, found in (("plain", outputs), ("rejecting", reject(outputs, rejected, threshold))):
            whole = {"accuracy": 100 * float((found.argmax(axis=1) == data.test.y).mean())}
            told = {**whole, **scope(found, data.test.y, rejected)}
            judged[name] |= {f"{kind}_{key}": value for key, value in told.items()}
    return {"seed": loaded.recipe.seed, "graphs": judged}


def reject_table(summary: dict[str, Any]) -> str:
    """Mean and spread over the seeds as Markdown, without the rule -> with it."""
    lines = ["| | threshold | all questions, % | in scope, % | out of scope recognized, % |", "|---|---|---|---|---|"]

    def told(figure: dict[str, Any], digits: int) -> str:
        spread = "" if figure["spread"] is None else f" ± {figure['spread']:.{digits}f}"
        return f"{figure['mean']:.{digits}f}{spread}"

    for name, row in summary.items():
        pairs = [
            f"{told(row[f'plain_{key}'], 1)} → {told(row[f'rejecting_{key}'], 1)}"
            for key in ("accuracy", "in_scope", "out_of_scope_recall")
        ]
        lines.append(f"| {' | '.join([name, told(row['threshold'], 3), *pairs])} |")
    return "\n".join(lines)


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and spread (standard deviation over the seeds) of every figure of every graph."""
    summary: dict[str, Any] = {}
    for name in rows[0]["graphs"]:
        own = [row["graphs"][name] for row in rows if name in row["graphs"]]
        summary[name] = {"seeds": len(own)}
        for key in own[0]:
            values = [item[key]["value"] if isinstance(item[key], dict) else item[key] for item in own]
            if all(isinstance(value, (int, float)) for value in values):
                spread = statistics.stdev(values) if len(values) > 1 else None
                summary[name][key] = {"mean": statistics.mean(values), "spread": spread}
    return summary


def main() -> None:
    """Run the seeds and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a recipe, or: reject")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--keep", type=float, default=0.95, help="of reject: the share that stays in scope")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    if args.recipe == "reject":
        known: dict[tuple[str, str, str], Array] = {}
        rows = [judge_rejecting(args.work / str(seed), args.keep, known) for seed in range(args.seeds)]
    else:
        rows = [measure(args.recipe, seed, args.overrides, args.work) for seed in range(args.seeds)]
    result = {
        "command": " ".join(sys.argv),
        "recipe": Path(args.recipe).stem,
        "overrides": args.overrides,
        "machine": describe(),
        "versions": versions(),
        "summary": summarize(rows),
        "rows": rows,
    }
    if args.out is not None:
        write_json(args.out, result)
    print(reject_table(result["summary"]) if args.recipe == "reject" else json.dumps(result["summary"], indent=2))


if __name__ == "__main__":
    main()
