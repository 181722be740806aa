"""Which losses compare samples with one another: all others are means over samples, so that a part has its share."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from edgekd.distill.losses import LOSSES, find_loss
from edgekd.distill.losses.comparing import COMPARE_SAMPLES, compares_samples

N, C = 12, 5
MAPS = {
    "hint", "attention_transfer", "similarity_preserving", "neuron_selectivity", "hierarchical_context", "fsp",
    "factor_transfer", "activation_boundary", "overhaul_partial_l2", "variational_information", "channel_wise",
    "pearson_features", "channel_correlation",
}  # fmt: skip
TOKENS = {"minilm_relation", "hidden_mse", "attention_mse", "cosine_embedding", "generalized_jsd"}
# It compares through the memories of its adapter; the loss alone is a mean over samples.
THROUGH_ADAPTER = {"contrastive"}
# With all samples of a batch they would be means over them.
OPTIONS: dict[str, dict[str, Any]] = {
    "curriculum_kd": {"share": 0.3},
    "curriculum_cross_entropy": {"share": 0.3},
    "minilm_relation": {"heads": 2},
}


def tensors(name: str) -> dict[str, Any]:
    """Positional arguments of the loss for N samples, by name."""
    torch.manual_seed(4)
    shape = (N, 4, 6, 6) if name in MAPS else (N, 7, 8) if name in TOKENS else (N, C)
    found: dict[str, Any] = dict(OPTIONS.get(name, {}))
    for argument, parameter in inspect.signature(find_loss(name)).parameters.items():
        if argument == "mask" or (parameter.default is not parameter.empty and argument != "mask"):
            continue
        value: Any = torch.randn(shape, dtype=torch.float64)
        if argument.startswith("labels"):
            value = torch.arange(N) % C
        elif argument.startswith("targets"):
            value = (torch.rand(N, C) > 0.5).double()
        elif argument.startswith("teacher_indices"):
            value = torch.rand(N, C).topk(3, dim=1).indices
        elif argument.startswith(("teacher_probabilities", "teacher_log_probabilities")):
            value = torch.full((N, 3), 0.2, dtype=torch.float64)
            value = value.log() if "log" in argument else value
        elif name == "minilm_relation":
            value = [value, *torch.randn(2, *shape, dtype=torch.float64)]
        elif argument.endswith("_pair"):
            value = [value, torch.randn(N, 3, 6, 6, dtype=torch.float64)]
        elif argument == "peer_logits":
            value = [value, value.flip(1)]
        elif argument == "rho":
            value = torch.zeros(4, dtype=torch.float64)
        elif argument == "margin":
            value = -torch.ones(4, dtype=torch.float64).reshape(1, 4, 1, 1)
        elif argument == "num_samples":
            value = 40
        elif argument == "scores" or "scores" in argument:
            value = value.exp()
        found[argument] = value
    return found


def rows(value: Any, part: slice) -> Any:
    if isinstance(value, list):
        return [rows(item, part) for item in value]
    return value[part] if isinstance(value, Tensor) and len(value) == N else value


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_loss_that_is_no_mean_over_samples_is_known_to_compare_them(name: str) -> None:
    loss, given = find_loss(name), tensors(name)
    parts = (slice(0, 8), slice(8, N))
    whole = loss(**given)
    mean = sum(
        (part.stop - part.start) / N * loss(**{key: rows(value, part) for key, value in given.items()})
        for part in parts
    )
    is_mean = bool(torch.isclose(whole, torch.as_tensor(mean), rtol=1e-9, atol=1e-12))
    assert is_mean != (name in COMPARE_SAMPLES - THROUGH_ADAPTER)
    assert compares_samples(loss) == (name in COMPARE_SAMPLES)


def test_every_name_is_a_loss() -> None:
    assert LOSSES.keys() >= COMPARE_SAMPLES
