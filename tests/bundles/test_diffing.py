"""diff: whatever was changed in a bundle is named, and nothing else is."""

import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest

from tsexport.bench.records import read_record, write_record
from tsexport.bundles.bundle import open_bundle
from tsexport.bundles.checksums import read_sums, seal
from tsexport.bundles.diff_records import Change, FileChange, GraphChange
from tsexport.bundles.diffing import diff_bundles
from tsexport.bundles.golden import write_golden
from tsexport.errors import BundleError, UsageError
from tsexport.types import file_sha256


@pytest.fixture
def pair(measured_folder, tmp_path):
    """Two copies of one bundle, with measurements."""
    other = tmp_path / "other" / measured_folder.name
    shutil.copytree(measured_folder, other)
    return measured_folder, other


def edit(folder, change, name="manifest.json"):
    path = folder / name
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    seal(folder)


def take(folder, name, path):
    """Put another file in an artifact's place, and let the manifest say so."""
    target = folder / "artifacts" / name
    shutil.copyfile(path, target)

    def follow(document):
        for entry in document["artifacts"]:
            if entry["path"] == f"artifacts/{name}":
                size = target.stat().st_size
                entry["sha256"] = entry["files"][0]["sha256"] = file_sha256(target)
                entry["size_bytes"] = entry["files"][0]["size_bytes"] = size

    edit(folder, follow)


SECTIONS = ("files", "settings", "candidates", "operators", "layers", "accuracy", "latency", "versions", "licences")


def sections(diff):
    return {name for name in SECTIONS if getattr(diff, name)}


def test_a_bundle_and_its_copy(pair):
    diff = diff_bundles(*pair)
    assert diff.same_bytes
    assert sections(diff) == set()
    assert diff.not_compared == ("licences: tiny-cpu4-int8 has no sbom.cdx.json",)


def test_archives_and_open_bundles(pair, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "b"), "gztar", pair[1].parent, pair[1].name)
    assert diff_bundles(open_bundle(pair[0]), archive).same_bytes
    assert diff_bundles(pair[0], open_bundle(pair[1])).same_bytes


def test_a_measurement_is_told_and_changes_no_byte_of_the_rest(pair):
    (path,) = (pair[1] / "measurements").glob("*.json")
    record = read_record(path)
    slower = tuple(replace(one, samples_ms=tuple(2 * ms for ms in one.samples_ms)) for one in record.measurements)
    write_record(replace(record, measurements=slower), pair[1] / "measurements")
    seal(pair[1])
    diff = diff_bundles(*pair)
    assert diff.same_bytes
    assert sections(diff) == {"latency"}
    assert {(one.artifact, one.batch) for one in diff.latency} == {
        (name, batch) for name in ("fp32-onnx", "int8-onnx") for batch in (1, 10, 32)
    }
    for one in diff.latency:
        assert one.ratio == pytest.approx(2.0)
        assert one.machine == "Example CPU (0123456789ab)"


def test_another_machine_has_no_ratio(pair):
    (path,) = (pair[1] / "measurements").glob("*.json")
    record = read_record(path)
    path.unlink()
    machine = replace(record.machine, machine_id="fedcba987654")
    write_record(replace(record, machine=machine), pair[1] / "measurements")
    seal(pair[1])
    latency = diff_bundles(*pair).latency
    assert len(latency) == 12
    assert {one.ratio for one in latency} == {None}
    assert all((one.a_ms is None) != (one.b_ms is None) for one in latency)


def test_operators_and_the_precision_of_layers(pair, model_files):
    take(pair[1], "tiny-int8.onnx", model_files.fp32)
    diff = diff_bundles(*pair)
    assert sections(diff) == {"files", "settings", "operators", "layers"}
    assert GraphChange("int8-onnx", "MatMulInteger", "1", None) in diff.operators
    assert GraphChange("int8-onnx", "MatMul", None, "1") in diff.operators
    assert {(one.a, one.b) for one in diff.layers} <= {("int8", "fp32"), ("int8", None), (None, "fp32")}
    files = {one.path: one.why for one in diff.files}
    assert files["artifacts/tiny-int8.onnx"] == "other operators and precision of layers"
    assert files["manifest.json"] == "other artifacts"
    assert {one.what for one in diff.settings} == {"artifacts.int8-onnx.size_bytes"}


def test_other_weights_of_the_same_operators(pair, tmp_path):
    path = pair[1] / "artifacts/tiny-fp32.onnx"
    model = onnx.load(path)
    weight = next(one for one in model.graph.initializer if one.name == "w")
    weight.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(weight), "w"))
    onnx.save(model, tmp_path / "other.onnx")
    take(pair[1], "tiny-fp32.onnx", tmp_path / "other.onnx")
    edit(pair[1], lambda document: document["provenance"]["checkpoint"].update(sha256="c" * 64))
    diff = diff_bundles(*pair)
    assert not diff.operators
    assert not diff.layers
    assert Change("provenance.checkpoint.sha256", "a" * 64, "c" * 64) in diff.settings
    files = {one.path: one.why for one in diff.files}
    assert files["artifacts/tiny-fp32.onnx"] == (
        "the same operators with other values or names; built from other provenance.checkpoint"
    )


def test_versions_settings_accuracy_candidates_and_caveats(pair):
    def change(document):
        document["provenance"]["versions"].update(onnxruntime="1.32.0", nncf="3.4.0")
        document["config"]["seed"] = 3
        document["accuracy"][0]["output_error"] = 0.02
        document["candidates"][1]["status"] = "eligible"
        document["caveats"] = ["another caveat"]

    edit(pair[1], change)
    diff = diff_bundles(*pair)
    assert sections(diff) == {"files", "settings", "candidates", "accuracy", "versions"}
    assert diff.versions == (Change("onnxruntime", "1.31.1", "1.32.0"), Change("nncf", None, "3.4.0"))
    assert set(diff.settings) == {
        Change("config.seed", "0", "3"),
        Change("caveat", "int8 answers depend on the rest of the batch", None),
        Change("caveat", None, "another caveat"),
    }
    (accuracy,) = diff.accuracy
    assert (accuracy.artifact, accuracy.output_error_a, accuracy.output_error_b) == ("int8-onnx", 0.01, 0.02)
    (candidate,) = diff.candidates
    assert candidate.what == "ort-static-u8s8 on onnxruntime"
    assert diff.files == (
        FileChange("manifest.json", "changed", "other config, provenance, accuracy, candidates, caveats"),
    )


def test_the_selection_and_files_of_one_alone(pair):
    edit(pair[1], lambda document: document.update(triton_batch_sizes=[1, 16]), "selection.json")
    (pair[1] / "triton/tiny").mkdir(parents=True)
    (pair[1] / "triton/tiny/config.pbtxt").write_text("name: 'tiny'\n")
    seal(pair[1])
    diff = diff_bundles(*pair)
    assert diff.settings == (Change("selection.triton_batch_sizes", "[1, 8]", "[1, 16]"),)
    assert {one.path: one.status for one in diff.files} == {
        "selection.json": "changed", "triton/tiny/config.pbtxt": "only in b",
    }  # fmt: skip
    assert {one.path: one.status for one in diff_bundles(pair[1], pair[0]).files}["triton/tiny/config.pbtxt"] == (
        "only in a"
    )


def test_another_selected_artifact_is_held_against_the_first_ones(pair):
    def change(document):
        document["selected"]["artifact"] = "fp32-onnx"

    edit(pair[1], change)
    edit(pair[1], lambda document: document.update(artifact="fp32-onnx"), "selection.json")
    diff = diff_bundles(*pair)
    assert GraphChange("int8-onnx -> fp32-onnx", "MatMulInteger", "1", None) in diff.operators
    assert Change("selected.artifact", "int8-onnx", "fp32-onnx") in diff.settings


def test_an_artifact_of_one_alone(pair, torchscript_bundle):
    files = {one.path: one for one in diff_bundles(pair[0], torchscript_bundle).files}
    found = files["artifacts/tiny-fp32.pt"]
    assert (found.status, found.why) == ("only in b", "the other bundle has no such artifact")


def test_what_an_artifact_was_built_from(pair, model_files):
    take(pair[1], "tiny-int8.onnx", model_files.fp32)

    def change(document):
        document["provenance"]["calibration"]["windows"] = 65
        document["provenance"]["versions"]["onnxruntime"] = "1.32.0"
        document["rewrites"][0]["artifact"] = "int8-onnx"

    edit(pair[1], change)
    why = {one.path: one.why for one in diff_bundles(*pair).files}["artifacts/tiny-int8.onnx"]
    assert why == (
        "other operators and precision of layers; built from other provenance.calibration, "
        "rewrites.fuse-qkv of int8-onnx, versions of tools"
    )


def test_long_texts_are_cut_around_what_differs(pair):
    texts = ["x" * 400 + end for end in ("first", "second")]
    for folder, text in zip(pair, texts, strict=True):
        edit(folder, lambda document, text=text: document["selected"].update(why=text))
    (change,) = diff_bundles(*pair).settings
    assert change.a == "..." + "x" * 20 + "first"
    assert change.b == "..." + "x" * 20 + "second"


def test_golden_samples(pair):
    arrays = [dict(np.load(pair[1] / f"golden/{name}.npz")) for name in ("inputs", "outputs")]
    write_golden(pair[1], {"x": arrays[0]["x"] + 1}, arrays[1])
    seal(pair[1])
    assert diff_bundles(*pair).files == (
        FileChange("golden/inputs.npz", "changed", "other samples, or another source model"),
    )


def sbom(folder, licences, files=()):
    """Write a document that names the files of the artifacts, and others."""
    listed = read_sums(folder)
    names = [file.path for entry in open_bundle(folder).manifest.artifacts for file in entry.files]
    components = [
        {"name": name, "bom-ref": f"file:{name}", "hashes": [{"alg": "SHA-256", "content": listed[name]}]}
        for name in (*names, *files)
    ]
    components += [{"name": name, "licenses": one} for name, one in licences.items()]
    (folder / "sbom.cdx.json").write_text(json.dumps({"bomFormat": "CycloneDX", "components": components}))
    seal(folder)


def test_licences(pair):
    """CycloneDX gives a licence by its SPDX id, by a name, or as an expression."""
    same = {"numpy": [{"license": {"id": "BSD-3-Clause"}}]}
    sbom(pair[0], same | {"a": [{"license": {"id": "MIT"}}], "b": [], "c": [{"license": {"name": "Own"}}]})
    sbom(pair[1], same | {"a": [{"expression": "MIT OR Apache-2.0"}], "b": [{"license": {"id": "ISC"}}]})
    diff = diff_bundles(*pair)
    assert diff.licences == (
        Change("a", "MIT", "MIT OR Apache-2.0"),
        Change("b", "not stated", "ISC"),
        Change("c", "Own", None),
    )
    assert diff.not_compared == ()


def test_a_model_without_a_licence_is_no_change_of_one(pair):
    sbom(pair[0], {})
    sbom(pair[1], {}, files=["golden/inputs.npz"])
    assert diff_bundles(*pair).licences == ()


def test_an_sbom_that_is_none(pair):
    sbom(pair[0], {})
    (pair[1] / "sbom.cdx.json").write_text("[]")
    seal(pair[1])
    with pytest.raises(BundleError, match="is no CycloneDX document with named components"):
        diff_bundles(*pair)


def test_an_sbom_that_is_far_too_large(pair, monkeypatch):
    for folder in pair:
        sbom(folder, {})
    monkeypatch.setattr("tsexport.bundles.sbom._MAX_BYTES", 10)
    with pytest.raises(BundleError, match=r"sbom\.cdx\.json of tiny-cpu4-int8 is no plain file, or far too large"):
        diff_bundles(*pair)


def test_without_onnx_graphs_are_not_compared_and_it_is_said(pair, model_files, monkeypatch):
    take(pair[1], "tiny-int8.onnx", model_files.fp32)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "onnx" else object())
    diff = diff_bundles(*pair)
    assert diff.not_compared[0].startswith("operators and layers of int8-onnx: reading an ONNX graph needs onnx")
    assert 'pip install "tsexport[build]"' in diff.not_compared[0]
    assert not diff.operators


def test_a_damaged_bundle(pair):
    (pair[1] / "README.md").write_text("other")
    with pytest.raises(BundleError, match=r"changed: README\.md"):
        diff_bundles(*pair)


def test_no_bundle(pair, tmp_path):
    with pytest.raises(UsageError, match="there is no bundle"):
        diff_bundles(pair[0], tmp_path / "nothing")
