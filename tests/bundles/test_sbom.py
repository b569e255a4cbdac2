"""sbom.cdx.json of a small bundle: written, read strictly, and held against SHA256SUMS."""

import json
import warnings
from dataclasses import replace

import pytest
from cyclonedx.model.bom import Bom

from tsexport.bundles.bundle import open_bundle
from tsexport.bundles.checksums import seal
from tsexport.bundles.sbom import SBOM, read_sbom, sbom_text, write_sbom
from tsexport.bundles.verification import verify_bundle
from tsexport.errors import BundleError

NAME = "tiny-cpu4-int8"


@pytest.fixture
def folder(bundle_folder):
    """A sealed bundle with its bill of materials."""
    write_sbom(bundle_folder, open_bundle(bundle_folder).manifest)
    seal(bundle_folder)
    return bundle_folder


def edit(folder, change):
    document = json.loads((folder / SBOM).read_text())
    change(document)
    (folder / SBOM).write_text(json.dumps(document))
    seal(folder)


def component(document, name):
    return next(one for one in document["components"] if one["name"] == name)


def test_the_library_reads_it_back(folder):
    document = json.loads((folder / SBOM).read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bom = Bom.from_json(data=document)
    assert bom.metadata.component.name == NAME
    assert {(one.name, one.version) for one in bom.components if one.purl} == {
        ("onnxruntime", "1.31.1"), ("tsexport", "0.1.0"),
    }  # fmt: skip
    assert str(bom.serial_number) == document["serialNumber"].removeprefix("urn:uuid:")


def test_the_readers_see_components_licences_and_digests(folder):
    found = {one.name: one for one in read_sbom(folder, NAME)}
    assert found["onnxruntime"].licences == ("MIT",)
    assert not found["onnxruntime"].is_file
    entry = open_bundle(folder).manifest.artifact("int8-onnx")
    assert (found[entry.path].sha256, found[entry.path].licences) == (entry.sha256, ())
    assert found[entry.path].is_file
    # The reference checkpoint has tsexport's licence; it lies in no bundle.
    assert found["tiny.safetensors"].licences == ("Apache-2.0",)
    assert not found["tiny.safetensors"].is_file


def test_a_package_that_is_not_here_has_no_licence(folder):
    manifest = open_bundle(folder).manifest
    provenance = replace(manifest.provenance, versions={"no-such-package": "1.0"})
    text = sbom_text(folder, replace(manifest, provenance=provenance))
    (package,) = (one for one in json.loads(text)["components"] if "purl" in one)
    assert package["purl"] == "pkg:pypi/no-such-package@1.0"
    assert "licenses" not in package


def test_verify_takes_it(folder):
    assert verify_bundle(folder).passed


def test_a_bundle_without_it_is_whole(bundle_folder):
    assert verify_bundle(bundle_folder).passed


def test_another_digest_of_a_model(folder):
    edit(folder, lambda one: component(one, "artifacts/tiny-int8.onnx")["hashes"][0].update(content="0" * 64))
    with pytest.raises(BundleError, match=r"gives another SHA-256 for artifacts/tiny-int8\.onnx than SHA256SUMS"):
        verify_bundle(folder)


def test_a_file_that_is_not_there(folder):
    extra = {"name": "artifacts/other.onnx", "bom-ref": "file:artifacts/other.onnx", "type": "machine-learning-model"}
    edit(folder, lambda one: one["components"].append(extra))
    with pytest.raises(BundleError, match=r"names artifacts/other\.onnx, which does not stand in SHA256SUMS"):
        verify_bundle(folder)


def test_a_model_that_is_not_named(folder):
    edit(folder, lambda one: one["components"].remove(component(one, "artifacts/tiny-fp32.onnx")))
    with pytest.raises(BundleError, match=r"of tiny-cpu4-int8 does not name artifacts/tiny-fp32\.onnx, a file of the"):
        verify_bundle(folder)


@pytest.mark.parametrize(
    "text",
    [
        "[]", "1", "{}", '{"bomFormat": "CycloneDX"}', '{"bomFormat": "SPDX", "components": []}',
        '{"bomFormat": "CycloneDX", "components": 1}', '{"bomFormat": "CycloneDX", "components": [{}]}',
        '{"bomFormat": "CycloneDX", "components": [{"name": 1}]}',
        '{"bomFormat": "CycloneDX", "components": [{"name": "a", "licenses": [{}]}]}',
        '{"bomFormat": "CycloneDX", "components": [{"name": "a", "hashes": [{"alg": "SHA-256"}]}]}',
        '{"bomFormat": "CycloneDX", "components": [{"name": "a", "hashes": [1]}]}',
        '{"bomFormat": "CycloneDX", "components": [{"name": "a", "bom-ref": ["a"]}]}',
    ],
)  # fmt: skip
def test_what_is_none(folder, text):
    (folder / SBOM).write_text(text)
    seal(folder)
    with pytest.raises(BundleError, match="is no CycloneDX document with named components"):
        verify_bundle(folder)


def test_no_json(folder):
    (folder / SBOM).write_text("{")
    seal(folder)
    with pytest.raises(BundleError, match=r"sbom\.cdx\.json is not valid JSON"):
        verify_bundle(folder)


def test_one_that_is_not_there(bundle_folder):
    with pytest.raises(BundleError, match=r"sbom\.cdx\.json of tiny-cpu4-int8 is missing"):
        read_sbom(bundle_folder, NAME)


def test_one_that_is_a_link_or_far_too_large(folder, monkeypatch):
    monkeypatch.setattr("tsexport.bundles.sbom._MAX_BYTES", 10)
    with pytest.raises(BundleError, match="is no plain file, or far too large"):
        read_sbom(folder, NAME)
    monkeypatch.undo()
    (folder / SBOM).rename(folder / "moved.json")
    (folder / SBOM).symlink_to(folder / "moved.json")
    with pytest.raises(BundleError, match="is no plain file, or far too large"):
        read_sbom(folder, NAME)
