"""The reject option (edgekd.device.rejection) as a part of a model, so that its graph answers by the rule itself."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edgekd.distill.models import logits_of


class Rejecting(nn.Module):
    """`network`, a trained classifier of one input, with the rule behind it.

    rejected   number of the class that is the answer where no other reaches `threshold`

    Made of operators that every runtime has; the largest logit is taken off first, so that nothing overflows.
    """

    chosen: Tensor

    def __init__(self, network: nn.Module, *, rejected: int, num_classes: int, threshold: float) -> None:
        super().__init__()
        self.network = network
        self.log_threshold = math.log(threshold)
        chosen = torch.arange(num_classes) == rejected
        self.register_buffer("chosen", chosen[None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C) logits after the rule."""
        z_NC = logits_of(self.network(x))
        top_N1 = z_NC.amax(dim=1, keepdim=True)
        # The sum is 1 to C: exp(0) is in it.
        log_sum_N1 = top_N1 + (z_NC - top_N1).exp().sum(dim=1, keepdim=True).log()
        return torch.where(self.chosen, torch.maximum(z_NC, log_sum_N1 + self.log_threshold), z_NC)
