"""Pruning and low rank: what remains computes what the whole network computes without the parts that went."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from edgekd.distill.channels import find_channels
from edgekd.distill.low_rank import factorize, rank_of
from edgekd.distill.models import build_model, count
from edgekd.distill.pruning import IMPORTANCE, masked, prune
from edgekd.distill.to_onnx import export
from edgekd.errors import ModelError, UsageError
from edgekd.spec import TensorSpec

IMAGE = (1, 8, 8)
BUILT_IN = {"mlp_s": (64,), "mlp_teacher": (64,), "cnn_s": IMAGE, "dscnn_s": IMAGE, "resnet_s": IMAGE, "tcn_s": (16, 3)}


def settled(module: nn.Module) -> nn.Module:
    """The module in eval mode with batch norms that do something."""
    for part in module.modules():
        if isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias)
            nn.init.normal_(part.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(part.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return module.eval()


def built(name: str, shape: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(0)
    return settled(build_model(name, num_outputs=10, input_shape=shape))


def check_equal(module: nn.Module, amount: float, shape: tuple[int, ...], **options: Any) -> nn.Module:
    """Prune, compare with the masked network, give the smaller one."""
    x = torch.randn(3, *shape)
    pruned = prune(module, amount, input_shape=shape, loss=lambda net: net(x).square().mean(), **options)
    with torch.no_grad():
        whole, small, zeroed = module(x), pruned.module(x), masked(module, pruned)(x)
    assert torch.allclose(small, zeroed, atol=2e-5 * float(whole.abs().max()))
    assert not torch.allclose(small, whole, rtol=0.01), "something went"
    return pruned.module


@pytest.mark.parametrize("by", IMPORTANCE)
@pytest.mark.parametrize("name", BUILT_IN)
def test_a_pruned_network_is_the_whole_one_with_zeros(name: str, by: str) -> None:
    module, shape = built(name, BUILT_IN[name]), BUILT_IN[name]
    if by == "batch_norm" and name == "mlp_s":
        with pytest.raises(ModelError, match="finds nothing to judge the channels of 1 by; expected a batch norm"):
            prune(module, 0.5, input_shape=shape, by=by)
        return
    before = {key: value.clone() for key, value in module.state_dict().items()}
    small = check_equal(module, 0.5, shape, by=by)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items()), "the given one is whole"
    (parameters, macs), (few, less) = count(module, shape), count(small, shape)
    # Half the rows, half the columns: a quarter, but for the first and last layer.
    assert few < 0.55 * parameters
    assert less < 0.55 * macs
    small(torch.randn(3, *shape)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_networks_of_torchvision(name: str) -> None:
    """Residual sums, depthwise convolutions, squeeze and excitation."""
    shape = (3, 32, 32)
    small = check_equal(built(f"torchvision:{name}", shape), 0.5, shape)
    assert count(small, shape)[1] < 0.32 * count(built(f"torchvision:{name}", shape), shape)[1]


class Odd(nn.Module):
    """Concatenation, maps that become rows, a convolution in groups, a split."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(1, 4, 3, padding=1)
        self.both = nn.Conv2d(10, 8, 1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.split = nn.Conv2d(8, 6, 1)
        self.last = nn.Conv2d(3, 5, 1)
        self.wide = nn.Linear(5 * 16, 12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([torch.relu(self.a(x)), torch.relu(self.b(x))], dim=1)
        x = self.split(self.grouped(torch.relu(self.both(x))))
        first, second = x.chunk(2, dim=1)
        x = torch.relu(self.last(first * second))
        x = nn.functional.max_pool2d(x, 2)
        x = torch.relu(self.wide(x.view(x.size(0), -1)))
        return self.head(x)  # type: ignore[no-any-return]


def test_what_is_not_understood_stays_whole_and_is_named() -> None:
    torch.manual_seed(0)
    module = Odd().eval()
    small = check_equal(module, 0.5, IMAGE)
    parts = dict(small.named_modules())
    widths = {name: part.weight.shape[0] for name, part in parts.items() if name}  # type: ignore[union-attr, index]
    assert widths == {"a": 3, "b": 2, "both": 8, "grouped": 8, "split": 6, "last": 3, "wide": 6, "head": 4}
    assert small.get_submodule("wide").weight.shape == (6, 3 * 16)  # type: ignore[union-attr]
    fixed = prune(module, 0.5, input_shape=IMAGE).fixed
    assert fixed["both"] == "because of the convolution 'grouped' in groups"
    assert fixed["split"] == "because of 'chunk' (chunk)"
    assert fixed["head"] == "they are the outputs"


def test_residual_sums_stand_and_fall_together() -> None:
    module = built("resnet_s", IMAGE)
    channels = find_channels(module, IMAGE)
    stage = [
        path for path, segments in channels.outputs.items() if segments[0].group == channels.outputs["0.0"][0].group
    ]
    assert stage == ["0.0", "1.residual.1"], "the first convolution, and the last of the block that adds to it"


@pytest.mark.parametrize("by", IMPORTANCE)
def test_the_least_important_channels_go(by: str) -> None:
    module: Any = built("cnn_s", IMAGE)
    gone, x = [1, 4, 6], torch.randn(16, *IMAGE)
    with torch.no_grad():
        for part in (module[0][0].weight, module[0][1].weight, module[0][1].bias):
            part[gone] *= 1e-3
        module[0][1].bias[[0, 2, 3, 5, 7]] = 2.0  # not dead behind the ReLU
        module[0][1].running_mean[gone] = 0.0
        module[0][1].running_var[gone] = 1.0
    pruned = prune(module, 3 / 8, input_shape=IMAGE, by=by, loss=lambda net: net(x).square().mean())
    group = pruned.channels.outputs["0.0"][0].group
    assert pruned.kept[group].tolist() == [0, 2, 3, 5, 7]


def test_at_least_one_channel_stays() -> None:
    small = prune(built("cnn_s", IMAGE), 0.999, input_shape=IMAGE).module
    assert [part.out_channels for part in small.modules() if isinstance(part, nn.Conv2d)] == [1, 1, 1]


class Asks(nn.Module):
    """Decides by a value: nothing that a trace can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum() > 0 else x


def test_what_cannot_be_pruned_is_told() -> None:
    module = built("cnn_s", IMAGE)
    with pytest.raises(UsageError, match=r"found prune = 1.5, expected a share of the channels between 0 and 1"):
        prune(module, 1.5, input_shape=IMAGE)
    with pytest.raises(UsageError, match=r"found prune_by = 'l2'\. Known: batch_norm, l1, taylor"):
        prune(module, 0.5, input_shape=IMAGE, by="l2")
    with pytest.raises(UsageError, match="prune_by = 'taylor' needs a loss"):
        prune(module, 0.5, input_shape=IMAGE, by="taylor")
    with pytest.raises(ModelError, match=r"torch.fx cannot follow its forward"):
        prune(Asks(), 0.5, input_shape=(4,))
    with pytest.raises(ModelError, match=r"no channel of the student can go \(1: they are the outputs\)"):
        prune(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), 0.5, input_shape=IMAGE)


def test_full_rank_is_the_network_itself() -> None:
    module = built("mlp_teacher", (64,))
    x = torch.randn(5, 64)
    whole = factorize(module, energy=1.0, keep_larger=True)
    with torch.no_grad():
        assert torch.allclose(whole(x), module(x), atol=1e-5)
    assert sum(isinstance(part, nn.Linear) for part in whole.modules()) == 6


def test_low_rank_is_the_best_of_its_rank() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(30, 20)
    small: Any = factorize(nn.Sequential(layer), rank=4)
    product = (small[0][1].weight @ small[0][0].weight).detach().double().numpy()
    u, s, v = np.linalg.svd(layer.weight.detach().double().numpy(), full_matrices=False)
    np.testing.assert_allclose(product, u[:, :4] * s[:4] @ v[:4], atol=1e-6)
    assert torch.equal(small[0][1].bias, layer.bias)
    energy = float((s[:4] ** 2).sum() / (s**2).sum())
    assert rank_of(torch.from_numpy(s), energy) == 4
    assert rank_of(torch.from_numpy(s), energy + 1e-6) == 5
    assert rank_of(torch.zeros(3), 0.9) == 1


def test_low_rank_that_saves_nothing_is_refused() -> None:
    module = built("mlp_s", (64,))
    with pytest.raises(ModelError, match=r"no linear layer becomes smaller \(ranks: 1: 32 of 32; 3: 10 of 10\)"):
        factorize(module, energy=1.0)
    for options in ({}, {"rank": 2, "energy": 0.5}):
        with pytest.raises(UsageError, match="found both or none of"):
            factorize(module, **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"found low_rank.rank = 0"):
        factorize(module, rank=0)
    with pytest.raises(UsageError, match=r"found low_rank.energy = 1.2"):
        factorize(module, energy=1.2)


def test_both_end_in_a_smaller_dense_file(tmp_path: Path) -> None:
    x = {"input": np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)}
    spec = TensorSpec("input", "float32", ("N", 64))
    module = built("mlp_l", (64,))
    sizes = []
    for index, student in enumerate([module, prune(module, 0.5, input_shape=(64,)).module, factorize(module, rank=8)]):
        result = export(student, tmp_path / f"{index}.onnx", inputs=[spec], samples=x)
        sizes.append(result.size_bytes)
        kinds = {node.op_type for node in onnx.load(result.path).graph.node}
        assert kinds <= {"Gemm", "MatMul", "Add", "Relu", "Reshape", "Flatten"}
    assert sizes[1] < 0.45 * sizes[0]
    assert sizes[2] < 0.25 * sizes[0]
