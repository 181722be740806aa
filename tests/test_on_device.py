"""`edgekd benchmark --on ssh://...` to a real sshd of our own: high port, own keys, own configuration."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from commands import edgekd, refused

from edgekd.results import read_results

sys.path.insert(0, str(Path(__file__).parent / "device"))
from device_models import write_bundle
from make_models import FOLDER

SUITE = (
    "min_calls = 16\nmin_blocks = 4\nlaunches = 1\nmax_seconds = 1.0\nblock_ms = 1\ncold_starts = 0\nmemory = false\n"
)


def find_sshd() -> str:
    """The server, or a skip with the reason (a failure in CI, which installs it)."""
    found = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    reason = "sshd is not installed (Debian: openssh-server)"
    if found is not None and os.geteuid() == 0 and not Path("/run/sshd").is_dir():
        found, reason = None, "sshd started by root needs the folder /run/sshd"
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str], Path]]:
    """(url, environment, the device's cache folder) of a running sshd."""
    sshd = find_sshd()
    folder = tmp_path_factory.mktemp("sshd")
    folder.chmod(0o700)
    for name in ("host_key", "user_key", "other_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    port, user, cache = free_port(), pwd.getpwuid(os.geteuid()).pw_name, folder / "cache"
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {folder}/host_key\nPidFile {folder}/sshd.pid\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nUsePAM no\nStrictModes no\nPasswordAuthentication no\n"
        f"SetEnv XDG_CACHE_HOME={cache} OMP_NUM_THREADS=1\n"
    )
    host_key = (folder / "host_key.pub").read_text()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}")
    for name, key, known in (("ssh", "user_key", "known_hosts"), ("wrong", "other_key", "known_hosts"),
                             ("strange", "user_key", "none")):  # fmt: skip
        (folder / f"{name}_config").write_text(
            f"IdentityFile {folder}/{key}\nIdentitiesOnly yes\nUserKnownHostsFile {folder}/{known}\n"
            "GlobalKnownHostsFile none\nStrictHostKeyChecking yes\nLogLevel ERROR\n"
        )
    (folder / "none").touch()
    process = subprocess.Popen([sshd, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "listening" in line, line
        url = f"ssh://{user}@127.0.0.1:{port}?python={sys.executable}"
        yield url, {"EDGEKD_SSH": f"ssh -F {folder}/ssh_config"}, cache
    finally:
        process.terminate()
        process.communicate()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "tiny.toml").write_text(SUITE)
    bundle = write_bundle(folder / "a.edgekd")
    for name in ("linear.tflite", "linear.param", "linear.bin"):
        shutil.copy(FOLDER / name, folder / name)
    raw, y = bundle.golden()["raw"], bundle.golden()["output.float32.logits"].argmax(axis=1)
    np.savez(folder / "data.npz", x=np.tile(raw, (10, 1, 1, 1)), y=np.tile(y, 10))
    return folder


def test_the_result_of_the_device_comes_back_and_nothing_stays(
    server: tuple[str, dict[str, str], Path], folder: Path
) -> None:
    url, env, cache = server
    out = folder / "there.json"
    done = edgekd(
        "benchmark", folder / "a.edgekd", folder / "linear.tflite", folder / "linear.param", "--same-as",
        folder / "a.edgekd", "--suite", folder / "tiny.toml", "--data", folder / "data.npz", "--batch", "1",
        "--runtime", "onnxruntime,openvino,litert,ncnn", "--on", url, "--out", out, env=env,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for text in ("connecting to", "copying a.edgekd", "copying linear.bin", "measuring there", "fetching the result"):
        assert text in done.stderr
    results = read_results(out)
    assert results["on"] == url.partition("?")[0]
    assert results["command"].startswith("edgekd benchmark")
    assert {(item["runtime"], item["golden"]) for item in results["candidates"]} == {
        ("onnxruntime", "ok"), ("openvino", "ok"), ("litert", "ok"), ("ncnn", "ok"),
    }  # fmt: skip
    assert all(row["accuracy"]["value"] == 1.0 and row["n"] >= 16 for row in results["rows"])
    assert not list(cache.rglob("bench-*"))


def test_a_wrong_key_and_an_unknown_host_are_told(server: tuple[str, dict[str, str], Path], folder: Path) -> None:
    url, env, _ = server
    for config, text in (("wrong", "refuses the login"), ("strange", "is unknown or has changed; log in once by hand")):
        changed = {"EDGEKD_SSH": env["EDGEKD_SSH"].replace("ssh_config", f"{config}_config")}
        done = edgekd("benchmark", folder / "a.edgekd", "--on", url, env=changed)
        assert done.returncode == 4, done.stderr
        assert text in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr


def test_a_device_without_python_or_that_is_not_there(server: tuple[str, dict[str, str], Path], folder: Path) -> None:
    url, env, cache = server
    done = edgekd("benchmark", folder / "a.edgekd", "--on", f"{url.partition('?')[0]}?python=nopython", env=env)
    assert done.returncode == 4
    assert "has no 'nopython'; install Python 3.10 or newer there" in " ".join(done.stderr.split())
    assert not list(cache.rglob("bench-*"))
    done = edgekd("benchmark", folder / "a.edgekd", "--on", f"ssh://127.0.0.1:{free_port()}", env=env)
    assert done.returncode == 4
    assert "cannot be reached" in " ".join(done.stderr.split())


def test_what_cannot_go_there_is_refused_before_anything_is_sent(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "teacher.json").write_text("{}")
    there = ("--on", "ssh://127.0.0.1:1")
    assert "is a PyTorch model, which stays here" in refused(2, "benchmark", tmp_path / "teacher.json", *there)
    assert "nowhere.onnx is not there" in refused(3, "benchmark", "nowhere.onnx", *there)
    assert "--cpus chooses cores of this machine" in refused(2, "benchmark", folder / "a.edgekd", *there, "--cpus", "0")
    assert "expected ssh://user@host" in refused(2, "benchmark", folder / "a.edgekd", "--on", "pi@board")


def test_the_runner_is_written_and_runs(folder: Path, tmp_path: Path) -> None:
    done = edgekd("runner", tmp_path / "stick" / "bench.pyz", "--json")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "stick" / "bench.pyz").stat().st_size <= 1_000_000
    probed = subprocess.run(
        [sys.executable, "-I", tmp_path / "stick" / "bench.pyz", "--probe"], capture_output=True, text=True, timeout=60
    )
    assert '"cores"' in probed.stdout, probed.stderr
    assert "expected a name that ends in .pyz" in refused(2, "runner", tmp_path / "bench.zip")
