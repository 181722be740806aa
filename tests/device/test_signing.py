"""Signed bundles: the right key proves them, anything else is refused; openssl, where it is, agrees."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys

import pytest
from commands import ok, ok_json, refused
from device_models import write_bundle

from edgekd.device.bundle import Bundle
from edgekd.device.signing import check_signature, create_key, is_signed, sign
from edgekd.errors import BundleError, InputRefused, MissingExtra, UsageError


@pytest.fixture
def key(tmp_path):
    create_key(tmp_path / "key.pem")
    return tmp_path / "key.pem", tmp_path / "key.pub.pem"


@pytest.mark.parametrize("as_zip", [False, True])
def test_the_right_key_proves_a_bundle(tmp_path, key, as_zip):
    plain = write_bundle(tmp_path / "b", as_zip=as_zip)
    assert not is_signed(plain)
    signed = sign(plain, key[0])
    assert is_signed(signed)
    check_signature(signed, key[1])
    signed.verify_files()
    assert signed.manifest == plain.manifest
    assert signed.path.is_file() == as_zip
    # Ed25519 draws nothing: the same key gives the same bytes.
    first = signed.reader.read("bundle.json.sig", limit=64)
    assert sign(signed, key[0]).reader.read("bundle.json.sig", limit=64) == first


def test_another_key_a_change_and_no_signature_are_refused(tmp_path, key):
    plain = write_bundle(tmp_path / "b")
    with pytest.raises(BundleError, match=r"is not signed, expected bundle\.json\.sig in it; get the signed bundle"):
        check_signature(plain, key[1])
    sign(plain, key[0])
    other = create_key(tmp_path / "other.pem")
    with pytest.raises(BundleError, match=r"was not signed with the key that belongs to .*other\.pub\.pem"):
        check_signature(plain, other)
    manifest = json.loads((tmp_path / "b" / "bundle.json").read_text())
    manifest["labels"][0] = "wolf"
    (tmp_path / "b" / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="or was changed afterwards; do not use it"):
        check_signature(Bundle.open(tmp_path / "b"), key[1])
    with pytest.raises(BundleError, match="changed while it was read"):
        check_signature(plain, key[1])


@pytest.mark.parametrize("length", [0, 63, 65])
def test_a_signature_of_another_length_is_refused(tmp_path, key, length):
    bundle = sign(write_bundle(tmp_path / "b"), key[0])
    (tmp_path / "b" / "bundle.json.sig").write_bytes(bytes(length))
    with pytest.raises(BundleError, match=r"not signed with the key|longer than 64 bytes"):
        check_signature(bundle, key[1])


def test_a_damaged_bundle_is_not_signed(tmp_path, key):
    bundle = write_bundle(tmp_path / "b")
    graph = tmp_path / "b" / "graphs" / "float32.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"\x00")
    with pytest.raises(BundleError, match="was changed after the bundle was written"):
        sign(bundle, key[0])
    assert not is_signed(bundle)


def test_keys(tmp_path, key):
    assert stat.S_IMODE(key[0].stat().st_mode) == 0o600
    with pytest.raises(UsageError, match="exists and is not replaced; sign with it, or choose another name"):
        create_key(key[0])
    bundle = write_bundle(tmp_path / "b")
    with pytest.raises(InputRefused, match=r"is no private Ed25519 key in PEM; make a pair with: edgekd sign"):
        sign(bundle, key[1])
    with pytest.raises(InputRefused, match=r"is no public Ed25519 key in PEM"):
        check_signature(bundle, key[0])
    with pytest.raises(InputRefused, match="cannot read the key"):
        sign(bundle, tmp_path / "none.pem")


def test_a_key_with_a_password_or_of_another_kind_is_refused(tmp_path):
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    def write(name, key, protection):
        data = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, protection)
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    locked = write("locked.pem", ed25519.Ed25519PrivateKey.generate(), form.BestAvailableEncryption(b"x"))
    curve = write("curve.pem", ec.generate_private_key(ec.SECP256R1()), form.NoEncryption())
    bundle = write_bundle(tmp_path / "b")
    with pytest.raises(InputRefused, match="is protected by a password, expected one without"):
        sign(bundle, locked)
    with pytest.raises(InputRefused, match="is no private Ed25519 key"):
        sign(bundle, curve)


def test_without_cryptography_the_command_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    with pytest.raises(MissingExtra, match=r"signing needs the package 'cryptography'.*pip install 'edgekd\[sign\]'"):
        create_key(tmp_path / "key.pem")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_openssl_agrees(tmp_path, key):
    sign(write_bundle(tmp_path / "b"), key[0])
    command = "openssl pkeyutl -verify -pubin -inkey ../key.pub.pem -rawin -in bundle.json -sigfile bundle.json.sig"
    done = subprocess.run(command.split(), cwd=tmp_path / "b", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_inspect_shows_a_bundle_that_states_only_what_it_must(tmp_path):
    write_bundle(tmp_path / "b")
    shown = ok("inspect", tmp_path / "b")
    assert "intended use   not stated" in shown
    assert "teacher        not stated (not stated)" in shown


def test_through_the_command_line(tmp_path):
    write_bundle(tmp_path / "b")
    key, public = tmp_path / "key.pem", tmp_path / "key.pub.pem"
    assert "hand out" in ok("sign", tmp_path / "b", "--key", key, "--new-key")
    assert "signed, by whom is not known" in ok("verify", tmp_path / "b")
    shown = ok_json("verify", tmp_path / "b", "--key", public)
    assert (shown["ok"], shown["signed"], shown["signature_checked"]) == (True, True, True)
    (tmp_path / "b" / "bundle.json.sig").unlink()
    assert "is not signed" in refused(3, "verify", tmp_path / "b", "--key", public)
    assert "models are not signed" in refused(2, "verify", "a.onnx", "b.onnx", "--key", public)
