"""The recipe: one TOML file that says a whole run, validated whole before any work starts.

Precedence: `--set` > `EDGEKD_DATA`, `EDGEKD_SEED`, `EDGEKD_THREADS` > the recipe > defaults. Relative paths in a
recipe start at the recipe's folder; in `--set`, and in the recipes that edgekd ships, at the current folder. Data that
are not there are looked for in the folder EDGEKD_DATA.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationError

from edgekd import assets, toml
from edgekd.errors import RecipeError, nearest
from edgekd.recipe_checks import DEFAULT_TERMS, check_recipe
from edgekd.recipe_errors import explain, find_unknown_key
from edgekd.recipe_overrides import apply_environment, resolve_paths, set_value
from edgekd.recipe_sections import (
    AssistantSection,
    BenchmarkSection,
    DataSection,
    DistillSection,
    EmbeddingSection,
    ExportSection,
    LimitsSection,
    MaskedLmSection,
    Name,
    PostprocessSection,
    PreprocessSection,
    QuantizeSection,
    Section,
    StudentSection,
    TargetSection,
    TeacherSection,
    TermSection,
    TransferSection,
    as_tuple,
)


class Recipe(Section):
    """A whole run. `threads = 0` trains on all cores that this process may use."""

    version: int = 1
    name: Name
    task: Literal["classification", "multilabel", "regression", "embedding", "masked_lm"] = "classification"
    description: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    threads: Annotated[int, Field(ge=0)] = 0
    data: DataSection
    transfer: TransferSection | None = None
    preprocess: PreprocessSection = PreprocessSection()
    postprocess: PostprocessSection = PostprocessSection()
    teacher: TeacherSection
    teachers: Annotated[tuple[TeacherSection, ...], BeforeValidator(as_tuple)] = ()
    assistant: Annotated[tuple[AssistantSection, ...], BeforeValidator(as_tuple)] = ()
    student: StudentSection
    embedding: EmbeddingSection = EmbeddingSection()
    masked_lm: MaskedLmSection = MaskedLmSection()
    distill: DistillSection = DistillSection()
    export: ExportSection = ExportSection()
    quantize: QuantizeSection = QuantizeSection()
    target: TargetSection = TargetSection()
    limits: LimitsSection = LimitsSection()
    benchmark: BenchmarkSection = BenchmarkSection()

    @property
    def kept(self) -> tuple[str, ...]:
        """Teachers and assistants whose answers are kept outside the run, for this student and those to come, by the
        names of their stages: those behind a URL, or all that are asked; answers in a file are kept already."""
        asked = {name: section for name, section in self.all_teachers.items() if section.logits is None}
        if self.distill.cache:
            return (*asked, *self.assistants)
        return tuple(name for name, section in asked.items() if section.url is not None)

    def taught_by(self, name: str) -> tuple[str, ...]:
        """From whom the assistant `name`, or any student, learns: the last assistant before it, or all teachers."""
        assistants = list(self.assistants)
        before = assistants[: assistants.index(name)] if name in assistants else assistants
        return tuple(before[-1:]) or tuple(self.all_teachers)

    @property
    def all_teachers(self) -> dict[str, TeacherSection]:
        """The teachers by the names of their stages: `teacher`, which all is compared with, then the further ones."""
        further = {f"teacher_{number}": section for number, section in enumerate(self.teachers, start=2)}
        return {"teacher": self.teacher, **further}

    @property
    def assistants(self) -> dict[str, AssistantSection]:
        """The models between teacher and student by the names of their stages, in the order in which they learn."""
        return {f"assistant_{number}": section for number, section in enumerate(self.assistant, start=1)}

    @property
    def distill_terms(self) -> tuple[TermSection, ...]:
        """The terms, those of the task where the recipe names none; `name` is the loss where none was given."""
        terms = self.distill.terms or tuple(TermSection(**term) for term in DEFAULT_TERMS[self.task])
        return tuple(term if term.name else term.model_copy(update={"name": term.loss}) for term in terms)


@dataclass(frozen=True)
class LoadedRecipe:
    """A valid recipe, the folder that its references start from, the text as written, and where it came from."""

    recipe: Recipe
    folder: Path
    text: str
    source: str


def load_recipe(
    name_or_path: str | os.PathLike[str],
    *,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
    check_files: bool = True,
) -> LoadedRecipe:
    """The recipe of that name (`edgekd recipes` lists them) or in that file, with `--set` values over it.

    overrides    `a.b=value`: the value is read as TOML, else taken as text; items of a list by number (`a.0.b=...`)
    environ      `os.environ` if None
    check_files  False leaves out what only a run needs: a place for the data, and files that are there

    Raises `RecipeError` with the file, the key, what was found and what was expected; `ModelError` when the
    weights or the ONNX file that the recipe names are not there.
    """
    environ = os.environ if environ is None else environ
    path, folder = _find(os.fspath(name_or_path))
    source = path.name
    text = _read(path)
    try:
        tables = toml.loads(text)
    except toml.TOMLDecodeError as error:
        raise RecipeError(f"{source}: not valid TOML: {error}") from error
    origins: dict[str, str] = {}
    resolve_paths(tables, folder, environ)
    for override in overrides:
        key = set_value(tables, override)
        origins[key] = f"--set {override}"
        resolve_paths(tables, Path.cwd(), environ, only=key)
    apply_environment(tables, environ, origins)
    tables.setdefault("name", re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._") or "recipe")
    unknown = find_unknown_key(Recipe, tables, source=source, origins=origins)
    if unknown is not None:
        raise RecipeError(unknown)
    try:
        recipe = Recipe.model_validate(tables)
    except ValidationError as error:
        raise RecipeError(explain(error, source=source, origins=origins)) from None
    check_recipe(recipe, source=source, check_files=check_files)
    return LoadedRecipe(_resolved(recipe), folder, text, source)


def recipe_to_toml(recipe: Recipe) -> str:
    """The resolved recipe as TOML; `load_recipe` reads it back to an equal value."""
    tables = recipe.model_dump(mode="json", exclude_none=True)
    return toml.dumps({key: value for key, value in tables.items() if value != {}})


def _resolved(recipe: Recipe) -> Recipe:
    """The recipe with what follows from other keys: names of terms, the epochs of all stages."""
    stages = recipe.distill.stages
    epochs = sum(stage.epochs for stage in stages) if stages else recipe.distill.epochs
    distill = recipe.distill.model_copy(update={"terms": recipe.distill_terms, "epochs": epochs})
    if recipe.task == "embedding":  # without the teacher there is nothing to learn
        distill = distill.model_copy(update={"baseline": False})
    return recipe.model_copy(update={"distill": distill})


def _find(name: str) -> tuple[Path, Path]:
    """The file, and the folder that its references and relative paths start from."""
    path, known = Path(name).expanduser(), assets.names("export", "recipes")
    if path.is_dir() and name not in known:  # beside a folder mnist/ the recipe of that name is still meant
        raise RecipeError(f"{name} is a folder, expected a recipe (a .toml file); try {path / 'recipe.toml'}")
    if path.suffix == ".toml" or path.is_file() or len(path.parts) > 1:
        if not path.is_file():
            raise RecipeError(f"no recipe file {name}; `edgekd recipes` lists those that edgekd brings along")
        return path, path.resolve().parent
    if name not in known:
        raise RecipeError(f"no recipe is called '{name}'. {nearest(name, known)}; a file ends in .toml")
    return assets.find("export", "recipes", name), Path.cwd()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path.name}: not a text in UTF-8 (byte {error.start}); recipes are TOML files") from error
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}") from error
