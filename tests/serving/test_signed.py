"""serve --key: only bundles that the key signed are served."""

import json
import shutil
import urllib.request

import pytest

pytest.importorskip("cryptography", reason='signatures need the extra: pip install "tsexport[sign]"')

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

import tsexport


@pytest.fixture
def key(tmp_path):
    """The public half of the key that signs `signed`."""
    private = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    (tmp_path / "key.pem").write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pub.pem").write_bytes(public)
    return tmp_path / "key.pub.pem"


@pytest.fixture
def signed(tiny, tmp_path, key):
    folder = shutil.copytree(tiny, tmp_path / "signed")
    tsexport.sign(folder, key.with_name("key.pem"))
    return folder


def test_what_the_key_signed_is_served(serve, signed, key):
    archive = shutil.make_archive(str(key.parent / "packed"), "gztar", signed.parent, signed.name)
    with serve(signed, archive, "--key", key) as running:
        answer = json.loads(urllib.request.urlopen(running.url + "/health").read())
    assert answer == {"status": "healthy", "models": {"signed": "active", "packed": "active"}}


def test_one_unsigned_bundle_is_refused_with_all(command_line, signed, tiny, key):
    ended = command_line(signed, tiny, "--key", key, "--port", "0")
    assert ended.returncode == 2
    assert "error: the bundle tiny is not signed, and a key was given\nask who built it" in ended.stderr
    assert ended.stdout == ""


def test_a_key_that_is_none(command_line, signed, key):
    ended = command_line(signed, "--key", key.with_name("key.pem"), "--port", "0")
    assert ended.returncode == 2
    assert "key.pem is a private key; a signature is checked with the public one" in ended.stderr
