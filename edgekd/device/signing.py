"""Signatures of bundles: Ed25519 over the bytes of bundle.json, which holds the hash of every other file.

`bundle.json.sig` holds the 64 raw bytes, so that anybody can check it without edgekd:
`openssl pkeyutl -verify -pubin -inkey key.pub.pem -rawin -in bundle.json -sigfile bundle.json.sig`.

Source: RFC 8032 (Ed25519), RFC 8410 (its keys in PEM).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.device.archive import write_zip
from edgekd.device.bundle import Bundle
from edgekd.device.manifest import MANIFEST, MAX_MANIFEST_BYTES, SIGNATURE, parse_manifest
from edgekd.errors import BundleError, InputRefused, MissingExtra, UsageError, explain_os_errors
from edgekd.files import write_atomically, write_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE_BYTES = 64
MAX_KEY_BYTES = 10_000


def create_key(path: str | Path) -> Path:
    """Write a new private key to `path` (PEM, readable by its owner only) and its public half beside it.

    Returns the path of the public key: KEY.pub.pem for KEY.pem. Raises `UsageError` when either file exists: a lost
    key cannot be made again. `MissingExtra` without cryptography.
    """
    ed25519, serialization = _cryptography()
    private_path = Path(path)
    public_path = private_path.with_name(f"{private_path.stem}.pub.pem")
    for place in (private_path, public_path):
        if place.exists():
            raise UsageError(f"{place} exists and is not replaced; sign with it, or choose another name")
    key: Ed25519PrivateKey = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with explain_os_errors(private_path):
        private_path.parent.mkdir(parents=True, exist_ok=True)
        # Created with its permissions: not for a moment may others read it.
        with os.fdopen(os.open(private_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(private)
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return write_bytes(public_path, public)


def sign(bundle: Bundle, key: str | Path) -> Bundle:
    """Put the signature of `bundle` beside its manifest (in its folder or zip) and open it again.

    Every file is hashed first: what is damaged is not signed. `key` is a private Ed25519 key in PEM. Raises
    `InputRefused` for another key, `BundleError` for a damaged bundle, `MissingExtra` without cryptography.
    """
    private = _private_key(Path(key))
    bundle.verify_files()
    text = _manifest_bytes(bundle)
    signature = private.sign(text)
    if bundle.path.is_dir():
        write_bytes(bundle.path / SIGNATURE, signature)
    else:
        contents = {MANIFEST: text, SIGNATURE: signature}
        for name, record in bundle.manifest["files"].items():
            contents[name] = bundle.reader.read(name, limit=record["size_bytes"])
        write_atomically(bundle.path, lambda temporary: write_zip(temporary, contents))
    return Bundle.open(bundle.path)


def is_signed(bundle: Bundle) -> bool:
    """Whether the bundle holds a signature, by whomever."""
    return bundle.reader.size(SIGNATURE) is not None


def check_signature(bundle: Bundle, key: str | Path) -> None:
    """Raises `BundleError` unless the bundle was signed with the private half of `key` (a public key in PEM).

    The manifest names the hash of every file, so with `Bundle.verify_files` the whole content is proven.
    `InputRefused` for a key that is none, `MissingExtra` without cryptography.
    """
    public = _public_key(Path(key))
    from cryptography.exceptions import InvalidSignature

    if not is_signed(bundle):
        raise BundleError(f"{bundle.path} is not signed, expected {SIGNATURE} in it; get the signed bundle")
    text = _manifest_bytes(bundle)
    try:
        public.verify(bundle.reader.read(SIGNATURE, limit=SIGNATURE_BYTES), text)
    except InvalidSignature as error:
        raise BundleError(
            f"{bundle.path} was not signed with the key that belongs to {key}, or was changed afterwards; do not use "
            "it, get it again from its maker"
        ) from error


def _manifest_bytes(bundle: Bundle) -> bytes:
    """The bytes of bundle.json as they are now, which must still say what was opened."""
    text = bundle.reader.read(MANIFEST, limit=MAX_MANIFEST_BYTES)
    if parse_manifest(text) != bundle.manifest:
        raise BundleError(f"{MANIFEST} in {bundle.path} changed while it was read; open the bundle again")
    return text


def _private_key(path: Path) -> Ed25519PrivateKey:
    ed25519, serialization = _cryptography()
    data = _read_key(path)
    try:
        key = serialization.load_pem_private_key(data, password=None)
    except TypeError as error:  # what cryptography raises for one that wants a password
        raise InputRefused(f"the key {path} is protected by a password, expected one without") from error
    except ValueError as error:
        raise _no_key(path, "private") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise _no_key(path, "private")
    private: Ed25519PrivateKey = key
    return private


def _public_key(path: Path) -> Ed25519PublicKey:
    ed25519, serialization = _cryptography()
    try:
        key = serialization.load_pem_public_key(_read_key(path))
    except ValueError as error:
        raise _no_key(path, "public") from error
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise _no_key(path, "public")
    public: Ed25519PublicKey = key
    return public


def _read_key(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_KEY_BYTES)
    except OSError as error:
        raise InputRefused(f"cannot read the key {path}: {error.strerror}; check the path") from error


def _no_key(path: Path, half: str) -> InputRefused:
    return InputRefused(
        f"{path} is no {half} Ed25519 key in PEM; make a pair with: edgekd sign BUNDLE --key key.pem --new-key"
    )


def _cryptography() -> tuple[Any, Any]:
    """The two modules of cryptography, or the command that installs it."""
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingExtra("cryptography", "sign", purpose="signing") from error
    return ed25519, serialization
