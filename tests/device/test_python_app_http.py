"""The FastAPI example as a process of its own: real HTTP, many requests at once, every answer the right one."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from device_models import write_bundle
from PIL import Image
from text_bundle import make_text_bundle

import edgekd
from edgekd import assets

NUM_PICTURES, NUM_REQUESTS, NUM_CLIENTS = 12, 300, 16


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (20 + seed, 17, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a server of folder/student.edgekd on a free port."""
    for name in ("student.py", "server.py"):
        shutil.copy(assets.folder("export", "apps") / "python" / name, folder)
    command = [sys.executable, "server.py", "--port", "0"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            said = process.stdout.readline()
            assert said.startswith("listening on http://127.0.0.1:"), said
            yield said.split()[-1]
        finally:
            process.terminate()
            process.wait(timeout=60)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(address, bundle) of a running server."""
    folder = tmp_path_factory.mktemp("server")
    write_bundle(folder / "student.edgekd")
    with serving(folder) as address:
        yield address, folder / "student.edgekd"


def ask(address: str, body: bytes | None = None) -> tuple[int, dict]:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, data=body), timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_many_clients_at_once_get_their_own_answers(server):
    address, bundle = server
    pictures = [png(seed) for seed in range(NUM_PICTURES)]
    with edgekd.load(bundle) as predictor:
        wanted = [predictor.predict(data, top_k=2).top for data in pictures]
    assert len({top[0] for top in wanted}) == NUM_PICTURES  # so that a mixed-up answer would show
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        answers = list(
            pool.map(lambda at: ask(f"{address}/predict?top_k=2", pictures[at % NUM_PICTURES]), range(NUM_REQUESTS))
        )
    for at, (status, said) in enumerate(answers):
        assert status == 200
        assert [item["label"] for item in said["top"]] == [label for label, _ in wanted[at % NUM_PICTURES]]
        assert [item["score"] for item in said["top"]] == pytest.approx([s for _, s in wanted[at % NUM_PICTURES]])


def test_bad_requests_do_not_stop_it(server):
    address, _ = server
    for body, query, status, text in (
        (b"no image", "", 422, "cannot be read as an image"),
        (b"", "", 422, "cannot be read as an image"),
        (png(0), "?top_k=0", 422, "top_k is 0, expected a whole number from 1"),
        (bytes(20_000_001), "", 413, "longer than 20000000 bytes"),
    ):
        code, said = ask(f"{address}/predict{query}", body)
        assert code == status
        assert text in said["detail"]
    assert ask(f"{address}/predict?top_k=x", png(0))[0] == 422
    assert ask(f"{address}/health")[1]["labels"] == ["cat", "dog", "owl"]
    assert ask(f"{address}/predict", png(0))[0] == 200


def test_a_vector_comes_whole_and_without_labels(tmp_path):
    bundle = make_text_bundle(tmp_path, vectors=True)
    with edgekd.load(bundle) as predictor, serving(tmp_path) as address:
        wanted = predictor.predict("book a table")
        status, said = ask(f"{address}/predict", b"book a table")
        assert (status, said["label"], said["top"], said["uncertainty"]) == (200, None, [], None)
        assert said["score"] == pytest.approx(wanted.score)
        assert said["outputs"] == {"logits": wanted.outputs["logits"].tolist()}
        assert ask(f"{address}/health")[1]["labels"] == []
