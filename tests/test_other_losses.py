"""The lines that recipes print for other losses, adapters and layer maps, run as a user pastes them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from commands import ok, ok_json, refused

from edgekd import assets

SHORT = ("--set=teacher.train.epochs=1", "--set=distill.baseline=false")
STAGES = (
    "--set=distill.epochs=2",
    '--set=distill.stages=[{name="hints", epochs=1, terms=["hint"]}, '
    '{name="soft labels", epochs=1, terms=["kd", "cross_entropy"]}]',
)
PRINTED = re.findall(r"^#   '(.+)'$", assets.find("export", "recipes", "digits_feature").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run, so that its teacher is trained once."""
    return tmp_path_factory.mktemp("losses") / "run"


def first_stage(out: Path, term: str) -> float:
    """The value of a term in the first epoch."""
    history = json.loads((out / "stages" / "student.json").read_text())["result"]["history"]
    value: float = history[0]["terms"][term]
    return value


def test_the_recipe_prints_a_line_for_each_family() -> None:
    losses = ("attention_transfer", "variational_information", "hierarchical_context", "contrastive")
    assert [re.findall(r'loss="(\w+)"', line)[0] for line in PRINTED] == list(losses)


FACTORS = '{name="hint", loss="factor_transfer", weight=200, student_tap="2", teacher_tap="3"}'


@pytest.mark.parametrize("line", [*PRINTED, FACTORS])
def test_another_loss_on_maps(out: Path, line: str) -> None:
    result = ok_json("distill", "digits_feature", *SHORT, *STAGES, f"--set=distill.terms.0={line}", "--out", out)
    assert "student" in result["worked"]
    assert first_stage(out, "hint") != 0


@pytest.mark.parametrize(
    ("loss", "weight"), [("similarity_preserving", 3000), ("pkt", 30000), ("correlation_congruence", 0.02)]
)
def test_another_loss_on_relations_as_the_recipe_prints_it(out: Path, loss: str, weight: float) -> None:
    sets = (f"--set=distill.terms.0.loss={loss}", f"--set=distill.terms.0.weight={weight}", "--set=distill.epochs=1")
    ok_json("distill", "digits_relation", *SHORT, *sets, "--out", out.with_name("relations"))
    assert first_stage(out.with_name("relations"), loss) > 0


@pytest.mark.parametrize("loss", ["dkd", "dist", "logit_standardized_kd", "soft_cross_entropy", "generalized_jsd"])
def test_another_loss_on_logits_as_the_recipe_prints_it(out: Path, loss: str) -> None:
    sets = (f"--set=distill.terms.0.loss={loss}", "--set=distill.epochs=1")
    ok_json("distill", "digits_response", *SHORT, *sets, "--out", out.with_name("logits"))
    assert first_stage(out.with_name("logits"), loss) > 0


@pytest.mark.parametrize("weights", ["mean", "learned"])
def test_one_layer_learns_from_two_of_the_teacher(out: Path, weights: str) -> None:
    term = (
        'distill.terms.0={name="hint", loss="hint", student_tap="2", teacher_tap=["5", "6"], adapter="combine", '
        f'adapter_options={{weights="{weights}"}}}}'
    )
    deeper = "--set=teacher.args={width=8, depth=14}"
    folder = out.with_name("combined")
    ok_json("distill", "digits_feature", *SHORT, *STAGES, deeper, "--set", term, "--out", folder)
    assert first_stage(folder, "hint") > 0


def test_the_student_alone_has_the_students_label_smoothing(out: Path) -> None:
    folder = out.with_name("smoothed")
    command = ("distill", "digits_response", SHORT[0], "--set=distill.epochs=1", "--out", folder)
    ok_json(*command)

    def beginning() -> float:
        history = json.loads((folder / "stages" / "student_alone.json").read_text())["result"]["history"]
        value: float = history[0]["terms"]["cross_entropy"]
        return value

    plain = beginning()
    again = ok_json(*command, "--set=distill.terms.1.options={label_smoothing=0.3}")
    assert "student_alone" in again["worked"]
    assert beginning() != plain


def test_an_assistants_own_epochs_and_stages_contradict(tmp_path: Path) -> None:
    assistant = '--set=assistant=[{model="cnn_m", epochs=3}]'
    said = refused(2, "distill", "digits_feature", assistant, "--out", tmp_path / "run")
    assert "assistant.0.epochs = 3, but an assistant goes through the student's distill.stages" in said


def test_losses_and_adapters_are_listed_and_explained() -> None:
    listed = ok("recipes", "--losses")
    for word in ("variational_information", "similarity_preserving", "3000", "contrastive_memory", "average_teacher"):
        assert word in listed
    found = ok_json("recipes", "--losses")
    by_name = {row["name"]: row for part in ("losses", "adapters") for row in found[part]}
    assert by_name["dkd"]["needs"] == ["teacher", "labels"]
    assert by_name["dkd"]["options"] == {"alpha": 1.0, "beta": 8.0, "temperature": 4.0}
    assert by_name["adversarial"]["adapter"] == "discriminator"
    assert by_name["combine"]["options"] == {"weights": "mean"}
    assert all(row["summary"] for row in by_name.values())
    shown = ok("recipes", "--losses", "dkd")
    assert "arXiv:2203.08679" in shown
    assert "options = {alpha = 1.0, beta = 8.0, temperature = 4.0}" in shown
    assert "Did you mean 'dkd'?" in refused(2, "recipes", "--losses", "dkdd")
