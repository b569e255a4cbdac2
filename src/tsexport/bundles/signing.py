"""Signatures of bundles: an Ed25519 signature (RFC 8032) over the bytes of SHA256SUMS, in `SHA256SUMS.sig`.

SHA256SUMS lists every file outside `measurements/` and the report, so the signature covers those; a measurement may be
attached to a signed bundle.  The signature is the 64 bytes alone and keys are PEM files, so OpenSSL 3 does it too:

    openssl genpkey -algorithm ed25519 -out key.pem
    openssl pkey -in key.pem -pubout -out key.pub.pem
    openssl pkeyutl -verify -pubin -inkey key.pub.pem -rawin -in SHA256SUMS -sigfile SHA256SUMS.sig

A key is named by the SHA-256 of its public half (DER, SubjectPublicKeyInfo).  Who holds a key is not said in a bundle:
the public key has to come another way.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tsexport.bundles.bundle import Bundle, open_bundle
from tsexport.bundles.checksums import SIGNATURE, SUMS, read_sums
from tsexport.bundles.staging import edited_bundle
from tsexport.bundles.structure import check_structure
from tsexport.errors import BundleError, UsageError
from tsexport.extras import require

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE_BYTES = 64
_MAX_KEY_BYTES = 64 * 2**10
_MAKE_KEY = "make one with `openssl genpkey -algorithm ed25519 -out key.pem`"
_PUBLIC_HALF = "`openssl pkey -in key.pem -pubout -out key.pub.pem` writes the public half of a key"


@dataclass(frozen=True)
class SignedBundle:
    """What was signed: the bundle's name, the signature's file in it, how many files it covers, and the key."""

    bundle: str
    file: str
    files: int
    key: str


def sign_bundle(bundle: str | Path | Bundle, key: str | Path, *, force: bool = False) -> SignedBundle:
    """Sign a bundle that is whole, with a private key.

    Args:
        bundle: a bundle's folder.
        key: a PEM file with an Ed25519 private key, without a password.
        force: replace a signature that is there.

    Raises:
        BundleError: the bundle is damaged.
        UsageError: it is an archive, is signed already, or cannot be written to, or the key cannot be used.
        MissingDependencyError: cryptography is not installed; names the pip command.
    """
    if not isinstance(bundle, Bundle):
        with open_bundle(bundle) as opened:
            return sign_bundle(opened, key, force=force)
    if bundle.source != bundle.path:
        raise UsageError(
            f"{bundle.source} is an archive, which cannot be signed",
            next_step="unpack it, sign the folder, and pack it again",
        )
    private = _private_key(Path(key))
    path = bundle.path / SIGNATURE
    try:
        with edited_bundle(bundle.path) as copy:
            check_structure(bundle)
            if path.exists() and not force:
                raise UsageError(f"{bundle.name} is signed already", next_step="give --force to replace the signature")
            _write(copy / SIGNATURE, private.sign((bundle.path / SUMS).read_bytes()))
    except OSError as error:
        raise UsageError(
            f"{path} cannot be written: {error.strerror or error}",
            next_step="free some space, or sign a copy in a folder that can be written to",
        ) from None
    return SignedBundle(bundle.name, SIGNATURE, len(read_sums(bundle.path)), key_id(private.public_key()))


def is_signed(root: Path) -> bool:
    """Return whether a bundle's folder holds a signature, whoever's."""
    return (root / SIGNATURE).exists()


def check_signature(root: Path, key: str | Path) -> str:
    """Return the name of the key that SHA256SUMS of a bundle's folder is signed by.

    Args:
        key: a PEM file with an Ed25519 public key.

    Raises:
        BundleError: there is no signature, it is damaged, or it is not of that key over these bytes.
        UsageError: the key cannot be used.
        MissingDependencyError: cryptography is not installed; names the pip command.
    """
    public = _public_key(Path(key))
    from cryptography.exceptions import InvalidSignature

    path = root / SIGNATURE
    if not path.is_file() or path.is_symlink():
        raise BundleError(
            f"the bundle {root.name} is not signed, and a key was given", next_step="ask who built it for a signed one"
        )
    if path.stat().st_size != SIGNATURE_BYTES:
        raise BundleError(f"{SIGNATURE} of {root.name} has {path.stat().st_size} bytes, a signature has 64")
    read_sums(root)  # refuses a list that is no plain file, or far too large
    try:
        public.verify(path.read_bytes(), (root / SUMS).read_bytes())
    except InvalidSignature:
        raise BundleError(
            f"{SIGNATURE} of {root.name} is no signature of its {SUMS} by the key {key_id(public)}",
            next_step="do not use it: it was changed after it was signed, or another key signed it",
        ) from None
    return key_id(public)


def key_id(public: "Ed25519PublicKey") -> str:
    """Return the SHA-256 of a public key, in hex."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _private_key(path: Path) -> "Ed25519PrivateKey":
    content = _read_key(path, "signing a bundle")
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(content, password=None)
    except TypeError:  # its word for a key that needs a password
        raise UsageError(
            f"{path} is encrypted, and tsexport takes no passwords",
            next_step="`openssl pkey -in KEY -out key.pem` writes it without one",
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(f"{path} is no private key in PEM", next_step=_MAKE_KEY) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path} is a key of another kind; allowed is Ed25519", next_step=_MAKE_KEY)
    return key


def _public_key(path: Path) -> "Ed25519PublicKey":
    content = _read_key(path, "checking a signature")
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if b"PRIVATE KEY-----" in content:
        raise UsageError(f"{path} is a private key; a signature is checked with the public one", next_step=_PUBLIC_HALF)
    try:
        key = load_pem_public_key(content)
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(f"{path} is no public key in PEM", next_step=_PUBLIC_HALF) from None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(f"{path} is a key of another kind; allowed is Ed25519", next_step=_MAKE_KEY)
    return key


def _read_key(path: Path, purpose: str) -> bytes:
    require("sign", purpose, only=("cryptography",))
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_KEY_BYTES + 1)
    except OSError as error:
        raise UsageError(f"the key {path} cannot be read: {error.strerror or error}") from None
    if len(content) > _MAX_KEY_BYTES:
        raise UsageError(f"{path} is far too large for a key", next_step=_MAKE_KEY)
    return content


def _write(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)  # in the copy: the old file is the bundle's own
    path.write_bytes(content)
    path.chmod(0o644)
