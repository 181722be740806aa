"""The web app in a real browser at phone width: golden vectors, numpy's numbers, offline, and refusals."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, Server, browser
from commands import ok, ok_json, refused
from file_kinds import kinds
from javascript import node_modules
from odd_images import STEP_LISTS, encoded, images, picture
from PIL import Image
from test_embed import make_bundle
from text_bundle import TEXTS, UNEVEN, make_text_bundle, said_of

import edgekd
from edgekd.device.bundle import Bundle
from edgekd.device.preprocess import preprocess
from edgekd.errors import UsageError
from edgekd.files import sha256_bytes
from edgekd.spec import parse_steps
from edgekd.stages.embedding import embed

SELF_TESTED = "document.getElementById('self-test').dataset.ok"
SHARES = "return [...document.querySelectorAll('#top li')].map((row) => row.lastChild.textContent).join()"
ROWS = """
    const rows = [...document.querySelectorAll("#top li")];
    return rows.map((row) => [row.firstChild.textContent, row.lastChild.textContent]);
"""
WRITE = "const area = document.getElementById('text'); area.value = {}; area.dispatchEvent(new Event('input'));"
TWO = [(0.35, 0.35), (0.45, 0.25), (0.58, 0.27), (0.64, 0.38), (0.55, 0.52), (0.35, 0.75), (0.68, 0.75)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("web"))


@pytest.fixture(scope="module")
def app(bundle, tmp_path_factory) -> Path:
    """The app as `edgekd embed` writes it, with onnxruntime-web's files."""
    out = tmp_path_factory.mktemp("web_app") / "app"
    package = node_modules("onnxruntime-web") / "onnxruntime-web"
    made = ok_json("embed", bundle, "--app", "web", "--out", out, "--onnxruntime-web", package)
    assert {"index.html", "sw.js", "files.js", "web.js", "web.d.ts", "manifest.webmanifest"} <= set(made["files"])
    assert 1e6 < made["first_visit_bytes"] < 2e7
    return out


@pytest.fixture(scope="module")
def server(app):
    opened = Server(app)
    yield opened
    opened.stop()


@pytest.fixture(scope="module")
def page(server, tmp_path_factory):
    """A page that is ready; tests share it."""
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        opened.open(server.address, "document.body.dataset.ready == 'true'")
        yield opened


def text(page: Browser, name: str) -> str:
    return page.run(f"return document.getElementById({name!r}).textContent")


def take(page: Browser, path: Path) -> None:
    """Choose a file, as a finger on the input does."""
    root = page.send("DOM.getDocument")["root"]["nodeId"]
    node = page.send("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    page.send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])


def test_golden_vectors_in_the_page(page, server, bundle):
    for variant in Bundle.open(bundle).variants:
        page.open(f"{server.address}?self-test&variant={variant}", SELF_TESTED)
        assert text(page, "self-test").startswith(f"self-test passed: {variant} gives its golden outputs here (16 sam")
        assert text(page, "status") == f"{variant} · WebAssembly, 1 thread"
    page.open(server.address, "document.body.dataset.ready == 'true'")
    assert page.console == []
    assert {
        re.match(r"(?:blob:)?http://localhost:\d+/|about:|data:", address) is not None for address in page.requests
    } == {True}


def test_another_weight_with_the_right_hash_fails_the_self_test(app, bundle, tmp_path):
    folder = shutil.copytree(app, tmp_path / "app")
    other = (bundle / "graphs" / "int8_dynamic.onnx").read_bytes()
    place = folder / "student.edgekd" / "bundle.json"
    manifest = json.loads(place.read_text())
    manifest["files"]["graphs/float32.onnx"] = {"sha256": sha256_bytes(other), "size_bytes": len(other)}
    place.write_text(json.dumps(manifest))
    (folder / "student.edgekd" / "graphs" / "float32.onnx").write_bytes(other)
    server = Server(folder)
    with browser(tmp_path) as page:
        page.open(f"{server.address}?self-test", SELF_TESTED)
        assert "self-test FAILED: float32: output 'logits' differs by up to" in text(page, "self-test")
        assert page.run(f"return {SELF_TESTED}") == "false"
    server.stop()


def test_it_works_offline_after_the_first_visit_with_threads(app, tmp_path):
    server = Server(app)
    with browser(tmp_path) as page:
        page.open(f"{server.address}?threads=2", "document.body.dataset.ready == 'false'")
        assert "threads is 2, but this page is not cross-origin isolated; serve it with" in text(page, "status")
        page.wait("document.getElementById('offline').textContent == 'works offline'")
        server.stop()
        page.requests.clear()
        page.open(f"{server.address}index.html?threads=2&self-test", SELF_TESTED)
        assert text(page, "self-test").startswith("self-test passed: float32")
        assert text(page, "status") == "float32 · WebAssembly, 2 threads"
        assert page.run("return crossOriginIsolated")
        (tmp_path / "photo.jpg").write_bytes(encoded(Image.fromarray(picture(50, 40, 3)), "JPEG"))
        take(page, tmp_path / "photo.jpg")
        page.wait("document.querySelectorAll('#top li').length == 3")
        page.open(f"{server.address}?threads=64", "document.body.dataset.ready == 'false'")
        assert re.search(r"threads is 64, expected a whole number from 1 to \d+ cores", text(page, "status"))
        assert len(page.requests) > 20


def test_a_new_version_takes_over(app, bundle, tmp_path):
    folder = shutil.copytree(app, tmp_path / "app")
    server = Server(folder)
    with browser(tmp_path) as page:
        page.open(server.address, "document.getElementById('offline').textContent == 'works offline'")
        first = page.run("return APP.version")
        assert page.run("return await caches.keys()") == [first]
        changed = tmp_path / "changed.edgekd"
        shutil.copytree(bundle, changed)
        manifest = json.loads((changed / "bundle.json").read_text())
        (changed / "bundle.json").write_text(json.dumps({**manifest, "name": "other shapes"}))
        package = node_modules("onnxruntime-web") / "onnxruntime-web"
        embed(Bundle.open(changed), "web", folder, runtime=package, force=True)
        page.run("await (await navigator.serviceWorker.ready).update()")
        page.run("setInterval(async () => (globalThis.kept = (await caches.keys()).join()), 50)")
        page.wait(f"globalThis.kept?.startsWith('edgekd-') && !kept.includes({first!r})")
        page.open(f"{server.address}?", "document.title == 'other shapes' && APP.version != " + repr(first))
        assert page.console == []
    server.stop()


def test_every_image_is_preprocessed_number_for_number(page):
    files = {**images(), **kinds()}
    browsers_own = {
        "gif": encoded(Image.fromarray(picture(20, 21, 3)), "GIF"),
        "bmp": encoded(Image.fromarray(picture(7, 9, 3)), "BMP"),
        "webp": encoded(Image.fromarray(picture(33, 21, 3)), "WEBP", lossless=True),
        "webp, transparent": encoded(Image.fromarray(picture(33, 21, 4)), "WEBP", lossless=True, exact=True),
    }
    steps = {
        **STEP_LISTS,
        "as it is": [{"op": "decode"}],
        "white": [{"op": "decode", "alpha": "white"}, {"op": "to_rgb"}],
    }
    given = {name: base64.b64encode(file).decode() for name, file in (files | browsers_own).items()}
    told = page.run(f"""
        const {{ prepare }} = await import("./student/preprocess.js");
        const {{ decodeOther }} = await import("./web.js");
        const told = [];
        for (const [name, file] of Object.entries({json.dumps(given)})) {{
          for (const [kind, steps] of Object.entries({json.dumps(steps)})) {{
            const bytes = Uint8Array.from(atob(file), (letter) => letter.charCodeAt(0));
            const {{ shape, data }} = await prepare(steps, bytes, decodeOther);
            told.push([name, kind, shape, btoa(Array.from(data, (byte) => String.fromCharCode(byte)).join(""))]);
          }}
        }}
        return told;
    """)
    assert len(told) > 250
    for name, kind, shape, data in told:
        spatial = [step for step in steps[kind] if step["op"] not in ("scale", "normalize", "layout")]
        wanted = preprocess(parse_steps(spatial), (files | browsers_own)[name])
        found = np.frombuffer(base64.b64decode(data), np.uint8).reshape(shape)
        if name not in files and name.startswith(("gif", "bmp")):
            found = found[..., : wanted.shape[2]]
        # PNG and JPEG are decoded by the app, to the bit; the others by the browser.
        own = (files | browsers_own)[name].startswith((b"\x89PNG", b"\xff\xd8"))
        np.testing.assert_allclose(found.astype(int), wanted, atol=0 if own else 1, err_msg=f"{name}, {kind}")


def test_answers_are_edgekds(page, bundle):
    files = [*images().values(), *kinds().values()]
    told = page.run(f"""
        const {{ openStudent }} = await import("./web.js");
        const student = await openStudent("student.edgekd");
        const files = {json.dumps([base64.b64encode(file).decode() for file in files])}.map(
          (file) => new File([Uint8Array.from(atob(file), (letter) => letter.charCodeAt(0))], "photo"));
        const answers = await Promise.all(files.map((file) => student.predict(file, {{ topK: 2 }})));
        return answers.map(({{ label, score, top }}) => [label, score, top.length]);
    """)
    with edgekd.load(bundle, variant="float32") as predictor:
        wanted = predictor.predict_batch(files)
    for (label, score, count), answer in zip(told, wanted):
        assert (label, count) == (answer.label, 2)
        assert score == pytest.approx(answer.score, abs=1e-5)


def test_what_cannot_be_used_is_told_in_one_sentence(page, app, bundle, tmp_path):
    cases = {
        'openStudent("student.edgekd", { variant: "int4" })': "no variant 'int4', expected one of float32",
        'openStudent("nowhere.edgekd")': "bundle.json is missing in nowhere.edgekd; get a fresh copy",
        'openStudent("icons")': "bundle.json is missing in icons",
        'openStudent("tampered")': "graphs/float32.onnx in tampered was changed after the bundle was written",
        'openStudent("newer")': "this bundle has version 2, but this app reads version 1; embed it with a newer edgekd",
        'openStudent("foreign")': "bundle.json: version is missing, expected the number 1",
        'openStudent(new Blob(["no zip"]))': "the zip is no readable bundle (no end of a zip is there)",
        "student.predict(new Blob([]))": "the image is empty (0 bytes); replace it",
        'student.predict(new Blob(["text"]))': "the image cannot be decoded (",
        "student.predict({ shape: [8, 8, 1], data: new Float32Array(64).fill(NaN) })": "the answer is NaN or infinite",
        "student.predict({ shape: [8, 8, 5], data: new Uint8Array(320) })": "to_grey: found 5 channels",
        "student.predict({ shape: [8, 8, 1], data: [1, 2] })": "as many numbers as the shape says",
        "student.predict(new Blob([]), { topK: 0 })": "topK is 0, expected a whole number from 1",
    }
    for name in ("tampered", "newer", "foreign"):
        shutil.copytree(bundle, app / name)
    graph = app / "tampered" / "graphs" / "float32.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    (app / "newer" / "bundle.json").write_text('{"version": 2}')
    (app / "foreign" / "bundle.json").write_text('{"model": "other"}')
    calls = ", ".join(f"() => {code}" for code in cases)
    told = page.run(f"""
        const {{ StudentError, openStudent }} = await import("./web.js");
        const student = await openStudent();
        const told = [];
        for (const call of [{calls}]) {{
          const problem = await call().then(() => "it went well", (error) => error);
          told.push(problem instanceof StudentError ? problem.message : `! ${{problem}}`);
        }}
        return told;
    """)
    for wanted, found in zip(cases.values(), told):
        assert wanted in found
        assert not found.startswith("!")
    for name in ("tampered", "newer", "foreign"):
        shutil.rmtree(app / name)
    # Chromium itself notes each file that was not there.
    page.console[:] = [line for line in page.console if "404" not in line]


def test_a_finger_a_picture_and_the_camera(bundle, app, tmp_path):
    """Labels of one letter: the page starts with drawing."""
    folder = shutil.copytree(app, tmp_path / "app")
    place = folder / "student.edgekd" / "bundle.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "labels": ["0", "1", "2"]}))
    (tmp_path / "photo.png").write_bytes(kinds()["rgba, 16 bit"])
    server = Server(folder)
    with browser(tmp_path) as page:
        page.open(server.address, "document.body.dataset.ready == 'true'")
        assert (page.run("return document.body.dataset.mode"), text(page, "label")) == ("draw", "–")
        page.stroke("#canvas", TWO)
        page.wait("document.querySelectorAll('#top li').length == 3")
        assert text(page, "label") in ("0", "1", "2")
        assert re.fullmatch(r"[\d.]+ ms", text(page, "time"))
        shares = [float(share) for share in re.findall(r"([\d.]+) %", page.run(SHARES))]
        assert sum(shares) == pytest.approx(100, abs=0.2)
        page.screenshot(tmp_path / "page.png")
        shot = np.asarray(Image.open(io.BytesIO((tmp_path / "page.png").read_bytes())).convert("L"))
        assert shot.shape == (2 * 844, 2 * 390)
        assert len(np.unique(shot)) > 20
        assert page.run("return document.documentElement.scrollWidth") == 390
        page.run("document.getElementById('clear').click()")
        page.wait("document.getElementById('label').textContent == '–'")
        take(page, tmp_path / "photo.png")
        page.wait("document.body.dataset.mode == 'picture' && document.querySelectorAll('#top li').length == 3")
        plain = text(page, "top")
        page.run("document.getElementById('dark').click()")
        page.wait(f"document.getElementById('top').textContent != {plain!r}")
        page.run("document.getElementById('mode-camera').click()")
        page.wait("document.body.dataset.mode == 'camera' && document.querySelectorAll('#top li').length == 3")
        (tmp_path / "text.png").write_text("no picture")
        page.run("document.getElementById('dark').click()")
        take(page, tmp_path / "text.png")
        page.wait("document.getElementById('status').dataset.failed")
        assert text(page, "status").startswith("the image cannot be decoded (")
        assert page.console == []
    server.stop()


# --- embed ------------------------------------------------------------------------------------------------------------


def test_texts_are_written_answered_and_kept_for_offline(tmp_path):
    bundle = make_text_bundle(tmp_path / "texts")
    package = node_modules("onnxruntime-web") / "onnxruntime-web"
    ok("embed", bundle, "--app", "web", "--out", tmp_path / "app", "--onnxruntime-web", package)
    server = Server(tmp_path / "app")
    with browser(tmp_path) as page:
        page.open(f"{server.address}?self-test", SELF_TESTED)
        assert text(page, "self-test").startswith("self-test passed: float32 gives its golden outputs here (8 samples")
        assert page.run("return document.body.dataset.mode") == "text"
        seen = "return [...document.querySelectorAll('nav, .tools, canvas')].map((one) => one.checkVisibility()).join()"
        assert page.run(seen) == "false,false,false"
        assert page.run("return document.getElementById('text').checkVisibility()") is True
        page.wait("document.getElementById('offline').textContent == 'works offline'")
        with edgekd.load(bundle, variant="float32") as student:
            for sample in ("book a table for two", "ΟΔΥΣΣΕΥΣ Äther", "a " * 100):
                answer = student.predict(sample, top_k=3)
                page.run(WRITE.format(json.dumps(sample)))
                shares = ",".join(f"{100 * score:.1f} %" for _, score in answer.top)
                page.wait(f"(() => {{ {SHARES} }})() == {shares!r}")
                assert text(page, "label") == answer.label
                cut = text(page, "time").startswith("only the first 24 tokens were read · ")
                assert cut == answer.truncated == (len(sample) > 100)
        told = page.run(f"""
            const {{ openStudent }} = await import("./web.js");
            const student = await openStudent("student.edgekd", {{ variant: "int8_dynamic" }});
            const texts = {json.dumps(UNEVEN)}, alone = [];
            for (const text of texts) alone.push((await student.predict(text)).top);
            const together = (await student.predictBatch(texts)).map(({{ top }}) => top);
            return [alone, together];
        """)
        assert len(told[0]) == len(UNEVEN)
        assert told[0] == told[1], "neighbours would change what a graph measures in every call"
        page.run(WRITE.format("''"))
        page.wait("document.getElementById('label').textContent == '–'")
        assert page.console == []
        server.stop()
        page.open(f"{server.address}?self-test", SELF_TESTED)
        assert text(page, "self-test").startswith("self-test passed")


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def test_vectors_of_texts_are_kept_and_compared(tmp_path):
    bundle = make_text_bundle(tmp_path / "vectors", vectors=True)
    package = node_modules("onnxruntime-web") / "onnxruntime-web"
    ok("embed", bundle, "--app", "web", "--out", tmp_path / "app", "--onnxruntime-web", package)
    server = Server(tmp_path / "app")
    kept: dict[str, np.ndarray] = {}
    with browser(tmp_path) as page, edgekd.load(bundle, variant="float32") as student:
        page.open(server.address, "document.body.dataset.ready == 'true'")
        assert page.run("return document.getElementById('keep').disabled") is True
        for sample in ("book a table for two", "Äpfel", "a very cold day", "a table", "book a " * 9):
            answer = student.predict(sample)
            vector = answer.outputs["logits"]
            page.run(WRITE.format(json.dumps(sample)))
            page.wait(f"document.getElementById('label').textContent == {said_of(vector)!r}")
            cut = "only the first 24 tokens were read · " if answer.truncated else ""
            assert text(page, "time").startswith(f"{cut}length {answer.score:.3f} · ")
            near = sorted(((cosine(vector, other), name) for name, other in kept.items()), reverse=True)[:3]
            assert page.run(ROWS) == [[name.strip(), f"cosine {value:.3f}"] for value, name in near]
            page.run("document.getElementById('keep').click()")
            assert page.run(ROWS)[0] == [sample.strip(), "cosine 1.000"]
            kept[sample] = vector
        assert page.run("return document.documentElement.scrollWidth") == 390
        page.run("document.getElementById('keep').click()")
        assert [name for name, _ in page.run(ROWS)].count("book a " * 8 + "book a") == 1, "kept twice"
        page.run(WRITE.format("''"))
        page.wait("document.getElementById('label').textContent == '–'")
        assert page.run("return document.getElementById('keep').disabled") is True
        told = page.run(f"""
            const {{ openStudent }} = await import("./web.js");
            const student = await openStudent();
            return (await student.predictBatch({json.dumps(TEXTS)}, {{ topK: 3 }})).map(
              ({{ label, index, top, outputs }}) => [label, index, top, Array.from(outputs.logits.data)]);
        """)
        for (*labels, vector), sample in zip(told, TEXTS, strict=True):
            assert labels == [None, None, []]
            assert vector == pytest.approx(student.predict(sample).outputs["logits"].tolist(), abs=1e-5)
        assert page.console == []
    server.stop()


def test_vectors_of_pictures_are_kept_and_compared(app, tmp_path):
    """Names of one letter, which would be the labels of what one writes."""
    folder = shutil.copytree(app, tmp_path / "app")
    place = folder / "student.edgekd" / "bundle.json"
    changes = {"task": "embedding", "labels": ["0", "1", "2"], "postprocess": []}
    place.write_text(json.dumps({**json.loads(place.read_text()), **changes}))
    photos = [tmp_path / f"{name}.png" for name in "ab"]
    server = Server(folder)
    with browser(tmp_path) as page, edgekd.load(folder / "student.edgekd", variant="float32") as student:
        page.open(server.address, "document.body.dataset.ready == 'true'")
        assert page.run("return document.body.dataset.mode") == "picture"
        vectors = []
        for seed, photo in enumerate(photos):
            Image.fromarray(picture(30, 40, 3, seed=seed) // (3 * seed + 1)).save(photo)
            vectors.append(student.predict(photo).outputs["logits"])
            take(page, photo)
            page.wait(f"document.getElementById('label').textContent == {said_of(vectors[-1])!r}")
            if seed == 0:
                page.run("document.getElementById('keep').click()")
        assert page.run(ROWS) == [["picture 1", f"cosine {cosine(*vectors):.3f}"]]
        page.run("document.getElementById('mode-draw').click()")
        page.stroke("#canvas", TWO)
        page.wait("document.getElementById('label').textContent.startsWith('3 numbers: ')")
        page.run("document.getElementById('keep').click()")
        assert ["draw 2", "cosine 1.000"] in page.run(ROWS)
        assert page.console == []
    server.stop()


def test_without_the_npm_package_the_one_line_is_told(bundle, tmp_path):
    told = ok("embed", bundle, "--app", "web", "--out", tmp_path / "app", cwd=tmp_path)
    assert "npm install onnxruntime-web@1.30.0" in (tmp_path / "app" / "README.md").read_text()
    assert "first_visit_bytes" not in told
    assert not (tmp_path / "app" / "ort").exists()
    assert '"ort/ort.wasm.min.mjs"' in (tmp_path / "app" / "files.js").read_text()


def fake_package(folder: Path, *, name: str = "onnxruntime-web", version: str = "1.30.0") -> Path:
    (folder / "dist").mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"name": name, "version": version}))
    for file in ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"):
        (folder / "dist" / file).write_text(file)
    return folder


def test_the_package_is_found_where_node_looks_and_its_licence_is_named(bundle, tmp_path):
    fake_package(tmp_path / "node_modules" / "onnxruntime-web")
    (tmp_path / "inside").mkdir()
    ok("embed", bundle, "--app", "web", "--out", "app", cwd=tmp_path / "inside")
    app = tmp_path / "inside" / "app"
    assert (app / "ort" / "ort.wasm.min.mjs").read_text() == "ort.wasm.min.mjs"
    assert "| onnxruntime-web (ort/) | Microsoft | MIT |" in (app / "NOTICE.md").read_text()
    assert "npm install" not in (app / "README.md").read_text()
    ok("embed", bundle, "--app", "web", "--out", "glue", "--only-glue", cwd=tmp_path / "inside")
    assert {path.name for path in (tmp_path / "inside" / "glue").iterdir()} == {"web.js", "web.d.ts", "student", "ort"}


def test_the_version_follows_from_the_content(bundle, tmp_path):
    package = fake_package(tmp_path / "package")
    opened = Bundle.open(bundle)

    def version(out: str, **options: object) -> str:
        embed(opened, "web", tmp_path / out, runtime=package, **options)
        return re.search(r'"version": "(.*)"', (tmp_path / out / "files.js").read_text())[1]

    first = version("a")
    assert version("b") == first
    assert version("c", variant="int8_u8s8") != first
    assert '"student.edgekd/graphs/int8_u8s8.onnx"' in (tmp_path / "c" / "files.js").read_text()
    (package / "dist" / "ort.wasm.min.mjs").write_text("newer")
    assert version("d") != first


def test_what_is_no_such_package_is_refused(bundle, tmp_path):
    opened = Bundle.open(bundle)
    told = refused(2, "embed", bundle, "--app", "web", "--out", tmp_path / "x", "--onnxruntime-web", tmp_path / "none")
    assert "is no npm package" in told
    assert "npm install onnxruntime-web@1.30.0" in told
    for folder, options, message in (
        ("other", {"name": "react"}, "is react 1.30.0, expected onnxruntime-web 1.20 or newer"),
        ("old", {"version": "1.17.3"}, "is onnxruntime-web 1.17.3, expected"),
        ("odd", {"version": 3}, "is no npm package"),
    ):
        with pytest.raises(UsageError, match=message):
            embed(opened, "web", tmp_path / "y", runtime=fake_package(tmp_path / folder, **options))
    cut = fake_package(tmp_path / "cut")
    (cut / "dist" / "ort-wasm-simd-threaded.wasm").unlink()
    with pytest.raises(UsageError, match=r"ort-wasm-simd-threaded\.wasm cannot be read"):
        embed(opened, "web", tmp_path / "y", runtime=cut)
    with pytest.raises(UsageError, match="the node app takes no files of an npm package"):
        embed(opened, "node", tmp_path / "y", runtime=cut)
