"""Another device, over an ssh that runs here: what is copied, run, fetched and removed, and every way to fail."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from device_models import IMAGE_STEPS, linear_model, weights, write_bundle
from fake_adb import SERIAL, adb_server
from fake_ssh import fake_ssh
from make_models import FOLDER

from edgekd.device import remote
from edgekd.device.adb import AdbHost
from edgekd.device.candidates import Candidate, Samples
from edgekd.device.plans import Request
from edgekd.device.preprocess import split_steps
from edgekd.device.ssh import ConnectionLost, Host, parse_host
from edgekd.device.suites import Suite
from edgekd.errors import InputRefused, MissingHere, StageFailed, StorageError, UsageError
from edgekd.spec import parse_steps

TINY = Suite("tiny", min_calls=16, max_seconds=1.0, block_ms=1.0, cold_starts=0, memory=False, min_blocks=4, launches=1)
pytestmark = pytest.mark.skipif(os.name != "posix", reason="the fake ssh is a shell script")


@pytest.fixture(params=["ssh", "adb"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Host | AdbHost]:
    """The same device over both ways."""
    folder = tmp_path / "home"
    if request.param == "ssh":
        yield Host("device", user="pi", port=2222, python=sys.executable, program=fake_ssh(folder))
        return
    with adb_server(folder) as server:
        yield AdbHost(SERIAL, python=sys.executable, server=server, parent=str(folder / ".cache" / "edgekd"))


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    bundle = write_bundle(tmp_path / "a.edgekd")
    (tmp_path / "teacher.onnx").write_bytes(linear_model(weights(), shape=(1, 4, 4)))
    raw, steps = bundle.golden()["raw"], split_steps(parse_steps(IMAGE_STEPS))[1]
    y = bundle.golden()["output.float32.logits"].argmax(axis=1)
    return Request(
        (
            Candidate("a", bundle.path, variant="float32"),
            Candidate("teacher", tmp_path / "teacher.onnx", preprocess=steps),
            Candidate("ncnn", FOLDER / "linear.param", runtime="ncnn", same_as=(str(bundle.path), "float32")),
        ),
        TINY,
        against="teacher",
        samples=Samples(np.tile(raw, (4, 1, 1, 1)), np.tile(y, 4), "classification", ("cat", "dog", "owl")),
    )


def home(host: Host | AdbHost) -> Path:
    return Path(host.program[1]) if isinstance(host, Host) else Path(host.parent).parents[1]


def left(host: Host | AdbHost) -> list[Path]:
    """What lies on the device."""
    return list((home(host) / ".cache" / "edgekd").glob("bench-*"))


def measure(host: Host | AdbHost, request: Request, **more: object) -> dict:
    return remote.run(remote.connect(host, "k"), request, sleep=lambda seconds: None, **more)  # type: ignore[arg-type]


def test_a_benchmark_goes_there_and_its_result_comes_back(host: Host | AdbHost, request_: Request) -> None:
    told: list[str] = []
    found = measure(host, request_, told=told.append)
    assert found["schema"] == "edgekd.results/1"
    assert found["on"] == host.url
    assert {item["id"]: item["golden"] for item in found["candidates"]} == {"a": "ok", "teacher": None, "ncnn": "ok"}
    rows = {row["candidate"]: row for row in found["rows"]}
    assert all(row["n"] >= 16 for row in rows.values())
    assert rows["a"]["accuracy"]["value"] == 1.0
    assert rows["a"]["per_class"][0]["label"] in ("cat", "dog", "owl")
    assert rows["a"]["speedup"] is None or rows["a"]["speedup"]["against"] == "teacher"
    assert [item["model"] for item in found["candidates"]] == [str(item.model) for item in request_.candidates]
    assert found["versions"]["edgekd"]
    assert left(host) == [], "nothing stays there"
    assert told[-2:] == ["measuring there", "fetching the result"]


def test_the_device_is_asked_what_it_is(host: Host | AdbHost) -> None:
    device = remote.connect(host, "k")
    assert device.probed["cores"] >= 1
    assert "onnxruntime" not in device.probed["missing"]
    assert "torch" in device.probed["versions"] or "numpy" in device.probed["versions"]
    assert not device.running
    assert oct(left(host)[0].stat().st_mode)[-3:] == "700"


def test_a_lost_connection_is_taken_up_again(host: Host | AdbHost, request_: Request) -> None:
    slept: list[float] = []
    (home(host) / "break").write_text("while [ ! -s exit ]\nwhile [ ! -s exit ]\n")
    found = remote.run(remote.connect(host, "k"), request_, sleep=slept.append)
    assert found["rows"][0]["n"] >= 16
    assert slept == [1.0, 2.0]
    assert left(host) == []


def test_a_connection_that_stays_lost_loses_nothing(host: Host | AdbHost, request_: Request) -> None:
    (home(host) / "break").write_text("while [ ! -s exit ]\n" * (remote.RECONNECTS + 1))
    with pytest.raises(StageFailed, match=r"was lost: .*The benchmark goes on there; run the same command again"):
        measure(host, request_)
    commands = (home(host) / "asked").read_text().count("nohup")
    device = remote.connect(host, "k")
    assert device.running
    told: list[str] = []
    found = remote.run(device, request_, told=told.append, sleep=lambda seconds: None)
    assert told[0] == "going on with the benchmark that was begun there"
    assert found["rows"][0]["n"] >= 16
    assert (home(host) / "asked").read_text().count("nohup") == commands, "it was not begun a second time"
    assert left(host) == []


def test_a_connection_lost_while_copying_begins_anew(host: Host | AdbHost, request_: Request) -> None:
    (home(host) / "break").write_text("samples.npz\n")
    with pytest.raises(ConnectionLost):
        measure(host, request_)
    assert len(left(host)) == 1
    assert not remote.connect(host, "k").running
    assert measure(host, request_)["rows"][0]["n"] >= 16


STUBBORN = """
import gzip, json, pathlib, signal, sys

def end(*_):
    result = json.dumps({"candidates": [], "interrupted": True}).encode()
    pathlib.Path("result.json.gz").write_bytes(gzip.compress(result))
    sys.exit(130)

signal.signal(signal.SIGTERM, end)
pathlib.Path("ready").touch()
while True:
    signal.pause()
"""


def test_ctrl_c_ends_it_there_and_brings_back_what_there_is(
    host: Host | AdbHost, request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = remote.connect(host, "k")
    (left(host)[0] / "bench.pyz").write_text(STUBBORN)
    real, asked = remote._wait, []

    def wait(device: remote.Device, sleep: object) -> str:
        asked.append(1)
        if len(asked) == 1:
            device.host.run(f"cd {device.folder} && while [ ! -e ready ]; do sleep 0.1; done")
            raise KeyboardInterrupt
        return real(device, sleep)  # type: ignore[arg-type]

    monkeypatch.setattr(remote, "_wait", wait)
    assert remote.run(device, request_)["interrupted"] is True
    assert left(host) == []


def test_a_runner_that_ends_without_a_result_says_its_last_words(host: Host | AdbHost, request_: Request) -> None:
    device = remote.connect(host, "k")
    (left(host)[0] / "bench.pyz").write_text("import sys; sys.exit('no more memory')")
    with pytest.raises(StageFailed, match=rf"{host.url} ended with 1: no more memory"):
        remote.run(device, request_, sleep=lambda seconds: None)
    assert left(host) == []


def test_a_result_that_is_damaged_is_refused(host: Host | AdbHost, request_: Request) -> None:
    device = remote.connect(host, "k")
    (left(host)[0] / "bench.pyz").write_text("open('result.json.gz', 'w').write('garbage')")
    with pytest.raises(StageFailed, match=rf"the result from {host.url} is damaged: .* run the same"):
        remote.run(device, request_, sleep=lambda seconds: None)


@pytest.mark.parametrize(
    ("stderr", "error", "text"),
    [
        ("u@h: Permission denied (publickey).", MissingHere, r"refuses the login .* Try: .* -p 2222 pi@device"),
        ("Host key verification failed.", MissingHere, "is unknown or has changed; log in once by hand"),
        ("ssh: connect to host h port 22: Connection refused", MissingHere, r"cannot be reached: .*refused; is it on"),
        ("ssh: Could not resolve hostname h", MissingHere, "cannot be reached"),
        ("Connection to h closed by remote host.", ConnectionLost, "was lost"),
    ],
)
def test_devices_that_cannot_be_reached(tmp_path: Path, stderr: str, error: type[Exception], text: str) -> None:
    script = tmp_path / "ssh"
    script.write_text(f"#!/bin/sh\necho '{stderr}' >&2\nexit 255\n")
    script.chmod(0o755)
    with pytest.raises(error, match=text):
        remote.connect(Host("device", "pi", 2222, program=(str(script),)), "k")


def test_devices_without_python_or_numpy_or_with_an_old_one(host: Host | AdbHost, tmp_path: Path) -> None:
    with pytest.raises(
        MissingHere, match=r"has no 'nopython'; install Python 3.10 or newer there, or name yours: --on"
    ):
        remote.connect(replace(host, python="nopython"), "k")
    assert left(host) == []
    bare = tmp_path / "bare"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(MissingHere, match=r"the runner does not start .* needs numpy and an inference runtime: pip"):
        remote.connect(replace(host, python=str(bare)), "k")
    old = tmp_path / "old"
    old.write_text("#!/bin/sh\necho 'error: this runner needs Python 3.10 or newer, found 3.7.3' >&2\nexit 1\n")
    old.chmod(0o755)
    with pytest.raises(MissingHere, match=r"this runner needs Python 3\.10 or newer, found 3\.7\.3"):
        remote.connect(replace(host, python=str(old)), "k")


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    script = tmp_path / "ssh"
    script.write_text("#!/bin/sh\nfor last; do :; done\ncase \"$last\" in *'cat >'*) cat > /dev/full;; esac\n")
    script.chmod(0o755)
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(StorageError, match=r"cannot take 0\.\d MB: .*No space left on device; free some space there"):
        remote.connect(Host("device", program=(str(script),)), "k")


def test_a_missing_ssh_client_is_told() -> None:
    with pytest.raises(MissingHere, match="the program 'no-such-ssh' is not installed; install an ssh client"):
        remote.connect(Host("device", program=("no-such-ssh",)), "k")


def test_urls() -> None:
    assert parse_host("ssh://pi@board.local:2222?python=/opt/py/bin/python3", environ={}) == Host(
        "board.local", "pi", 2222, "/opt/py/bin/python3"
    )
    assert parse_host("ssh://board", environ={"EDGEKD_SSH": "ssh -F 'my config'"}) == Host(
        "board", program=("ssh", "-F", "my config")
    )
    assert parse_host("ssh://board", environ={}).url == "ssh://board"
    assert Host("b", "pi", 22).url == "ssh://pi@b:22"


@pytest.mark.parametrize(
    "url",
    ["board", "adb:phone", "http://board", "ssh://", "ssh://pi:secret@board", "ssh://board:port", "ssh://board/folder",
     "ssh://board?speed=1", "ssh://-oProxyCommand=x", "ssh://board#x", "ssh://board?python"],
)  # fmt: skip
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(UsageError, match="expected ssh://user@host or ssh://user@host:2222"):
        parse_host(url, environ={})


def test_the_command_never_asks_and_quotes_what_it_runs() -> None:
    words = Host("board", "pi", 2222).command("echo 'a b'")
    assert words[0] == "ssh"
    assert "BatchMode=yes" in words
    assert words[-3:] == ["--", "board", "sh -c 'echo '\"'\"'a b'\"'\"''"]
    assert words[words.index("-p") + 1] == "2222"
    assert words[words.index("-l") + 1] == "pi"


def test_the_key_names_what_is_measured(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "a.edgekd")
    (tmp_path / "m.onnx").write_bytes(linear_model(weights()))
    models = [str(bundle.path), str(tmp_path / "m.onnx")]
    first = remote.key_of(["quick"], models, None)
    assert first == remote.key_of(["quick"], models, None)
    assert first != remote.key_of(["full"], models, None)
    (tmp_path / "m.onnx").write_bytes(linear_model(weights(seed=1)))
    assert first != remote.key_of(["quick"], models, None)
    assert set(remote.pack(str(FOLDER / "linear.param"))) == {"linear.param", "linear.bin"}
    with pytest.raises(UsageError, match="is a PyTorch model, which stays here; export it"):
        remote.pack("teacher.json")
    with pytest.raises(InputRefused, match=r"cannot read .*gone\.onnx: No such file .* expected a model file"):
        remote.pack(str(tmp_path / "gone.onnx"))
