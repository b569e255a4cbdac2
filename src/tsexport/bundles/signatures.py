"""Signatures of bundles: an Ed25519 signature (RFC 8032) over the bytes of SHA256SUMS, in `SHA256SUMS.sig`.

SHA256SUMS lists every file outside `measurements/` and the report, so the signature covers those; a measurement may be
attached to a signed bundle.  The signature is the 64 bytes alone and keys are PEM files, so OpenSSL 3 does it too:

    openssl genpkey -algorithm ed25519 -out key.pem
    openssl pkey -in key.pem -pubout -out key.pub.pem
    openssl pkeyutl -verify -pubin -inkey key.pub.pem -rawin -in SHA256SUMS -sigfile SHA256SUMS.sig

A key is named by the SHA-256 of its public half (DER, SubjectPublicKeyInfo).  Who holds a key is not said in a bundle:
the public key has to come another way.  Who trusts only what a key signed demands it wherever a bundle is opened.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from tsexport.bundles.checksums import SIGNATURE, SUMS, read_sums
from tsexport.errors import BundleError, UsageError
from tsexport.extras import require

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SIGNATURE_BYTES = 64
MAKE_KEY = "make one with `openssl genpkey -algorithm ed25519 -out key.pem`"
_MAX_KEY_BYTES = 64 * 2**10
_PUBLIC_HALF = "`openssl pkey -in key.pem -pubout -out key.pub.pem` writes the public half of a key"


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


def _public_key(path: Path) -> "Ed25519PublicKey":
    content = read_key(path, "checking a signature")
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
        raise UsageError(f"{path} is a key of another kind; allowed is Ed25519", next_step=MAKE_KEY)
    return key


def read_key(path: Path, purpose: str) -> bytes:
    """Return the bytes of a key's file.

    Args:
        purpose: what cryptography is needed for, where it is missing.

    Raises:
        UsageError: it cannot be read, or is far too large.
        MissingDependencyError: cryptography is not installed; names the pip command.
    """
    require("sign", purpose, only=("cryptography",))
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_KEY_BYTES + 1)
    except OSError as error:
        raise UsageError(f"the key {path} cannot be read: {error.strerror or error}") from None
    if len(content) > _MAX_KEY_BYTES:
        raise UsageError(f"{path} is far too large for a key", next_step=MAKE_KEY)
    return content
