"""Models by name: shapes, costs, references, weights files, the guarded import of torchvision."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from edgekd.distill.models import MODELS, TEXT_MODELS, build_model, count, load_weights, logits_of, save_weights
from edgekd.distill.models import vision as vision_module
from edgekd.errors import MissingExtra, ModelError

SHAPES = {"mlp": (12,), "cnn": (1, 8, 8), "dscnn": (3, 9, 7), "resnet": (1, 8, 8), "tcn": (16, 3)}


def shape_of(name: str) -> tuple[int, ...]:
    return SHAPES[name.partition("_")[0]]


@pytest.mark.parametrize("name", sorted(MODELS.keys() - TEXT_MODELS))
def test_every_model_gives_one_row_per_sample_and_trains(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, num_outputs=4, input_shape=shape_of(name))
    assert all(module.training for module in model.modules())
    model(torch.randn(5, *shape_of(name))).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    model.eval()
    x = torch.randn(6, *shape_of(name))
    with torch.no_grad():
        together, alone = model(x), torch.cat([model(x[i : i + 1]) for i in range(6)])
    assert together.shape == (6, 4)
    torch.testing.assert_close(together, alone)
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("name", ["mlp_m", "cnn_s", "dscnn_s", "resnet_teacher", "tcn_s"])
def test_the_seed_decides_the_weights(name: str) -> None:
    def state(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return build_model(name, num_outputs=3, input_shape=shape_of(name)).state_dict()

    first, again, other = state(1), state(1), state(2)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("family", ["mlp", "cnn", "dscnn", "tcn"])
def test_sizes_grow(family: str) -> None:
    costs = [
        count(build_model(f"{family}_{size}", num_outputs=10, input_shape=shape_of(family)), shape_of(family))
        for size in "sml"
    ]
    assert costs == sorted(costs)
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in itertools.pairwise(costs))


def test_building_leaves_batch_norm_untouched() -> None:
    """The check on zeros must not move the running mean."""
    model = build_model("cnn_s", num_outputs=2, input_shape=(1, 8, 8))
    for name, value in model.state_dict().items():
        if name.endswith(("running_mean", "num_batches_tracked")):
            assert not value.any(), name


def test_the_classic_pair_of_mnist() -> None:
    teacher = build_model("mlp", num_outputs=10, input_shape=(1, 28, 28), args={"hidden": [512, 256]})
    assert [layer.out_features for layer in teacher if isinstance(layer, nn.Linear)] == [512, 256, 10]
    assert count(teacher, (1, 28, 28)) == (784 * 512 + 512 + 512 * 256 + 256 + 2570, 784 * 512 + 512 * 256 + 2560)


def test_counts_by_hand() -> None:
    # 3x3 conv 1->8 at 8x8, 8->16 at 4x4, 16->32 at 2x2, linear 32->10; batch norm has two parameters per channel.
    model = build_model("cnn_s", num_outputs=10, input_shape=(1, 8, 8))
    macs = 64 * 9 * 8 + 16 * 9 * 8 * 16 + 4 * 9 * 16 * 32 + 320
    assert count(model, (1, 8, 8)) == (72 + 16 + 1152 + 32 + 4608 + 64 + 330, macs)
    # depthwise: one filter per channel.
    model = build_model("dscnn_s", num_outputs=10, input_shape=(1, 8, 8))
    macs = 64 * 9 * 16 + 16 * 9 * 16 + 16 * 16 * 32 + 4 * 9 * 32 + 4 * 32 * 64 + 640
    assert count(model, (1, 8, 8))[1] == macs


def test_a_series_may_come_in_three_shapes() -> None:
    torch.manual_seed(0)
    model = build_model("tcn_s", num_outputs=2, input_shape=(1, 16, 3)).eval()
    x = torch.randn(4, 1, 16, 3)
    torch.testing.assert_close(model(x), model(x[:, 0]))
    assert build_model("tcn_s", num_outputs=2, input_shape=(16,))(torch.randn(4, 16)).shape == (4, 2)


def test_torchvision_models_work_here() -> None:
    model = build_model("torchvision:resnet18", num_outputs=7, input_shape=(3, 32, 32))
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    with pytest.raises(ModelError, match=r"torchvision has no model 'resnet19'. Did you mean 'resnet1"):
        build_model("torchvision:resnet19", num_outputs=7, input_shape=(3, 32, 32))
    with pytest.raises(ModelError, match=r"torchvision:resnet18 refuses the arguments \{'depth': 3\}"):
        build_model("torchvision:resnet18", num_outputs=7, input_shape=(3, 32, 32), args={"depth": 3})
    with pytest.raises(ModelError, match=r"fails on an input of shape \[2, 1, 28, 28\].*Does the model fit the prepro"):
        build_model("torchvision:resnet18", num_outputs=7, input_shape=(1, 28, 28))


def test_guarded_import_cures_only_its_own_error() -> None:
    """In a fresh process: the cure works with warnings as errors, and another error is passed on."""
    code = """
import builtins, importlib, sys
from edgekd.distill.models.vision import import_torchvision
real = importlib.import_module
def broken(name, package=None):
    if name == "torchvision":
        raise RuntimeError("operator torchvision::other does not exist")
    return real(name, package)
importlib.import_module = broken
try:
    import_torchvision()
except RuntimeError as error:
    assert str(error) == "operator torchvision::other does not exist", error
else:
    raise SystemExit("another error was swallowed")
importlib.import_module = real
first = import_torchvision()
assert import_torchvision() is first is sys.modules["torchvision"]
import torch, torchvision.transforms.v2
image = torch.zeros(3, 8, 6, dtype=torch.uint8)
print(tuple(torchvision.transforms.v2.RandAugment()(torchvision.transforms.v2.Resize([4, 3])(image)).shape))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=root())
    assert (done.returncode, done.stdout.strip()) == (0, "(3, 4, 3)"), done.stderr


def test_missing_torchvision_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> object:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(vision_module.importlib, "import_module", missing)
    with pytest.raises(MissingExtra, match=r"pip install 'edgekd\[train\]'"):
        vision_module.import_torchvision()


# ---- the user's own functions ----

OWN = """
import torch
import my_parts

def build(num_outputs, input_shape, width=3):
    import my_late
    first = torch.nn.Linear(input_shape[0], width)
    return torch.nn.Sequential(torch.nn.Flatten(), first, my_parts.head(width, num_outputs))

def fixed():
    return torch.nn.Linear(4, 2)

def named():
    class Named(torch.nn.Module):
        def forward(self, x):
            return {"logits": x[:, :2], "hidden": x}
    return Named()

def wrong():
    return 3

def pair():
    class Pair(torch.nn.Module):
        def forward(self, x):
            return x, x
    return Pair()

def buggy(num_outputs):
    raise TypeError("a bug of the user")

NUMBER = 1
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "my_models.py").write_text(OWN)
    (tmp_path / "my_parts.py").write_text("import torch\n\ndef head(i, o):\n    return torch.nn.Linear(i, o)\n")
    (tmp_path / "my_late.py").write_text("")
    return tmp_path


def test_a_function_of_the_user_gets_what_its_signature_names(project: Path) -> None:
    before = list(sys.path)
    options = {"num_outputs": 2, "input_shape": (4,), "search_path": project}
    assert build_model("my_models:build", args={"width": 5}, **options)[1].out_features == 5
    assert isinstance(build_model("my_models:fixed", **options), nn.Linear)
    assert build_model("my_models:named", **options) is not None
    assert sys.path == before


@pytest.mark.parametrize(
    ("reference", "args", "text"),
    [
        ("my_models:fixed", {"width": 3}, "my_models:fixed() does not take the arguments ['width']"),
        ("my_models:fiksed", {}, "the module my_models has no 'fiksed'. Did you mean 'fixed'? Known: "),
        ("my_models:NUMBER", {}, "'my_models:NUMBER' is a int, expected a function"),
        ("my_modells:fixed", {}, "no module 'my_modells' was found in"),
        ("my_models:wrong", {}, "my_models:wrong returned a int, expected a torch.nn.Module"),
        ("my_models:pair", {}, "my_models:pair gives a tuple, expected a tensor or a mapping that holds 'logits'"),
        (":fixed", {}, "found ':fixed', expected package.module:function"),
        ("cnn_xs", {}, "unknown model 'cnn_xs'. Did you mean 'cnn_s'?"),
        ("cnn_s", {}, "found samples of shape [4], expected images (channels, height, width)"),
        ("tcn_teacher", {"depth": 0}, "expected at least 2 and 1"),
        ("mlp", {"hidden": [0]}, "found hidden = [0], expected whole numbers from 1"),
        ("mlp", {"dropout": 1.5}, "found dropout = 1.5, expected 0 <= dropout < 1"),
        ("mlp_s", {"hiden": [3]}, "does not take the arguments ['hiden', 'input_shape', 'num_outputs']"),
        ("resnet_teacher", {"depth": 9}, "found depth = 9, expected 6n + 2"),
        ("resnet_teacher", {"width": 0}, "found width = 0, expected at least 1"),
    ],
)
def test_what_cannot_be_built_says_why(project: Path, reference: str, args: dict[str, object], text: str) -> None:
    with pytest.raises(ModelError) as caught:
        build_model(reference, num_outputs=2, input_shape=(4,), args=args, search_path=project)
    assert text in str(caught.value)


def test_wrong_number_of_outputs_names_both_shapes(project: Path) -> None:
    with pytest.raises(ModelError, match=r"turns an input of shape \[2, 4\] into \[2, 2\], expected \[2, 3\]"):
        build_model("my_models:fixed", num_outputs=3, input_shape=(4,), search_path=project)
    with pytest.raises(ModelError, match=r"found samples of shape \[3, 8, 8\], expected a series"):
        build_model("tcn_s", num_outputs=3, input_shape=(3, 8, 8))


def test_a_bug_in_the_users_function_keeps_its_traceback(project: Path) -> None:
    with pytest.raises(TypeError, match="a bug of the user"):
        build_model("my_models:buggy", num_outputs=2, input_shape=(4,), search_path=project)
    (project / "my_broken.py").write_text("import not_installed_anywhere\n")
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        build_model("my_broken:build", num_outputs=2, input_shape=(4,), search_path=project)


def test_two_projects_with_modules_of_one_name(tmp_path: Path) -> None:
    for name, width in (("first", 2), ("second", 3), ("first", 2)):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "net.py").write_text(f"import torch\n\ndef build():\n    return torch.nn.Linear(4, {width})\n")
        assert build_model("net:build", num_outputs=width, input_shape=(4,), search_path=folder) is not None


def test_logits_of_takes_a_tensor_or_a_mapping() -> None:
    tensor = torch.ones(2)
    assert logits_of(tensor) is tensor
    assert logits_of({"logits": tensor, "hidden": tensor + 1}) is tensor
    with pytest.raises(ModelError, match=r"the student gives a mapping with \['a', 'b'\], expected a tensor or a map"):
        logits_of({"b": tensor, "a": tensor}, "the student")


# ---- weights ----


def small() -> nn.Module:
    return build_model("cnn_s", num_outputs=2, input_shape=(1, 8, 8))


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())


def test_weights_come_back_and_equal_weights_give_equal_bytes(tmp_path: Path) -> None:
    model, other = small(), small()
    assert not same(model, other)
    first, second = save_weights(model, tmp_path / "a.safetensors"), save_weights(model, tmp_path / "b.safetensors")
    assert first.read_bytes() == second.read_bytes()
    load_weights(other, first)
    assert same(model, other)


def test_tied_weights_come_back(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
        model[1].weight = model[0].weight
        return model

    model, other = tied(), tied()
    load_weights(other, save_weights(model, tmp_path / "a.safetensors"))
    assert same(model, other)
    assert other[0].weight is other[1].weight


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
def test_state_dicts_of_torch(tmp_path: Path, wrap) -> None:  # type: ignore[no-untyped-def]
    model, other = small(), small()
    torch.save(wrap({f"module.{name}": value for name, value in model.state_dict().items()}), tmp_path / "a.pt")
    load_weights(other, tmp_path / "a.pt")
    assert same(model, other)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("evil"),))


def test_an_arbitrary_pickle_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Evil()}, tmp_path / "evil.pt")
    torch.save(small(), tmp_path / "whole.pth")
    for name in ("evil.pt", "whole.pth"):
        with pytest.raises(ModelError, match=r"holds more than tensors.*Save the state dict alone"):
            load_weights(small(), tmp_path / name)
    assert not (tmp_path / "evil").exists()


def test_weights_that_do_not_fit_name_what_differs(tmp_path: Path) -> None:
    wider = build_model("cnn_s", num_outputs=3, input_shape=(1, 8, 8))
    with pytest.raises(ModelError, match=r"other shapes: 5.weight is \[3, 32\], expected \[2, 32\], 5.bias is \[3\]"):
        load_weights(small(), save_weights(wider, tmp_path / "wider.safetensors"))
    mlp = build_model("mlp_s", num_outputs=2, input_shape=(4,))
    with pytest.raises(ModelError, match=r"missing: 0.0.weight.* and \d+ more; unexpected: 1.bias, 1.weight, 3.bias"):
        load_weights(small(), save_weights(mlp, tmp_path / "mlp.safetensors"))


@pytest.mark.parametrize("name", ["a.safetensors", "a.pt", "b.pth"])
def test_garbage_is_refused(tmp_path: Path, name: str) -> None:
    whole = tmp_path / f"whole{name}"
    if name.endswith(".safetensors"):
        save_weights(small(), whole)
    else:
        torch.save(small().state_dict(), whole)
    for content in (b"", b"garbage" * 40, whole.read_bytes()[: whole.stat().st_size // 2]):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=name):
            load_weights(small(), tmp_path / name)


def test_other_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no weights file"):
        load_weights(small(), tmp_path / "none.pt")
    (tmp_path / "a.h5").write_bytes(b"")
    with pytest.raises(ModelError, match=r"a.h5: found '.h5', expected .safetensors, .pt, .pth, .bin"):
        load_weights(small(), tmp_path / "a.h5")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ModelError, match="holds no state dict"):
        load_weights(small(), tmp_path / "list.pt")


def root() -> Path:
    return Path(__file__).resolve().parents[2]
