"""TensorRT as a runtime: when it counts as installed, its options, and sessions where there is a GPU.

The tests of sessions are marked `gpu`.  They are skipped, and say why, without TensorRT: then nothing of it was run.
`test_sessions.py` and `test_refusals.py` hold it to what every runtime must do.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tsexport.errors import ConfigurationError, MissingDependencyError
from tsexport.runtimes import registry
from tsexport.runtimes.comparison import TOLERANCES, compare_outputs
from tsexport.runtimes.options import tensorrt_batches

BATCHES = "tensorrt.batches"
INSTALL = 'pip install "tsexport[tensorrt]"'


@pytest.fixture
def pretend(tmp_path, monkeypatch):
    """Return a function that installs a distribution `tensorrt` of a version, as pip would leave it."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("tensorrt", "tsexport.runtimes.tensorrt"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    def write(version: str, *, cuda: bool, code: str = "") -> None:
        (tmp_path / "tensorrt.py").write_text(code)
        info = tmp_path / f"tensorrt-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tensorrt\nVersion: {version}\n")
        if cuda:
            (tmp_path / "cuda" / "bindings").mkdir(parents=True)
        monkeypatch.delitem(sys.modules, "cuda", raising=False)

    return write


@pytest.mark.skipif(registry.get_runtime("tensorrt").check().available, reason="TensorRT is installed here")
def test_it_is_missing_here_and_says_how_to_install_it(small):
    status = registry.get_runtime("tensorrt").check()
    assert (status.available, status.version, status.formats) == (False, None, ("onnx",))
    assert status.reason == "the package tensorrt is not installed"
    assert status.pip_command == INSTALL
    with pytest.raises(MissingDependencyError, match="the runtime tensorrt needs tensorrt: the package") as caught:
        registry.load(small.artifacts["onnx"], "tensorrt", threads=1)
    assert caught.value.next_step == INSTALL


@pytest.mark.parametrize("version", ["8.5.3", "12.0.0"])
def test_another_version_is_refused_with_the_range(pretend, small, version):
    pretend(version, cuda=True)
    status = registry.get_runtime("tensorrt").check()
    reason = f"tensorrt {version} is installed; supported are 8.6 to 11"
    assert (status.available, status.version, status.reason) == (False, version, reason)
    with pytest.raises(MissingDependencyError, match=reason) as caught:
        registry.load(small.artifacts["onnx"], "tensorrt", threads=1)
    assert caught.value.next_step == INSTALL


def test_without_the_bindings_of_cuda(pretend):
    pretend("10.3.0", cuda=False)
    if registry._is_installed("cuda.bindings"):
        pytest.skip("cuda-bindings is installed here")
    status = registry.get_runtime("tensorrt").check()
    assert (status.available, status.reason) == (False, "the package cuda.bindings is not installed")


def test_installed_and_broken(pretend, small):
    pretend("10.3.0", cuda=True, code="raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    assert registry.get_runtime("tensorrt").check().available
    with pytest.raises(MissingDependencyError, match=r"tensorrt cannot be imported: libnvinfer\.so\.10") as caught:
        registry.load(small.artifacts["onnx"], "tensorrt", threads=1)
    assert caught.value.next_step == INSTALL


# --- options ---------------------------------------------------------------------------------------------------------


def test_batches_of_an_artifact(small):
    artifact = small.artifacts["onnx"]
    assert tensorrt_batches(artifact) == (1, 8)
    assert tensorrt_batches(replace(artifact, options=((BATCHES, "4,1,32"),))) == (4, 1, 32)


@pytest.mark.parametrize("given", ["", "0", "1,", "1, 8", "a", "-1", "01"])
def test_batches_that_are_none(small, given):
    artifact = replace(small.artifacts["onnx"], options=((BATCHES, given),))
    with pytest.raises(ConfigurationError, match=r"has the option tensorrt\.batches='.*'; allowed are whole numbers"):
        tensorrt_batches(artifact)


def test_other_runtimes_leave_the_option_alone(small, small_feeds):
    artifact = replace(small.artifacts["onnx"], options=((BATCHES, "4,1"),))
    for runtime in ("onnxruntime", "openvino", "tract"):
        with registry.load(artifact, runtime, threads=1) as session:
            assert set(session.run(small_feeds(2))) == {"y", "z"}
    misspelt = replace(artifact, options=(("tensorrt.batch", "4"),))
    with pytest.raises(ConfigurationError, match=r"did you mean 'tensorrt\.batches'"):
        registry.load(misspelt, "onnxruntime", threads=1)


# --- sessions, on a GPU ----------------------------------------------------------------------------------------------


@pytest.fixture
def artifact(small, tmp_path, monkeypatch):
    status = registry.get_runtime("tensorrt").check()
    if not status.available:
        pytest.skip(f"sessions of TensorRT were not run: {status.reason}")
    monkeypatch.setenv("TSEXPORT_CACHE", str(tmp_path))
    return replace(small.artifacts["onnx"], options=((BATCHES, "2,1,4"),))


def engines(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("tensorrt/*/engine.json"))


@pytest.mark.gpu
def test_a_batch_beyond_the_profile_builds_one_more_engine(artifact, small, small_feeds, tmp_path):
    with registry.load(artifact, "tensorrt", threads=3) as session:
        assert session.threads == 1
        for batch, built in ((4, 1), (1, 1), (5, 2), (8, 2), (3, 2)):
            found, expected = session.run(small_feeds(batch)), small.expected(small_feeds(batch))
            assert all(one.passed for one in compare_outputs(expected, found, TOLERANCES["fp32-export"]))
            assert len(engines(tmp_path)) == built


@pytest.mark.gpu
def test_an_engine_is_built_once_and_again_where_it_is_damaged(artifact, tmp_path):
    with registry.load(artifact, "tensorrt", threads=1) as first:
        assert "holds no engine" in first.built_because
    (folder,) = engines(tmp_path)
    assert list(tmp_path.glob("tensorrt/timing-*.cache"))
    with registry.load(artifact, "tensorrt", threads=1) as second:
        assert second.built_because == ""
    (folder / "engine.plan").write_bytes(b"damaged")
    with registry.load(artifact, "tensorrt", threads=1) as third:
        assert "its digest is" in third.built_because
    assert engines(tmp_path) == [folder]


@pytest.mark.gpu
def test_int64_inputs_and_their_answers(artifact, small, small_feeds):
    feeds = {**small_feeds(2), "ids": np.array([[0, 5], [3, 3]])}
    with registry.load(artifact, "tensorrt", threads=1) as session:
        np.testing.assert_allclose(session.run(feeds)["z"], small.expected(feeds)["z"], rtol=1e-5, atol=1e-6)
