"""A device's bundle loads on TensorRT where that is installed, and says how to install it where it is asked for."""

import sys

import pytest

from tsexport.bundles.bundle import open_bundle
from tsexport.bundles.loading import choose_artifact, load_session, on_tensorrt, speed_order
from tsexport.bundles.manifest import RankedArtifact
from tsexport.bundles.verification import examine_bundle
from tsexport.errors import MissingDependencyError
from tsexport.runtimes import registry

MISSING = pytest.mark.skipif(registry.get_runtime("tensorrt").check().available, reason="TensorRT is installed here")


def test_tensorrt_is_the_last_choice_of_a_devices_bundle_and_none_of_a_cpus(device_bundle, bundle_folder):
    bundle = open_bundle(device_bundle("a100-int8"))
    last = RankedArtifact("int8-onnx", "tensorrt")
    assert speed_order(bundle.manifest, bundle.selection)[-1] == last == on_tensorrt(bundle.manifest)
    assert choose_artifact(bundle.manifest, bundle.selection, None, "tensorrt") == last
    cpu = open_bundle(bundle_folder)
    assert on_tensorrt(cpu.manifest) is None
    assert {one.runtime for one in speed_order(cpu.manifest, cpu.selection)} == {"onnxruntime"}


@MISSING
def test_without_tensorrt_it_loads_as_it_was_verified(device_bundle):
    with load_session(device_bundle("a100-int8")) as session:
        assert session.runtime == "onnxruntime"


@MISSING
def test_tensorrt_that_is_asked_for_and_missing(device_bundle):
    with pytest.raises(MissingDependencyError) as caught:
        load_session(device_bundle("a100-int8"), runtime="tensorrt")
    assert caught.value.message == (
        "int8-onnx runs on tensorrt, which is not usable here: the package tensorrt is not installed; installed here "
        "and able to run this bundle: int8-onnx on onnxruntime, fp32-onnx on onnxruntime; load with "
        'runtime="onnxruntime"'
    )
    assert caught.value.next_step == 'install one with: pip install "tsexport[tensorrt]"'


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """TensorRT 10.3.0 as pip would leave it, whose library cannot be opened."""
    (tmp_path / "site" / "cuda" / "bindings").mkdir(parents=True)
    (tmp_path / "site" / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open it')")
    info = tmp_path / "site" / "tensorrt-10.3.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tensorrt\nVersion: 10.3.0\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    for name in ("tensorrt", "cuda", "tsexport.runtimes.tensorrt"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_where_tensorrt_is_installed_it_is_what_loads_and_what_is_verified(device_bundle, installed):
    root = device_bundle("a100-int8")
    with pytest.raises(
        MissingDependencyError, match=r"tensorrt cannot be imported: libnvinfer\.so\.10: cannot open it"
    ):
        load_session(root)
    with load_session(root, runtime="onnxruntime") as session:
        assert session.runtime == "onnxruntime"
    checks = {(one.artifact, one.runtime): one for one in examine_bundle(root).checks}
    assert "libnvinfer.so.10" in checks["int8-onnx", "tensorrt"].reason
    assert ("fp32-onnx", "tensorrt") not in checks


def test_a_cpus_bundle_has_nothing_to_do_with_tensorrt(bundle_folder, installed):
    load_session(bundle_folder).close()
    assert {one.runtime for one in examine_bundle(bundle_folder).checks} == {"onnxruntime"}
