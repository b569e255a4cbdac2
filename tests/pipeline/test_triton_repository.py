"""The model repository in whole bundles: what is selected is what is served, with the artifact's own bytes."""

import numpy as np
import pytest
from triton_backends import check_model, parsed

import tsexport
from tsexport.bundles.bundle import open_bundle
from tsexport.bundles.checksums import read_sums
from tsexport.types import file_sha256

SMALL = {"context_length": 32, "horizon": 8, "channels": 2}
BACKENDS = {"onnxruntime": "onnxruntime", "openvino": "openvino", "torchscript": "pytorch", "tract": "onnxruntime"}


def folders(bundle):
    return sorted(path for path in (bundle.path / "triton").iterdir() if path.is_dir())


def versions_are_artifacts(bundle):
    """Every file of a version has the bytes of a file of an artifact, and stands in SHA256SUMS."""
    listed = read_sums(bundle.path)
    artifacts = {file.sha256 for entry in bundle.manifest.artifacts for file in entry.files}
    found = [path for path in (bundle.path / "triton").glob("*/1/*")]
    for path in found:
        digest = file_sha256(path)
        assert digest in artifacts
        assert listed[path.relative_to(bundle.path).as_posix()] == digest
    return len(found)


def test_what_is_selected_is_served(built):
    bundle = built.bundle
    selected = bundle.manifest.artifact(bundle.manifest.selected.artifact)
    config = check_model(bundle.path / "triton" / "patchtst-cpu")
    assert config.backend == BACKENDS[bundle.selection.runtime]
    if bundle.selection.runtime != "tract":
        served = bundle.path / "triton/patchtst-cpu/1" / config.default_model_filename
        assert file_sha256(served) == selected.files[0].sha256
    if not selected.batch_dependent:
        assert config.max_batch_size == max(bundle.selection.triton_batch_sizes) == 3
        assert list(config.dynamic_batching.preferred_batch_size) == [3]
    assert [check_model(folder).name for folder in folders(bundle)]
    assert versions_are_artifacts(bundle) >= 1
    readme = (bundle.path / "triton/README.md").read_text()
    for folder in folders(bundle):
        assert f"| `{folder.name}` |" in readme
    assert "`triton/README.md`" in (bundle.path / "README.md").read_text()


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Return a function that builds a small dlinear and selects an artifact of it; the cache is this file's own."""
    folder = tmp_path_factory.mktemp("triton")
    generator = np.random.default_rng(0)
    np.savez(folder / "series.npz", series=generator.standard_normal((300, 32, 2)).astype(np.float32))

    def build(target, name, **options):
        given = {"calibration": folder / "series.npz", "batch": [1, 4], "seconds": 0.1, **options}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TSEXPORT_CACHE", str(folder / "cache"))
            return tsexport.build("dlinear", target, set=SMALL, output=folder / "dist", name=name, **given)

    return build


@pytest.mark.slow
@pytest.mark.parametrize(
    ("artifact", "runtime", "names"),
    [
        ("onnx-fp32", "onnxruntime", ["dlinear"]),
        ("torchscript-fp32", "torchscript", ["dlinear"]),
        ("openvino-fp32", "openvino", ["dlinear", "dlinear-onnxruntime"]),
        ("onnx-fp32", "tract", ["dlinear"]),
    ],
)
def test_a_selection_on_each_runtime(make, one_selection, artifact, runtime, names):
    statuses = {status.name: status.available for status in tsexport.list_runtimes()}
    if not statuses[runtime]:
        pytest.skip(f"{runtime} is not installed")
    bundle = make("cpu4-fp32", runtime, selection=one_selection(artifact, runtime))
    assert [folder.name for folder in folders(bundle)] == names
    configs = [check_model(folder) for folder in folders(bundle)]
    assert configs[0].backend == BACKENDS[runtime]
    assert [config.max_batch_size for config in configs] == [4] * len(names)
    assert versions_are_artifacts(bundle) == len(names) + (runtime == "openvino")
    readme = (bundle.path / "triton/README.md").read_text()
    assert ("`INPUT__0`" in readme) == (runtime == "torchscript")
    assert ("unless it is told otherwise" in readme) == (runtime == "openvino")
    assert open_bundle(bundle.path).verify().passed


@pytest.mark.slow
@pytest.mark.parametrize("target", ["a100-fp32", "jetson-fp16"])
def test_an_engine_goes_into_a_copy_that_the_readme_tells_of(make, target):
    bundle = make(target, target)
    config = parsed(bundle.path / "triton/dlinear/config.pbtxt")
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
    assert not (bundle.path / "triton/dlinear/1").exists()
    readme = (bundle.path / "triton/README.md").read_text()
    assert "cp results/engine.plan models/dlinear/1/model.plan" in readme
    settings = (bundle.path / "device/settings.sh").read_text()
    assert "KIT_BATCHES=(1 4)\n" in settings
    assert config.max_batch_size == 4  # the largest batch of the engine's profile
