"""load: the right artifact, checked first, and nothing imported that is not needed."""

import gc
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import pytest

from tsexport.bundles.bundle import open_bundle
from tsexport.bundles.checksums import seal
from tsexport.bundles.loading import choose_artifact, cores_here, load_session, speed_order
from tsexport.bundles.manifest import RankedArtifact
from tsexport.errors import BundleError, FeedError, MissingDependencyError, UsageError
from tsexport.runtimes import registry

X = np.random.default_rng(3).standard_normal((5, 4)).astype(np.float32)


def rewrite(root, name, change):
    document = json.loads((root / name).read_text())
    change(document)
    (root / name).write_text(json.dumps(document))
    seal(root)


def test_the_selected_artifact(bundle_folder):
    with load_session(bundle_folder) as session:
        assert session.artifact.name == "int8-onnx"
        assert session.inputs[0].shape == ("batch", 4)
        for batch in (1, 2, 5):
            assert session.run({"x": X[:batch]})["y"].shape == (batch, 3)
        with pytest.raises(FeedError, match="unknown input 'z'"):
            session.run({"z": X})


def test_by_precision(bundle_folder):
    session = load_session(str(bundle_folder), precision="fp32")
    assert session.artifact.name == "fp32-onnx"
    x, y = (np.load(bundle_folder / f"golden/{name}.npz") for name in ("inputs", "outputs"))
    np.testing.assert_allclose(session.run(dict(x))["y"], y["y"], atol=1e-5)


def test_the_fastest_on_a_runtime(bundle_folder):
    rewrite(bundle_folder, "selection.json", lambda document: document["order"].reverse())
    assert load_session(bundle_folder, runtime="onnxruntime").artifact.name == "fp32-onnx"
    assert load_session(bundle_folder, "int8", "onnxruntime").artifact.name == "int8-onnx"
    assert load_session(bundle_folder).artifact.name == "int8-onnx"


def test_what_was_not_measured_comes_last(bundle_folder):
    rewrite(bundle_folder, "manifest.json", lambda document: document["artifacts"][0]["runtimes"].insert(0, "tract"))
    rewrite(bundle_folder, "selection.json", lambda document: document["order"].pop())
    bundle = open_bundle(bundle_folder)
    assert speed_order(bundle.manifest, bundle.selection) == (
        RankedArtifact("int8-onnx", "onnxruntime"),
        RankedArtifact("fp32-onnx", "tract"),
        RankedArtifact("fp32-onnx", "onnxruntime"),
    )
    assert choose_artifact(bundle.manifest, bundle.selection, None, "tract") == RankedArtifact("fp32-onnx", "tract")
    with pytest.raises(UsageError, match="no int8 artifact for tract; it has int8 on onnxruntime, fp32 on tract"):
        choose_artifact(bundle.manifest, bundle.selection, "int8", "tract")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "fp23"}, "nothing for precision 'fp23' (did you mean 'fp32'?); it has fp32, int8"),
        (
            {"runtime": "onxruntime"},
            "nothing for runtime 'onxruntime' (did you mean 'onnxruntime'?); it has onnxruntime",
        ),
        ({"threads": 0}, "threads is 0, allowed are 1 and more"),
    ],
)
def test_what_the_bundle_does_not_have(bundle, arguments, message):
    with pytest.raises(UsageError) as caught:
        load_session(bundle, **arguments)
    assert message in str(caught.value)


def test_threads(bundle_folder):
    assert load_session(bundle_folder).threads == min(2, cores_here())
    assert load_session(bundle_folder, threads=1).threads == 1
    rewrite(bundle_folder, "selection.json", lambda document: document.update(threads=1000))
    assert load_session(bundle_folder).threads == cores_here() <= len(os.sched_getaffinity(0))


def hide(monkeypatch, *packages):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        registry.importlib.util, "find_spec", lambda name, *a: None if name in packages else find(name, *a)
    )


def test_a_missing_runtime(bundle, monkeypatch):
    hide(monkeypatch, "onnxruntime")
    with pytest.raises(MissingDependencyError) as caught:
        load_session(bundle)
    assert "int8-onnx runs on onnxruntime, which is not usable here: the package onnxruntime is not installed" in str(
        caught.value
    )
    assert "no other runtime of this bundle is installed here" in str(caught.value)
    assert 'pip install "onnxruntime~=' in str(caught.value)


def test_a_missing_runtime_names_what_else_could_run(bundle_folder, monkeypatch):
    rewrite(bundle_folder, "manifest.json", lambda document: document["artifacts"][0]["runtimes"].append("openvino"))
    hide(monkeypatch, "onnxruntime")
    with pytest.raises(MissingDependencyError, match='fp32-onnx on openvino; load with runtime="openvino"'):
        load_session(bundle_folder)


@pytest.mark.parametrize("name", ["artifacts/tiny-int8.onnx", "manifest.json", "selection.json"])
def test_nothing_changed_is_loaded(bundle_folder, name):
    content = (bundle_folder / name).read_bytes()
    (bundle_folder / name).write_bytes(content + b"\n")
    with pytest.raises(BundleError, match=f"{name} of the bundle tiny-cpu4-int8 is not the file that was written"):
        load_session(bundle_folder)


def test_only_what_is_loaded_is_checked(bundle_folder):
    (bundle_folder / "artifacts/tiny-fp32.onnx").write_bytes(b"")
    load_session(bundle_folder).close()


def test_an_archive_lives_as_long_as_its_session(bundle_folder, tmp_path, monkeypatch):
    """Runtimes may open the file again, when they meet a batch for the first time."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    archive = shutil.make_archive(str(tmp_path / "b"), "zip", bundle_folder.parent, bundle_folder.name)
    session = load_session(archive)
    gc.collect()
    assert len(list(temporary.iterdir())) == 1
    assert session.run({"x": X})["y"].shape == (5, 3)
    del session
    gc.collect()
    assert list(temporary.iterdir()) == []


def test_a_failed_load_leaves_no_temporary_folder(bundle_folder, tmp_path, monkeypatch):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    archive = shutil.make_archive(str(tmp_path / "b"), "tar", bundle_folder.parent, bundle_folder.name)
    with pytest.raises(UsageError):
        load_session(archive, precision="bf16")
    assert list(temporary.iterdir()) == []


def test_imports_only_the_runtime(bundle_folder):
    code = (
        "import sys, numpy; from tsexport.bundles.loading import load_session\n"
        "session = load_session(sys.argv[1]); session.run({'x': numpy.ones((2, 4), 'float32')})\n"
        "print(*sorted({'torch', 'onnx', 'openvino', 'tract', 'jinja2'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code, bundle_folder], capture_output=True, text=True, check=True)
    assert out.stdout == "\n"


def test_torchscript(torchscript_bundle):
    assert open_bundle(torchscript_bundle).verify().checks[-1].status == "passed"
    with load_session(torchscript_bundle, runtime="torchscript", threads=1) as session:
        assert session.run({"x": X})["y"].shape == (5, 3)


def test_a_torchscript_file_is_opened_only_with_its_digest(torchscript_bundle):
    path = torchscript_bundle / "artifacts/tiny-fp32.pt"
    path.write_bytes(path.read_bytes() + b"code")
    with pytest.raises(BundleError, match=r"tiny-fp32\.pt of the bundle .* is not the file that was written"):
        load_session(torchscript_bundle, runtime="torchscript", threads=1)
