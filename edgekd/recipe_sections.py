"""The tables of a recipe: their keys, what each may hold, and what it is without them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag

from edgekd.spec import Limits


def as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _texts(value: object) -> object:
    return (value,) if isinstance(value, str) else as_tuple(value)


def _kind(value: object) -> str:
    return "(list)" if isinstance(value, (list, tuple)) else "(text)"


Texts = Annotated[tuple[str, ...], BeforeValidator(_texts)]
Steps = Annotated[tuple[dict[str, Any], ...], BeforeValidator(as_tuple)]
# One text is one tap; a list, even of one, is a list of them.
TapNames = Annotated[
    Annotated[str, Tag("(text)")] | Annotated[tuple[str, ...], BeforeValidator(as_tuple), Tag("(list)")],
    Discriminator(_kind),
]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
Share = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]


class Section(BaseModel):
    """What all tables share: unknown keys are refused, nothing changes after loading, nothing is guessed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DataSection(Section):
    """`[data]`: where the samples come from and how they are split.

    `wrong_labels` and `labelled` are shares of the training labels, for the students (edgekd.stages.lesson).
    """

    kind: str
    root: str | None = None
    labels: Texts = ()
    target: Texts = ()
    text: str | None = None
    val_fraction: Share = 0.2
    test_fraction: Share = 0.2
    limit: Annotated[int, Field(ge=1)] | None = None
    licence: str | None = None
    augment: dict[str, Any] = {}
    views: Annotated[int, Field(ge=1)] | None = None
    wrong_labels: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.0
    labelled: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 1.0


class TransferSection(Section):
    """`[transfer]`: samples without labels that the student learns from in place of the data's, or beside them.

    Any data kind, of which the training split is taken, or "synthetic" (edgekd.data.synthetic) with its `source`.
    """

    kind: str
    root: str | None = None
    target: Texts = ()
    source: str = "mixed"
    limit: Annotated[int, Field(ge=1)] | None = None
    with_train: bool = False


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
    accumulate: Annotated[int, Field(ge=1)] = 1
    sync_batch_norm: bool = False


class RequestSection(Section):
    """`[teacher.request]`: how a teacher at a `url` is asked. `headers` name environment variables, never secrets.

    `concurrency` requests are on their way at a time, `per_s` begin per second.
    """

    batch_size: Annotated[int, Field(ge=1)] = 32
    timeout_s: Positive = 60.0
    retries: Annotated[int, Field(ge=0)] = 5
    per_s: Positive | None = None
    concurrency: Annotated[int, Field(ge=1, le=64)] = 1
    encoding: Literal["json", "npy"] = "json"
    headers: dict[str, str] = {}
    insecure: bool = False


class TeacherSection(Section):
    """`[teacher]`: a model by reference (with `weights`, a file or hf:ID, else trained here), or a black box.

    Black boxes: an `onnx` file, answers in a file (`logits`), an HTTP endpoint (`url`). Beside further `[[teachers]]`
    each counts by its `weight`, and only for samples of its own `labels`, where it names some; its outputs are for all
    classes of the data, in their order, or for these labels alone, in this order.
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
    weight: Positive = 1.0
    labels: Texts = ()

    @property
    def is_finished(self) -> bool:
        """Whether it comes trained, from somewhere else."""
        return self.model is None or self.weights is not None

    @property
    def has_graph(self) -> bool:
        """Whether it can be run as an ONNX file; of the others only answers are known."""
        return self.model is not None or self.onnx is not None


class LowRankSection(Section):
    """`[student.low_rank]`: linear layers as two thin ones; either so many singular values, or this share of energy."""

    rank: Annotated[int, Field(ge=1)] | None = None
    energy: Share | None = None


class InitSection(Section):
    """`[student.init]`: an hf: student made from its teacher (edgekd.distill.models.from_teacher).

    `of` says from which weights: those in the folder ("pretrained"), or those of this run's teacher ("trained"). The
    student alone begins with the folder's in any case.
    """

    layers: str | Annotated[tuple[int, ...], BeforeValidator(as_tuple)] | None = None
    hidden_size: Annotated[int, Field(ge=1)] | None = None
    intermediate_size: Annotated[int, Field(ge=1)] | None = None
    attention_heads: Annotated[int, Field(ge=1)] | None = None
    by: Literal["truncate", "svd"] = "truncate"
    pooler: Literal["keep", "drop"] = "keep"
    of: Literal["pretrained", "trained"] = "pretrained"


class StudentSection(Section):
    """`[student]`: a model by reference; `weights` are those that its training starts from.

    With `init` it takes over layers of its teacher. With `prune` (the share of channels that goes) or `low_rank` it is
    trained whole, cut, and trained again.
    """

    model: str
    args: dict[str, Any] = {}
    weights: str | None = None
    licence: str | None = None
    init: InitSection | None = None
    prune: Share | None = None
    prune_by: Literal["l1", "batch_norm", "taylor"] = "l1"
    low_rank: LowRankSection | None = None


class EmbeddingSection(Section):
    """`[embedding]`: how an hf: teacher makes a vector of a text, and how long it is.

    Fewer `dimensions` than the teacher's are its first principal components, by the training texts. Without `pooling`
    the vector is what the teacher's 1_Pooling/config.json says (sentence-transformers), or else the mean.
    """

    dimensions: Annotated[int, Field(ge=2)] | None = None
    pooling: Literal["mean", "first"] | None = None


class MaskedLmSection(Section):
    """`[masked_lm]`: the share of each text's tokens that is hidden and asked for."""

    probability: Share = 0.15


class AssistantSection(Section):
    """`[[assistant]]`: a model between teacher and student: it learns from the one before it, as the student does.

    `epochs` are its own; else those of the student. The student's own model again: a generation (born-again networks).
    """

    model: str
    args: dict[str, Any] = {}
    epochs: Annotated[int, Field(ge=1)] | None = None


class ScheduleSection(Section):
    """A number that goes from `start` to `end` in the part `until` of the training (of the stage, in stages)."""

    start: Finite
    end: Finite
    shape: Literal["constant", "linear", "cosine"] = "linear"
    until: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0


class TermSection(Section):
    """`[[distill.terms]]`: one weighted loss; `options` are the loss function's own keywords.

    A tap is "logits", the path of a module (`edgekd taps MODEL` lists them), or a list of those. A weight, and an
    option that is a number, may be a table {start, end, shape, until}. `compares_samples = true` says of your own loss
    that it is no mean over samples: on several processes it then gets the whole batch.
    """

    name: str = ""
    loss: str
    weight: Annotated[
        Annotated[NotNegative, Tag("(number)")] | Annotated[ScheduleSection, Tag("(table)")],
        Discriminator(lambda value: "(table)" if isinstance(value, (dict, ScheduleSection)) else "(number)"),
    ] = 1.0
    student_tap: TapNames = "logits"
    teacher_tap: TapNames = "logits"
    adapter: str | None = None
    options: dict[str, Any] = {}
    adapter_options: dict[str, Any] = {}
    compares_samples: bool | None = None


class StageSection(Section):
    """`[[distill.stages]]`: a part of the training with some of the terms, by name; `lr` is its own."""

    name: str
    epochs: Annotated[int, Field(ge=1)]
    terms: Texts
    lr: Positive | None = None


class DistillSection(Section):
    """`[distill]`: the student's budget, and what it minimizes. With stages, `epochs` is their sum.

    `ensemble` says what is averaged over several teachers: their logits, or their probabilities at the temperature of
    the terms.
    `compile` sends the students through torch.compile, which needs a C++ compiler and takes half a minute to begin.
    """

    epochs: Annotated[int, Field(ge=1)] = 20
    batch_size: Annotated[int, Field(ge=1)] = 128
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: Positive = 1e-3
    weight_decay: NotNegative = 0.01
    schedule: Literal["cosine", "linear", "constant", "onecycle"] = "cosine"
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    compile: bool = False
    ema: Share | None = None
    patience: Annotated[int, Field(ge=1)] | None = None
    keep: Literal["best", "last"] = "best"
    clip_norm: Positive | None = None
    accumulate: Annotated[int, Field(ge=1)] = 1
    sync_batch_norm: bool = False
    trackers: Texts = ()
    mixup: NotNegative = 0.0
    cutmix: NotNegative = 0.0
    baseline: bool = True
    cache: bool = False
    cache_top_k: Annotated[int, Field(ge=1)] | None = None
    cache_dtype: Literal["float32", "float16"] = "float32"
    ensemble: Literal["logits", "probabilities"] = "logits"
    terms: Annotated[tuple[TermSection, ...], BeforeValidator(as_tuple)] = ()
    stages: Annotated[tuple[StageSection, ...], BeforeValidator(as_tuple)] = ()


class RejectSection(Section):
    """`[export] reject`: the class that is the answer where no other is likely enough (edgekd.device.rejection).

    Of the validation samples of other classes the share `keep` is still answered with one of these.
    """

    label: str
    keep: Share = 0.95


class ExportSection(Section):
    """`[export]`: which runtimes can read the graph, and how much of the way from a sample to an answer lies in it.

    `formats` are made of the shipped variants beside ONNX (edgekd.graph.formats).
    """

    opset: Annotated[int, Field(ge=18, le=24)] = 18
    ir_version: Annotated[int, Field(ge=8, le=13)] = 8
    preprocess_in_graph: bool = False
    postprocess_in_graph: bool = False
    reject: RejectSection | None = None
    formats: Texts = ()


class QatSection(Section):
    """`[quantize.qat]`: budget and scheme of the variants int8_qat and int4_qat, which are trained with the teacher."""

    epochs: Annotated[int, Field(ge=1)] = 5
    batch_size: Annotated[int, Field(ge=1)] = 128
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: Positive = 1e-3
    weight_decay: NotNegative = 0.0
    schedule: Literal["cosine", "linear", "constant", "onecycle"] = "cosine"
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    activation: Literal["uint8", "int8"] = "uint8"
    weight: Literal["int8", "uint8"] = "int8"
    per_channel: bool = True


class QuantizeSection(Section):
    """`[quantize]`: variants to make (none named: those of the target) and the samples to calibrate them with."""

    variants: Texts = ()
    calibration_samples: Annotated[int, Field(ge=1)] = 256
    calibration: Literal["minmax", "entropy", "percentile", "mse"] = "minmax"
    qat: QatSection = QatSection()


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
