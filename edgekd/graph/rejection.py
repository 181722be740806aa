"""The reject option (edgekd.device.rejection) at the end of a graph: found by its shape, taken off and put back.

What is quantized or trained is the network before it. Integers have no room for its logarithm; and a loss must see the
logits that the teacher was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

_OPERATORS = frozenset({"Where", "Max", "Add", "Log", "ReduceSum", "Exp", "Sub", "ReduceMax"})


@dataclass(frozen=True)
class Rule:
    """The end of a graph.

    source     the logits that it reads
    nodes      in the order in which they run; `constants` are those that only they read
    output     what it gives, which is the graph's output
    """

    source: str
    nodes: tuple[NodeProto, ...]
    constants: tuple[TensorProto, ...]
    output: ValueInfoProto


def find_rule(model: ModelProto) -> Rule | None:
    """The rule at the end of `model`; None where the graph ends in something else."""
    graph = model.graph
    made_by = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    last = made_by.get(graph.output[0].name) if len(graph.output) == 1 else None
    if last is None or last.op_type != "Where" or last.input[0] not in constants:
        return None
    chosen, raised, source = last.input
    maximum = made_by.get(raised)
    one_class = int(numpy_helper.to_array(constants[chosen]).sum()) == 1
    if not one_class or maximum is None or maximum.op_type != "Max" or source not in maximum.input:
        return None
    names, pending = {last.output[0]}, [last]
    while pending:
        for name in pending.pop().input:
            if name == source or name in constants or name in names:
                continue
            if name not in made_by or made_by[name].op_type not in _OPERATORS:
                return None
            names.add(name)
            pending.append(made_by[name])
    nodes = tuple(node for node in graph.node if node.output[0] in names)
    read = {name for node in nodes for name in node.input}
    elsewhere = {name for node in graph.node if node.output[0] not in names for name in node.input}
    own = tuple(tensor for name, tensor in constants.items() if name in read - elsewhere)
    return Rule(source, nodes, own, graph.output[0])


def without_rule(model: ModelProto, rule: Rule) -> ModelProto:
    """A copy of `model` that ends in the logits before `rule`, which was found in it."""
    network = ModelProto()
    network.CopyFrom(model)
    graph = network.graph
    gone = {node.output[0] for node in rule.nodes}
    kept = [node for node in graph.node if node.output[0] not in gone]
    own = {tensor.name for tensor in rule.constants}
    weights = [tensor for tensor in graph.initializer if tensor.name not in own]
    inner = [value for value in graph.value_info if value.name not in gone and value.name != rule.source]
    for field, items in ((graph.node, kept), (graph.initializer, weights), (graph.value_info, inner)):
        del field[:]
        field.extend(items)
    graph.output[0].CopyFrom(rule.output)
    graph.output[0].name = rule.source
    return network


def with_rule(network: ModelProto, rule: Rule) -> ModelProto:
    """A copy of `network`, which gives the logits that `rule` reads, with the rule behind it."""
    model = ModelProto()
    model.CopyFrom(network)
    graph = model.graph
    before = ValueInfoProto()
    before.CopyFrom(graph.output[0])
    graph.value_info.append(before)
    graph.node.extend(rule.nodes)
    graph.initializer.extend(rule.constants)
    graph.output[0].CopyFrom(rule.output)
    return model


def with_source(model: ModelProto, rule: Rule) -> ModelProto:
    """A copy of `model` that gives the logits before `rule` too, as its last output."""
    both = ModelProto()
    both.CopyFrom(model)
    both.graph.output.append(helper.make_tensor_value_info(rule.source, TensorProto.FLOAT, None))
    return both
