"""Adapters: what they give, what they learn, and each loss that needs one through the engine."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from edgekd.distill import engine
from edgekd.distill.adapters import ADAPTERS, find_adapter, maps, peers
from edgekd.distill.adapters.embeddings import Combine, ContrastiveMemory
from edgekd.distill.adapters.peers import AverageTeacher
from edgekd.distill.distribution import World
from edgekd.distill.engine import distill
from edgekd.distill.losses import ADAPTER_OF, DEFAULT_WEIGHTS, LOSSES
from edgekd.distill.models import MODELS, TEXT_MODELS, build_model
from edgekd.distill.models.vision import import_torchvision
from edgekd.distill.objective import Objective, Term
from edgekd.distill.optimization import OPTIMIZERS
from edgekd.distill.programme import Stage
from edgekd.distill.teachers import ModuleTeacher
from edgekd.errors import UsageError
from edgekd.spec import Dataset, Split

MAPS = ((8, 6, 6), (16, 6, 6))
VECTORS = ((8,), (16,))


def test_every_adapter_is_found() -> None:
    assert all(callable(find_adapter(name)) for name in ADAPTERS)
    assert set(ADAPTER_OF.values()) <= set(ADAPTERS)
    assert set(ADAPTER_OF) | set(DEFAULT_WEIGHTS) <= set(LOSSES)


@pytest.mark.parametrize("name", ["auto", "regressor", "connector", "vid", "factor", "linear"])
def test_the_student_comes_out_as_wide_as_the_teacher(name: str) -> None:
    student, teacher = VECTORS if name == "linear" else MAPS
    adapter = find_adapter(name)(student, teacher)
    s, t, _ = adapter(torch.randn(4, *student), torch.randn(4, *teacher), {})
    assert s.shape == t.shape


def test_auto_of_lists_has_a_layer_for_each_pair_of_other_widths() -> None:
    student, teacher = [(5, 8), (5, 8), (8, 6, 6)], [(5, 16), (5, 8), (16, 6, 6)]
    adapter = find_adapter("auto")(student, teacher)
    s, _, _ = adapter([torch.randn(2, *shape) for shape in student], [torch.randn(2, *shape) for shape in teacher], {})
    assert [tuple(value.shape[1:]) for value in s] == teacher
    assert [len(list(layer.parameters())) for layer in adapter.layers] == [1, 0, 1]
    with pytest.raises(UsageError, match="expected as many taps of both"):
        find_adapter("auto")((8,), [(16,), (16,)])


def test_the_variance_of_vid_begins_where_it_is_told() -> None:
    adapter = find_adapter("vid")(*MAPS, init_variance=5.0)
    _, _, extras = adapter(torch.randn(4, *MAPS[0]), torch.randn(4, *MAPS[1]), {})
    torch.testing.assert_close(F.softplus(extras["rho"]) + 1e-5, torch.full((16,), 5.0))


def test_overhaul_takes_the_margins_of_a_batch_norm() -> None:
    norm = nn.BatchNorm2d(16)
    _, _, extras = find_adapter("overhaul")(*MAPS, teacher_module=norm)(
        torch.randn(2, *MAPS[0]), torch.randn(2, *MAPS[1]), {}
    )
    torch.testing.assert_close(extras["margin"], torch.full((16,), -math.sqrt(2 / math.pi)))
    with pytest.raises(UsageError, match="found a ReLU at the teacher's tap, expected a BatchNorm2d"):
        find_adapter("overhaul")(*MAPS, teacher_module=nn.ReLU())


def test_review_fuses_from_deep_to_shallow() -> None:
    adapter = find_adapter("review")([(8, 12, 12), (16, 6, 6)], [(24, 12, 12), (32, 6, 6)], width=8)
    shallow, deep = torch.randn(2, 8, 12, 12), torch.randn(2, 16, 6, 6, requires_grad=True)
    teacher = [torch.randn(2, 24, 12, 12), torch.randn(2, 32, 6, 6)]
    student, _, _ = adapter([shallow, deep], teacher, {})
    assert [s.shape for s in student] == [t.shape for t in teacher]
    student[0].sum().backward()
    assert deep.grad is not None
    assert deep.grad.abs().sum() > 0, "what the shallow map gives depends on the deep one"
    with pytest.raises(UsageError, match="as many maps"):
        find_adapter("review")((8, 6, 6), (16, 6, 6))


def test_the_paraphraser_learns_from_reconstruction_alone() -> None:
    adapter = find_adapter("factor")(*MAPS)
    student = torch.randn(4, *MAPS[0], requires_grad=True)
    s, t, extras = adapter(student, torch.randn(4, *MAPS[1]), {})
    extras["reconstruction"].backward()
    assert student.grad is None
    assert s.shape[1] == t.shape[1] == 8


def test_many_to_one_mean() -> None:
    layers = [torch.randn(3, 16) for _ in range(3)]
    adapter = find_adapter("combine")((16,), [(16,)] * 3)
    student = torch.randn(3, 16)
    s, t, _ = adapter(student, layers, {})
    assert s is student
    torch.testing.assert_close(t, (layers[0] + layers[1] + layers[2]) / 3)
    assert not list(adapter.parameters())


def test_many_to_one_learns_the_layer_that_fits() -> None:
    torch.manual_seed(0)
    adapter = find_adapter("combine")((16,), [(16,)] * 3, weights="learned")
    assert isinstance(adapter, Combine)
    assert adapter.weights is not None
    optimizer = torch.optim.Adam(adapter.parameters(), lr=0.1)
    for _ in range(100):
        layers = [torch.randn(32, 16) for _ in range(3)]
        s, t, _ = adapter(layers[1].clone(), layers, {})
        loss = (s - t.detach()).square().mean()  # as the losses do
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert adapter.weights.softmax(0)[1] > 0.95
    # The gradient is the one that a loss would have through the teacher's side.
    layers = [torch.randn(4, 16) for _ in range(3)]
    student = torch.randn(4, 16)
    s, t, _ = adapter(student, layers, {})
    ours = torch.autograd.grad((s - t.detach()).square().mean(), adapter.weights)[0]
    mixed = torch.tensordot(adapter.weights.softmax(0), torch.stack(layers), dims=1)
    torch.testing.assert_close(ours, torch.autograd.grad((student - mixed).square().mean(), adapter.weights)[0])


def test_discriminator_gradients_reach_each_player_alone() -> None:
    adapter = find_adapter("discriminator")((10,), (10,))
    student, teacher = torch.randn(4, 10, requires_grad=True), torch.randn(4, 10)
    fooled, real, extras = adapter(student, teacher, {})
    fooled.sum().backward()
    assert student.grad is not None
    assert all(parameter.grad is None for parameter in adapter.parameters())
    student.grad = None
    (real.sum() + extras["cut_student_score"].sum()).backward()
    assert student.grad is None
    assert all(parameter.grad is not None for parameter in adapter.parameters())
    torch.testing.assert_close(fooled, extras["cut_student_score"])
    with pytest.raises(UsageError, match="tensors of one kind, found \\[10\\] of the student and \\[8, 6, 6\\]"):
        find_adapter("discriminator")((10,), (8, 6, 6))
    with pytest.raises(UsageError, match="tensors of one kind"):
        find_adapter("discriminator")((5, 8), (6, 16))


@pytest.mark.parametrize(
    ("student_shape", "teacher_shape"),
    [((8, 9, 9), (16, 6, 6)), ((8, 6, 6), (16, 9, 4)), ((8,), (16,)), ((5, 8), (5, 16))],
)
def test_the_projection_of_the_discriminator_plays_for_the_student(
    student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]
) -> None:
    adapter = find_adapter("discriminator")(student_shape, teacher_shape)
    student, teacher = torch.randn(4, *student_shape, requires_grad=True), torch.randn(4, *teacher_shape)
    fooled, real, extras = adapter(student, teacher, {})
    fooled.sum().backward()
    assert fooled.shape == real.shape == (4, 1)
    assert student.grad is not None
    assert adapter.project.weight.grad is not None
    assert all(parameter.grad is None for parameter in adapter.net.parameters())
    before = adapter.project.weight.grad.clone()
    (real.sum() + extras["cut_student_score"].sum()).backward()
    assert torch.equal(adapter.project.weight.grad, before)


def test_peers_are_the_same_network_with_other_weights() -> None:
    student = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    adapter = find_adapter("peers")((3,), (3,), student_module=student, count=2)
    x = torch.randn(5, 4)
    _, _, extras = adapter(student(x), None, {"x": x})
    assert [tuple(p.shape) for p in extras["peer_logits"]] == [(5, 3), (5, 3)]
    assert not torch.equal(extras["peer_logits"][0], extras["peer_logits"][1])
    assert not torch.equal(extras["peer_logits"][0], student(x))
    with pytest.raises(UsageError, match="tap its 'logits'"):
        find_adapter("peers")((3,), (3,))


def test_the_average_follows_the_student_and_is_not_trained() -> None:
    student = nn.Linear(4, 3)
    adapter = find_adapter("average_teacher")((3,), (3,), student_module=student, decay=0.9)
    assert not [parameter for parameter in adapter.parameters() if parameter.requires_grad]
    before, x = student.weight.detach().clone(), torch.randn(5, 4)
    with torch.no_grad():
        student.weight.add_(1.0)
    adapter(student(x), None, {"x": x})
    assert torch.equal(adapter.state_dict()["slow.weight"], before), "looking moves nothing"
    adapter.after_step()
    _, teacher, _ = adapter(student(x), None, {"x": x})
    torch.testing.assert_close(teacher, x @ (before + 0.1).T + student.bias)
    assert not teacher.requires_grad


def a_peer_of(student: nn.Module) -> nn.Module:
    torch.manual_seed(7)
    adapter = find_adapter("peers")((3,), (3,), student_module=student)
    member: nn.Module = adapter.get_submodule("members.0")
    return member


@pytest.mark.parametrize("name", ["bow_m", "bigru_s", "text_cnn_s", "encoder_xs"])
def test_peers_of_text_models_draw_all_of_their_weights(name: str) -> None:
    torch.manual_seed(0)
    student = build_model(name, num_outputs=3, input_shape=(12,), vocabulary=200, pad=3)
    peer = dict(a_peer_of(student).named_parameters())
    for key, own in student.named_parameters():
        assert not torch.equal(peer[key], own) or own.unique().numel() == 1, key
        if own.numel() > 1000:
            assert float(peer[key].detach().std()) == pytest.approx(float(own.detach().std()), rel=0.1), key
    assert not peer["embedding.weight"][3].any()


@pytest.mark.parametrize("name", sorted(MODELS.keys() - TEXT_MODELS))
def test_peers_of_other_models_are_drawn_as_the_student_is(name: str) -> None:
    """Not as torch draws their layers by itself: the parameters have the spread of the student's."""
    torch.manual_seed(0)
    student = build_model(name, num_outputs=10, input_shape=(64, 3) if name.startswith("tcn") else (3, 8, 8))
    peer = dict(a_peer_of(student).named_parameters())
    for key, own in student.named_parameters():
        assert not torch.equal(peer[key], own) or own.unique().numel() == 1, key
        if own.unique().numel() > 100:
            spread = float(peer[key].detach().std() / own.detach().std())
            assert spread == pytest.approx(1, abs=5 / math.sqrt(2 * own.numel())), key


def test_peers_draw_the_attention_of_torch_anew() -> None:
    student = nn.TransformerEncoderLayer(8, 2, 16)
    peer = a_peer_of(student)
    assert not torch.equal(peer.get_parameter("self_attn.in_proj_weight"), student.self_attn.in_proj_weight)


def test_a_part_that_holds_others_says_last_how_they_are_drawn() -> None:
    class Zeros(nn.Sequential):
        def reset_parameters(self) -> None:
            nn.init.zeros_(self[0].weight)

    peer = a_peer_of(Zeros(nn.Linear(4, 3)))
    assert not peer.get_parameter("0.weight").any()
    assert peer.get_parameter("0.bias").any()


def test_peers_of_transformers_draw_as_their_library_does() -> None:
    import_torchvision()
    transformers = pytest.importorskip("transformers", reason="needs the extra 'hf'")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    student = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=500, num_labels=3, **sizes))
    peer = dict(a_peer_of(student).named_parameters())
    for key, own in student.named_parameters():
        if "LayerNorm" in key or key.endswith("bias"):
            assert torch.equal(peer[key], own), key
        else:
            assert not torch.equal(peer[key], own), key
            assert float(peer[key].detach().std()) == pytest.approx(0.02, rel=0.4), key


class Noting(nn.Module):
    """Notes in which numbers it computes; its copies write into a list of their own, all into the same."""

    def __init__(self, own: list[torch.dtype], copies: list[torch.dtype]) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 3)
        self.own, self.copies = own, copies

    def __deepcopy__(self, memo: object) -> Noting:
        return Noting(self.copies, self.copies)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(x.flatten(1))
        self.own.append(result.dtype)
        return result


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(("loss", "adapter"), [("mutual_learning", "peers"), ("kd", "average_teacher")])
def test_networks_within_adapters_compute_as_the_student_does(loss: str, adapter: str, precision: str) -> None:
    own: list[torch.dtype] = []
    copies: list[torch.dtype] = []
    objective = Objective([Term("it", loss, adapter=adapter), Term("ce", "cross_entropy")])
    options: dict[str, Any] = {"epochs": 2, "batch_size": 16, "device": "cpu", "precision": precision}
    distill(Noting(own, copies), [], data(), objective, **options)
    checked, *trained = copies  # the first: the check before the training
    assert checked is torch.float32
    assert trained == [getattr(torch, precision)] * 6


@pytest.mark.parametrize("name", ["peers", "average_teacher"])
def test_losses_get_float32_of_networks_that_compute_in_less(name: str) -> None:
    student = nn.Linear(4, 3)
    adapter = find_adapter(name)((3,), (3,), student_module=student)
    x = torch.randn(5, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, teacher, extras = adapter(student(x), None, {"x": x})
    assert {given.dtype for given in extras.get("peer_logits", [teacher])} == {torch.float32}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_the_average_follows_each_step_of_the_engine(
    optimizer: str, accumulate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fused optimizers change weights without a trace that autograd could see: only the loop knows of the step.
    made: list[AverageTeacher] = []

    class Kept(AverageTeacher):
        def __init__(self, student: nn.Module, decay: float) -> None:
            super().__init__(student, decay)
            made.append(self)

    monkeypatch.setattr(peers, "AverageTeacher", Kept)
    torch.manual_seed(1)
    student = Net(4)
    terms = [Term("it", "kd", adapter="average_teacher", adapter_options={"decay": 0.8}), Term("ce", "cross_entropy")]
    expected = student.head.weight.detach().clone()

    def step(*_: object) -> None:
        expected.lerp_(student.head.weight.detach(), 0.2)

    handle = register_optimizer_step_post_hook(step)
    try:
        options: dict[str, Any] = {"epochs": 2, "batch_size": 16, "lr": 1e-2, "accumulate": accumulate}
        distill(student, [], data(), Objective(terms), optimizer=optimizer, device="cpu", keep="last", **options)
    finally:
        handle.remove()
    adapter = made[-1]  # those before it belong to the check before the training
    assert not torch.equal(expected, student.head.weight)
    torch.testing.assert_close(adapter.slow.head.weight, expected)


class Tied(nn.Module):
    """One table at both ends, and a mask of minus infinity as those of causal attention are."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("never", torch.full((2,), -torch.inf))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.table(x)).mean(dim=1)
        return result


def test_the_average_follows_a_tied_weight_once_and_leaves_infinite_buffers_alone() -> None:
    student = Tied()
    adapter = find_adapter("average_teacher")((5,), (5,), student_module=student, decay=0.9)
    before = student.table.weight.detach().clone()
    with torch.no_grad():
        student.table.weight.add_(1.0)
    adapter.after_step()
    torch.testing.assert_close(adapter.slow.table.weight, before + 0.1)
    assert adapter.slow.never.isneginf().all()


def test_the_average_follows_through_stages_without_its_term(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[AverageTeacher] = []
    follow = AverageTeacher.after_step

    def counting(self: AverageTeacher) -> None:
        made.append(self)
        follow(self)

    monkeypatch.setattr(AverageTeacher, "after_step", counting)
    terms = [Term("it", "kd", adapter="average_teacher"), Term("ce", "cross_entropy")]
    stages = [Stage("first", 1, ("ce",)), Stage("then", 1, ("it", "ce"))]
    distill(Net(4), [], data(), Objective(terms), epochs=2, stages=stages, batch_size=16, lr=1e-2, device="cpu")
    assert len(made) == 2 * 3
    assert len(set(map(id, made))) == 1


def memory() -> ContrastiveMemory:
    torch.manual_seed(0)
    adapter = find_adapter("contrastive_memory")((8,), (16,), num_samples=50, width=6, negatives=12)
    assert isinstance(adapter, ContrastiveMemory)
    return adapter


def test_contrastive_scores_by_value() -> None:
    adapter = memory()
    s, t, ids = torch.randn(4, 8), torch.randn(4, 16), torch.tensor([3, 7, 20, 49])
    before = adapter.student_memory.clone(), adapter.teacher_memory.clone()
    torch.manual_seed(1)
    places = torch.cat([ids[:, None], torch.randint(50, (4, 12))], dim=1)
    torch.manual_seed(1)
    found_s, found_t, extras = adapter(s, t, {"index": ids})
    assert extras == {"num_samples": 50}
    u = F.normalize(adapter.embed_student(s), dim=1).detach().numpy()
    v = F.normalize(adapter.embed_teacher(t), dim=1).detach().numpy()
    for found, own, other in ((found_s, u, before[1]), (found_t, v, before[0])):
        scores = np.exp(np.einsum("nd,nkd->nk", own, other[places].numpy()) / 0.07)
        np.testing.assert_allclose(found.detach().numpy(), scores / (scores.mean() * 50), rtol=1e-4)
    moved = 0.5 * before[0][ids] + 0.5 * torch.from_numpy(u)
    torch.testing.assert_close(adapter.student_memory[ids], F.normalize(moved, dim=1))
    assert torch.equal(adapter.student_memory[0], before[0][0])


def test_contrastive_scores_are_as_exact_under_autocast() -> None:
    s, t, ids = torch.randn(4, 8), torch.randn(4, 16), torch.arange(4)
    scores = []
    for enabled in (False, True):
        adapter = memory()
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            scores.append(adapter(s, t, {"index": ids})[0])
    torch.testing.assert_close(scores[1], scores[0], rtol=1e-5, atol=0.0)


def test_z_is_set_once() -> None:
    adapter = memory()
    adapter(torch.randn(4, 8), torch.randn(4, 16), {"index": torch.arange(4)})
    first = adapter.z.clone()
    adapter(10 * torch.randn(4, 8), torch.randn(4, 16), {"index": torch.arange(4)})
    assert torch.equal(adapter.z, first)
    assert (first > 0).all()


def test_huge_memories_are_refused() -> None:
    with pytest.raises(UsageError, match="smaller width"):
        find_adapter("contrastive_memory")((8,), (16,), num_samples=100_000_000)


# ---- through the engine ----


class Net(nn.Module):
    """Two stages of convolutions with their batch norms in sight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.norm2 = nn.BatchNorm2d(2 * width)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(2 * width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(self.norm2(self.conv2(x)))
        return self.head(self.pool(x).flatten(1))  # type: ignore[no-any-return]


def data() -> Dataset:
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = rng.normal(size=(60, 1, 8, 8)).astype(np.float32) + y[:, None, None, None]
    train, val = Split(x[:48], y[:48], np.arange(48)), Split(x[48:], y[48:], np.arange(48, 60))
    return Dataset("squares", "classification", ("a", "b", "c"), train, val, val, "none", "0")


POOLED = {"student_tap": "pool", "teacher_tap": "pool"}
LAST = {"student_tap": "norm2", "teacher_tap": "norm2"}
BOTH = {"student_tap": ("norm1", "norm2"), "teacher_tap": ("norm1", "norm2")}
ENGINE: dict[str, dict[str, Any]] = {
    "hint": LAST,
    "attention_transfer": LAST,
    "similarity_preserving": LAST,
    "neuron_selectivity": LAST,
    "hierarchical_context": {**BOTH, "adapter": "review", "adapter_options": {"width": 8}},
    "factor_transfer": LAST,
    "activation_boundary": {**LAST, "adapter": "connector"},
    "overhaul_partial_l2": LAST,
    "variational_information": LAST,
    "channel_wise": LAST,
    "pearson_features": LAST,
    "channel_correlation": LAST,
    "rkd": POOLED,
    "rkd_distance": POOLED,
    "rkd_angle": POOLED,
    "pkt": POOLED,
    "correlation_congruence": POOLED,
    "contrastive": {**POOLED, "adapter_options": {"negatives": 16}},
    "adversarial": {},
    "fsp": {**BOTH, "adapter": "auto"},
    "curriculum_kd": {"options": {"share": 0.5}},
    "curriculum_cross_entropy": {"options": {"share": 0.5}},
    "trusted_kd": {},
    "trusted_cross_entropy": {},
    "generalized_jsd": {},
    "mutual_learning": {},
    "kd": {"adapter": "average_teacher"},
}


# Loss and taps of student and teacher whose widths are others, and which bring no adapter.
WIDTHS: dict[str, tuple[str, dict[str, Any]]] = {
    "features of a discriminator": ("adversarial", LAST),
    "vectors of a discriminator": ("adversarial", {"student_tap": "head@input", "teacher_tap": "head@input"}),
    "lists of maps": ("hierarchical_context", BOTH),
    "lists of vectors": ("patient", {"student_tap": ("head@input",) * 2, "teacher_tap": ("head@input",) * 2}),
}


@pytest.mark.parametrize("name", WIDTHS)
def test_other_widths_come_together_by_themselves(name: str) -> None:
    loss, taps = WIDTHS[name]
    torch.manual_seed(1)
    teacher, student = Net(8), Net(4)
    objective = Objective([Term("it", loss, **taps)])
    result = distill(
        student, [ModuleTeacher(teacher)], data(), objective, epochs=1, batch_size=16, lr=1e-2, device="cpu"
    )
    assert math.isfinite(result.history[0]["loss"])
    assert result.history[0]["gradients"]["it"] > 0, "it teaches the student"


def test_fsp_says_which_adapter_it_needs() -> None:
    objective = Objective([Term("it", "fsp", **BOTH)])
    with pytest.raises(UsageError, match='expected taps of equal widths on both sides, or adapter = "auto", which'):
        distill(Net(4), [ModuleTeacher(Net(8))], data(), objective, epochs=1, batch_size=16, device="cpu")


# Methods without a teacher of their own.
ALONE = ("mutual_learning", "kd")


@pytest.mark.parametrize("name", ENGINE)
def test_a_student_learns_from_it(name: str) -> None:
    torch.manual_seed(1)
    teacher, student = Net(8), Net(4)
    terms = [
        Term("it", name, weight=DEFAULT_WEIGHTS.get(name, 1.0), **ENGINE[name]),
        # The teacher was never trained: labels that contradict it would hide what the loss does.
        Term("cross_entropy", "cross_entropy", weight=1.0 if name in ALONE else 0.0),
    ]
    teachers = [] if name in ALONE else [ModuleTeacher(teacher)]
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    result = distill(student, teachers, data(), Objective(terms), epochs=4, batch_size=16, lr=1e-2, device="cpu")
    history = [item["terms"]["it"] for item in result.history]
    assert all(math.isfinite(value) for value in history)
    if name not in ("adversarial", "contrastive", "kd"):  # what their players do to each other need not fall
        assert history[-1] < history[0]
    assert result.history[0]["gradients"]["it"] > 0, "it teaches the student"
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


class Together(World):
    """As if there were other processes."""

    @property
    def is_alone(self) -> bool:
        return False

    def _nothing(self, value: Any) -> Any:
        return value

    share = mean = _nothing

    def collect(self, value: Any) -> list[Any]:
        return [value]

    def broadcast(self, tensors: object) -> None:
        pass

    def gather(self, tensor: torch.Tensor, sizes: object) -> torch.Tensor:
        return tensor


def test_batch_norm_of_adapters_is_synchronized_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[type]] = []

    def build(*shapes: Any, **_: Any) -> nn.Module:
        adapter: nn.Module = maps.regressor(*shapes)
        adapter.register_forward_hook(lambda module, *_: seen.append(set(map(type, module.modules()))))
        return adapter

    monkeypatch.setattr(engine, "check_division", lambda *_, **__: None)  # it wants a GPU
    objective = Objective([Term("it", "hint", **LAST, adapter=build)])
    options: dict[str, Any] = {"epochs": 1, "batch_size": 16, "device": "cpu", "world": Together()}
    distill(Net(4), [ModuleTeacher(Net(8))], data(), objective, **options)
    assert all(nn.BatchNorm2d in types for types in seen)
    seen.clear()
    distill(Net(4), [ModuleTeacher(Net(8))], data(), objective, sync_batch_norm=True, **options)
    _, *trained = seen  # the first: the check before the training
    assert len(trained) == 3
    assert all(nn.SyncBatchNorm in types and nn.BatchNorm2d not in types for types in trained)


class Watched(Net):
    """Notes, by whether it trains, whether anybody looks into its second normalization."""

    def __init__(self) -> None:
        super().__init__(4)
        self.seen: set[tuple[bool, bool]] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.add((self.training, bool(self.norm2._forward_hooks)))
        return super().forward(x)


def test_nobody_looks_into_a_student_that_is_validated() -> None:
    student = Watched()
    terms = [Term("hint", "hint", **LAST), Term("ce", "cross_entropy")]
    teacher = ModuleTeacher(Net(8))
    distill(student, [teacher], data(), Objective(terms), epochs=2, batch_size=16, lr=1e-2, device="cpu")
    assert student.seen == {(True, True), (False, False), (False, True)}  # the last: the check before the training
