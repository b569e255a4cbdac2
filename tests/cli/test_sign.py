"""tsexport sign, and verify --key: what they print."""

import json

import pytest
from click.testing import CliRunner

pytest.importorskip("cryptography", reason='signatures need the extra: pip install "tsexport[sign]"')

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tsexport.cli.sign import sign
from tsexport.cli.verify import verify
from tsexport.errors import BundleError, UsageError


def run(command, *arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


@pytest.fixture
def keys(tmp_path):
    private = Ed25519PrivateKey.generate()
    (tmp_path / "key.pem").write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pub.pem").write_bytes(public)
    return tmp_path / "key.pem", tmp_path / "key.pub.pem"


def test_help_names_the_exit_codes():
    assert "Exit codes: 0 signed, 2 the bundle is damaged, or the key cannot be used." in run(sign, "-h").output
    assert "With --key it must be" in run(verify, "-h").output


def test_signing_and_verifying(bundle_folder, keys):
    result = run(sign, bundle_folder, "--key", keys[0])
    assert result.exit_code == 0, result.output
    assert "files of tiny-cpu4-int8 in SHA256SUMS.sig by the key" in result.output
    key = result.output.split()[-1]
    checked = run(verify, bundle_folder, "--key", keys[1])
    assert checked.exit_code == 0, checked.output
    assert f"signed by the key {key}; that covers all but measurements/ and the report" in checked.output
    assert "signed, which was not checked" in run(verify, bundle_folder).output


def test_json(bundle_folder, keys):
    document = json.loads(run(sign, bundle_folder, "--key", keys[0], "--json").stdout)
    assert list(document) == ["schema_version", "bundle", "file", "files", "key"]
    checked = json.loads(run(verify, bundle_folder, "--key", keys[1], "--json").stdout)
    assert (checked["signature"], checked["key"]) == ("holds", document["key"])


def test_refusals(bundle_folder, keys):
    assert isinstance(run(verify, bundle_folder, "--key", keys[1]).exception, BundleError)
    run(sign, bundle_folder, "--key", keys[0])
    assert isinstance(run(sign, bundle_folder, "--key", keys[0]).exception, UsageError)
    assert run(sign, bundle_folder, "--key", keys[0], "--force").exit_code == 0


@pytest.mark.parametrize("arguments", [["--jsn"], [], ["bundle"]])
def test_wrong_usage(arguments):
    assert run(sign, *arguments).exit_code == 2
