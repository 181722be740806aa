"""Which channels of a network stand and fall together: found by following every tensor through a trace of it.

A convolution's output channels go through batch norm, depthwise convolutions, activations and pooling as they are,
meet others in residual sums (then both go or stay), lie one after the other in concatenations and side by side in
flattened maps, and end as the input columns of the next layers. What is not understood keeps its channels, by name.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from edgekd.distill.modules import evaluating
from edgekd.errors import ModelError

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# What does the same to every channel, and leaves a channel of zeros without a say in what is read of it.
_EACH = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardswish, nn.SiLU, nn.GELU, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.ELU,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Identity, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.Upsample,
)  # fmt: skip
_EACH_FUNCTIONS = frozenset({
    F.relu, F.relu6, F.leaky_relu, F.hardswish, F.silu, F.gelu, F.hardsigmoid, F.dropout, F.max_pool1d, F.max_pool2d,
    F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.interpolate, torch.relu, torch.sigmoid,
    torch.tanh,
})  # fmt: skip
_EACH_METHODS = frozenset({"relu", "sigmoid", "tanh", "contiguous", "float"})
_PAIRS = frozenset({operator.add, operator.iadd, operator.sub, operator.mul, operator.imul, torch.add, torch.mul})
_PAIR_METHODS = frozenset({"add", "add_", "mul", "mul_", "sub"})
_SHAPES = frozenset({torch.flatten, torch.reshape, torch.squeeze})
_SHAPE_METHODS = frozenset({"flatten", "reshape", "view", "squeeze"})
_NO_TENSORS = frozenset({getattr, operator.getitem, operator.floordiv, operator.eq, torch._assert})


@dataclass(frozen=True)
class Segment:
    """`size` channels of a group, each of `block` numbers that lie side by side."""

    group: int
    size: int
    block: int = 1


Segments = tuple[Segment, ...]


@dataclass
class Layout:
    """Where the channels of a tensor are: on `axis`, one segment after the other."""

    axis: int
    segments: Segments


@dataclass
class Channels:
    """The groups of a network: `sizes[group]` channels, fixed where `reasons` has the group.

    outputs  path of a layer -> the segment that it makes (rows of its weight)
    inputs   path of a layer -> what it reads (columns of its weight)
    along    path of a batch norm or depthwise convolution -> the channels that it works on one by one
    """

    sizes: dict[int, int] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)
    outputs: dict[str, Segments] = field(default_factory=dict)
    inputs: dict[str, Segments] = field(default_factory=dict)
    along: dict[str, Segments] = field(default_factory=dict)

    @property
    def free(self) -> tuple[int, ...]:
        """The groups of which channels can go, in the order of the network."""
        made = [segment.group for segments in self.outputs.values() for segment in segments]
        return tuple(dict.fromkeys(group for group in made if group not in self.reasons))


def find_channels(module: nn.Module, input_shape: Sequence[int]) -> Channels:
    """Follow a sample of shape `input_shape` (without the batch axis) through `module`.

    Raises `ModelError` when the module cannot be traced: its forward asks values or sizes of tensors.
    """
    network = copy.deepcopy(module).cpu()
    try:
        with evaluating(network):
            traced = fx.symbolic_trace(network)
            ShapeProp(traced).propagate(torch.zeros(2, *input_shape))
    except (fx.proxy.TraceError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"the student cannot be pruned: torch.fx cannot follow its forward ({str(error).splitlines()[0]}); "
            "expected a forward without `if` on tensors; take a smaller built-in student instead"
        ) from error
    follower = _Follower(traced)
    for node in traced.graph.nodes:
        follower.follow(node)
    return follower.result()


class _Follower:
    """Goes from node to node; groups that meet are joined."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self.modules = dict(traced.named_modules())
        self.channels = Channels()
        self.parents: list[int] = []
        self.layouts: dict[fx.Node, Layout] = {}

    def follow(self, node: fx.Node) -> None:
        """Record what `node` does to the channels of what it reads."""
        read = [self.layouts[item] for item in node.all_input_nodes if item in self.layouts]
        tensors = [item for item in node.all_input_nodes if "tensor_meta" in item.meta]
        if node.op == "output":
            self.fix(read, "they are the outputs")
        elif node.op == "call_module":
            self.module(node, self.modules[str(node.target)], read[0] if read else None)
        elif node.op in ("call_function", "call_method") and read:
            self.function(node, read, tensors)

    def module(self, node: fx.Node, part: nn.Module, read: Layout | None) -> None:
        """A layer."""
        path = str(node.target)
        if isinstance(part, CONVOLUTIONS) and part.groups == 1:
            self.layer(node, path, read, size=part.out_channels, axis=1)
        elif isinstance(part, nn.Linear):
            last = len(shape_of(node)) - 1
            if read is not None and read.axis != last:
                self.fix([read], f"the linear layer '{path}' reads another axis")
                read = None
            self.layer(node, path, read, size=part.out_features, axis=last)
        elif isinstance(part, (*NORMS, *CONVOLUTIONS)):
            depthwise = isinstance(part, NORMS) or part.groups == part.in_channels == part.out_channels
            if read is not None and read.axis == 1 and depthwise:
                self.together(self.channels.along, path, read.segments)
                self.layouts[node] = read
            else:
                self.give_up(node, [] if read is None else [read], f"of the convolution '{path}' in groups")
        elif read is not None and isinstance(part, nn.Flatten):
            self.reshaped(node, read)
        elif read is not None and isinstance(part, _EACH) and read.axis == (1 if is_pool(part) else read.axis):
            self.layouts[node] = read
        else:
            self.give_up(node, [] if read is None else [read], f"of '{path}' ({type(part).__name__})")

    def layer(self, node: fx.Node, path: str, read: Layout | None, *, size: int, axis: int) -> None:
        """A convolution or linear layer: its columns are what it reads, its rows are new channels."""
        if read is not None:
            self.together(self.channels.inputs, path, read.segments)
        if path not in self.channels.outputs:
            group = len(self.parents)
            self.parents.append(group)
            self.channels.sizes[group] = size
            self.channels.outputs[path] = (Segment(group, size),)
        self.layouts[node] = Layout(axis, self.channels.outputs[path])

    def function(self, node: fx.Node, read: list[Layout], tensors: list[fx.Node]) -> None:
        """A function or a method of tensors."""
        name, target = getattr(node.target, "__name__", str(node.target)), node.target
        if "tensor_meta" not in node.meta or target in ("size", "dim"):
            return  # sizes and the like
        first = read[0]
        each = target in _EACH_FUNCTIONS or (node.op == "call_method" and target in _EACH_METHODS)
        pair = target in _PAIRS or (node.op == "call_method" and target in _PAIR_METHODS)
        if (each or pair) and len(tensors) == 1:
            self.layouts[node] = first
        elif pair and len(read) == 2 and all(len(shape_of(item)) == len(shape_of(node)) for item in tensors):
            if self.join(read[0], read[1]):
                self.layouts[node] = first
            else:
                self.give_up(node, read, f"of the sum or product '{node.name}', which lie differently")
        elif target in (torch.cat, torch.concat) and len(read) == len(tensors) and self.concatenated(node, read):
            segments = tuple(segment for item in self.in_order(node) for segment in item.segments)
            self.layouts[node] = Layout(first.axis, segments)
        elif target in _SHAPES or (node.op == "call_method" and target in _SHAPE_METHODS):
            self.reshaped(node, first)
        elif target in (torch.mean, "mean") and self.averaged(node, first):
            self.layouts[node] = first
        else:
            self.give_up(node, read, f"of '{node.name}' ({name})")

    def in_order(self, node: fx.Node) -> list[Layout]:
        """The layouts of a concatenation's parts; one may come twice."""
        parts: Any = node.args[0]
        return [self.layouts[part] for part in parts]

    def concatenated(self, node: fx.Node, read: list[Layout]) -> bool:
        """Whether the parts lie one after the other on the channels' axis."""
        axis: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        rank = len(shape_of(node))
        return all(item.axis == axis % rank for item in read)

    def averaged(self, node: fx.Node, read: Layout) -> bool:
        """Whether a mean is over axes behind the channels."""
        dim: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        rank = len(shape_of(node.all_input_nodes[0]))
        axes = [] if dim is None else [axis % rank for axis in ([dim] if isinstance(dim, int) else dim)]
        return bool(axes) and min(axes) > read.axis

    def reshaped(self, node: fx.Node, read: Layout) -> None:
        """Maps (N, K, ...) become rows (N, K * ...): a channel becomes a block of numbers."""
        before, after = shape_of(node.all_input_nodes[0]), shape_of(node)
        if before == after:
            self.layouts[node] = read
        elif read.axis == 1 and before[0] == after[0] and len(after) == 2 and math.prod(before[1:]) == after[1]:
            block = math.prod(before[2:])
            segments = tuple(Segment(item.group, item.size, item.block * block) for item in read.segments)
            self.layouts[node] = Layout(1, segments)
        else:
            self.give_up(node, [read], f"of '{node.name}', which changes {list(before)} to {list(after)}")

    def join(self, first: Layout, second: Layout) -> bool:
        """Make the channels of two tensors the same, place by place; False where they lie differently."""
        sizes = [[(item.size, item.block) for item in layout.segments] for layout in (first, second)]
        if sizes[0] != sizes[1] or first.axis != second.axis:
            return False
        for one, other in zip(first.segments, second.segments):
            self.unite(one.group, other.group)
        return True

    def unite(self, one: int, other: int) -> None:
        """Two groups are one from now on."""
        first, second = sorted((self.root(one), self.root(other)))
        self.parents[second] = first
        if second in self.channels.reasons:
            self.channels.reasons.setdefault(first, self.channels.reasons[second])

    def root(self, group: int) -> int:
        """The group that `group` has become."""
        while self.parents[group] != group:
            group = self.parents[group]
        return group

    def together(self, place: dict[str, Segments], path: str, segments: Segments) -> None:
        """Record what a layer works on; one that is called twice works on the same channels twice."""
        if path in place and not self.join(Layout(1, place[path]), Layout(1, segments)):
            self.fix([Layout(1, place[path]), Layout(1, segments)], f"'{path}' is used twice, differently")
        place.setdefault(path, segments)

    def fix(self, layouts: list[Layout], reason: str) -> None:
        """Let no channel of these go."""
        for layout in layouts:
            for segment in layout.segments:
                self.channels.reasons.setdefault(self.root(segment.group), reason)

    def give_up(self, node: fx.Node, layouts: list[Layout], reason: str) -> None:
        """What comes out has channels that are not followed."""
        self.fix(layouts, f"because {reason}")

    def result(self) -> Channels:
        """The groups, every segment with the group that it has become."""

        def final(place: dict[str, Segments]) -> dict[str, Segments]:
            return {
                path: tuple(Segment(self.root(item.group), item.size, item.block) for item in segments)
                for path, segments in place.items()
            }

        found = self.channels
        reasons = {self.root(group): reason for group, reason in found.reasons.items()}
        sizes = {group: size for group, size in found.sizes.items() if self.root(group) == group}
        return Channels(sizes, reasons, final(found.outputs), final(found.inputs), final(found.along))


def is_pool(part: nn.Module) -> bool:
    """Whether a module works on the axes behind the channels."""
    return "Pool" in type(part).__name__ or isinstance(part, nn.Upsample)


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The shape of what a node gives."""
    return tuple(node.meta["tensor_meta"].shape)


def places(segments: Segments, kept: dict[int, Tensor]) -> Tensor:
    """The rows or columns that stay: of every segment the blocks of the channels that are `kept` (group -> indices)."""
    found: list[Tensor] = []
    start = 0
    for segment in segments:
        stay = kept.get(segment.group, torch.arange(segment.size))
        found.append((start + stay[:, None] * segment.block + torch.arange(segment.block)).reshape(-1))
        start += segment.size * segment.block
    return torch.cat(found)
