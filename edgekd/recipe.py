"""The recipe: one TOML file that says a whole run, validated whole before any work starts.

Precedence: `--set` > `EDGEKD_DATA`, `EDGEKD_SEED`, `EDGEKD_THREADS` > the recipe > defaults. Relative paths in a
recipe start at the recipe's folder; in `--set`, and in the recipes that edgekd ships, at the current folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from edgekd import assets, toml
from edgekd.errors import RecipeError, nearest
from edgekd.recipe_checks import DEFAULT_TERMS, check_recipe
from edgekd.recipe_errors import explain, find_unknown_key
from edgekd.recipe_overrides import apply_environment, resolve_paths, set_value
from edgekd.spec import Limits


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _texts(value: object) -> object:
    return (value,) if isinstance(value, str) else _tuple(value)


Texts = Annotated[tuple[str, ...], BeforeValidator(_texts)]
Steps = Annotated[tuple[dict[str, Any], ...], BeforeValidator(_tuple)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
Share = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


class Section(BaseModel):
    """What all tables share: unknown keys are refused, nothing changes after loading, nothing is guessed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DataSection(Section):
    """`[data]`: where the samples come from and how they are split."""

    kind: str
    root: str | None = None
    labels: Texts = ()
    target: Texts = ()
    val_fraction: Share = 0.2
    test_fraction: Share = 0.2
    limit: Annotated[int, Field(ge=1)] | None = None
    licence: str | None = None
    augment: dict[str, Any] = {}
    views: Annotated[int, Field(ge=1)] | None = None


class PreprocessSection(Section):
    """`[preprocess]`: typed steps (edgekd.spec), the same in training, calibration and on the device."""

    steps: Steps = ()


class PostprocessSection(Section):
    """`[postprocess]`: typed steps (edgekd.device.postprocess); without them those of the task."""

    steps: Steps | None = None


class TrainSection(Section):
    """`[teacher.train]`: the budget of a teacher that is trained here."""

    epochs: Annotated[int, Field(ge=1)] = 20
    batch_size: Annotated[int, Field(ge=1)] = 128
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: Positive = 1e-3
    weight_decay: NotNegative = 0.01
    schedule: Literal["cosine", "linear", "constant", "onecycle"] = "cosine"
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0


class RequestSection(Section):
    """`[teacher.request]`: how a teacher at a `url` is asked. `headers` name environment variables, never secrets."""

    batch_size: Annotated[int, Field(ge=1)] = 32
    timeout_s: Positive = 60.0
    retries: Annotated[int, Field(ge=0)] = 5
    per_s: Positive | None = None
    encoding: Literal["json", "npy"] = "json"
    headers: dict[str, str] = {}
    insecure: bool = False


class TeacherSection(Section):
    """`[teacher]`: a model by reference (loaded from `weights`, else trained here), or a black box.

    Black boxes: an `onnx` file, answers in a file (`logits`), an HTTP endpoint (`url`).
    """

    model: str | None = None
    args: dict[str, Any] = {}
    weights: str | None = None
    onnx: str | None = None
    logits: str | None = None
    url: str | None = None
    request: RequestSection = RequestSection()
    licence: str | None = None
    train: TrainSection = TrainSection()

    @property
    def is_finished(self) -> bool:
        """Whether it comes trained, from somewhere else."""
        return self.model is None or self.weights is not None

    @property
    def has_graph(self) -> bool:
        """Whether it can be run as an ONNX file; of the others only answers are known."""
        return self.model is not None or self.onnx is not None


class StudentSection(Section):
    """`[student]`: a model by reference; `weights` are those that its training starts from."""

    model: str
    args: dict[str, Any] = {}
    weights: str | None = None
    licence: str | None = None


class TermSection(Section):
    """`[[distill.terms]]`: one weighted loss; `options` are the loss function's own keywords."""

    name: str = ""
    loss: str
    weight: NotNegative = 1.0
    options: dict[str, Any] = {}


class DistillSection(Section):
    """`[distill]`: the student's budget, and what it minimizes."""

    epochs: Annotated[int, Field(ge=1)] = 20
    batch_size: Annotated[int, Field(ge=1)] = 128
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: Positive = 1e-3
    weight_decay: NotNegative = 0.01
    schedule: Literal["cosine", "linear", "constant", "onecycle"] = "cosine"
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    baseline: bool = True
    cache: bool = False
    cache_top_k: Annotated[int, Field(ge=1)] | None = None
    cache_dtype: Literal["float32", "float16"] = "float32"
    terms: Annotated[tuple[TermSection, ...], BeforeValidator(_tuple)] = ()


class ExportSection(Section):
    """`[export]`: which runtimes can read the graph."""

    opset: Annotated[int, Field(ge=18, le=24)] = 18
    ir_version: Annotated[int, Field(ge=8, le=13)] = 8


class QuantizeSection(Section):
    """`[quantize]`: variants to make (none named: those of the target) and the samples to calibrate them with."""

    variants: Texts = ()
    calibration_samples: Annotated[int, Field(ge=1)] = 256
    calibration: Literal["minmax", "entropy", "percentile"] = "minmax"


class TargetSection(Section):
    """`[target]`: a file of export/targets."""

    name: str = "cpu"


class LimitsSection(Section):
    """`[limits]`: the device's budget. kB = 1000 bytes, MB = 1000 kB, drops in percentage points."""

    latency_p90_ms: Positive | None = None
    size_kb: Positive | None = None
    peak_memory_mb: Positive | None = None
    accuracy_drop_points: NotNegative | None = None
    confidence: Share = 0.95
    unproven: Literal["warn", "fail"] = "warn"

    def to_limits(self) -> Limits:
        """The form that the stages share."""
        return Limits(**self.model_dump())


class BenchmarkSection(Section):
    """`[benchmark]`: how the variants are measured on this machine."""

    suite: str = "quick"
    threads: Annotated[int, Field(ge=1)] = 1


class Recipe(Section):
    """A whole run. `threads = 0` trains on all cores that this process may use."""

    version: int = 1
    name: Name
    task: Literal["classification", "multilabel", "regression"] = "classification"
    description: str = ""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    threads: Annotated[int, Field(ge=0)] = 0
    data: DataSection
    preprocess: PreprocessSection = PreprocessSection()
    postprocess: PostprocessSection = PostprocessSection()
    teacher: TeacherSection
    student: StudentSection
    distill: DistillSection = DistillSection()
    export: ExportSection = ExportSection()
    quantize: QuantizeSection = QuantizeSection()
    target: TargetSection = TargetSection()
    limits: LimitsSection = LimitsSection()
    benchmark: BenchmarkSection = BenchmarkSection()

    @property
    def keeps_answers(self) -> bool:
        """Whether the teacher's answers are kept outside the run, for this student and those to come."""
        return self.distill.cache or self.teacher.url is not None

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
    resolve_paths(tables, folder)
    for override in overrides:
        key = set_value(tables, override)
        origins[key] = f"--set {override}"
        resolve_paths(tables, Path.cwd(), only=key)
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
    return LoadedRecipe(_with_terms(recipe), folder, text, source)


def recipe_to_toml(recipe: Recipe) -> str:
    """The resolved recipe as TOML; `load_recipe` reads it back to an equal value."""
    tables = recipe.model_dump(mode="json", exclude_none=True)
    return toml.dumps({key: value for key, value in tables.items() if value != {}})


def _with_terms(recipe: Recipe) -> Recipe:
    distill = recipe.distill.model_copy(update={"terms": recipe.distill_terms})
    return recipe.model_copy(update={"distill": distill})


def _find(name: str) -> tuple[Path, Path]:
    """The file, and the folder that its references and relative paths start from."""
    path = Path(name).expanduser()
    if path.is_dir():
        raise RecipeError(f"{name} is a folder, expected a recipe (a .toml file); try {path / 'recipe.toml'}")
    if path.suffix == ".toml" or path.is_file() or len(path.parts) > 1:
        if not path.is_file():
            raise RecipeError(f"no recipe file {name}; `edgekd recipes` lists those that edgekd brings along")
        return path, path.resolve().parent
    known = assets.names("export", "recipes")
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
