"""Signing a bundle that stands; `tsexport.bundles.signatures` says what a signature is, and checks it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tsexport.bundles.bundle import Bundle, open_bundle
from tsexport.bundles.checksums import SIGNATURE, SUMS, read_sums
from tsexport.bundles.signatures import MAKE_KEY, key_id, read_key
from tsexport.bundles.staging import edited_bundle
from tsexport.bundles.structure import check_structure
from tsexport.errors import UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


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


def _private_key(path: Path) -> "Ed25519PrivateKey":
    content = read_key(path, "signing a bundle")
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
        raise UsageError(f"{path} is no private key in PEM", next_step=MAKE_KEY) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path} is a key of another kind; allowed is Ed25519", next_step=MAKE_KEY)
    return key


def _write(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)  # in the copy: the old file is the bundle's own
    path.write_bytes(content)
    path.chmod(0o644)
