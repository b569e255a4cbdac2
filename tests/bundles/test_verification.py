"""verify: what is tampered with is found, what answers otherwise is named, what cannot run is said."""

import importlib.util
import json
import shutil

import numpy as np
import pytest

from tsexport.bundles.bundle import open_bundle
from tsexport.bundles.checksums import seal
from tsexport.bundles.golden import read_golden, write_golden
from tsexport.bundles.manifest import GoldenTolerance
from tsexport.bundles.verification import compare_with_golden, examine_bundle, verify_bundle
from tsexport.errors import BundleError, GoldenError, NoRuntimeError, UsageError
from tsexport.runtimes import registry
from tsexport.types import TensorSpec


@pytest.fixture
def without(monkeypatch):
    """Hide packages from the registry, as on a machine where they are not installed."""

    def hide(*packages):
        find = importlib.util.find_spec
        monkeypatch.setattr(
            registry.importlib.util, "find_spec", lambda name, *a: None if name in packages else find(name, *a)
        )

    return hide


def rewrite_manifest(root, change):
    path = root / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    seal(root)


def test_a_good_bundle(bundle):
    report = bundle.verify()
    assert report.passed
    assert report == verify_bundle(bundle.path)
    assert [(check.artifact, check.runtime, check.status) for check in report.checks] == [
        ("fp32-onnx", "onnxruntime", "passed"),
        ("int8-onnx", "onnxruntime", "passed"),
    ]
    fp32, int8 = (check.outputs[0] for check in report.checks)
    assert fp32.max_abs_error <= 1e-5
    assert 1e-4 < int8.relative_rms < 0.2
    assert (report.samples, report.batch) == (6, 4)
    assert report.files == sum(path.is_file() for path in bundle.path.rglob("*"))


def test_an_archive(bundle_folder, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "b"), "gztar", bundle_folder.parent, bundle_folder.name)
    assert verify_bundle(archive).passed


def test_a_changed_weight_is_found_before_anything_runs(bundle):
    path = bundle.artifact("fp32-onnx").path
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"changed: artifacts/tiny-fp32\.onnx"):
        bundle.verify()


def test_golden_outputs_missed(missed_bundle):
    with pytest.raises(GoldenError) as caught:
        verify_bundle(missed_bundle)
    message = str(caught.value)
    assert "fp32-onnx on onnxruntime, tolerance fp32: output y: at [2, 1]" in message
    assert "atol 1e-05 + rtol 1e-05" in message
    assert "largest error 0.01" in message
    assert "int8-onnx" not in message
    assert caught.value.exit_code == 3


def test_the_budget_of_int8_is_its_own(bundle_folder):
    def tighten(document):
        document["artifacts"][1]["golden_tolerance"]["max_relative_rms"] = 1e-6

    rewrite_manifest(bundle_folder, tighten)
    report = examine_bundle(bundle_folder)
    assert [check.status for check in report.checks] == ["passed", "failed"]
    with pytest.raises(GoldenError, match=r"int8-onnx on onnxruntime.*relative RMS error 0\.\d+, allowed 1e-06"):
        report.raise_unless_passed()


def test_golden_goes_in_the_batches_of_the_manifest(bundle_folder):
    """Dynamic quantization makes answers depend on the batch: another batch gives another error."""
    errors = {}
    for batch in (1, 6):
        rewrite_manifest(bundle_folder, lambda document, batch=batch: document["golden"].update(batch=batch))
        errors[batch] = examine_bundle(bundle_folder).checks[1].outputs[0].relative_rms
    assert errors[1] != errors[6]


def test_an_artifact_that_the_runtime_refuses(bundle_folder):
    path = bundle_folder / "artifacts/tiny-fp32.onnx"
    path.write_bytes(b"no model")

    def follow(document):
        from tsexport.types import file_sha256

        entry = document["artifacts"][0]
        entry["sha256"] = entry["files"][0]["sha256"] = file_sha256(path)
        entry["size_bytes"] = entry["files"][0]["size_bytes"] = len(b"no model")

    rewrite_manifest(bundle_folder, follow)
    with pytest.raises(GoldenError, match="fp32-onnx on onnxruntime: onnxruntime cannot load"):
        verify_bundle(bundle_folder)


def test_no_runtime(bundle, without):
    without("onnxruntime")
    report = examine_bundle(bundle)
    assert not report.passed
    assert {check.status for check in report.checks} == {"not checked"}
    with pytest.raises(NoRuntimeError, match="no artifact of tiny-cpu4-int8 could be run here") as caught:
        bundle.verify()
    assert 'pip install "onnxruntime~=' in str(caught.value)
    assert caught.value.exit_code == 6


def test_what_is_not_checked_is_said(bundle_folder, without):
    without("tract")

    def add(document):
        document["artifacts"][0]["runtimes"] += ["tract", "future-runtime"]

    rewrite_manifest(bundle_folder, add)
    report = verify_bundle(bundle_folder)
    assert [(check.runtime, check.status, check.reason) for check in report.checks[1:3]] == [
        ("tract", "not checked", "the package tract is not installed"),
        ("future-runtime", "not checked", "this tsexport does not know that runtime"),
    ]
    assert [status.name for status in report.missing_runtimes] == ["tract"]


def edit_digest(document):
    document["artifacts"][0]["files"][0]["sha256"] = "0" * 64


def edit_artifact_digest(document):
    document["artifacts"][0]["sha256"] = "0" * 64


def edit_size(document):
    document["artifacts"][0]["files"][0]["size_bytes"] += 1
    document["artifacts"][0]["size_bytes"] += 1


def edit_samples(document):
    document["golden"]["samples"] = 7


def edit_output(document):
    for entry in document["artifacts"]:
        entry["outputs"][0]["name"] = "z"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit_digest, "another SHA-256 for artifacts/tiny-fp32.onnx than SHA256SUMS"),
        (edit_artifact_digest, "a SHA-256 for artifact fp32-onnx that is not that of its files"),
        (edit_size, "another size for artifacts/tiny-fp32.onnx"),
        (edit_samples, r"x is float32\[6, 4\], needed is float32\[7, 4\]"),
        (edit_output, "holds y.npy; the manifest's tensors need z.npy"),
    ],
)
def test_a_manifest_at_odds_with_the_files(bundle_folder, change, message):
    rewrite_manifest(bundle_folder, change)
    with pytest.raises(BundleError, match=message):
        verify_bundle(bundle_folder)


@pytest.mark.parametrize(
    "name",
    [
        "1/model.onnx",
        "2/model.onnx",
        "1/weights/model.onnx",
        "model.py",
        "tiny/config.pbtxt",
        "1/config.pbtxt",
        "1/README.md",
    ],
)
def test_a_served_file_that_is_no_artifacts(bundle_folder, name):
    """Also where SHA256SUMS was written anew; in a newer version, which Triton would serve, and beside the versions."""
    folder = bundle_folder / "triton/tiny"
    (folder / "1").mkdir(parents=True)
    shutil.copyfile(bundle_folder / "artifacts/tiny-int8.onnx", folder / "1/model.onnx")
    (folder / "config.pbtxt").write_text("")
    (folder.parent / "README.md").write_text("")
    seal(bundle_folder)
    assert verify_bundle(bundle_folder).passed
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"another model")
    seal(bundle_folder)
    with pytest.raises(BundleError, match=f"triton/tiny/{name} is none of the files of the artifacts"):
        verify_bundle(bundle_folder)


def test_golden_files_are_deterministic_and_read_by_numpy(tmp_path):
    arrays = {"b": np.arange(6.0).reshape(2, 3), "a": np.asfortranarray(np.ones((2, 2), np.float32))}
    texts = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_golden(tmp_path / name, arrays, arrays)
        texts.append((tmp_path / name / "golden/inputs.npz").read_bytes())
    assert texts[0] == texts[1]
    specs = (TensorSpec("a", "float32", ("batch", 2)), TensorSpec("b", "float64", ("batch", 3)))
    read = read_golden(tmp_path / "one", "golden/inputs.npz", specs, 2)
    with np.load(tmp_path / "one/golden/inputs.npz", allow_pickle=False) as plain:
        for name, array in arrays.items():
            np.testing.assert_array_equal(read[name], array)
            np.testing.assert_array_equal(plain[name], array)


def header(shape, descr="<f4"):
    """A .npy file's header that claims a shape, with no data behind it."""
    import io

    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header((2**40, 4)), r"x is float32\[1099511627776, 4\]"),
        (header((6, 4), "|O"), r"x is object\[6, 4\]"),
        (header((6, 4)), "is damaged"),
        (b"\x93NUMPY\x02\x00" + b"\x00" * 20, "this is another"),
        (b"pickle", "is damaged"),
        (b"", "is damaged"),
    ],
    ids=["huge", "objects", "no data", "format 2", "no array", "empty"],
)
def test_golden_files_that_are_not_trusted(tmp_path, content, message):
    import zipfile

    (tmp_path / "golden").mkdir()
    with zipfile.ZipFile(tmp_path / "golden/inputs.npz", "w") as archive:
        archive.writestr("x.npy", content)
    with pytest.raises(BundleError, match=message):
        read_golden(tmp_path, "golden/inputs.npz", (TensorSpec("x", "float32", ("batch", 4)),), 6)


def test_golden_files_that_unpack_to_far_too_much(tmp_path):
    """A manifest that asks for them is no reason to take the memory."""
    import zipfile

    (tmp_path / "golden").mkdir()
    with zipfile.ZipFile(tmp_path / "golden/inputs.npz", "w") as archive:
        archive.writestr("x.npy", header((2**40, 4)))
    specs = (TensorSpec("x", "float32", ("batch", 4)),)
    with pytest.raises(BundleError, match=rf"would unpack to {2**44} bytes, far more than its size allows"):
        read_golden(tmp_path, "golden/inputs.npz", specs, 2**40)


def test_golden_file_missing_or_no_archive(tmp_path):
    specs = (TensorSpec("x", "float32", ("batch", 4)),)
    with pytest.raises(BundleError, match="cannot be read"):
        read_golden(tmp_path, "golden/inputs.npz", specs, 6)
    (tmp_path / "golden").mkdir()
    (tmp_path / "golden/inputs.npz").write_bytes(b"text")
    with pytest.raises(BundleError, match="is damaged"):
        read_golden(tmp_path, "golden/inputs.npz", specs, 6)


BOTH = GoldenTolerance("both", "test", atol=0.5, rtol=0.0, max_relative_rms=0.1)


@pytest.mark.parametrize(
    ("actual", "passed"),
    [([1.0, 2.0], True), ([1.05, 2.05], True), ([1.6, 2.0], False), ([1.4, 2.4], False), ([np.nan, 2.0], False)],
)
def test_both_bounds_hold(actual, passed):
    (output,) = compare_with_golden({"y": np.array([1.0, 2.0])}, {"y": np.array(actual)}, BOTH)
    assert output.passed is passed
    assert (output.reason == "") is passed


def test_outputs_that_cannot_be_compared_are_no_numbers():
    tolerance = GoldenTolerance("rms", "test", max_relative_rms=0.1)
    outputs = compare_with_golden(
        {"y": np.ones(2), "z": np.ones(2)}, {"y": np.full(2, np.inf), "w": np.ones(2)}, tolerance
    )
    assert [(output.output, output.passed, output.max_abs_error) for output in outputs] == [
        ("y", False, None),
        ("z", False, None),
        ("w", False, None),
    ]


def test_names_what_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="there is no bundle"):
        verify_bundle(tmp_path / "nothing")


def test_a_link_to_a_bundle_is_a_bundle(bundle_folder, tmp_path):
    (tmp_path / "latest").symlink_to(bundle_folder)
    assert open_bundle(tmp_path / "latest").verify().passed
