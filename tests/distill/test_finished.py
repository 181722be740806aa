"""Classifiers that transformers saved: their weights by its names, their classes by theirs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_encoders import FAMILIES, VOCABULARY, WORDS, encoder, ids_of, saved
from torch import nn

from edgekd.distill.models import load_weights, save_weights
from edgekd.distill.models.finished import classes_of, reorder
from edgekd.distill.models.hub import HuggingFace, text_classifier
from edgekd.errors import ModelError

NAMED = {0: "good", 1: "bad", 2: "neither"}


def opened(folder: Path, num_outputs: int = 3) -> HuggingFace:
    """A classifier with the folder's configuration, and a head that knows nothing."""
    module = text_classifier(
        str(folder), num_outputs=num_outputs, vocabulary=VOCABULARY, pad=0, tokens=WORDS, args={}
    ).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    return module


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_read_by_the_names_that_transformers_saves(family: str, tmp_path: Path) -> None:
    original = encoder(family)
    folder = saved(original, tmp_path)
    module, ids = opened(folder), ids_of()
    load_weights(module, folder / "model.safetensors")
    with torch.no_grad():
        expected = original(ids, attention_mask=(ids != 0).long()).logits
        torch.testing.assert_close(module(ids)["logits"], expected)
    # What edgekd writes of it is read again by its own names.
    other = opened(folder)
    load_weights(other, save_weights(module, tmp_path / "own.safetensors"))
    torch.testing.assert_close(other(ids)["logits"], expected)
    torch.save(original.state_dict(), tmp_path / "pytorch_model.bin")
    other = opened(folder)
    load_weights(other, tmp_path / "pytorch_model.bin")
    torch.testing.assert_close(other(ids)["logits"], expected)


def test_constants_of_older_versions_are_left_out_and_anything_else_is_not(tmp_path: Path) -> None:
    folder = saved(encoder(), tmp_path)
    state = load_file(folder / "model.safetensors")
    save_file({**state, "bert.embeddings.position_ids": torch.arange(40)[None]}, tmp_path / "old.safetensors")
    load_weights(opened(folder), tmp_path / "old.safetensors")
    save_file({**state, "bert.extra": torch.zeros(1)}, tmp_path / "more.safetensors")
    with pytest.raises(ModelError, match=r"more.safetensors does not fit the model: unexpected: model.bert.extra"):
        load_weights(opened(folder), tmp_path / "more.safetensors")
    del state["classifier.weight"]
    save_file(state, tmp_path / "headless.safetensors")
    with pytest.raises(ModelError, match=r"headless.safetensors does not fit the model: missing: model.classifier.w"):
        load_weights(opened(folder), tmp_path / "headless.safetensors")
    with pytest.raises(ModelError, match=r"model.classifier.weight is \[3, 16\], expected \[2, 16\]"):
        load_weights(opened(folder, num_outputs=2), folder / "model.safetensors")


def test_a_smaller_vocabulary_is_read_through_the_map_to_the_models_own(tmp_path: Path) -> None:
    original = encoder()
    folder, tokens = saved(original, tmp_path), ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "film", "good"]
    module = text_classifier(str(folder), num_outputs=3, vocabulary=6, pad=0, tokens=tokens, args={}).eval()
    load_weights(module, folder / "model.safetensors")
    own = torch.tensor([[WORDS.index(token) for token in tokens[1:]]])
    with torch.no_grad():
        expected = original(own, attention_mask=torch.ones_like(own)).logits
        torch.testing.assert_close(module(torch.tensor([[1, 2, 3, 4, 5]]))["logits"], expected)


def test_classes_are_those_of_the_configuration(tmp_path: Path) -> None:
    named, unnamed = saved(encoder(id2label=NAMED), tmp_path / "a"), saved(encoder(), tmp_path / "b")
    assert classes_of(str(named), {}) == ("good", "bad", "neither")
    assert classes_of(str(unnamed), {}) == ()
    assert classes_of(str(unnamed), {"id2label": {"0": "x", "1": "y"}}) == ("x", "y")


@pytest.mark.parametrize("family", FAMILIES)
def test_classes_change_their_places_and_nothing_else_does(family: str, tmp_path: Path) -> None:
    folder = saved(encoder(family), tmp_path)
    module, ids = opened(folder), ids_of()
    load_weights(module, folder / "model.safetensors")
    with torch.no_grad():
        before = module(ids)["logits"]
        reorder(module, [2, 0, 1])
        torch.testing.assert_close(module(ids)["logits"], before[:, [2, 0, 1]])


class Scaled(nn.Module):
    """A factor for each class, behind the last linear layer."""

    def forward(self, logits_NC: torch.Tensor) -> torch.Tensor:
        return logits_NC * torch.arange(1.0, 1.0 + logits_NC.shape[1])


def test_answers_that_do_not_end_in_a_linear_layer_are_refused(tmp_path: Path) -> None:
    folder = saved(encoder(), tmp_path)
    module = opened(folder)
    load_weights(module, folder / "model.safetensors")
    module.model.classifier = nn.Sequential(module.model.classifier, Scaled())
    with pytest.raises(ModelError, match="cannot be brought into the order of the data: they do not come from one"):
        reorder(module, [2, 0, 1])
