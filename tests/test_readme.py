"""The README's commands, as printed, in their order."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from browser import Server, browser
from c_builds import compile_c
from cpp_builds import onnxruntime_root, tool
from javascript import node_modules, run_node

from edgekd.recipe import load_recipe
from edgekd.stages.embedding import APPS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(heading: str, language: str = "") -> list[str]:
    """The fenced blocks below a heading."""
    part = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", part, flags=re.M | re.S)


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `edgekd ...` or Python in `folder`."""
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, env={**os.environ})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader works: after `make demo`'s run, with a picture of a digit."""
    from PIL import Image
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("readme")
    done = run([sys.executable, "-m", "edgekd", "distill-and-export", "digits", "--out", "runs/digits"], folder)
    assert done.returncode == 0, done.stderr
    (folder / "demo.txt").write_text(done.stdout)
    picture = np.kron(load_digits().images[0], np.ones((4, 4))) * (255 / 16)
    Image.fromarray(picture.astype(np.uint8)).save(folder / "digit.png")
    return folder


def test_the_demo_prints_what_the_readme_shows(folder: Path) -> None:
    shown = README.split("<!-- demo -->")[1].split("<!-- /demo -->")[0]
    printed = (folder / "demo.txt").read_text()
    for row in ("Teacher, PyTorch", "Teacher, ONNX", "Student alone", "float32", "int8_u8s8"):
        assert row in shown
        assert row in printed
    assert [line for line in shown.splitlines() if line.startswith("  edgekd")] == [
        line for line in printed.splitlines() if line.startswith("  edgekd")
    ]


def test_the_demo_reaches_its_promise(folder: Path) -> None:
    """Wide ratios only: ten times smaller, and validation accuracy at most a point below the teacher's."""
    from edgekd.results import read_results

    results = read_results(folder / "runs" / "digits")
    described = results["run"]
    sizes = {row["candidate"]: row["size_bytes"] for row in results["rows"]}
    assert sizes["teacher-onnx"] >= 10 * sizes[described["chosen"]]
    assert described["validation"][described["chosen"]]["drop_points"]["value"] <= 1.0
    assert [item["verdict"] for item in described["limits"] if item["name"] != "accuracy_drop_points"] == ["met"] * 2


def test_the_stages_alone(folder: Path) -> None:
    commands = [line.split("#")[0].strip() for line in blocks("The stages alone")[0].splitlines()]
    assert len(commands) == 11
    for command in commands:
        program, *args = shlex.split(command)
        assert program == "edgekd"
        done = run([sys.executable, "-m", "edgekd", *args], folder)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("heading", ["In your app", "The stages alone"])
def test_python_examples(folder: Path, heading: str) -> None:
    for code in blocks(heading, "python"):
        place = folder
        if "from student import" in code:
            place = folder / "app"
            embed(folder)
            shutil.copy(folder / "digit.png", place)
        done = run([sys.executable, "-c", code], place)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()


def embed(folder: Path) -> None:
    """The README's apps, made by its commands."""
    section = README.split("\n## In your app\n")[1].split("\n## ")[0]
    commands = re.findall(r"^edgekd (embed [^#\n]*)", section, flags=re.M)
    assert len(commands) == len(APPS)
    for command in commands:
        args = shlex.split(command)
        done = run([sys.executable, "-m", "edgekd", *args, "--force"], folder)
        assert done.returncode == 0, done.stderr


def test_the_c_example(folder: Path) -> None:
    embed(folder)
    (code,) = blocks("In your app", "c")
    main = """
int main(void) {
    static unsigned char pixels[STUDENT_RAW_BYTES];
    fread(pixels, 1, sizeof pixels, stdin);
    puts(classify(pixels));
    return 0;
}
"""
    place = folder / "firmware"
    (place / "mine.c").write_text("#include <stdio.h>\n" + code + main)
    program = compile_c(place, "mine.c", "student.c", flags=("-Wno-unused-result",))
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images[0] * (255 / 16)).astype(np.uint8)
    said = subprocess.run([program], input=pixels.tobytes(), capture_output=True, check=True).stdout
    assert said.decode().strip() == str(digits.target[0])


def test_the_web_example(folder: Path) -> None:
    modules = node_modules("onnxruntime-web")
    if not (folder / "node_modules").exists():
        (folder / "node_modules").symlink_to(modules)
    embed(folder)
    (code,) = (code for code in blocks("In your app", "js") if "web.js" in code)
    place = folder / "page"
    head = '<!doctype html><link rel="icon" href="data:,"><body>'
    (place / "mine.html").write_text(f'{head}<script type="module">{code}</script>')
    shutil.copy(folder / "digit.png", place)
    server = Server(place)
    with browser(folder) as page:
        page.open(server.address + "mine.html", "document.body.innerText")
        assert page.run("return document.body.innerText").strip().startswith("00.")
        assert page.console == []
    server.stop()


def test_the_node_example(folder: Path) -> None:
    modules = node_modules("onnxruntime-node")
    embed(folder)
    (code,) = (code for code in blocks("In your app", "js") if "index.js" in code)
    place = folder / "node_app"
    if not (place / "node_modules").exists():
        (place / "node_modules").symlink_to(modules)
    (place / "mine.js").write_text(code)
    shutil.copy(folder / "digit.png", place)
    done = run_node("mine.js", cwd=place)
    assert done.stdout.startswith("0 0."), done.stderr


def test_the_cpp_example(folder: Path) -> None:
    from PIL import Image

    embed(folder)
    (code,) = blocks("In your app", "cpp")
    place = folder / "cpp_app"
    (place / "mine.cpp").write_text(code)
    Image.open(folder / "digit.png").save(place / "digit.pgm")
    root = onnxruntime_root(folder)
    flags = ["-std=c++17", "-DEDGEKD_ONNXRUNTIME", f"-I{root}/include", f"-L{root}/lib", f"-Wl,-rpath,{root}/lib"]
    done = subprocess.run([tool("g++"), *flags, "mine.cpp", "-o", "mine", "-lonnxruntime", "-pthread"], cwd=place)
    assert done.returncode == 0
    said = subprocess.run([place / "mine"], cwd=place, capture_output=True, text=True, check=True).stdout
    assert said.split()[0] == "0"
    assert float(said.split()[1]) > 0.5


def test_the_android_example(folder: Path) -> None:
    embed(folder)
    (code,) = blocks("In your app", "java")
    place, stubs = folder / "android_app", ROOT / "tests" / "java_stubs"
    mine = """import android.content.Context;
import android.content.res.AssetManager;
import edgekd.Answer;
import edgekd.android.AndroidStudent;
import java.nio.file.Files;
import java.nio.file.Path;

public class Mine {
    static void show(String label, float score) {
        System.out.println(label + " " + score);
    }

    public static void main(String[] words) throws Exception {
        Context context = new Context(new AssetManager(Path.of("assets")));
        byte[] jpeg = Files.readAllBytes(Path.of("../digit.png"));
"""
    (place / "Mine.java").write_text(mine + code + "    }\n}\n")
    sources = [place / "Mine.java", *(place / "java").rglob("*.java"), *stubs.rglob("*.java")]
    done = subprocess.run([tool("javac"), "--release", "17", "-d", "out", *sources], cwd=place)
    assert done.returncode == 0
    session = (f"-Dedgekd.python={sys.executable}", f"-Dedgekd.session={stubs / 'java_session.py'}")
    command = [tool("java"), *session, "-cp", "out", "Mine"]
    said = subprocess.run(command, cwd=place, capture_output=True, text=True, check=True).stdout
    assert said.split()[0] == "0"
    assert float(said.split()[1]) > 0.5


def test_the_app_sees_the_digit(folder: Path) -> None:
    done = run([sys.executable, "-m", "edgekd", "predict", "runs/digits/student.edgekd", "digit.png"], folder)
    assert done.stdout.startswith("digit.png: 0 "), done.stdout


def test_the_recipe_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "parts.toml"
    path.write_text(blocks("Your own teacher, data and limits", "toml")[0])
    (tmp_path / "teacher.safetensors").touch()
    (tmp_path / "photos").mkdir()
    assert load_recipe(path, environ={}).recipe.name == "parts"


def test_links_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "export/README.md", "benchmarks/README.md"):
        page = ROOT / name
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{name} links to {target}"


def test_sizes_of_the_built_in_models_are_right() -> None:
    import json

    page = (ROOT / "export" / "README.md").read_text(encoding="utf-8")
    table = page.split("<!-- models -->")[1].split("<!-- /models -->")[0]
    found = json.loads(run([sys.executable, "-m", "edgekd", "recipes", "--models", "--json"], ROOT).stdout)
    for row in found:
        shape = "x".join(map(str, row["input_shape"]))
        assert f"| {row['model']} | {shape} | {row['parameters']:,} | {row['macs']:,} |" in table
