"""A whole build of a model whose weights take a second file, on a small model that counts as too large for one."""

import onnx
import pytest

import tsexport
from tsexport.errors import BundleError
from tsexport.exporters import onnx_external

SIZES = {
    **{"channels": 5, "latitudes": 16, "longitudes": 16, "widths": "8,16", "modes": 4},
    **{"layers": 1, "heads": 2, "feed_forward": 16},
}


@pytest.fixture
def bundle(small_build, arrays, fresh_cache, monkeypatch):
    monkeypatch.setattr(onnx_external, "THRESHOLD_BYTES", 10_000)
    states = arrays("states.npz", 96, state=(5, 16, 16))
    return small_build("sfno-edge", set=SIZES, calibration=states)


@pytest.mark.slow
def test_both_files_are_packed_loaded_and_verified(bundle):
    entry = next(one for one in bundle.manifest.artifacts if one.name == "onnx-fp32")
    packed = {path.name for path in (bundle.path / "artifacts").iterdir()}
    assert {"onnx-fp32.onnx", "onnx-fp32.data", "openvino-fp32.xml", "openvino-fp32.bin"} <= packed
    assert entry.size_bytes == sum(
        (bundle.path / "artifacts" / f"onnx-fp32.{s}").stat().st_size for s in ("onnx", "data")
    )
    onnx.checker.check_model(str(bundle.path / "artifacts" / "onnx-fp32.onnx"), full_check=True)
    assert "artifacts/onnx-fp32.data" in (bundle.path / "SHA256SUMS").read_text()
    tsexport.verify(bundle.path)
    for runtime in ("onnxruntime", "tract", "openvino", "torchscript"):
        with tsexport.load(bundle.path, precision="fp32", runtime=runtime) as session:
            assert session.inputs[0].shape == ("batch", 5, 16, 16)
    weights = bundle.path / "artifacts" / "onnx-fp32.data"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    with pytest.raises(BundleError, match=r"onnx-fp32\.data"):
        tsexport.verify(bundle.path)
