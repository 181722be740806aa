"""A teacher behind a URL, against a real server on this machine that fails in every way that servers do."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from endpoints import Reply, serving

from edgekd.distill import endpoint as endpoints
from edgekd.distill.batches import Batches
from edgekd.distill.cache_build import Order, build_cache
from edgekd.distill.cached_teacher import CachedTeacher
from edgekd.distill.endpoint import Endpoint, RequestOptions
from edgekd.distill.http_teacher import HttpTeacher
from edgekd.distill.stored import Store
from edgekd.errors import StageFailed
from edgekd.spec import Split

NAMES = ("ant", "bee", "cat")
WEIGHTS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


def linear(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1) @ WEIGHTS


def logits(x: np.ndarray, ids: list[int]) -> Mapping[str, Any]:
    return {"logits": linear(x).tolist(), "ids": ids, "classes": NAMES}


class World:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now, self.slept = 1000.0, []

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def clock(self) -> float:
        return self.now


OPEN: list[Endpoint] = []


@pytest.fixture(autouse=True)
def closing() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


def open_teacher(url: str, world: World | None = None, *, encoding: str = "json", **options: Any) -> HttpTeacher:
    world = world or World()
    OPEN.append(Endpoint(url, RequestOptions(**options), sleep=world.sleep, clock=world.clock, now=world.clock))
    return HttpTeacher(OPEN[-1], labels=NAMES, encoding=encoding)


def batch_of(count: int = 5) -> dict[str, torch.Tensor]:
    x = np.random.default_rng(1).normal(size=(count, 1, 2, 2)).astype(np.float32)
    return {"x": torch.from_numpy(x), "id": torch.arange(40, 40 + count)}


def reply(answer: Any, status: int = 200, **headers: str) -> Reply:
    content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, content


# What it answers


@pytest.mark.parametrize("encoding", ["json", "npy"])
def test_it_gets_the_samples_and_gives_their_logits(encoding: str) -> None:
    with serving(logits) as server:
        batch = batch_of()
        found = open_teacher(server.url, encoding=encoding)(batch)["logits"]
    np.testing.assert_array_equal(found.numpy(), linear(batch["x"].numpy()), "float32 survives as text")
    assert server.ids == [40, 41, 42, 43, 44]
    assert server.bodies[0]["shape"] == [5, 1, 2, 2]


@pytest.mark.parametrize("encoding", ["json", "npy"])
def test_ids_of_tokens_are_whole_numbers(encoding: str) -> None:
    ids_NL = torch.tensor([[101, 16_777_217], [7, 0]])
    with serving(lambda x, ids: {"labels": [0, 1]}) as server:
        open_teacher(server.url, encoding=encoding)({"x": ids_NL, "id": torch.arange(2)})
    [body] = server.bodies
    if encoding == "json":
        assert json.dumps(body["inputs"]) == "[[101, 16777217], [7, 0]]"
    else:
        sent = np.load(io.BytesIO(base64.b64decode(body["inputs"])))
        assert sent.dtype == np.int64
        assert sent.tolist() == ids_NL.tolist()


def test_every_kind_of_answer() -> None:
    batch = batch_of()
    values = linear(batch["x"].numpy()).astype(np.float64)
    p = np.exp(values) / np.exp(values).sum(axis=1, keepdims=True)
    best = p.argmax(axis=1)
    buffer = io.BytesIO()
    np.save(buffer, values)
    answers = [
        {"probabilities": p.round(3).tolist()},
        {"labels": best.tolist()},
        {"labels": [NAMES[index] for index in best]},
        {"labels": [NAMES[index] if row % 2 else int(index) for row, index in enumerate(best)]},
        {"topk": {"indices": best[:, None].tolist(), "probabilities": p.max(axis=1)[:, None].tolist()}},
        {"topk": {"indices": best[:, None].tolist(), "log_probabilities": np.log(p.max(axis=1))[:, None].tolist()}},
        {"logits": base64.b64encode(buffer.getvalue()).decode()},
    ]
    with serving(logits, *(reply(answer) for answer in answers)) as server:
        teacher = open_teacher(server.url)
        found = [teacher(batch) for _ in answers]
    for named in found:
        assert named["logits"].argmax(dim=1).tolist() == best.tolist()
        assert named["logits"].shape == (5, 3)
    np.testing.assert_allclose(torch.softmax(found[0]["logits"], 1).numpy(), p, atol=2e-3)
    np.testing.assert_allclose(found[4]["topk_log_probabilities"][:, 0].exp().numpy(), p.max(axis=1), rtol=1e-5)
    np.testing.assert_allclose(found[6]["logits"].numpy(), values, rtol=1e-6)


# What it does when the server does not


def test_a_specialists_columns_are_its_own_classes() -> None:
    own = ("cat", "ant")
    columns = [2, 0]
    answers: list[Mapping[str, Any]] = [{"logits": linear(batch_of()["x"].numpy())[:, columns].tolist()}]
    answers.append({**answers[0], "classes": own})
    answers.append({"logits": linear(batch_of()["x"].numpy()).tolist()})
    answers.append({"logits": [[1.0]] * 5})
    with serving(lambda x, ids: answers[len(server.bodies) - 1]) as server:
        OPEN.append(Endpoint(server.url, RequestOptions()))
        teacher = HttpTeacher(OPEN[-1], labels=NAMES, own=own)
        for _ in range(2):
            given = teacher(batch_of())["logits"].numpy()
            np.testing.assert_allclose(given, linear(batch_of()["x"].numpy())[:, columns], rtol=1e-6)
        with pytest.raises(
            StageFailed, match=r"gives logits \[5, 3\] of float64, expected numbers \[5, 2\]; answers so"
        ):
            teacher(batch_of())
        other = HttpTeacher(OPEN[-1], labels=NAMES, own=own)
        with pytest.raises(
            StageFailed, match=r"gives 1 numbers for each sample, expected 3, .* or 2, one for each of its"
        ):
            other(batch_of())


def test_it_asks_again_and_waits_longer_each_time() -> None:
    world = World()
    failures = [reply({}, 500), reply({}, 503), (200, {}, None), reply(b"", 502)]
    with serving(logits, *failures) as server:
        found = open_teacher(server.url, world)(batch_of())
    assert found["logits"].shape == (5, 3)
    assert len(world.slept) == 4
    for attempt, waited in enumerate(world.slept):
        assert 0.25 * 2**attempt <= waited <= 0.5 * 2**attempt


def test_it_waits_as_long_as_it_is_told() -> None:
    world = World()
    date = "Thu, 01 Jan 1970 00:17:15 GMT"  # 1035 s; the world is at 1000 s, then at 1007 s
    with serving(logits, reply({}, 429, retry_after="7"), reply({}, 429, retry_after=date)) as server:
        open_teacher(server.url, world)(batch_of())
    assert world.slept == [7.0, 28.0]


@pytest.mark.parametrize("told", ["0", "Thu, 01 Jan 1970 00:16:00 GMT"])  # 960 s; the world is at 1000 s
def test_who_asks_for_no_wait_is_not_asked_at_once(told: str) -> None:
    world = World()
    with serving(logits, *[reply({}, 429, retry_after=told)] * 3) as server:
        open_teacher(server.url, world)(batch_of())
    assert len(world.slept) == 3
    for attempt, waited in enumerate(world.slept):
        assert 0.25 * 2**attempt <= waited <= 0.5 * 2**attempt


def test_it_does_not_wait_for_hours() -> None:
    with (
        serving(logits, reply({}, 429, retry_after="3600")) as server,
        pytest.raises(StageFailed, match=r"wants us to wait 3600 s \(status 429.*run the same command again then"),
    ):
        open_teacher(server.url)(batch_of())


def test_it_gives_up_and_says_why() -> None:
    world = World()
    with (
        serving(logits, *[reply(b"<h1>Oops</h1>", 503)] * 3) as server,
        pytest.raises(StageFailed) as caught,
    ):
        open_teacher(server.url, world, retries=2)(batch_of())
    assert f"{server.url} gave no answer, asked 3 times: status 503, beginning with '<h1>Oops</h1>'." in str(
        caught.value
    )
    assert "Answers so far are kept; run the same command again" in str(caught.value)
    assert len(world.slept) == 2


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
    with pytest.raises(StageFailed, match=r"gave no answer, asked once: the connection failed \(.*refused"):
        open_teacher(url, retries=0)(batch_of())


def test_a_server_that_never_answers() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(StageFailed, match=r"asked once: no whole answer within 0\.05 s"):
            open_teacher(url, retries=0, timeout_s=0.05)(batch_of())


@contextmanager
def dripping(*replies: tuple[bytes, bytes]) -> Iterator[str]:
    """The URL of a server that sends the first part of each reply at once, the second byte by byte for seconds."""
    left = list(replies)

    def answer(connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as asked:
            while left and asked.readline():
                lines = iter(lambda: asked.readline().lower().strip(), b"")
                [length] = [int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length")]
                asked.read(length)
                whole, slow = left.pop(0)
                connection.sendall(whole)
                for byte in slow:
                    time.sleep(0.05)
                    connection.sendall(bytes([byte]))
                if b"content-length" not in whole + slow:
                    return

    def serve() -> None:
        with suppress(OSError):  # the listener was closed
            while left:
                connection, _ = listener.accept()
                with suppress(OSError):  # who was asked to wait too long hangs up
                    answer(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"


CONTENT = json.dumps({"labels": [0] * 5}).encode() + b" " * 100
HEAD = b"HTTP/1.1 200 OK\r\n"
LENGTH = f"content-length: {len(CONTENT)}\r\n\r\n".encode()
PADDING = b"x-padding: " + b"x" * 100 + b"\r\n"
WHOLE = HEAD + LENGTH + CONTENT, b""
DRIPS = {
    "status": (b"", HEAD + PADDING + LENGTH + CONTENT),
    "headers": (HEAD, PADDING + LENGTH + CONTENT),
    "body": (HEAD + LENGTH, CONTENT),
    "body without length": (HEAD + b"connection: close\r\n\r\n" + CONTENT[:-100], CONTENT[-100:]),
}


@pytest.mark.parametrize("where", DRIPS)
def test_a_server_that_drips(where: str) -> None:
    """Each byte comes in time, the whole does not."""
    start = time.monotonic()
    with dripping(DRIPS[where]) as url:
        with pytest.raises(StageFailed, match=r"asked once: no whole answer within 0\.3 s"):
            open_teacher(url, retries=0, timeout_s=0.3)(batch_of())
        assert 0.3 <= time.monotonic() - start < 3


def test_a_server_that_drips_is_asked_again() -> None:
    """On a connection that was used before, and then on a new one."""
    with dripping(WHOLE, DRIPS["headers"], WHOLE, WHOLE) as url:
        world = World()
        teacher = open_teacher(url, world, retries=1, timeout_s=0.5)
        for _ in range(3):
            assert teacher(batch_of())["logits"].argmax(dim=1).tolist() == [0] * 5
    assert len(world.slept) == 1


def test_not_more_requests_than_allowed() -> None:
    world = World()
    with serving(logits) as server:
        teacher = open_teacher(server.url, world, per_s=4)
        for _ in range(5):
            teacher(batch_of())
        world.now += 10.0
        teacher(batch_of())
    assert world.slept == pytest.approx([0.25] * 4)


def test_headers_are_sent_and_never_shown() -> None:
    with serving(logits, reply({"error": "no"}, 401)) as server:
        headers = {"Authorization": "Bearer secret"}
        assert "secret" not in repr(RequestOptions(headers=headers))
        with pytest.raises(
            StageFailed, match=r"refuses us \(status 401.*does teacher\.request\.headers name"
        ) as caught:
            open_teacher(f"{server.url}?model=5", headers=headers)(batch_of())
        assert "secret" not in str(caught.value)
        assert "model=5" not in str(caught.value)
    assert server.headers[0]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_nothing_is_sent_elsewhere(status: int) -> None:
    with (
        serving(logits) as other,
        serving(logits, reply(b"", status, location=other.url.replace("http", "ftp"))) as server,
        pytest.raises(
            StageFailed, match=rf"sends on to ftp://127.*status {status}.*Give the final URL as teacher\.url"
        ),
    ):
        open_teacher(server.url)(batch_of())
    assert other.headers == []


# Rubbish

GOOD = [[0.1, 0.2, 0.3]] * 5


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"<html><body>Sign in", "answered no JSON but text/html, beginning with '<html><body>Sign in'; expected an"),
        (b"", "answered no JSON but text/html, an empty body"),
        (b"[" * 100_000, "answered no JSON"),
        (b"\xff\xfe", "answered no JSON"),
        ([1, 2], "answered a list, expected an object with logits"),
        ({"error": "model is loading"}, "answered an object with error, expected logits, prob"),
        ({"error": "model is loading"}, "it says 'model is loading'"),
        ({"logits": GOOD[:4]}, "gives logits [4, 3], expected 5 rows, one for each sample"),
        ({"logits": [[1, 2]] * 5}, "gives logits [5, 2] of int64, expected numbers [5, 3]"),
        ({"logits": [*GOOD[:4], [1, 2]]}, "gives logits with rows of different lengths"),
        ({"logits": "nonsense"}, "gives logits as a text that is no base64 of an .npy file"),
        ({"logits": [[None] * 3] * 5}, "gives logits as list of something else than numbers"),
        (b'{"logits": [[NaN, 1, 2], [1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3]]}', "NaN or infinite, for 1 of 5"),
        ({"probabilities": GOOD}, "gives probabilities that sum to 0.6 instead of 1, for 5 of 5 samples, with"),
        ({"logits": GOOD, "labels": [0] * 5}, "gives labels, logits; expected one of"),
        ({"logits": GOOD, "ids": [4, 3, 2, 1, 0]}, "answers to other ids than it was asked for"),
        ({"logits": GOOD, "classes": ["ant", "cat", "bee"]}, "has the classes in another order: output 1 is 'cat'"),
        ({"labels": ["cow"] * 5}, "labels that are no class, such as 'cow'"),
        ({"labels": [0, 1, 2, 3, "cat"]}, "labels that are no class, such as 'the number 3'"),
        ({"labels": [0, 1, 2, None, "cat"]}, "labels that are no class, such as 'the number None'"),
        ({"topk": [1]}, "gives topk as a list, expected indices and probabilities"),
        ({"topk": {"indices": [[1]] * 5}}, "gives topk_indices; expected one of"),
    ],
)  # fmt: skip
def test_rubbish_is_named_and_not_asked_for_again(answer: Any, expected: str) -> None:
    world = World()
    with serving(logits, reply(answer, content_type="text/html")) as server, pytest.raises(StageFailed) as caught:
        open_teacher(server.url, world)(batch_of())
    assert expected in str(caught.value)
    assert str(caught.value).startswith(server.url)
    assert world.slept == []


def test_a_pickle_in_the_answer_is_not_loaded() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([print], dtype=object), allow_pickle=True)
    answer = {"logits": base64.b64encode(buffer.getvalue()).decode()}
    with serving(logits, reply(answer)) as server, pytest.raises(StageFailed, match=r"that is no base64 of an \.npy"):
        open_teacher(server.url)(batch_of())


def test_an_endless_answer_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "MAX_RESPONSE_BYTES", 1 << 20)
    with (
        serving(logits, reply(b" " * (2 << 20))) as server,
        pytest.raises(StageFailed, match="answered more than 1 MiB to one request; expected numbers for 32 samples"),
    ):
        open_teacher(server.url)(batch_of())


def test_another_status_is_told() -> None:
    with (
        serving(logits, reply({"detail": "no such model"}, 404)) as server,
        pytest.raises(StageFailed, match=r"answered status 404, beginning with '\{\"detail\": \"no such model\"\}'"),
    ):
        open_teacher(server.url)(batch_of())


# Kept as they come


def test_a_server_that_dies_in_the_middle_is_not_asked_twice(tmp_path: Path) -> None:
    x = np.random.default_rng(2).normal(size=(30, 4)).astype(np.float32)
    batches = Batches(Split(x, np.zeros(30, np.int64), np.arange(30)), batch_size=8)

    def order(url: str) -> Order:
        teacher = open_teacher(url, retries=1)
        return Order(teacher, batches, Store(), 3, "test", batch_size=8, journal=True)

    with serving(logits) as server:
        server.answer = lambda x, ids: logits(x, ids) if len(server.bodies) < 3 else {"error": "died"}
        with pytest.raises(StageFailed, match="it says 'died'"):
            build_cache(tmp_path, {"a": 1}, order(server.url))
        assert len(server.ids) == 24, "the last of them in vain"
        server.bodies.clear()
        server.answer = logits
        cache, asked = build_cache(tmp_path, {"a": 1}, order(server.url))
        assert server.ids == list(range(16, 30))
        assert asked == 14
        found = CachedTeacher(cache)(next(batches.full()))["logits"]
    np.testing.assert_allclose(found.numpy(), linear(x[:8]), rtol=1e-6)


# Several requests on their way


class Crowd:
    """Answers when `together` requests are there at once, and remembers how many there were at most."""

    def __init__(self, together: int, refused: int | None = None) -> None:
        self.barrier = threading.Barrier(together)
        self.refused = refused
        self.lock = threading.Lock()
        self.now = self.most = 0

    def __call__(self, x: np.ndarray, ids: list[int]) -> Mapping[str, Any]:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        # The first one is asked alone: it shows how wide an answer is. After a refusal nobody knows how many come.
        if 0 not in ids and (self.refused is None or max(ids) < 12):
            self.barrier.wait(timeout=60)
        with self.lock:
            self.now -= 1
        return {"error": "died"} if self.refused in ids else logits(x, ids)


def crowded(url: str, concurrency: int) -> Order:
    x = np.random.default_rng(2).normal(size=(30, 4)).astype(np.float32)
    batches = Batches(Split(x, np.zeros(30, np.int64), np.arange(30)), batch_size=8)
    teacher = open_teacher(url)
    return Order(teacher, batches, Store(), 3, "test", batch_size=3, journal=True, concurrency=concurrency)


def test_requests_overlap_and_the_answers_stay_in_order(tmp_path: Path) -> None:
    crowd = Crowd(3)
    with serving(crowd) as server:
        cache, asked = build_cache(tmp_path / "three", {"a": 1}, crowded(server.url, 3))
        assert crowd.most == 3
        assert asked == 30
        assert sorted(server.ids) == list(range(30))
        server.answer = logits
        alone, _ = build_cache(tmp_path / "one", {"a": 1}, crowded(server.url, 1))
    files = sorted(path.name for path in alone.path.glob("*.npy"))
    assert files
    for name in files:
        assert (cache.path / name).read_bytes() == (alone.path / name).read_bytes()


def test_what_was_on_its_way_when_one_failed_is_not_asked_for_again(tmp_path: Path) -> None:
    crowd = Crowd(3, refused=4)
    with serving(crowd) as server:
        with pytest.raises(StageFailed, match="it says 'died'"):
            build_cache(tmp_path, {"a": 1}, crowded(server.url, 3))
        answered = set(server.ids) - {3, 4, 5}
        assert len(answered) >= 9
        server.bodies.clear()
        server.answer = logits
        cache, asked = build_cache(tmp_path, {"a": 1}, crowded(server.url, 2))
        assert sorted(server.ids) == sorted(set(range(30)) - answered)
        assert asked == 30 - len(answered)
        found = CachedTeacher(cache)(next(crowded(server.url, 1).batches.full()))["logits"]
    x = np.random.default_rng(2).normal(size=(30, 4)).astype(np.float32)
    np.testing.assert_allclose(found.numpy(), linear(x[:8]), rtol=1e-6)


def test_several_threads_keep_the_rate() -> None:
    """Each takes a place of its own in the row, a quarter of a second behind the one before it."""

    class Standing(World):
        def sleep(self, seconds: float) -> None:
            self.slept.append(seconds)

    world = Standing()
    with serving(logits) as server:
        teacher = open_teacher(server.url, world, per_s=4)
        with ThreadPoolExecutor(5) as pool:
            list(pool.map(teacher, [batch_of() for _ in range(5)]))
    assert sorted(world.slept) == pytest.approx([0.25, 0.5, 0.75, 1.0])
