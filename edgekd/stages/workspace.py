"""What every stage of one run shares: the recipe, the folder, the records so far, and the data, loaded once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekd.data.registry import load_dataset
from edgekd.data.source import Progress
from edgekd.device.benchmark import Samples
from edgekd.device.calibration import with_temperature
from edgekd.device.metrics import Contributions, contributions
from edgekd.device.postprocess import (
    Denormalize,
    PostStep,
    apply_post,
    as_judged,
    default_post_steps,
    parse_post_steps,
    post_steps_to_json,
    without_units,
)
from edgekd.device.preprocess import apply_arithmetic, prepare, split_steps
from edgekd.device.tokens import tokenize_step, vocabulary_of
from edgekd.files import canonical_json
from edgekd.recipe import Recipe
from edgekd.rows import DiskRows, Rows, pieces
from edgekd.run_folder import Listener, Record
from edgekd.spec import (
    Array,
    Dataset,
    Normalize,
    Split,
    Step,
    TensorSpec,
    Trim,
    Vocabulary,
    parse_steps,
    steps_to_json,
)
from edgekd.stages import masks, texts, vectors
from edgekd.stages.texts import INPUT_IDS

if TYPE_CHECKING:
    from edgekd.distill.distribution import World
    from edgekd.distill.masking import Masking
    from edgekd.distill.replacement import Substitutes

INPUT = "input"
OUTPUT = "logits"
# The share of texts that fill `max_length` up to which nothing is said.
MOST_CUT = 0.01


@dataclass(frozen=True)
class Prepared:
    """A data set whose samples have gone through the spatial steps, and the steps that remain.

    The targets of a regression are those that the graph learns; `post` brings them back to the user's units. Those of
    an embedding are the teacher's vectors, which `matrix` (W, D) made shorter where it is there.

    left_out  how many texts hold nothing that could be guessed, and are not in `dataset` (task masked_lm)
    """

    dataset: Dataset
    steps: tuple[Step, ...]
    post: tuple[PostStep, ...]
    input_shape: tuple[int, ...]
    matrix: Array | None = None
    left_out: int = 0

    @property
    def vocabulary(self) -> Vocabulary | None:
        """Of the ids that the models read; None where they read no texts."""
        step = tokenize_step(self.steps)
        return None if step is None else vocabulary_of(step)

    @property
    def arithmetic(self) -> tuple[Step, ...]:
        """The steps that training, calibration, benchmark and the predictor apply to a batch."""
        return split_steps(self.steps)[1]

    @property
    def training(self) -> tuple[Step, ...]:
        """`arithmetic` as training does it: texts of a graph of one shape too are as long as the longest of a batch."""
        vocabulary = self.vocabulary
        if vocabulary is None or any(isinstance(step, Trim) for step in self.steps):
            return self.arithmetic
        return (*self.arithmetic, Trim(vocabulary.pad))

    @property
    def input_spec(self) -> TensorSpec:
        """The model's input with its symbolic batch axis N."""
        if self.vocabulary is None:
            return TensorSpec(INPUT, "float32", ("N", *self.input_shape))
        is_trimmed = any(isinstance(step, Trim) for step in self.steps)
        return TensorSpec(INPUT_IDS, "int64", ("N", "L") if is_trimmed else ("N", *self.input_shape))

    @property
    def sample_spec(self) -> TensorSpec:
        """A sample as it is kept, after the spatial steps and before the arithmetic ones."""
        return TensorSpec(INPUT, self.dataset.train.x.dtype.name, ("N", *self.dataset.train.x.shape[1:]))

    def labelled(self, split: Split) -> Samples:
        """Samples of `split` for the benchmark, with targets in the user's units."""
        task = self.dataset.task
        y = apply_post(self.post, split.y) if task == "regression" else split.y
        return Samples(split.x, y, task, self.dataset.labels)

    def judge(self, outputs_ND: Array, split: Split, post: tuple[PostStep, ...] | None = None) -> Contributions:
        """What each sample of `split` adds to the metric, outputs read as the predictor reads them (through `post`)."""
        samples = self.labelled(split)
        scores, threshold = as_judged(samples.task, self.post if post is None else post, outputs_ND)
        return contributions(samples.task, scores, samples.y, threshold=threshold)

    def feeds(self, split: Split, limit: int | None = None) -> dict[str, Array]:
        """Model-ready samples of `split`, at most `limit` of them."""
        return {self.input_spec.name: self.samples(split, limit)}

    def samples(self, split: Split, limit: int | None = None) -> Array:
        """Model-ready samples of `split`, at most `limit` of them, (N, ...)."""
        return apply_arithmetic(self.arithmetic, split.x[:limit])


@dataclass
class Workspace:
    """One run: `records` fills up as stages end."""

    recipe: Recipe
    search_path: Path
    path: Path
    listener: Listener
    device: str
    threads: int
    created: str
    command: str
    cache_root: Path | None = None  # where teachers' answers are kept; None: edgekd's cache folder
    records: dict[str, Record] = field(default_factory=dict)
    world: World | None = None  # the processes that train together; None: this one is alone

    def result(self, stage: str) -> Mapping[str, Any]:
        """The result of a stage that has ended."""
        return self.records[stage].result

    @cached_property
    def prepared(self) -> Prepared:
        """The data set, read once."""

        def progress(text: str, done: int, total: int) -> None:
            self.listener.step(text, done, total, {})

        return prepare_data(self.recipe, self.search_path, progress=progress)

    @property
    def post(self) -> tuple[PostStep, ...]:
        """From the student's outputs to what a user reads, with the temperature that `verify` found."""
        found = self.result("verify").get("calibration") if "verify" in self.records else None
        return with_temperature(self.prepared.post, 1.0 if found is None else found["temperature"])

    @cached_property
    def shown(self) -> Dataset:
        """The data set with the training samples that the teacher answers to (edgekd.stages.lesson)."""
        from edgekd.stages import lesson

        return lesson.shown(self)

    @cached_property
    def substitutes(self) -> Substitutes | None:
        """The words that augmentation puts in the place of others; None where no texts are augmented."""
        from edgekd.stages.training import substitutes

        return substitutes(self)

    @cached_property
    def masking(self) -> Masking | None:
        """How texts are masked, where a model is to guess them."""
        step = tokenize_step(self.prepared.steps)
        return masks.masking_of(step, self.recipe) if self.recipe.task == "masked_lm" and step is not None else None

    @cached_property
    def has_depthwise(self) -> bool:
        """Whether the student has convolutions that look at each channel alone."""
        from torch import nn

        from edgekd.stages.training import build

        parts = build(self, self.recipe.student, seed=self.recipe.seed).modules()
        return any(isinstance(part, nn.Conv2d) and part.groups == part.in_channels > 1 for part in parts)

    @property
    def teacher_is_finished(self) -> bool:
        """Whether the teacher comes trained, from somewhere else."""
        return self.recipe.teacher.is_finished

    @property
    def teacher_post(self) -> tuple[PostStep, ...]:
        """From the teacher's outputs to the user's units.

        A regression that was trained elsewhere speaks in them already, unless the recipe's own postprocess says what
        graphs give.
        """
        is_foreign = self.teacher_is_finished and self.recipe.postprocess.steps is None
        return () if is_foreign and self.recipe.task == "regression" else with_temperature(self.prepared.post, 1.0)


def prepare_data(recipe: Recipe, search_path: Path, *, progress: Progress | None = None) -> Prepared:
    """Read the recipe's data, apply its spatial steps and resolve figures that come from the train split."""
    data = recipe.data

    def read(steps: tuple[Step, ...]) -> Dataset:
        spatial = split_steps(steps)[0]
        return load_dataset(
            kind=data.kind,
            root=data.root,
            task=recipe.task,
            labels=data.labels or None,
            target=data.target or None,
            text=data.text,
            val_fraction=data.val_fraction,
            test_fraction=data.test_fraction,
            prepare=lambda raw: prepare(spatial, raw),
            steps=canonical_json(steps_to_json(spatial)),
            progress=progress,
            seed=recipe.seed,
            search_path=search_path,
            licence=data.licence,
            limit=data.limit,
        )

    steps, dataset = texts.with_vocabulary(texts.opened(parse_steps(recipe.preprocess.steps), search_path), read)
    spatial, arithmetic = split_steps(steps)
    step, matrix, left_out = tokenize_step(steps), None, 0
    if step is not None:
        dataset = replace(dataset, tokens=vocabulary_of(step).tokens)
    if recipe.task == "masked_lm" and step is not None:
        whole = dataset
        dataset = masks.askable(replace(dataset, labels=masks.labels_of(step)), masks.masking_of(step, recipe))
        left_out = sum(counts_of(whole).values()) - sum(counts_of(dataset).values())
    if recipe.task == "embedding" and step is not None:
        dataset, matrix = vectors.with_vectors(recipe, dataset, arithmetic, vocabulary_of(step), search_path)
    arithmetic = resolve_train_figures(arithmetic, dataset.train.x)
    if recipe.postprocess.steps is not None:
        post = parse_post_steps(recipe.postprocess.steps)
    elif recipe.task == "masked_lm":
        post = ()
    else:
        mean, std = target_figures(dataset) if recipe.task == "regression" else (None, None)
        post = default_post_steps(recipe.task, mean=mean, std=std)
    if recipe.task == "regression":
        dataset = learned_targets(dataset, post)
    # Of texts, the longest.
    ready = dataset.train.x if step is not None else apply_arithmetic(arithmetic, dataset.train.x[:1])
    return Prepared(dataset, (*spatial, *arithmetic), post, ready.shape[1:], matrix, left_out)


def counts_of(dataset: Dataset) -> dict[str, int]:
    """How many samples each split has."""
    return {name: len(getattr(dataset, name)) for name in ("train", "val", "test")}


def resolve_train_figures(arithmetic: tuple[Step, ...], train_x: Rows) -> tuple[Step, ...]:
    """Replace "train" in `normalize` by mean and standard deviation of the train split, per value of the last axis."""
    resolved: list[Step] = []
    for step in arithmetic:
        if isinstance(step, Normalize) and "train" in (step.mean, step.std):
            mean, std = figures(apply_arithmetic(tuple(resolved), piece) for piece in blocks(train_x))
            # A feature that never changes carries nothing: divide it by one, not by zero.
            std = np.where(std > 1e-12, std, 1.0)
            step = replace(
                step,
                mean=tuple(float(v) for v in mean) if step.mean == "train" else step.mean,
                std=tuple(float(v) for v in std) if step.std == "train" else step.std,
            )
        resolved.append(step)
    return tuple(resolved)


def blocks(x: Rows) -> Iterator[Array]:
    """All rows: an array as it is, rows on the disk in pieces: their figures differ in the last bits only."""
    return pieces(x) if isinstance(x, DiskRows) else iter((x[:],))


def figures(blocks: Iterable[Array]) -> tuple[Array, Array]:
    """Mean and standard deviation, each (D,) float64, of blocks (n, ..., D) over all axes but the last.

    Blocks are joined as Chan, Golub and LeVeque do it ("Updating formulae and a pairwise algorithm for computing
    sample variances", 1979).
    """
    count, mean, variance = 0, np.zeros(()), np.zeros(())
    for block in blocks:
        x = block.astype(np.float64)
        axes = tuple(range(x.ndim - 1))
        new, new_mean, new_std = x.size // x.shape[-1], x.mean(axis=axes), x.std(axis=axes)
        if not count:
            count, mean, variance = new, new_mean, new_std**2
            continue
        share = new / (count + new)
        apart = new_mean - mean
        variance = variance + share * (new_std**2 - variance + (1 - share) * apart**2)
        mean, count = mean + share * apart, count + new
    return mean, np.sqrt(variance)


def target_figures(dataset: Dataset) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each target on the train split; 1 for a target that never changes."""
    y = dataset.train.y.astype(np.float64)
    std = y.std(axis=0)
    return y.mean(axis=0).tolist(), np.where(std > 1e-12, std, 1.0).tolist()


def learned_targets(dataset: Dataset, post: tuple[PostStep, ...]) -> Dataset:
    """The data set with the targets that the graph must give so that `post` makes the user's of them."""

    def changed(split: Split) -> Split:
        return replace(split, y=without_units(post, split.y))

    return replace(dataset, train=changed(dataset.train), val=changed(dataset.val), test=changed(dataset.test))


def work_on_data(space: Workspace) -> tuple[dict[str, Any], str]:
    """The stage `data`: everything that later stages depend on, by content."""
    prepared = space.prepared
    dataset = prepared.dataset
    counts, step = counts_of(dataset), tokenize_step(prepared.steps)
    cut = 0 if step is None else texts.num_cut(dataset.train.x, vocabulary_of(step).pad)
    result = {
        "name": dataset.name,
        "sha256": dataset.sha256,
        "labels": list(dataset.labels),
        "counts": counts,
        "left_out": prepared.left_out,
        **({} if step is None else {"cut": cut}),
        "steps": steps_to_json(prepared.steps),
        "target_units": post_steps_to_json(step for step in prepared.post if isinstance(step, Denormalize)),
        "input_shape": list(prepared.input_shape),
    }
    told = f"{dataset.name}: {counts['train']} train, {counts['val']} validation, {counts['test']} test"
    if prepared.left_out:
        told += f"; {prepared.left_out} left out, for they hold no token that could be guessed"
    if step is not None and cut > MOST_CUT * counts["train"]:
        share = 100 * cut / counts["train"]
        told += f"; {share:.0f} % of the texts have {step.max_length} tokens or more: cut; raise max_length"
    return result, told
