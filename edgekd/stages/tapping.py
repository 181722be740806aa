"""What can be tapped in a model: of a run, of a recipe, or of any model that can be named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.errors import UsageError
from edgekd.recipe import LoadedRecipe, load_recipe
from edgekd.run_folder import Silence
from edgekd.stages.training import build, reads
from edgekd.stages.workspace import Workspace

if TYPE_CHECKING:
    from torch import nn

    from edgekd.distill.taps import TapRow

SIDES = ("student", "teacher")
# What torchvision's models are made for.
TORCHVISION_INPUT = (3, 224, 224)


@dataclass(frozen=True)
class TapTable:
    """The modules of one model with their shapes, for samples of `input_shape`."""

    name: str
    reference: str
    input_shape: tuple[int, ...]
    rows: tuple[TapRow, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "name": self.name,
            "model": self.reference,
            "input_shape": list(self.input_shape),
            "taps": [
                {
                    "path": row.path,
                    "module": row.kind,
                    "parameters": row.parameters,
                    "inputs": [list(shape) for shape in row.inputs],
                    "outputs": [list(shape) for shape in row.outputs],
                    "calls": row.calls,
                }
                for row in self.rows
            ],
        }


def tap_tables(
    model: str,
    *,
    recipe: str | None,
    input_shape: str | None,
    num_outputs: int,
    args: Mapping[str, Any] | None,
) -> list[TapTable]:
    """The table of `model`, or those of student and teacher where it is a run folder.

    With a recipe, `model` may be "student" or "teacher"; samples are then those of the recipe. Weights do not matter:
    models are built untrained. Raises `UsageError` when the shape of a sample is not known.
    """
    from edgekd.distill.models import TEXT_MODELS, TYPICAL_VOCABULARY, build_model

    run = Path(model) / "recipe.toml"
    if run.is_file() or (recipe is not None and model in SIDES):
        given = {"--recipe": recipe if run.is_file() else None, "--input": input_shape, "--args": args}
        useless = [option for option, value in given.items() if value is not None]
        if useless:
            raise UsageError(f"taps {model}: the recipe says it all; leave out {', '.join(useless)}")
        loaded = load_recipe(run if run.is_file() else str(recipe))
        return _tables_of(loaded, SIDES if run.is_file() else (model,))
    reading: dict[str, Any]
    if recipe is not None:
        space = _workspace(load_recipe(recipe))
        outputs, search_path, reading = space.prepared.dataset.num_outputs, space.search_path, reads(space)
        shape = space.prepared.input_shape if input_shape is None else _shape(input_shape)
    else:
        outputs, search_path = num_outputs, Path.cwd()
        reading = {"vocabulary": TYPICAL_VOCABULARY} if model in TEXT_MODELS else {}
        shape = _known_shape(model) if input_shape is None else _shape(input_shape)
    module = build_model(model, num_outputs=outputs, input_shape=shape, args=args, search_path=search_path, **reading)
    return [_table(model, model, module, shape, reads_ids=bool(reading))]


def _tables_of(loaded: LoadedRecipe, sides: tuple[str, ...]) -> list[TapTable]:
    space = _workspace(loaded)
    tables = []
    for side in sides:
        section: Any = getattr(loaded.recipe, side)
        if section.model is None:
            if len(sides) > 1:
                continue
            raise UsageError(f"the {side} of {loaded.source} is a black box: there is nothing inside to tap")
        module = build(space, section, seed=loaded.recipe.seed)
        reads_ids = space.prepared.vocabulary is not None
        tables.append(_table(side, section.model, module, space.prepared.input_shape, reads_ids=reads_ids))
    return tables


def _workspace(loaded: LoadedRecipe) -> Workspace:
    return Workspace(loaded.recipe, loaded.folder, loaded.folder, Silence(), "cpu", 1, "", "")


def _table(name: str, reference: str, module: nn.Module, shape: tuple[int, ...], *, reads_ids: bool) -> TapTable:
    import torch

    from edgekd.distill.taps import list_taps

    # Ids of a text of the full length; zeros would be all padding, but shapes are the same.
    zeros = torch.zeros(2, *shape, dtype=torch.int64 if reads_ids else torch.float32)
    return TapTable(name, reference, shape, tuple(list_taps(module, zeros)))


def _known_shape(model: str) -> tuple[int, ...]:
    from edgekd.distill.models import TYPICAL_INPUT

    if model.startswith("torchvision:"):
        return TORCHVISION_INPUT
    if ":" in model:
        raise UsageError(
            f"taps {model}: the shape of a sample is not known; add --input 1,28,28 with your sizes, or --recipe FILE"
        )
    return TYPICAL_INPUT.get(model, (1, 28, 28))


def _shape(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"--input {text}: expected the sizes of one sample, such as 1,28,28, without the batch")
    return tuple(map(int, parts))
