"""Accuracy per millisecond: which layers of an int8 model to put back into float, found by measuring each of them.

    float, all int8                          2 evaluations
    int8 in one layer alone, each in turn    as many as there are layers: the error that is its own
    the first k in order of error per time saved, k by bisection; then whatever turns out to be unneeded
                                             the 6 that remain

Layers are measured alone, not left out one by one: where three are bad, leaving out one mends nothing.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from edgekd.device.metrics import contributions, drop_points
from edgekd.device.profile import TellsOperators
from edgekd.device.runtimes import open_session
from edgekd.errors import AnswerIsNo
from edgekd.graph.sessions import GraphSession, open_graph
from edgekd.spec import Array, Interval

LAYER_KINDS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
MORE_EVALUATIONS = 8
_ROWS_PER_CALL = 64
# Enough for the error of one layer: it is a mean over all outputs of so many samples.
_ROWS_PER_LAYER = 512
_TIMED_CALLS = 40
# A layer that saves less than this share of the whole saving counts as saving so much: below it is noise.
_LEAST_SAVING = 0.02

Make = Callable[[Collection[str]], ModelProto]
Times = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Evaluation:
    """What a mixture is judged by.

    feeds  input name -> (N, ...) samples of the validation split
    drop   outputs by name for all N -> points of the metric that are lost, with a paired interval
    """

    feeds: Mapping[str, Array]
    drop: Callable[[Mapping[str, Array]], Interval]


@dataclass(frozen=True)
class Layer:
    """What a layer costs in int8, alone among float layers, and what it buys.

    error                 squared error of the outputs over their own variance
    float_ms, quantized_ms  time of its operators in the float and the int8 model; None where no profile tells
    """

    name: str
    kind: str
    error: float
    float_ms: float | None
    quantized_ms: float | None
    put_back: bool = False


@dataclass(frozen=True)
class Search:
    """How a mixture was found. `proven`: the whole interval of `drop` lies within the budget, not only its value."""

    layers: tuple[Layer, ...]
    evaluations: int
    most_evaluations: int
    drop: Interval
    all_quantized: Interval
    proven: bool

    @property
    def put_back(self) -> tuple[str, ...]:
        """The names of the layers that stay in float."""
        return tuple(layer.name for layer in self.layers if layer.put_back)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "put_back": list(self.put_back),
            "evaluations": self.evaluations,
            "most_evaluations": self.most_evaluations,
            "drop_points": self.drop.to_json(),
            "all_quantized_drop_points": self.all_quantized.to_json(),
            "proven": self.proven,
            "layers": [vars(layer) for layer in self.layers],
        }


def agreement(graph: ModelProto, feeds: Mapping[str, Array]) -> Evaluation:
    """For lack of labels: the float model's own answers are the truth. Classes where the outputs look like scores
    (N, C) with C > 1, else the share of the outputs' variance that is lost."""
    wanted = run_rows(open_graph(graph), feeds)

    def drop(outputs: Mapping[str, Array]) -> Interval:
        worst: Interval | None = None
        for name, truth in wanted.items():
            if truth.dtype.kind != "f":
                continue
            rows, found = truth.reshape(-1, truth.shape[-1]), outputs[name].reshape(-1, truth.shape[-1])
            task = "classification" if rows.shape[1] > 1 else "regression"
            y = rows.argmax(axis=1) if task == "classification" else rows
            own = drop_points(task, contributions(task, rows, y), contributions(task, found, y))
            worst = own if worst is None or own.high > worst.high else worst
        return worst or Interval(0.0, 0.0, 0.0)

    return Evaluation(feeds, drop)


def search(
    ready: ModelProto,
    make: Make,
    evaluation: Evaluation,
    *,
    budget_points: float,
    time_layers: Callable[[ModelProto, ModelProto, Mapping[str, str], Mapping[str, Array]], Times] | None = None,
) -> tuple[ModelProto, Search]:
    """The quantized model that holds the budget with the fewest layers in float, and what was measured.

    make  names of nodes that stay in float -> the quantized model. Raises `AnswerIsNo` when not even the float model
    holds the budget, or only the float model does.
    """
    owners = owners_of(ready)
    names = list(dict.fromkeys(owners.values()))
    kinds = {node.name: node.op_type for node in ready.graph.node}
    most = len(names) + MORE_EVALUATIONS
    counted = 0

    def evaluate(model: ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
        nonlocal counted
        counted += 1
        return run_rows(open_graph(model), feeds)

    def make_without(put_back: Collection[str]) -> ModelProto:
        return make([node for node, owner in owners.items() if owner in put_back])

    wanted = evaluate(ready, evaluation.feeds)
    own = evaluation.drop(wanted)
    if own.value > budget_points:
        raise AnswerIsNo(
            f"the float model itself loses {own.value:.3g} points where {budget_points:g} are allowed: no mixture of "
            "its layers can do better; train it further, choose a larger one, or allow more"
        )
    # Too few samples to prove anything: then the figure itself has to hold.
    provable = own.high <= budget_points

    def holds(drop: Interval) -> bool:
        return (drop.high if provable else drop.value) <= budget_points

    whole = make_without(())
    best, drop = whole, evaluation.drop(evaluate(whole, evaluation.feeds))
    every = drop
    if holds(drop):
        return whole, Search((), counted, most, drop, drop, provable)
    few = {name: array[:_ROWS_PER_LAYER] for name, array in evaluation.feeds.items()}
    count = len(next(iter(few.values())))
    reference = {name: array[:count] for name, array in wanted.items()}
    times = (time_layers or profile_layers)(ready, whole, owners, few)
    layers = []
    for name in names:
        outputs = evaluate(make_without([other for other in names if other != name]), few)
        float_ms, quantized_ms = times.get(name, (None, None))
        layers.append(Layer(name, kinds[name], _error(outputs, reference), float_ms, quantized_ms))
    order = [layer.name for layer in sorted(layers, key=_ratio(layers), reverse=True)]

    low, high = 0, len(order)  # with `low` of them it does not hold, with `high` it does
    put_back = order
    while high - low > 1 and counted < most:
        middle = (low + high) // 2
        model = make_without(order[:middle])
        found = evaluation.drop(evaluate(model, evaluation.feeds))
        if holds(found):
            high, best, drop, put_back = middle, model, found, order[:middle]
        else:
            low = middle
    errors = {layer.name: layer.error for layer in layers}
    for name in sorted(put_back[:-1], key=errors.__getitem__):
        if counted >= most or high == len(order):
            break
        fewer = [other for other in put_back if other != name]
        model = make_without(fewer)
        found = evaluation.drop(evaluate(model, evaluation.feeds))
        if holds(found):
            best, drop, put_back = model, found, fewer
    if len(put_back) == len(order):
        raise AnswerIsNo(
            f"the budget of {budget_points:g} points holds only with every layer in float ({counted} evaluations; all "
            f"in int8 loses {every.value:.3g}): keep the float32 model, train with quantization, or allow more"
        )
    marked = tuple(replace(layer, put_back=layer.name in put_back) for layer in layers)
    return best, Search(marked, counted, most, drop, every, provable)


def owners_of(ready: ModelProto) -> dict[str, str]:
    """Every node's layer: its own name for a `LAYER_KINDS` node, else the layer whose output it works on first (the
    next one for nodes before any): what follows a float layer stays in float with it."""
    made_by: dict[str, str] = {}
    owners: dict[str, str | None] = {}
    for node in ready.graph.node:
        before = (made_by[name] for name in node.input if name in made_by)
        own = node.name if node.op_type in LAYER_KINDS else next((o for o in before if o), "")
        owners[node.name] = own
        made_by.update(dict.fromkeys(node.output, own or ""))
    layers = [owner for owner in owners.values() if owner]
    if not layers:
        raise AnswerIsNo("there is no Conv, MatMul or Gemm to mix; keep the float32 model")
    return {name: owner or layers[0] for name, owner in owners.items()}


def profile_layers(
    ready: ModelProto, quantized: ModelProto, owners: Mapping[str, str], feeds: Mapping[str, Array]
) -> Times:
    """Milliseconds of each layer's operators in both models, one sample at a time, called in turns.

    onnxruntime renames nodes that it fuses; operators that cannot be told any more belong to no layer.
    """
    by_name = dict(owners)
    for node in ready.graph.node:
        by_name.update(dict.fromkeys(node.output, owners[node.name]))
    one = _fit(open_graph(ready), {name: array[:1] for name, array in feeds.items()})
    totals: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="edgekd-") as folder:
        sessions = []
        for index, model in enumerate((ready, quantized)):
            place = Path(folder) / str(index)
            place.mkdir()
            sessions.append(open_session(model.SerializeToString(), threads=1, options={"profile": str(place)}))
        for _ in range(_TIMED_CALLS):
            for session in sessions:
                session.run(one)
        for session in sessions:
            with closing(session):
                series: dict[str, list[float]] = {}
                for item in session.operator_times() if isinstance(session, TellsOperators) else ():
                    series.setdefault(item.name, []).append(item.ms)
                total: dict[str, float] = {}
                for name, values in series.items():
                    owner = _owner(name, by_name)
                    if owner is not None:
                        total[owner] = total.get(owner, 0.0) + float(np.median(values))
                totals.append(total)
    first, second = totals
    return {name: (first[name], second[name]) for name in first.keys() & second.keys()}


def run_rows(session: GraphSession, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs for all rows of `feeds`, some at a time; a model of a fixed batch size gets batches of that size."""
    count = len(next(iter(feeds.values())))
    parts: dict[str, list[Array]] = {}
    for start in range(0, count, step := _step(session)):
        rows = {name: array[start : start + step] for name, array in feeds.items()}
        size = len(next(iter(rows.values())))
        for name, array in session.run(_fit(session, rows)).items():
            parts.setdefault(name, []).append(array[:size])
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _step(session: GraphSession) -> int:
    fixed = (spec.shape[0] for spec in session.inputs if spec.shape and isinstance(spec.shape[0], int))
    return next(fixed, _ROWS_PER_CALL)


def _fit(session: GraphSession, rows: Mapping[str, Array]) -> dict[str, Array]:
    """The rows, repeated where the model's batch axis is fixed and there are fewer."""
    wanted = [spec.shape[0] for spec in session.inputs if spec.shape and isinstance(spec.shape[0], int)]
    if not wanted:
        return {name: np.ascontiguousarray(array) for name, array in rows.items()}
    return {name: np.ascontiguousarray(array[np.arange(wanted[0]) % len(array)]) for name, array in rows.items()}


def _error(outputs: Mapping[str, Array], wanted: Mapping[str, Array]) -> float:
    worst = 0.0
    for name, truth in wanted.items():
        if truth.dtype.kind == "f" and truth.size:
            reference = truth.astype(np.float64)
            lost = float(np.square(outputs[name] - reference).sum())
            worst = max(worst, lost / max(float(np.square(reference - reference.mean(axis=0)).sum()), 1e-30))
    return worst


def _ratio(layers: Sequence[Layer]) -> Callable[[Layer], float]:
    """Error per millisecond that int8 saves in this layer."""

    def saved(layer: Layer) -> float:
        known = layer.float_ms is not None and layer.quantized_ms is not None
        return max(layer.float_ms - layer.quantized_ms, 0.0) if known else 0.0  # type: ignore[operator]

    total = sum(map(saved, layers))
    return lambda layer: layer.error / max(saved(layer), _LEAST_SAVING * total, 1e-9)


def _owner(name: str, by_name: Mapping[str, str]) -> str | None:
    for candidate in _names(name):
        if candidate in by_name:
            return by_name[candidate]
    return None


def _names(name: str) -> Iterator[str]:
    """What a node may have been called before onnxruntime fused it (seen in 1.31: `fused /fc/Gemm`, `/c/Conv_token_3`,
    `r1_nchwc` after the output, `/a/scores/MatMulScaleFusion/`, `x_QuantizeLinear` after the tensor)."""
    plain = re.sub(r"(_token_\d+|_nchwc|_QuantizeLinear|_DequantizeLinear)+$", "", name.removeprefix("fused "))
    yield name
    yield plain
    while "/" in plain:
        plain = plain.rpartition("/")[0]
        yield plain.rstrip("/")
