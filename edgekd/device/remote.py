"""A benchmark on another device: copy the runner, the models and a plan there, run, bring the result, clean up.

Everything lies in one folder over there, named after what is measured. So a connection that is lost, or a computer that
is shut, costs nothing: the same command finds the folder, waits for the benchmark that went on, and takes its result.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shlex
import subprocess
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgekd.device.adb import parse_adb
from edgekd.device.archive import write_zip
from edgekd.device.bundle import Bundle, looks_like_bundle
from edgekd.device.manifest import MANIFEST, MAX_MANIFEST_BYTES
from edgekd.device.plans import Request, to_json
from edgekd.device.ssh import ConnectionLost, parse_host
from edgekd.device.zipapp import runner_bytes
from edgekd.errors import InputRefused, MissingHere, StageFailed, UsageError

RECONNECTS = 6
MAX_RESULT_BYTES = 1 << 30
# The files in the folder over there.
RUNNER, PROBED, PLAN, SAMPLES = "bench.pyz", "probed.json", "plan.json", "samples.npz"
RESULT, LOG = "result.json.gz", "log.txt"

Told = Callable[[str], None]


class Host(Protocol):
    """A way to a device: over ssh (`edgekd.device.ssh`) or adb (`edgekd.device.adb`).

    url     how the user names it
    python  the Python over there
    parent  the folder, as a POSIX shell reads it, in which ours is made
    """

    @property
    def url(self) -> str: ...
    @property
    def python(self) -> str: ...
    @property
    def parent(self) -> str: ...

    def run(self, remote: str, *, data: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
        """Run a shell command over there. Raises `MissingHere`, or `ConnectionLost` when it breaks later."""
        ...

    def put(self, path: str, data: bytes) -> None:
        """Write a file over there. Raises `StorageError`."""
        ...


def find_host(url: str) -> Host:
    """The device of --on. Raises `UsageError` for a kind that is none."""
    kind = url.partition(":")[0].partition("?")[0]
    if kind not in HOSTS:
        raise UsageError(
            f"--on {url}: expected ssh://user@host[:port] or adb[:serial], each with ?python=/path/to/python3 if "
            "Python is not on its path"
        )
    return HOSTS[kind](url)


HOSTS: dict[str, Callable[[str], Host]] = {"ssh": parse_host, "adb": parse_adb}


@dataclass(frozen=True)
class Device:
    """A device with the runner on it; `folder` is a shell word, `probed` what the runner said about the machine."""

    host: Host
    folder: str
    running: bool
    probed: dict[str, Any]


def connect(host: Host, key: str, *, told: Told = lambda text: None) -> Device:
    """Make the folder for `key` over there, put the runner into it and ask it what the machine is.

    `running` says that an earlier command has already begun this very benchmark. Raises `MissingHere` for a device that
    cannot be reached, refuses the login, or has no Python, numpy or runtime.
    """
    folder = f'"{host.parent}/bench-{key}"'
    told(f"connecting to {host.url}")
    found = host.run(f"mkdir -p {folder} && chmod 700 {folder} && ls {folder}")
    if found.returncode != 0:
        said = found.stderr.decode(errors="replace").strip()
        raise MissingHere(f"{host.url} cannot make a folder in {host.parent}: {said}; is the disk full?")
    names = set(found.stdout.decode(errors="replace").split())
    running = {"pid", PLAN} <= names
    if not running:
        host.put(f"{folder}/{RUNNER}", runner_bytes())
    # Asked once: what runs there now must not be disturbed.
    ask = f"{shlex.quote(host.python)} {RUNNER} --probe > {PROBED}"
    probed = host.run(f"cd {folder} && {{ [ -s {PROBED} ] || {ask}; }} && cat {PROBED}")
    if probed.returncode != 0:
        clean_up(host, folder)
        raise MissingHere(_why_no_python(host, probed.returncode, probed.stderr.decode(errors="replace")))
    return Device(host, folder, running, json.loads(probed.stdout))


def run(
    device: Device, request: Request, *, told: Told = lambda text: None, sleep: Callable[[float], object] = time.sleep
) -> dict[str, Any]:
    """Measure `request` over there and give the result, with the models called as they are here.

    Ctrl-C ends the measurement on the device too; what it has measured is brought back. Raises `StageFailed` when the
    runner ended without a result or the connection stays lost; then the same command goes on with it.
    """
    host, folder = device.host, device.folder
    if device.running:
        told("going on with the benchmark that was begun there")
    else:
        _send(device, request, told)
        _start(device)
    told("measuring there")
    try:
        code = _wait(device, sleep)
    except KeyboardInterrupt:
        told("ending it there")
        host.run(f'cd {folder} && kill -TERM "$(cat pid)"')
        code = _wait(device, sleep)
    told("fetching the result")
    fetched = host.run(f"cd {folder} && cat {RESULT}")
    if fetched.returncode != 0:
        log = host.run(f"cd {folder} && tail -n 5 {LOG}").stdout.decode(errors="replace").strip()
        clean_up(host, folder)
        ending = f"ended with {code}" if code else "ended without a word (out of memory? switched off?)"
        raise StageFailed(f"the benchmark on {host.url} {ending}: {log or 'its log is empty'}")
    results = _read(fetched.stdout, host)
    clean_up(host, folder)
    models = {item.id: str(item.model) for item in request.candidates}
    for candidate in results["candidates"]:
        candidate["model"] = models.get(candidate["id"], candidate["model"])
    return {**results, "on": host.url}


def clean_up(host: Host, folder: str) -> None:
    """Remove everything that was put there."""
    host.run(f"rm -rf {folder}")


def key_of(words: Sequence[str], models: Sequence[str], data: Path | None) -> str:
    """The name of one benchmark: what was asked for, the bytes of the models and of the samples, and this edgekd."""
    whole = hashlib.sha256(runner_bytes())
    whole.update(json.dumps(list(words)).encode())
    for model in dict.fromkeys(models):
        for name, content in pack(model).items():
            whole.update(name.encode() + hashlib.sha256(content).digest())
    if data is not None:
        whole.update(hashlib.sha256(data.read_bytes()).digest())
    return whole.hexdigest()[:16]


def pack(model: str) -> dict[str, bytes]:
    """The files of a model as they travel: a bundle as one zip, ncnn's two files, else the file itself."""
    path = Path(model)
    if looks_like_bundle(path):
        bundle = Bundle.open(path)
        bundle.verify_files()
        sizes = {name: int(record["size_bytes"]) for name, record in bundle.manifest["files"].items()}
        contents = {MANIFEST: bundle.reader.read(MANIFEST, limit=MAX_MANIFEST_BYTES)}
        contents |= {name: bundle.reader.read(name, limit=size) for name, size in sizes.items()}
        whole = io.BytesIO()
        write_zip(whole, contents)
        return {f"{path.stem}.edgekd": whole.getvalue()}
    if path.suffix == ".json":
        raise UsageError(f"{path} is a PyTorch model, which stays here; export it, and measure its .onnx on the device")
    files = [path, *([path.with_suffix(".bin")] if path.suffix == ".param" else [])]
    try:
        return {file.name: file.read_bytes() for file in files}
    except OSError as error:
        raise InputRefused(f"cannot read {error.filename}: {error.strerror}; expected a model file") from error


def _send(device: Device, request: Request, told: Told) -> None:
    models = [str(item.model) for item in request.candidates]
    models += [item.same_as[0] for item in request.candidates if item.same_as is not None]
    places: dict[str, str] = {}
    for number, model in enumerate(dict.fromkeys(models)):
        packed = pack(model)
        # Each in a folder of its own: two runs' models may be called alike.
        home = f"{device.folder}/{number}"
        device.host.run(f"mkdir -p {home}")
        for name, content in packed.items():
            told(f"copying {name}, {len(content) / 1e6:.1f} MB")
            device.host.put(f"{home}/{shlex.quote(name)}", content)
        places[model] = f"{number}/{next(iter(packed))}"
    if request.samples is not None:
        buffer = io.BytesIO()
        np.savez(buffer, x=request.samples.x[:], y=request.samples.y)
        told(f"copying the samples, {len(buffer.getvalue()) / 1e6:.1f} MB")
        device.host.put(f"{device.folder}/{SAMPLES}", buffer.getvalue())
    plan = to_json(request, place=places.__getitem__, samples_file=SAMPLES)
    device.host.put(f"{device.folder}/{PLAN}", json.dumps(plan).encode())


def _start(device: Device) -> None:
    """Begin in the background, cut loose from the connection; the exit code goes into a file."""
    python = shlex.quote(device.host.python)
    inner = f"{python} {RUNNER} --plan {PLAN} --out {RESULT} > {LOG} 2>&1 & echo $! > pid; wait $!; echo $? > exit"
    started = device.host.run(
        f"cd {device.folder} && (nohup sh -c {shlex.quote(inner)} > /dev/null 2>&1 < /dev/null &) && "
        "while [ ! -s pid ]; do sleep 0.1; done"
    )
    if started.returncode != 0:
        raise StageFailed(f"{device.host.url} cannot start it: {started.stderr.decode(errors='replace').strip()}")


def _wait(device: Device, sleep: Callable[[float], object]) -> str:
    """Sleep until the benchmark has ended; its exit code as text, empty where it left none."""
    waiting = (
        f'cd {device.folder} && while [ ! -s exit ] && kill -0 "$(cat pid)" 2> /dev/null; do sleep 1; done; '
        "[ -s exit ] || sleep 1; cat exit 2> /dev/null"
    )
    for attempt in range(RECONNECTS + 1):
        try:
            return device.host.run(waiting).stdout.decode(errors="replace").strip()
        except (ConnectionLost, MissingHere) as error:
            if attempt == RECONNECTS:
                raise StageFailed(
                    f"{error}. The benchmark goes on there; run the same command again to fetch its result"
                ) from error
            sleep(2.0**attempt)
    raise AssertionError("the loop returns or raises")


def _read(data: bytes, host: Host) -> dict[str, Any]:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            text = file.read(MAX_RESULT_BYTES + 1)
        if len(text) > MAX_RESULT_BYTES:
            raise ValueError(f"more than {MAX_RESULT_BYTES} bytes")
        results: dict[str, Any] = json.loads(text)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise StageFailed(f"the result from {host.url} is damaged: {error}; run the same command again") from error
    return results


def _why_no_python(host: Host, code: int, stderr: str) -> str:
    lines = [line for line in stderr.strip().splitlines() if line.strip()]
    said = lines[-1].removeprefix("error: ") if lines else f"exit code {code}"
    if code == 127 or "not found" in said:
        return (
            f"{host.url} has no '{host.python}'; install Python 3.10 or newer there, or name yours: "
            f"--on '{host.url}?python=/path/to/python3'"
        )
    return f"the runner does not start on {host.url}: {said}"
