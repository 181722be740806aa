"""A bundle inside a small app: the files of export/apps/NAME, the student, its licences, and a self-test.

An app is one folder and one row in `APPS`. Its files are copied as they are; in README.md `@name@` and the like are
filled in. Where more is needed than a copy (code that is made from the model), the row names a function.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekd import assets
from edgekd.device.bundle import Bundle
from edgekd.device.manifest import MANIFEST, MAX_MANIFEST_BYTES, SIGNATURE
from edgekd.device.signing import SIGNATURE_BYTES, is_signed
from edgekd.device.tokens import tokenize_step
from edgekd.errors import UsageError, nearest
from edgekd.files import write_bytes
from edgekd.spec import parse_steps

STUDENT = "student.edgekd"
NOTICE = "NOTICE.md"


@dataclass(frozen=True)
class App:
    """A kind of app.

    title     what a list shows
    glue      the files and folders that one's own app needs, without the example around them
    skipped   files of the folder that are material, not part of the app
    shared    a folder of the app, and the folder of export/apps whose files several apps have in it
    bundle    where the bundle itself lies in the app; empty: it is not in it
    generate  "module:function" of (bundle, variant) that gives more files and more words for README.md
    package   the npm package whose files may go into the app; `generate` then takes its folder as well
    extra     of edgekd, that making the app needs
    run       the command that proves the app
    texts     whether it reads texts too
    """

    title: str
    glue: tuple[str, ...]
    run: str
    skipped: tuple[str, ...] = ()
    shared: tuple[str, str] | None = None
    bundle: str = STUDENT
    generate: str | None = None
    package: str | None = None
    extra: str | None = None
    texts: bool = True


APPS: dict[str, App] = {
    "python": App("Python: one file, numpy and onnxruntime", ("student.py",), "python student.py --self-test"),
    "c": App(
        "C99 for microcontrollers: no heap, no library",
        ("student.c", "student.h"),
        "make test",
        skipped=("kernels.c", "student.h.in"),
        bundle="",
        generate="edgekd.stages.embedding_c:generate",
        extra="graph",
        texts=False,
    ),
    "web": App(
        "Web: a page that can be installed and works offline, on onnxruntime-web",
        ("web.js", "web.d.ts", "student", "ort"),
        "python -m http.server 8000    # then open http://localhost:8000/?self-test",
        skipped=("tsconfig.json", "app.d.ts", "sources.d.ts", "sw.d.ts"),
        shared=("student", "javascript"),
        generate="edgekd.stages.embedding_web:generate",
        package="onnxruntime-web",
    ),
    "node": App(
        "Node: an npm package on onnxruntime-node",
        ("index.js", "index.d.ts", "student"),
        "npm install --ignore-scripts && node cli.js --self-test",
        skipped=("tsconfig.json",),
        shared=("student", "javascript"),
    ),
    "cpp": App(
        "C++17: one header on onnxruntime or OpenVINO, a CMake project",
        ("edgekd.hpp",),
        "cmake -B build && cmake --build build && ctest --test-dir build",
        skipped=("fuzz.cpp",),
    ),
    "android": App(
        "Android: a library module in Java on onnxruntime-android",
        ("java",),
        "make test",
        bundle=f"assets/{STUDENT}",
    ),
}


@dataclass(frozen=True)
class Generated:
    """Files by their path in the app, words for README.md, figures and notes to show, rows for the licences."""

    files: Mapping[str, bytes]
    words: Mapping[str, str]
    figures: Mapping[str, int]
    notes: tuple[str, ...] = ()
    licences: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class Embedded:
    """What was written: paths within `out`, the command that proves it, figures (bytes), what is still to be done."""

    out: Path
    files: tuple[str, ...]
    run: str
    figures: Mapping[str, int]
    notes: tuple[str, ...] = ()


def embed(
    bundle: Bundle,
    app: str,
    out: Path,
    *,
    variant: str | None = None,
    runtime: Path | None = None,
    only_glue: bool = False,
    force: bool = False,
) -> Embedded:
    """Write `app` with the student of `bundle` into the folder `out`.

    variant    which of the bundle's variants (default: that of this CPU; for C the first that is all integers)
    runtime    the folder of the npm package whose files go into the app (web; default: that in node_modules)
    only_glue  only the files that one's own app needs
    force      replace files that are there and differ

    Raises `UsageError` for an unknown app or variant, and when a file would be replaced; `BundleError` for a damaged
    bundle; `ModelError` where the model cannot become such an app.
    """
    if app not in APPS:
        raise UsageError(f"no app is called '{app}'. {nearest(app, APPS)}")
    if variant is not None and variant not in bundle.variants:
        raise UsageError(f"{bundle.path} has no variant '{variant}'. {nearest(variant, bundle.variants)}")
    kind = APPS[app]
    if runtime is not None and kind.package is None:
        raise UsageError(f"the {app} app takes no files of an npm package; leave {runtime} out")
    if not kind.texts and tokenize_step(parse_steps(bundle.manifest["preprocess"])) is not None:
        able = ", ".join(name for name, other in APPS.items() if other.texts)
        raise UsageError(
            f"the {app} app reads no texts, and this student does: it has no tokenizer; take one of {able}"
        )
    bundle.verify_files()
    made = Generated({}, {}, {})
    if kind.generate is not None:
        module, name = kind.generate.split(":")
        generate: Callable[..., Generated] = getattr(importlib.import_module(module), name)
        made = generate(bundle, variant) if kind.package is None else generate(bundle, variant, runtime)
    elif variant is not None:
        raise UsageError(f"--variant is for apps without a bundle inside; choose one when the {app} app loads it")
    files = app_files(app)
    if kind.shared is not None:
        inside, source = kind.shared
        files |= {f"{inside}/{name}": data for name, data in app_files(source).items()}
    words = {**describe(bundle), **made.words}
    files["README.md"] = fill(files["README.md"].decode(), words).encode()
    files |= made.files
    files[NOTICE] = notice(bundle, made.licences).encode()
    if kind.bundle:
        files |= {f"{kind.bundle}/{name}": data for name, data in _bundle_files(bundle).items()}
    if only_glue:
        files = {name: data for name, data in files.items() if name in kind.glue or name.split("/")[0] in kind.glue}
    _write(out, files, force=force)
    return Embedded(out, tuple(files), kind.run, made.figures, made.notes)


def describe(bundle: Bundle) -> dict[str, str]:
    """The words that every README.md may use."""
    manifest = bundle.manifest
    labels: list[str] = manifest["labels"]
    shown = ", ".join(labels[:10]) + (f" and {len(labels) - 10} more" if len(labels) > 10 else "")
    answers = f"Vectors of {len(labels)} numbers" if manifest["task"] == "embedding" else f"Labels: {shown}"
    use = manifest.get("intended_use") or "not stated"
    number = manifest.get("id", "without id")
    return {
        "name": manifest["name"],
        "about": f"{answers}. Bundle {number}. Intended use: {use}. Licences: {NOTICE}.",
    }


def notice(bundle: Bundle, more: Iterable[tuple[str, str, str]] = ()) -> str:
    """Whose work is in the app, and under which licences."""
    manifest = bundle.manifest
    provenance = manifest.get("provenance", {})
    rows = [("this model", manifest["name"], manifest.get("licence"))]
    for title, key in (("its teacher", "teacher"), ("its training data", "data")):
        origin = provenance.get(key, {})
        rows.append((title, origin.get("name"), origin.get("licence")))
    rows += [("the app's own files", "edgekd", "Apache-2.0"), *more]
    lines = [f"| {' | '.join(cell or 'not stated' for cell in row)} |" for row in rows]
    use = manifest.get("intended_use") or "not stated"
    return "# Licences\n\n| what | name | licence |\n|---|---|---|\n" + "\n".join(lines) + f"\n\nIntended use: {use}\n"


def fill(text: str, words: Mapping[str, str]) -> str:
    """`@word@` replaced, for the words that are known."""
    for name, value in words.items():
        text = text.replace(f"@{name}@", value)
    return text


def app_files(name: str) -> dict[str, bytes]:
    """The files of the app in export/apps, by their path in it, without those that are only material."""
    skipped = APPS[name].skipped if name in APPS else ()
    folder = assets.folder("export", "apps") / name
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in skipped and "__pycache__" not in path.parts
    }


def _bundle_files(bundle: Bundle) -> dict[str, bytes]:
    """The bundle as it is, its signature too."""
    files = {MANIFEST: bundle.reader.read(MANIFEST, limit=MAX_MANIFEST_BYTES)}
    if is_signed(bundle):
        files[SIGNATURE] = bundle.reader.read(SIGNATURE, limit=SIGNATURE_BYTES)
    for name, record in bundle.manifest["files"].items():
        files[name] = bundle.reader.read(name, limit=record["size_bytes"])
    return files


def _write(out: Path, files: Mapping[str, bytes], *, force: bool) -> None:
    """All files, or none where one is somebody's: then it is named."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file, expected a folder; choose another place")
    for name, data in files.items():
        place = out / name
        if not force and place.exists() and not (place.is_file() and place.read_bytes() == data):
            raise UsageError(f"{place} exists and differs; replace it with --force, or choose another --out")
    for name, data in files.items():
        write_bytes(out / name, data)
