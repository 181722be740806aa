"""Where the tensors of an integer program lie in one piece of memory: what lives at the same time lies side by side."""

from __future__ import annotations

from edgekd.device.integer import Add, Dequantize, IntegerProgram, Layer, Quantize


def plan_arena(program: IntegerProgram) -> tuple[tuple[int, ...], int]:
    """`(offset of each tensor, bytes in all)`: the largest tensors first, each at the lowest place that is free.

    Source: greedy by size, Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020,
    arXiv:2001.03288, section 5.2.
    """
    lives = _lives(program)
    offsets = [0] * len(program.tensors)
    placed: list[int] = []
    for index in sorted(range(len(program.tensors)), key=lambda at: (-program.tensors[at].size, at)):
        begin, end = lives[index]
        others = sorted(
            (offsets[other], offsets[other] + program.tensors[other].size)
            for other in placed
            if lives[other][0] <= end and begin <= lives[other][1]
        )
        free = 0
        for start, stop in others:
            if start - free >= program.tensors[index].size:
                break
            free = max(free, stop)
        offsets[index] = free
        placed.append(index)
    total = max((offset + tensor.size for offset, tensor in zip(offsets, program.tensors)), default=0)
    return tuple(offsets), total


def sources(layer: Layer) -> tuple[int, ...]:
    """The tensors that a layer reads."""
    if isinstance(layer, Add):
        return layer.sources
    return () if isinstance(layer, Quantize) else (layer.source,)


def _lives(program: IntegerProgram) -> list[tuple[int, int]]:
    """For each tensor the first and the last layer at which it is needed."""
    lives = [(len(program.layers), -1)] * len(program.tensors)
    for at, layer in enumerate(program.layers):
        made = None if isinstance(layer, Dequantize) else layer.target
        for index in (*sources(layer), *([] if made is None else [made])):
            lives[index] = (min(lives[index][0], at), max(lives[index][1], at))
    return lives
