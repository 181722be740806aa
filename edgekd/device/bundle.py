"""The bundle: a folder (or zip) that holds everything that a program needs to run a model and to prove itself.

    bundle.json            what it is: inputs, outputs, preprocessing, labels, variants, hashes, licences
    graphs/VARIANT.onnx    one graph per variant (VARIANT.ROLE.onnx for roles other than "main")
    tokenizer.json         of a model of texts, what its preprocessing names; config.json and tokenizer_config.json
                           beside it are for Hugging Face's tools
    golden.npz             inputs with the outputs that every variant must give
    samples.npz            labelled samples, only where the maker wanted them inside

A bundle comes from somebody else: see archive.py for what is refused. Every byte that is read was hashed first.
"""

from __future__ import annotations

import copy
import fnmatch
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd.device.archive import (
    Reader,
    arrays_from_bytes,
    arrays_to_bytes,
    fsync_folder,
    is_zip,
    open_reader,
    write_zip,
)
from edgekd.device.machine import cpu_kind as this_cpu_kind
from edgekd.device.manifest import MANIFEST, MAX_MANIFEST_BYTES, VERSION, check_manifest, parse_manifest
from edgekd.device.tokens import with_tokenizers
from edgekd.errors import BundleError, ModelError, UsageError, explain_os_errors, nearest
from edgekd.files import canonical_json, sha256_bytes, write_atomically
from edgekd.spec import Array, Step, parse_steps
from edgekd.version import __version__

GOLDEN = "golden.npz"
SAMPLES = "samples.npz"
FLOAT = "float32"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its place and its checked manifest. Files are read, and hashed, when they are asked for."""

    path: Path
    manifest: dict[str, Any]
    reader: Reader

    @classmethod
    def open(cls, path: str | Path) -> Bundle:
        """Open the folder or zip at `path`: checks the manifest, and that each file is there in its size.

        Raises `BundleError` for a bundle that is missing, damaged, harmful or from a newer version.
        """
        place = Path(path)
        reader = open_reader(place)
        manifest = parse_manifest(reader.read(MANIFEST, limit=MAX_MANIFEST_BYTES))
        for name, record in manifest["files"].items():
            size = reader.size(name)
            if size is None:
                raise BundleError(f"{name} is missing in {place}; get a fresh copy of the bundle")
            if size != record["size_bytes"]:
                raise BundleError(
                    f"{name} in {place} has {size} bytes, expected {record['size_bytes']}; "
                    "get a fresh copy of the bundle"
                )
        return cls(place, manifest, reader)

    @classmethod
    def write(
        cls,
        path: str | Path,
        manifest: Mapping[str, Any],
        graphs: Mapping[str, Mapping[str, bytes | Path]],
        golden: Mapping[str, Array],
        samples: Mapping[str, Array] | None = None,
        *,
        files: Mapping[str, bytes] | None = None,
        as_zip: bool = False,
    ) -> Bundle:
        """Write a bundle atomically and open it: the same arguments give the same bytes.

        manifest  the fields of bundle.json; `version`, `edgekd_version`, `id`, `files`, `golden`, `samples` and
                  each variant's `graphs` and `size_bytes` are filled in (golden.synthetic is kept)
        graphs    {variant: {role: the graph's bytes or path}}, for exactly the manifest's variants
        golden    "raw" (N, ...) before the arithmetic steps, "input.NAME", "output.VARIANT.NAME"
        samples   "x" (before the arithmetic steps) and "y"
        files     further ones by name: the tokenizer that the preprocessing names, and what others look for there

        An older bundle at the place is replaced. Raises `BundleError` for a manifest that could not be opened
        again, `ModelError` for a graph that cannot be read, `UsageError` when something else lies at the place,
        `StorageError` for a full or read-only disk.
        """
        target = Path(path)
        _check_place(target, as_zip)
        contents = _contents(manifest, graphs, golden, samples, files or {})
        if as_zip:
            write_atomically(target, lambda temporary: write_zip(temporary, contents))
        else:
            _write_folder(target, contents)
        return cls.open(target)

    @property
    def variants(self) -> tuple[str, ...]:
        """The names of the variants, in the manifest's order."""
        return tuple(self.manifest["variants"])

    def default_variant(self, cpu_kind: str | None = None) -> str:
        """The variant that the bundle names for a kind of CPU (default: this machine's).

        The exact kind wins, then the longest pattern that fits ("x86_64*"), "*" last; a bundle that names none
        gives float32, or else its first variant.
        """
        kind = this_cpu_kind() if cpu_kind is None else cpu_kind
        default: dict[str, str] = self.manifest.get("default", {})
        if kind in default:
            return default[kind]
        fitting = [pattern for pattern in default if fnmatch.fnmatchcase(kind, pattern)]
        if fitting:
            return default[max(fitting, key=len)]
        return FLOAT if FLOAT in self.variants else self.variants[0]

    def graph(self, role: str = "main", variant: str | None = None) -> bytes:
        """The bytes of a graph (default: the default variant's). Raises `UsageError` for an unknown name."""
        name = self.default_variant() if variant is None else variant
        if name not in self.manifest["variants"]:
            raise UsageError(f"{self.path} has no variant '{name}'. {nearest(name, self.variants)}")
        graphs: dict[str, str] = self.manifest["variants"][name]["graphs"]
        if role not in graphs:
            raise UsageError(f"variant '{name}' of {self.path} has no graph '{role}'. {nearest(role, graphs)}")
        return self._read(graphs[role])

    def steps(self) -> tuple[Step, ...]:
        """The preprocessing, with the tokenizer that it names read."""
        return with_tokenizers(parse_steps(self.manifest["preprocess"]), self._read)

    def files(self) -> dict[str, bytes]:
        """What lies beside the graphs and the arrays, by name: the tokenizer, Hugging Face's own files."""
        manifest = self.manifest
        known = {path for variant in manifest["variants"].values() for path in variant["graphs"].values()}
        known |= {manifest[key]["file"] for key in ("golden", "samples") if manifest.get(key)}
        return {name: self._read(name) for name in manifest["files"] if name not in known}

    def golden(self) -> dict[str, Array]:
        """The golden arrays: "raw", "input.NAME", "output.VARIANT.NAME" (see `write`)."""
        golden = self.manifest["golden"]
        arrays = arrays_from_bytes(self._read(golden["file"]), golden["file"])
        wanted = [f"input.{name}" for name in golden["inputs"]]
        wanted += [f"output.{variant}.{name}" for variant, names in golden["outputs"].items() for name in names]
        for key in wanted:
            if key not in arrays:
                raise BundleError(
                    f"{golden['file']} lacks '{key}', which {MANIFEST} names; get a fresh copy of the bundle"
                )
        return arrays

    def samples(self) -> tuple[Array, Array] | None:
        """The labelled samples (x, y), x before the arithmetic steps; None where the bundle carries none."""
        samples = self.manifest.get("samples")
        if samples is None:
            return None
        arrays = arrays_from_bytes(self._read(samples["file"]), samples["file"])
        if "x" not in arrays or "y" not in arrays or not _equally_long([arrays["x"], arrays["y"]]):
            raise BundleError(
                f"{samples['file']} holds {', '.join(arrays) or 'nothing'}, expected x and y of one length"
            )
        return arrays["x"], arrays["y"]

    def verify_files(self) -> None:
        """Read and hash every file of the bundle. Raises `BundleError` that names the first changed one."""
        for name in self.manifest["files"]:
            self._read(name)

    def _read(self, name: str) -> bytes:
        record = self.manifest["files"][name]
        data = self.reader.read(name, limit=record["size_bytes"])
        found = sha256_bytes(data)
        if found != record["sha256"]:
            raise BundleError(
                f"{name} in {self.path} was changed after the bundle was written: sha256 {found[:12]}..., expected "
                f"{record['sha256'][:12]}...; do not use it, get a fresh copy of the bundle"
            )
        return data


def looks_like_bundle(path: str | Path) -> bool:
    """Whether there is a folder or a zip at `path` (a model file is neither)."""
    return Path(path).is_dir() or is_zip(Path(path))


def _contents(
    manifest: Mapping[str, Any],
    graphs: Mapping[str, Mapping[str, bytes | Path]],
    golden: Mapping[str, Array],
    samples: Mapping[str, Array] | None,
    files: Mapping[str, bytes],
) -> dict[str, bytes]:
    """The files of a bundle, bundle.json first."""
    full = copy.deepcopy(dict(manifest))
    described = full.get("variants")
    if not isinstance(described, dict) or set(described) != set(graphs):
        raise BundleError(
            f"the manifest describes the variants {sorted(described or [])} but there are graphs for "
            f"{sorted(graphs)}; expected the same names"
        )
    contents: dict[str, bytes] = dict(files)
    for variant, roles in graphs.items():
        described[variant]["graphs"] = {}
        for role, graph in roles.items():
            name = f"graphs/{variant}.onnx" if role == "main" else f"graphs/{variant}.{role}.onnx"
            contents[name] = graph if isinstance(graph, bytes) else _read_graph(graph)
            described[variant]["graphs"][role] = name
        described[variant]["size_bytes"] = sum(len(contents[name]) for name in described[variant]["graphs"].values())
    contents[GOLDEN] = arrays_to_bytes(golden)
    full["golden"] = _describe_golden(golden, full.get("golden"), tuple(graphs))
    full["samples"] = None
    if samples is not None:
        if set(samples) != {"x", "y"} or not _equally_long(list(samples.values())):
            raise BundleError(f"samples hold {sorted(samples)}, expected x and y of one length")
        contents[SAMPLES] = arrays_to_bytes(samples)
        full["samples"] = {"file": SAMPLES, "count": len(samples["x"])}
    full["version"] = VERSION
    full.setdefault("edgekd_version", __version__)
    full["files"] = {
        name: {"sha256": sha256_bytes(data), "size_bytes": len(data)} for name, data in sorted(contents.items())
    }
    try:
        # Without the time stamp, so that the same content built twice has the same name.
        content = {key: value for key, value in full.items() if key not in ("id", "created")}
        full["id"] = sha256_bytes(canonical_json(content).encode())[:16]
    except (TypeError, ValueError) as error:
        raise BundleError(f"the manifest cannot be written as JSON ({error}); use plain finite values") from error
    check_manifest(full)
    ordered = {"version": VERSION, "id": full["id"], **full}
    text = (json.dumps(ordered, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    if len(text) > MAX_MANIFEST_BYTES:
        raise BundleError(f"the manifest has {len(text)} bytes, expected at most {MAX_MANIFEST_BYTES}; shorten it")
    return {MANIFEST: text, **dict(sorted(contents.items()))}


def _read_graph(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"cannot read the graph {path}: {error.strerror}; check the path") from error


def _describe_golden(golden: Mapping[str, Array], given: object, variants: tuple[str, ...]) -> dict[str, Any]:
    outputs = {
        variant: sorted(
            key.removeprefix(f"output.{variant}.") for key in golden if key.startswith(f"output.{variant}.")
        )
        for variant in variants
    }
    known = {"raw", *(f"output.{variant}.{name}" for variant, names in outputs.items() for name in names)}
    inputs = sorted(key.removeprefix("input.") for key in golden if key.startswith("input."))
    for key in golden:
        if key not in known and not key.startswith("input."):
            raise BundleError(
                f"golden holds '{key}', expected raw, input.NAME or output.VARIANT.NAME with a variant of "
                f"{', '.join(variants)}"
            )
    if not golden or not _equally_long(list(golden.values())):
        raise BundleError("golden holds no arrays, or arrays of different lengths; expected the same N in each")
    synthetic = given.get("synthetic", True) if isinstance(given, Mapping) else True
    return {"file": GOLDEN, "inputs": inputs, "outputs": outputs, "synthetic": synthetic}


def _equally_long(arrays: list[Array]) -> bool:
    return all(array.ndim > 0 for array in arrays) and len({len(array) for array in arrays}) == 1


def _check_place(target: Path, as_zip: bool) -> None:
    """Refuse to replace what is no bundle: a wrong --out must not delete somebody's folder."""
    if not target.exists():
        return
    if as_zip:
        harmless = target.is_file() and is_zip(target) and open_reader(target).size(MANIFEST) is not None
    else:
        harmless = target.is_dir() and ((target / MANIFEST).is_file() or not any(target.iterdir()))
    if not harmless:
        raise UsageError(f"{target} exists and is no bundle, so it is not replaced; choose another place")


def _write_folder(target: Path, contents: Mapping[str, bytes]) -> None:
    with explain_os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".tmp-", dir=target.parent))
        try:
            new, old = work / "new", work / "old"
            new.mkdir(mode=0o755)
            for name, data in contents.items():
                place = new / name
                place.parent.mkdir(exist_ok=True)
                with place.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            if target.exists():
                target.rename(old)
            try:
                new.rename(target)
            except OSError:
                if old.exists():
                    old.rename(target)
                raise
            fsync_folder(target.parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)
