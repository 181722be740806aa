"""What the web app needs besides its folder: onnxruntime-web's files, the page's manifest, and the list for offline."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from edgekd.device.bundle import Bundle
from edgekd.device.manifest import MANIFEST
from edgekd.device.tokens import files_of
from edgekd.errors import UsageError
from edgekd.files import canonical_json, sha256_bytes
from edgekd.spec import parse_steps
from edgekd.stages.embedding import STUDENT, Generated, app_files

PACKAGE = "onnxruntime-web"
VERSION = "1.30.0"  # what the tests run
OLDEST = (1, 20)  # the first whose files have these names
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
CPU_KIND = "wasm32"
COLOUR = "#14213d"
ICONS = (192, 512)
# Not for the page: declarations, the app's README, and the worker itself, which the browser keeps apart.
UNSEEN = re.compile(r".*\.d\.ts|README\.md|sw\.js|ort/package\.json")


def generate(bundle: Bundle, variant: str | None, runtime: Path | None) -> Generated:
    """The files of onnxruntime-web (where they are found), manifest.webmanifest, and files.js.

    variant  what the page loads, and keeps for offline (default: the bundle's choice for WebAssembly)
    runtime  the folder of the npm package onnxruntime-web (default: the one in node_modules here or above)

    Raises `UsageError` when `runtime` is no such package, or one that is too old.
    """
    chosen = bundle.default_variant(CPU_KIND) if variant is None else variant
    package = runtime if runtime is not None else find_package(Path.cwd())
    ort = {} if package is None else read_package(package)
    page = {**app_files("web"), **{f"student/{name}": data for name, data in app_files("javascript").items()}}
    made = {**ort, "manifest.webmanifest": web_manifest(bundle.manifest["name"])}
    shell = {name: data for name, data in {**page, **made}.items() if not UNSEEN.fullmatch(name)}
    listed = bundle.manifest["files"]
    golden = bundle.manifest["golden"]["file"]
    tokenizer = files_of(parse_steps(bundle.manifest["preprocess"]))
    used = [golden, *bundle.manifest["variants"][chosen]["graphs"].values(), *tokenizer]
    hashes = {f"ort/{name}": "" for name in RUNTIME}  # listed where they are still to come, too
    hashes |= {name: sha256_bytes(data) for name, data in shell.items()}
    hashes |= {f"{STUDENT}/{name}": listed[name]["sha256"] for name in used}
    hashes[f"{STUDENT}/{MANIFEST}"] = sha256_bytes(canonical_json(bundle.manifest).encode())
    made["files.js"] = list_of_files(hashes, chosen)
    bytes_once = sum(map(len, shell.values())) + sum(listed[name]["size_bytes"] for name in used)
    return Generated(
        made,
        {"variant": chosen, "ort": "" if ort else MISSING, "version": VERSION},
        {"first_visit_bytes": bytes_once} if ort else {},
        notes=()
        if ort
        else (f"{PACKAGE} was not found, so ort/ is not there: npm install {PACKAGE}@{VERSION}, then again",),
        licences=((f"{PACKAGE} (ort/)", "Microsoft", "MIT"),) if ort else (),
    )


MISSING = f"""**`ort/` is still missing**: three files of onnxruntime-web. `npm install {PACKAGE}@{VERSION}` and embed
again, or put them there yourself:

```
npm pack {PACKAGE}@{VERSION} && tar xzf {PACKAGE}-{VERSION}.tgz && mkdir ort
cp {" ".join(f"package/dist/{file}" for file in RUNTIME)} ort/
```

"""


def find_package(start: Path) -> Path | None:
    """The npm package in the nearest node_modules, where Node would look for it."""
    places = (folder / "node_modules" / PACKAGE for folder in (start, *start.parents))
    return next((place for place in places if (place / "package.json").is_file()), None)


def read_package(folder: Path) -> dict[str, bytes]:
    """The files that the page needs of the npm package, by their path in the app."""
    advice = f"expected the folder of the npm package: npm install {PACKAGE}@{VERSION}"
    try:
        described = json.loads((folder / "package.json").read_bytes())
        name, version = described["name"], described["version"]
        found = tuple(int(part) for part in version.split(".")[:2])
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(f"{folder} is no npm package ({error}); {advice}") from error
    if name != PACKAGE or found < OLDEST:
        raise UsageError(
            f"{folder} is {name} {version}, expected {PACKAGE} 1.20 or newer: npm install {PACKAGE}@{VERSION}"
        )
    try:
        return {f"ort/{file}": (folder / "dist" / file).read_bytes() for file in RUNTIME}
    except OSError as error:
        raise UsageError(f"{error.filename} cannot be read ({error.strerror}); {advice}") from error


def web_manifest(name: str) -> bytes:
    """What a phone reads when the page is put on its home screen (W3C Web Application Manifest)."""
    icons = [
        {"src": f"icons/icon-{side}.png", "sizes": f"{side}x{side}", "type": "image/png", "purpose": "any maskable"}
        for side in ICONS
    ]
    page = {"name": name, "short_name": name[:12], "id": "./", "start_url": "./", "scope": "./", "icons": icons}
    page |= {"display": "standalone", "background_color": COLOUR, "theme_color": COLOUR}
    return (json.dumps(page, indent=2) + "\n").encode()


def list_of_files(hashes: Mapping[str, str], variant: str) -> bytes:
    """files.js: what the service worker keeps, under a version that follows from every byte of it."""
    version = "edgekd-" + sha256_bytes(canonical_json(dict(hashes)).encode())[:16]
    names = ["./", *sorted({*hashes, "files.js"})]
    told = json.dumps({"version": version, "variant": variant, "files": names}, indent=2)
    return f"// Written by edgekd. The version follows from the content of the files.\nself.APP = {told};\n".encode()
