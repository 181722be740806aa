"""What `benchmark` measures, from what was typed: candidates times runtimes times threads times batch sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgekd.data.npz import read_npz
from edgekd.device.bundle import FLOAT, Bundle, looks_like_bundle
from edgekd.device.candidates import Candidate, Samples
from edgekd.device.preprocess import split_steps
from edgekd.device.runtimes import READS, RUNTIMES, readers
from edgekd.device.suites import Suite
from edgekd.errors import InputRefused, UsageError, nearest
from edgekd.spec import Step, Task, parse_steps

BUNDLE_GRAPH = ".onnx"
_MODELS = {suffix for suffixes in READS.values() for suffix in suffixes}


@dataclass(frozen=True)
class Axes:
    """What each candidate is measured with. No runtimes: each file with the usual one of its kind."""

    runtimes: tuple[str, ...] = ()
    threads: tuple[int, ...] = (1,)
    batches: tuple[int, ...] = (1,)


def choose_axes(
    suite: Suite,
    names: Sequence[str],
    *,
    runtime: str | None,
    threads: str | None,
    batch: str | None,
    cores: int,
    missing: Callable[[str], str | None],
) -> tuple[Axes, list[str]]:
    """The axes of the options, else of the suite; and what was left out of the suite's, with the reason.

    What was typed must be there; of what a suite names, runtimes that are `missing` here or open none of the candidates
    `names`, and threads beyond the cores, are left out. Raises `UsageError` for options that are none.
    """
    left_out: list[str] = []
    if runtime is not None:
        runtimes = tuple(check_runtime(item.strip()) for item in runtime.split(","))
    else:
        able = {runtime for name in names for runtime in _readers(split_name(name)[0])}
        reasons = {
            name: missing(check_runtime(name)) if name in able else "none of the candidates is a file that it opens"
            for name in suite.runtimes
        }
        left_out += [f"{name}: {reason}" for name, reason in reasons.items() if reason is not None]
        runtimes = tuple(name for name, reason in reasons.items() if reason is None)
    if threads is not None:
        counts = whole_numbers(threads, option="--threads")
    else:
        counts = tuple(count for count in suite.threads if count <= cores) or (1,)
        left_out += [
            f"{count} threads: this process may use {cores} core{'s' if cores > 1 else ''}"
            for count in suite.threads
            if count > cores
        ]
    batches = whole_numbers(batch, option="--batch") if batch is not None else suite.batches or (1,)
    return Axes(tuple(dict.fromkeys(runtimes)), counts, batches), left_out


def expand(
    names: Sequence[str], axes: Axes, *, same_as: str | None = None, against: str | None = None
) -> list[Candidate]:
    """Candidates times runtimes times threads times batches; a bundle without a variant gives all of its variants.

    A plain file gets the bundle's preprocessing, so that all see the same samples, and with `same_as` (BUNDLE or
    BUNDLE:VARIANT) must give its golden outputs, unless it is the reference `against`. Each file is measured with those
    of the runtimes that open it, and with the usual one of its kind where none of them does.
    """
    origin = None if same_as is None else find_origin(same_as)
    found: list[tuple[Candidate, tuple[str, ...]]] = []
    shared: tuple[Step, ...] = ()
    for name in names:
        path, variant = split_name(name)
        # By the file's name, unless another candidate's file is called alike: two runs' bundles are.
        alike = {str(other) for other, _ in map(split_name, names) if other.name == path.name}
        title = path.name if len(alike) == 1 else str(path)
        if not path.exists():
            raise InputRefused(
                f"{path} is not there; expected a bundle (folder or zip) or a model ({', '.join(sorted(_MODELS))})"
            )
        if _is_model(path):
            own = None if name == against else origin
            found.append((Candidate(title, str(path), same_as=own), _readers(path)))
            continue
        bundle = Bundle.open(path)
        steps = split_steps(parse_steps(bundle.manifest["preprocess"]))[1]
        shared = shared or steps
        for item in [variant] if variant else bundle.variants:
            check_variant(bundle, item)
            candidate = Candidate(f"{title}:{item}", str(path), variant=item, preprocess=steps)
            found.append((candidate, _readers(path)))
    for runtime in axes.runtimes:
        if not any(runtime in able for _, able in found):
            raise UsageError(
                f"--runtime {runtime}: none of the candidates is a file that it opens; for {', '.join(names)} take "
                f"{', '.join(dict.fromkeys(name for _, able in found for name in able))}"
            )
    return [
        replace(
            item,
            id=" ".join([item.id, *labels(axes, runtime, threads, batch)]),
            runtime=runtime,
            threads=threads,
            batch=batch,
            preprocess=item.preprocess or shared,
        )
        for item, able in found
        for runtime in [name for name in axes.runtimes if name in able] or able[:1]
        for threads in axes.threads
        for batch in axes.batches
    ]


def _is_model(path: Path) -> bool:
    return path.suffix in _MODELS and not looks_like_bundle(path)


def _readers(path: Path) -> tuple[str, ...]:
    """The runtimes that open a plain model, or a bundle's graphs."""
    return readers(path.suffix if _is_model(path) else BUNDLE_GRAPH)


def labels(axes: Axes, runtime: str, threads: int, batch: int) -> list[str]:
    """What tells a candidate from its twins: only what varies."""
    said = [runtime] if len(axes.runtimes) > 1 else []
    said += [f"t{threads}"] if len(axes.threads) > 1 else []
    return said + ([f"b{batch}"] if len(axes.batches) > 1 else [])


def split_name(name: str) -> tuple[Path, str]:
    """The path and, behind a colon, the variant of a candidate as it was typed."""
    path, _, variant = (name, "", "") if Path(name).exists() else name.partition(":")
    return Path(path), variant


def find_reference(candidates: Sequence[Candidate], name: str) -> str:
    """The id of the first candidate that `name` stands for: a bundle's first variant, unless one is named."""
    path, variant = split_name(name)
    return next(item.id for item in candidates if item.model == str(path) and (not variant or item.variant == variant))


def find_origin(name: str) -> tuple[str, str]:
    """The bundle and the variant of `--same-as`; float32, where it names none and has that."""
    path, variant = split_name(name)
    bundle = Bundle.open(path)
    variant = variant or (FLOAT if FLOAT in bundle.variants else bundle.variants[0])
    check_variant(bundle, variant)
    return str(path), variant


def check_variant(bundle: Bundle, name: str) -> None:
    """Raise `UsageError` with the nearest name when the bundle has no such variant."""
    if name not in bundle.variants:
        raise UsageError(f"{bundle.path} has no variant '{name}'. {nearest(name, bundle.variants)}")


def check_runtime(name: str) -> str:
    """The name itself. Raises `UsageError` with the nearest one where there is no such runtime."""
    if name not in RUNTIMES:
        raise UsageError(f"--runtime {name}: there is no such runtime. {nearest(name, RUNTIMES)}")
    return name


def read_samples(path: Path, candidates: Sequence[str]) -> Samples:
    """x and y of an npz, with the task of the first bundle among the candidates."""
    arrays = read_npz(path)
    if not {"x", "y"} <= set(arrays):
        raise InputRefused(f"{path} holds {', '.join(sorted(arrays))}; expected the arrays x and y")
    bundles = [place for place, _ in map(split_name, candidates) if looks_like_bundle(place)]
    if not bundles:
        return Samples(arrays["x"], arrays["y"], "classification")
    manifest = Bundle.open(bundles[0]).manifest
    task: Task = manifest["task"]
    return Samples(arrays["x"], arrays["y"], task, tuple(manifest["labels"]))


def whole_numbers(text: str, *, option: str) -> tuple[int, ...]:
    """Different positive whole numbers from an option."""
    for item in text.split(","):
        if not item.strip().isdecimal() or int(item) < 1:
            raise UsageError(f"{option}: found '{item}', expected whole numbers from 1 with commas between")
    return tuple(dict.fromkeys(int(item) for item in text.split(",")))
