"""The documents of real bundles hold what their schemas say, and the bill of materials what a bundle is made of."""

import importlib.metadata
import json
import shutil
from dataclasses import replace

import pytest

from tsexport.bundles.checksums import read_sums, seal
from tsexport.bundles.diffing import Change, diff_bundles
from tsexport.bundles.manifest import manifest_text, selection_text
from tsexport.bundles.sbom import SBOM, sbom_text
from tsexport.bundles.structure import check_structure

KINDS = [
    "fp32",
    pytest.param("int8", marks=pytest.mark.slow),
    pytest.param("jetson", marks=pytest.mark.slow),
    pytest.param("pruned", marks=pytest.mark.slow),
    pytest.param("prepared", marks=pytest.mark.slow),
]
each_kind = pytest.mark.parametrize("kind", KINDS)


def document(bundle, name=SBOM):
    return json.loads((bundle.path / name).read_text(encoding="utf-8"))


@each_kind
def test_the_records_hold_what_their_schemas_say(bundle_of, schema, kind):
    bundle = bundle_of(kind)
    schema("manifest.schema.json").validate(document(bundle, "manifest.json"))
    schema("selection.schema.json").validate(document(bundle, "selection.json"))
    records = list((bundle.path / "measurements").glob("*.json"))
    assert records
    for path in records:
        schema("measurements.schema.json").validate(json.loads(path.read_text()))
    # What makes a kind a kind is there to be described.
    manifest = bundle.manifest
    told = {
        "fp32": manifest.accuracy,
        "int8": manifest.candidates,
        "jetson": manifest.target.tensorrt,
        "pruned": manifest.pruning,
        "prepared": manifest.config.get("preprocessing"),
    }
    assert told[kind]


@each_kind
def test_the_bill_of_materials_is_cyclonedx_by_its_own_schema(bundle_of, cyclonedx, kind):
    cyclonedx.validate(document(bundle_of(kind)))


def test_that_schema_refuses_what_is_none(bundle_of, cyclonedx):
    """The validator above can fail: unknown keys, digests and licences that are none."""
    for break_it in (
        lambda one: one["components"][0].update(weight=1),
        lambda one: one["components"][0]["hashes"][0].update(content="00"),
        lambda one: one["components"][-1].update(licenses=[{"license": {"id": "No-Such-Licence"}}]),
        lambda one: one.update(serialNumber="1"),
    ):
        broken = document(bundle_of("fp32"))
        break_it(broken)
        assert not cyclonedx.is_valid(broken)


@each_kind
def test_it_names_every_package_with_its_version_and_licence(bundle_of, kind):
    bundle = bundle_of(kind)
    packages = {one["name"]: one for one in document(bundle)["components"] if "purl" in one}
    assert {name: one["version"] for name, one in packages.items()} == bundle.manifest.provenance.versions
    assert {"python", "tsexport", "torch", "onnx", "onnxruntime", "openvino", "jinja2", "cyclonedx-python-lib"} <= set(
        packages
    )
    for name, one in packages.items():
        assert one["licenses"], name
        if name != "python":
            assert one["version"] == importlib.metadata.version(name)
            assert one["purl"].startswith(f"pkg:pypi/{name}@")
    assert packages["onnx"]["licenses"] == [{"license": {"acknowledgement": "declared", "id": "Apache-2.0"}}]
    assert packages["python"]["type"] == "platform"


@each_kind
def test_it_names_every_model_and_every_array_with_its_digest(bundle_of, kind):
    bundle = bundle_of(kind)
    listed = read_sums(bundle.path)
    files = {one["name"]: one for one in document(bundle)["components"] if one["bom-ref"].startswith("file:")}
    models = {file.path for entry in bundle.manifest.artifacts for file in entry.files}
    assert {name for name, one in files.items() if one["type"] == "machine-learning-model"} == models
    assert {"golden/inputs.npz", "golden/outputs.npz"} <= files.keys() - models
    for name, one in files.items():
        assert one["hashes"] == [{"alg": "SHA-256", "content": listed[name]}]
        assert one["type"] == ("machine-learning-model" if name in models else "data")


def test_it_says_who_needs_a_package(bundle_of):
    bundle = bundle_of("fp32")
    scopes = {one["name"]: one["scope"] for one in document(bundle)["components"] if "scope" in one}
    package = {"torchscript": "torch"}.get(bundle.manifest.selected.runtime, bundle.manifest.selected.runtime)
    assert {name for name, scope in scopes.items() if scope == "required"} == {package}
    assert {scopes[name] for name in {"torch", "onnxruntime", "openvino"} - {package}} == {"optional"}
    assert {scopes[name] for name in ("nncf", "onnxscript", "jinja2")} == {"excluded"}
    needs = {one["ref"]: one.get("dependsOn", []) for one in document(bundle)["dependencies"]}
    assert needs["file:artifacts/openvino-fp32.bin"] == ["package:openvino"]
    assert needs["file:artifacts/torchscript-fp32.pt"] == ["package:torch"]
    assert set(needs["bundle"]) >= {"file:artifacts/onnx-fp32.onnx", "file:golden/inputs.npz"}


def test_it_is_the_same_bytes_each_time_and_has_no_time(bundle_of):
    bundle = bundle_of("fp32")
    text = (bundle.path / SBOM).read_text(encoding="utf-8")
    assert sbom_text(bundle.path, bundle.manifest) == sbom_text(bundle.path, bundle.manifest) == text
    assert "timestamp" not in text
    other = replace(bundle.manifest, name="other")
    assert json.loads(sbom_text(bundle.path, other))["serialNumber"] != document(bundle)["serialNumber"]


def test_a_bundle_is_verified_with_it(bundle_of):
    bundle = bundle_of("fp32")
    assert SBOM in read_sums(bundle.path)
    assert check_structure(bundle) > 0
    assert f"`{SBOM}` lists the packages" in (bundle.path / "README.md").read_text()


def test_diff_tells_other_licences_of_a_real_bundle(bundle_of, tmp_path):
    one = bundle_of("fp32")
    other = tmp_path / one.path.name
    shutil.copytree(one.path, other)
    changed = document(one)
    for component in changed["components"]:
        if component["name"] == "onnx":
            component["licenses"] = [{"license": {"id": "MIT"}}]
    (other / SBOM).write_text(json.dumps(changed))
    seal(other)
    diff = diff_bundles(one, other)
    assert diff.licences == (Change("onnx", "Apache-2.0", "MIT"),)
    assert [(file.path, file.why) for file in diff.files] == [
        (SBOM, "made of manifest.json, and of the licences that packages declare")
    ]
    assert diff.not_compared == ()


@pytest.mark.slow
def test_diff_of_two_builds_in_one_environment_tells_no_licence(bundle_of):
    """Their models differ, and a model that states no licence is no change of one."""
    diff = diff_bundles(bundle_of("int8"), bundle_of("jetson"))
    assert (diff.licences, diff.versions) == ((), ())
    assert SBOM in {file.path for file in diff.files}


@each_kind
def test_what_is_written_is_read_again(bundle_of, kind):
    bundle = bundle_of(kind)
    assert (bundle.path / "manifest.json").read_text(encoding="utf-8") == manifest_text(bundle.manifest)
    assert (bundle.path / "selection.json").read_text(encoding="utf-8") == selection_text(bundle.selection)
