"""sign and verify --key: a signature holds for the bundle and the key it was made with, and for nothing else."""

import os
import shutil
import subprocess

import pytest

pytest.importorskip("cryptography", reason='signatures need the extra: pip install "tsexport[sign]"')

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

import tsexport
from tsexport.bundles.bundle import open_bundle
from tsexport.bundles.checksums import SIGNATURE, check_sums, seal, seal_measurements
from tsexport.bundles.signatures import check_signature, key_id
from tsexport.bundles.signing import sign_bundle
from tsexport.bundles.verification import examine_bundle, verify_bundle
from tsexport.errors import BundleError, MissingDependencyError, UsageError


def write_pair(folder, name, private):
    paths = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    paths[0].write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    paths[1].write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return paths


@pytest.fixture
def keys(tmp_path):
    """The paths of a private key and its public half."""
    return write_pair(tmp_path, "key", ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32))))


@pytest.fixture
def other_keys(tmp_path):
    return write_pair(tmp_path, "other", ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)))


@pytest.fixture
def signed(bundle_folder, keys):
    sign_bundle(bundle_folder, keys[0])
    return bundle_folder


def test_a_signed_bundle_verifies_with_its_key(bundle_folder, keys):
    done = tsexport.sign(open_bundle(bundle_folder), keys[0])
    assert (done.bundle, done.file) == ("tiny-cpu4-int8", "SHA256SUMS.sig")
    assert done.files == len((bundle_folder / "SHA256SUMS").read_text().splitlines())
    report = tsexport.verify(bundle_folder, key=keys[1])
    assert (report.signature, report.key) == ("holds", done.key)
    assert report.passed
    assert open_bundle(bundle_folder).verify(keys[1]).key == done.key


def test_the_signature_is_64_bytes_over_the_list_that_any_tool_can_check(signed, keys):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", keys[1], "-rawin", "-in", "SHA256SUMS"]
    subprocess.run([*command, "-sigfile", SIGNATURE], cwd=signed, check=True, capture_output=True)
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", keys[1], "-outform", "DER"], check=True, capture_output=True
    )
    name = subprocess.run(["sha256sum"], input=der.stdout, check=True, capture_output=True).stdout.decode().split()[0]
    assert name == check_signature(signed, keys[1])


def test_signing_twice_gives_the_same_bytes(signed, keys):
    first = (signed / SIGNATURE).read_bytes()
    assert len(first) == 64
    sign_bundle(signed, keys[0], force=True)
    assert (signed / SIGNATURE).read_bytes() == first


def test_an_archive_of_a_signed_bundle(signed, keys, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "b"), "gztar", signed.parent, signed.name)
    assert verify_bundle(archive, key=keys[1]).signature == "holds"


def test_without_a_key_a_signature_is_not_checked_and_that_is_said(signed, bundle, other_keys):
    assert examine_bundle(signed).signature == "not checked"
    assert examine_bundle(signed).key is None
    (signed / SIGNATURE).unlink()
    assert examine_bundle(signed).signature == "none"


def test_a_measurement_may_be_added_to_a_signed_bundle(signed, keys):
    (signed / "measurements/new.json").write_text("{}")
    seal_measurements(signed)
    assert check_sums(signed) > 0
    assert check_signature(signed, keys[1])


# --- demanded where a bundle is opened -------------------------------------------------------------------------------


def test_what_the_key_signed_is_loaded(signed, keys, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "b"), "zip", signed.parent, signed.name)
    for bundle in (signed, archive, open_bundle(signed)):
        with tsexport.load(bundle, key=keys[1]) as session:
            assert session.inputs


@pytest.mark.parametrize("form", ["folder", "archive", "open bundle"])
def test_nothing_of_an_unsigned_bundle_is_read_where_a_key_is_demanded(bundle_folder, keys, tmp_path, form):
    opened = open_bundle(bundle_folder)
    (bundle_folder / "manifest.json").write_text("whoever reads it fails on it")
    archive = shutil.make_archive(str(tmp_path / "b"), "zip", bundle_folder.parent, bundle_folder.name)
    bundle = {"folder": bundle_folder, "archive": archive, "open bundle": opened}[form]
    with pytest.raises(BundleError, match="the bundle tiny-cpu4-int8 is not signed, and a key was given"):
        tsexport.load(bundle, key=keys[1])


def test_what_another_key_signed_is_not_loaded(signed, other_keys):
    with pytest.raises(BundleError, match="is no signature of its SHA256SUMS by the key"):
        tsexport.load(signed, key=other_keys[1])
    assert tsexport.load(signed).inputs  # without a key any is


@pytest.mark.parametrize("name", ["manifest.json", "selection.json", "its artifact"])
def test_a_file_that_was_changed_under_a_signature_is_not_loaded(signed, keys, name):
    bundle = open_bundle(signed)
    path = bundle.artifact(bundle.selection.artifact).path if name == "its artifact" else signed / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(BundleError, match=f"{path.name} of the bundle .* is not the file that was written"):
        tsexport.load(signed, key=keys[1])


# --- what is found ---------------------------------------------------------------------------------------------------


def test_an_unsigned_bundle(bundle_folder, keys):
    with pytest.raises(BundleError, match="the bundle tiny-cpu4-int8 is not signed, and a key was given"):
        verify_bundle(bundle_folder, key=keys[1])


def test_another_key(signed, other_keys):
    with pytest.raises(BundleError, match=r"is no signature of its SHA256SUMS by the key [0-9a-f]{64}") as caught:
        verify_bundle(signed, key=other_keys[1])
    assert "another key signed it" in caught.value.next_step


def test_a_bundle_that_was_changed_and_sealed_anew(signed, keys):
    """Its digests agree with its list again; the signature does not."""
    (signed / "README.md").write_text("# another\n")
    seal(signed)
    assert verify_bundle(signed).passed
    with pytest.raises(BundleError, match="is no signature of its SHA256SUMS"):
        verify_bundle(signed, key=keys[1])


def test_a_file_that_was_changed_under_a_signature(signed, keys):
    (signed / "README.md").write_text("# another\n")
    with pytest.raises(BundleError, match=r"changed: README\.md"):
        verify_bundle(signed, key=keys[1])


@pytest.mark.parametrize("change", [lambda c: c[:-1], lambda c: c + b"x", lambda c: b""])
def test_a_signature_of_another_length(signed, keys, change):
    path = signed / SIGNATURE
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(BundleError, match=r"SHA256SUMS\.sig of tiny-cpu4-int8 has \d+ bytes, a signature has 64"):
        verify_bundle(signed, key=keys[1])


def test_a_signature_with_a_bit_turned(signed, keys):
    path = signed / SIGNATURE
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match="is no signature of its SHA256SUMS"):
        verify_bundle(signed, key=keys[1])


def test_the_signature_of_another_bundle(signed, torchscript_bundle, keys):
    sign_bundle(torchscript_bundle, keys[0])
    shutil.copyfile(torchscript_bundle / SIGNATURE, signed / SIGNATURE)
    with pytest.raises(BundleError, match="is no signature of its SHA256SUMS"):
        verify_bundle(signed, key=keys[1])


def test_a_signature_that_is_a_link(signed, keys, tmp_path):
    (signed / SIGNATURE).rename(tmp_path / "sig")
    (signed / SIGNATURE).symlink_to(tmp_path / "sig")
    with pytest.raises(BundleError, match="is not signed"):
        verify_bundle(signed, key=keys[1])
    with pytest.raises(BundleError, match=r"SHA256SUMS\.sig of the bundle tiny-cpu4-int8 is a link"):
        verify_bundle(signed)


# --- what cannot be signed, and keys that cannot be used -------------------------------------------------------------


def test_a_damaged_bundle_is_not_signed(bundle_folder, keys):
    (bundle_folder / "README.md").write_text("other")
    with pytest.raises(BundleError, match=r"changed: README\.md"):
        sign_bundle(bundle_folder, keys[0])
    assert not (bundle_folder / SIGNATURE).exists()


def test_a_signed_bundle_keeps_its_signature_without_force(signed, other_keys):
    before = (signed / SIGNATURE).read_bytes()
    with pytest.raises(UsageError, match="tiny-cpu4-int8 is signed already") as caught:
        sign_bundle(signed, other_keys[0])
    assert "--force" in caught.value.next_step
    assert (signed / SIGNATURE).read_bytes() == before
    sign_bundle(signed, other_keys[0], force=True)
    assert check_signature(signed, other_keys[1])


def test_an_archive_cannot_be_signed(bundle_folder, keys, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "b"), "zip", bundle_folder.parent, bundle_folder.name)
    with pytest.raises(UsageError, match="is an archive, which cannot be signed"):
        sign_bundle(archive, keys[0])


def test_a_folder_that_cannot_be_written_to(bundle_folder, keys, monkeypatch):
    def refuse(self, content):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.write_bytes", refuse)
    with pytest.raises(UsageError, match=r"SHA256SUMS\.sig cannot be written: Permission denied"):
        sign_bundle(bundle_folder, keys[0])


def unusable(folder):
    """Return files that are no key to sign with, with what is said of them."""
    pair = write_pair(folder, "curve", ec.generate_private_key(ec.SECP256R1()))
    ed = ed25519.Ed25519PrivateKey.generate()
    encrypted = ed.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    (folder / "encrypted.pem").write_bytes(encrypted)
    (folder / "text.pem").write_text("no key")
    (folder / "large.pem").write_bytes(bytes(2**17))
    public = write_pair(folder, "ed", ed)[1]
    return {
        "curve": (pair[0], "is a key of another kind; allowed is Ed25519"),
        "encrypted": (folder / "encrypted.pem", "is encrypted, and tsexport takes no passwords"),
        "text": (folder / "text.pem", "is no private key in PEM"),
        "public": (public, "is no private key in PEM"),
        "large": (folder / "large.pem", "is far too large for a key"),
        "absent": (folder / "absent.pem", "cannot be read: No such file or directory"),
        "folder": (folder, "cannot be read: Is a directory"),
    }


@pytest.mark.parametrize("kind", ["curve", "encrypted", "text", "public", "large", "absent", "folder"])
def test_keys_that_cannot_sign(bundle_folder, tmp_path, kind):
    path, message = unusable(tmp_path)[kind]
    with pytest.raises(UsageError, match=message):
        sign_bundle(bundle_folder, path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("key.pem", "is a private key; a signature is checked with the public one"),
        ("curve.pub.pem", "is a key of another kind; allowed is Ed25519"),
        ("text.pem", "is no public key in PEM"),
        ("large.pem", "is far too large for a key"),
        ("absent.pem", "cannot be read: No such file"),
    ],
)
def test_keys_that_cannot_check(signed, tmp_path, name, message):
    unusable(tmp_path)
    with pytest.raises(UsageError, match=message):
        verify_bundle(signed, key=tmp_path / name)


def test_without_cryptography_the_pip_command_is_named(signed, keys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
    for call, purpose in ((lambda: sign_bundle(signed, keys[0]), "signing a bundle"),
                          (lambda: check_signature(signed, keys[1]), "checking a signature")):  # fmt: skip
        with pytest.raises(MissingDependencyError, match=f"{purpose} needs cryptography") as caught:
            call()
        assert caught.value.next_step == 'pip install "tsexport[sign]"'


def test_keys_differ(keys, other_keys):
    names = {
        key_id(ed25519.Ed25519PrivateKey.from_private_bytes(seed).public_key())
        for seed in (bytes(range(32)), bytes(32))
    }
    assert len(names) == 2


def test_nothing_is_left_of_a_signature_that_failed(bundle_folder, keys, monkeypatch):
    monkeypatch.setattr("pathlib.Path.chmod", lambda *_: (_ for _ in ()).throw(OSError(28, os.strerror(28))))
    with pytest.raises(UsageError, match="No space left on device"):
        sign_bundle(bundle_folder, keys[0])
    assert not [path for path in bundle_folder.iterdir() if "sig" in path.name]
    assert list(bundle_folder.parent.glob(".*")) == []
