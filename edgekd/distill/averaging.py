"""The average of the student's weights over its last steps (EMA): steadier on unseen data than the last step's.

    average <- decay_t * average + (1 - decay_t) * weights,   decay_t = min(decay, (1 + t) / (10 + t))

The smaller decay of the first steps t lets go of the random start. Statistics of batch norm are the student's own:
they are an average already.

Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992; Tarvainen and Valpola, "Mean
teachers are better role models", 2017, arXiv:1703.01780 (decay, and its start).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The running average of the parameters of `module`, beside it."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._names = [name for name, _ in module.named_parameters()]
        self._weights = [parameter.detach() for parameter in module.parameters()]
        self._average = [weight.clone() for weight in self._weights]

    def update(self, step: int) -> None:
        """Take in the weights after `step` (from 0)."""
        decay = min(self.decay, (1.0 + step) / (10.0 + step))
        torch._foreach_lerp_(self._average, self._weights, 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """For the block, the module has the average as its weights."""
        own = [weight.clone() for weight in self._weights]
        torch._foreach_copy_(self._weights, self._average)
        try:
            yield
        finally:
            torch._foreach_copy_(self._weights, own)

    def state_dict(self) -> dict[str, Tensor]:
        """The average by parameter name."""
        return dict(zip(self._names, self._average))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a state that `state_dict` gave."""
        torch._foreach_copy_(self._average, [state[name] for name in self._names])
