"""adb's protocol, against a server of our own that speaks it: what is refused, what breaks, large files."""

from __future__ import annotations

import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from device_models import write_bundle
from fake_adb import SERIAL, adb_server, nobody

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from commands import edgekd, refused

from edgekd.device.adb import AdbHost, parse_adb
from edgekd.device.remote import find_host
from edgekd.device.ssh import ConnectionLost
from edgekd.errors import MissingHere, StorageError, UsageError


def test_commands_have_their_output_error_and_exit_code(tmp_path: Path) -> None:
    with adb_server(tmp_path) as server:
        for host in (AdbHost(server=server), AdbHost(SERIAL, server=server)):
            done = host.run("echo out; echo err >&2; exit 7")
            assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n", b"err\n")


def test_megabytes_go_both_ways_at_once(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(5_000_003)
    with adb_server(tmp_path) as server:
        host = AdbHost(server=server)
        assert host.run("cat", data=data).stdout == data
        host.put(f'"{tmp_path}/a b"', data)
        assert host.run("exit 0", data=data).returncode == 0, "it reads nothing, and that is no error"
    assert (tmp_path / "a b").read_bytes() == data


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    told = r"adb cannot take 0\.1 MB: .*No space left on device; free some space"
    with adb_server(tmp_path) as server, pytest.raises(StorageError, match=told):
        AdbHost(server=server).put("/dev/full", b"x" * 100_000)


@pytest.mark.parametrize(
    ("refusal", "text"),
    [
        ("device unauthorized.", "does not trust this computer .* unlock it and allow USB debugging"),
        ("more than one device/emulator", "several devices are connected .* name one: --on adb:SERIAL"),
        ("device offline", "is offline .* unplug it"),
        ("no devices/emulators found", "is not connected .* adb devices lists those that are"),
    ],
)
def test_what_the_server_refuses(tmp_path: Path, refusal: str, text: str) -> None:
    with adb_server(tmp_path, refusal=refusal) as server, pytest.raises(MissingHere, match=text):
        AdbHost(server=server).run("true")


def test_another_serial_is_told(tmp_path: Path) -> None:
    with adb_server(tmp_path) as server, pytest.raises(MissingHere, match=r"adb:other is not connected .*not found"):
        AdbHost("other", server=server).run("true")


def test_an_old_device_and_one_that_goes_away(tmp_path: Path) -> None:
    told = r"refuses to run commands \(unknown\); expected Android 7 or newer"
    with adb_server(tmp_path, shell=b"FAIL0007unknown") as server, pytest.raises(MissingHere, match=told):
        AdbHost(server=server).run("true")
    with adb_server(tmp_path, shell=b"OKAY\x01\x05") as server, pytest.raises(ConnectionLost, match="it was closed"):
        AdbHost(server=server).run("true")


def test_no_server_at_all() -> None:
    with nobody() as server, pytest.raises(MissingHere, match=r"no adb server at 127.0.0.1:\d+ .* adb start-server"):
        AdbHost(server=server).run("true")


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n", b"FAILzzzz", b"OKAYHTTP", b"", b"\xff" * 64])
def test_a_server_of_another_kind_is_told(answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            connection, _ = listening.accept()
            with connection, suppress(OSError):
                connection.sendall(answer)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises((MissingHere, ConnectionLost), match=r"is no adb server|was lost"):
            AdbHost(server=listening.getsockname()).run("true")


def test_urls() -> None:
    assert parse_adb("adb", environ={}) == AdbHost()
    assert parse_adb("adb:192.168.1.7:5555?python=/data/local/tmp/py/bin/python3", environ={}) == AdbHost(
        "192.168.1.7:5555", "/data/local/tmp/py/bin/python3"
    )
    assert parse_adb("adb", environ={"ANDROID_ADB_SERVER_PORT": "5038"}).server == ("127.0.0.1", 5038)
    assert parse_adb("adb", environ={"ADB_SERVER_SOCKET": "tcp:box:9"}).server == ("box", 9)
    assert AdbHost("a").url == "adb:a"
    assert AdbHost().url == "adb"
    with pytest.raises(UsageError, match="port of the adb server is 'x'"):
        parse_adb("adb", environ={"ANDROID_ADB_SERVER_PORT": "x"})


@pytest.mark.parametrize("url", ["adb:", "adb:a/b", "adb:a b", "adb?speed=1", "adb?python", "adb:a\nb"])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(UsageError, match="expected adb, adb:SERIAL"):
        parse_adb(url, environ={})


@pytest.mark.parametrize("url", ["board", "http://board", "adbx:1", ""])
def test_other_kinds_of_devices(url: str) -> None:
    with pytest.raises(UsageError, match=r"expected ssh://user@host\[:port\] or adb\[:serial\]"):
        find_host(url)


TINY = (
    "launches = 1\nmin_calls = 16\nmin_blocks = 4\nmax_seconds = 0.4\nblock_ms = 2\ncold_starts = 0\nmemory = false\n"
)


def test_through_the_command_line(tmp_path: Path) -> None:
    """The one place that a device without a home offers is /data/local/tmp, which this machine may lack."""
    write_bundle(tmp_path / "a.edgekd")
    (tmp_path / "tiny.toml").write_text(TINY)
    command = ("benchmark", tmp_path / "a.edgekd:float32", "--suite", tmp_path / "tiny.toml", "--json")
    with adb_server(tmp_path / "home") as (address, port):
        env = {"ADB_SERVER_SOCKET": f"tcp:{address}:{port}"}
        done = edgekd(*command, "--on", f"adb:{SERIAL}?python=nopython", env=env)
        assert done.returncode == 4, done.stderr
        assert "/data/local/tmp/edgekd" in (tmp_path / "home" / "asked").read_text()
        assert "nopython" in done.stderr or "cannot make a folder in /data/local/tmp/edgekd" in done.stderr
    assert "expected adb, adb:SERIAL" in refused(2, *command, "--on", "adb:a/b")
