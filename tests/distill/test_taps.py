"""Taps: the right tensor, from any module, through any wrapper; nothing is left behind; mistakes are named."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from edgekd.distill.models import build_model
from edgekd.distill.taps import Taps, find_module, list_taps
from edgekd.errors import ModelError


class Branches(nn.Module):
    """Modules that give one tensor, a tuple and a mapping, one that runs twice, one that never does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 6))
        self.memory = nn.GRU(6, 3, batch_first=True)
        self.named = Named()
        self.twice = nn.Linear(3, 3)
        self.never = nn.Linear(3, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, x_ND: Tensor) -> Tensor:
        sequence, _ = self.memory(self.body(x_ND)[:, None])
        hidden = self.named(inputs=sequence[:, 0])["hidden"]
        logits: Tensor = self.head(self.twice(self.twice(hidden)))
        return logits


class Named(nn.Module):
    def forward(self, *, inputs: Tensor) -> dict[str, object]:
        return {"size": 3, "plain": inputs, "hidden": inputs + 1.0}


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


def hooks_of(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def test_outputs_inputs_and_elements() -> None:
    model = Branches()
    paths = ["body.0", "body@input", "memory", "memory#1", "named", "named#hidden", "named@input", "head@input"]
    with Taps(model, paths) as taps:
        logits = model(X)
        read = taps.read()
    assert list(read) == paths
    first = model.body[0](X)
    torch.testing.assert_close(read["body.0"], first)
    torch.testing.assert_close(read["body@input"], X)
    sequence, last = model.memory(model.body(X)[:, None])
    torch.testing.assert_close(read["memory"], sequence)
    torch.testing.assert_close(read["memory#1"], last)
    torch.testing.assert_close(read["named"], sequence[:, 0])
    torch.testing.assert_close(read["named@input"], sequence[:, 0])
    torch.testing.assert_close(read["named#hidden"], sequence[:, 0] + 1.0)
    torch.testing.assert_close(model.head(read["head@input"]), logits)


def test_what_a_later_module_overwrites_is_kept() -> None:
    model = Branches()
    with Taps(model, ["body.0", "body.1"]) as taps:
        model(X)
        read = taps.read()
    assert (read["body.0"] < 0).any(), "the ReLU works in place"
    torch.testing.assert_close(read["body.1"], F.relu(read["body.0"]))


def test_a_module_that_runs_twice_gives_its_last_output() -> None:
    model = Branches()
    with Taps(model, ["twice", "twice@input"]) as taps:
        model(X)
        read = taps.read()
    torch.testing.assert_close(read["twice"], model.twice(read["twice@input"]))
    once = model.named(inputs=model.memory(model.body(X)[:, None])[0][:, 0])["hidden"]
    torch.testing.assert_close(read["twice@input"], model.twice(once))


def test_gradients_flow_to_the_layers_below_the_tap_only() -> None:
    model = Branches()
    with Taps(model, ["body"]) as taps:
        model(X)
        taps.read()["body"].square().mean().backward()
    assert model.body[0].weight.grad is not None
    assert model.head.weight.grad is None


def test_tensors_of_inference_mode_may_be_saved_for_a_backward_pass() -> None:
    model = Branches()
    with Taps(model, ["body"]) as taps:
        with torch.inference_mode():
            model(X)
        teacher = taps.read()["body"]
    student = torch.randn_like(teacher, requires_grad=True)
    (student * teacher).sum().backward()
    torch.testing.assert_close(student.grad, teacher)


def test_nothing_is_left_behind_whatever_happens() -> None:
    model = Branches()
    before = model.state_dict().keys()

    def fail() -> None:
        with Taps(model, ["body", "head@input"]) as taps:
            assert hooks_of(model) == 2
            model(X)
            taps.read()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert hooks_of(model) == 0
    assert model.state_dict().keys() == before


def test_tensors_are_given_away() -> None:
    model = Branches()
    with Taps(model, ["body"]) as taps:
        model(X)
        seen = weakref.ref(taps.read()["body"])
        gc.collect()
        assert seen() is None
        model(X)
        taps.clear()
        with pytest.raises(ModelError, match="the tap 'body' saw nothing"):
            taps.read()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (
            "boody",
            "the tap 'boody' leads nowhere: there is no module 'boody'. Did you mean 'body'? The model has body, ",
        ),
        ("body.7@input", "there is no module 'body.7'. Did you mean 'body.2'? body has 0, 1, 2; edgekd taps MODEL"),
        ("head.weight", "head has no parts; edgekd taps MODEL lists all"),
        ("", "found the tap '', expected a module's path such as layer2.1.conv1"),
        ("a#b#c", "found the tap 'a#b#c', expected a module's path"),
    ],
)
def test_wrong_paths(path: str, text: str) -> None:
    with pytest.raises(ModelError) as caught:
        Taps(Branches(), ["head", path])
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("never", "the tap 'never' saw nothing: its module did not run in this forward pass"),
        ("memory#5", "the tap 'memory#5' finds no tensor: there is a tuple of 2"),
        ("named#size", "the tap 'named#size' finds no tensor: there is a mapping with ['hidden', 'plain', 'size']"),
        ("head#1", "the tap 'head#1' finds no tensor: there is a tensor [5, 2]"),
    ],
)
def test_taps_that_see_nothing(path: str, text: str) -> None:
    model = Branches()

    def look() -> None:
        with Taps(model, [path]) as taps:
            model(X)
            taps.read()

    with pytest.raises(ModelError) as caught:
        look()
    assert text in str(caught.value)
    assert hooks_of(model) == 0


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_modules_before_or_after_their_first_call(backend: str) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 2))
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    assert isinstance(compiled, nn.Module)
    compiled(X)  # code without hooks is there now
    for _ in range(2):
        with Taps(compiled, ["0", "2@input"]) as taps:
            for _ in range(3):
                logits = compiled(X)
                read = taps.read()
        torch.testing.assert_close(read["0"], model[0](X))
        torch.testing.assert_close(logits, model[2](read["2@input"]))
        (gradient,) = torch.autograd.grad(read["0"].sum(), [model[0].weight])
        assert gradient.any()
    assert hooks_of(model) == 0
    torch.testing.assert_close(compiled(X), model(X))


@pytest.fixture
def one_process(tmp_path: object) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.skipif(os.name == "nt", reason="gloo's file store needs POSIX paths")
def test_distributed_modules(one_process: None) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    wrapped = nn.parallel.DistributedDataParallel(model)
    with Taps(wrapped, ["0"]) as taps:
        logits = wrapped(X)
        (logits.sum() + taps.read()["0"].square().sum()).backward()
    expected = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    expected.load_state_dict(model.state_dict())
    first = expected[0](X)
    (expected[2](F.relu(first)).sum() + first.square().sum()).backward()
    torch.testing.assert_close(model[0].weight.grad, expected[0].weight.grad)
    assert find_module(wrapped, "2") is model[2]


def test_list_of_taps() -> None:
    model = Branches().train()
    rows = {row.path: row for row in list_taps(model, X)}
    assert list(rows) == [name for name, _ in model.named_modules() if name]
    assert rows["body.0"].kind == "Linear"
    assert (rows["body.0"].inputs, rows["body.0"].outputs) == (((4,),), ((6,),))
    assert rows["body"].parameters == 4 * 6 + 6 + 6 * 6 + 6
    assert rows["named"].outputs == ((3,), (3,))
    assert (rows["twice"].calls, rows["never"].calls, rows["head"].calls) == (2, 0, 1)
    assert rows["never"].outputs == ()
    assert model.training
    assert hooks_of(model) == 0


def test_the_built_in_models_can_be_tapped_everywhere() -> None:
    model = build_model("resnet_teacher", num_outputs=10, input_shape=(1, 8, 8), args={"width": 4, "depth": 8})
    rows = list_taps(model, torch.zeros(2, 1, 8, 8))
    paths = [row.path for row in rows if row.calls]
    assert len(paths) == len(rows)
    with Taps(model, paths) as taps:
        model(torch.zeros(2, 1, 8, 8))
        shapes = {path: tuple(value.shape[1:]) for path, value in taps.read().items()}
    assert shapes == {row.path: row.outputs[0] for row in rows}
