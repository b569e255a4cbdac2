"""Builds for a target with TensorRT: what its version needs is rewritten, and what it refuses ends the build."""

from dataclasses import replace

import numpy as np
import onnx
import onnx.parser
import pytest

import tsexport
from tsexport.errors import UnsupportedError
from tsexport.exporters import device_check
from tsexport.exporters.device_check import check_onnx
from tsexport.exporters.device_table import Fact
from tsexport.stages.fitting import NEXT_STEP

SMALL = {
    **{"context_length": 32, "channels": 3, "patch_length": 8, "horizon": 4},
    **{"layers": 1, "width": 16, "heads": 2, "feed_forward": 24},
}
HEAD = '<ir_version: 8, opset_import: ["" : 17]> g '


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Return a function that builds a model for a target; its cache is the test's own."""
    monkeypatch.setenv("TSEXPORT_CACHE", str(tmp_path / "cache"))

    def build(model, target, shape, name, **options):
        series = np.random.default_rng(0).standard_normal((200, *shape)).astype(np.float32)
        np.savez(tmp_path / "series.npz", **{name: series})
        output = tmp_path / "dist"
        return tsexport.build(
            model, target, calibration=tmp_path / "series.npz", batch=[1], seconds=0.1, output=output, **options
        )

    return build


@pytest.fixture
def source(tmp_path):
    """Return a function that writes a graph as a model to be built."""

    def write(text, **constants):
        made = onnx.parser.parse_model(HEAD + text)
        for number, node in enumerate(made.graph.node):
            node.name = f"{node.op_type.lower()}_{number}"
        for name, array in constants.items():
            made.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
        onnx.save(made, tmp_path / "model.onnx")
        return tmp_path / "model.onnx"

    return write


def weights(*shape):
    return np.random.default_rng(2).standard_normal(shape)


def test_the_original_nano_gets_its_normalization_written_out(make):
    bundle = make("patchtst-cpu", "jetson-fp16", (32, 3), "features", set=SMALL, device="jetson-nano")
    manifest = bundle.manifest
    (record,) = (one for one in manifest.rewrites if one.name == "layer-norm-as-parts")
    assert (record.artifact, record.applied, record.reason) == ("onnx-fp32", True, "TensorRT 8.2 needs it")
    assert record.matches > 0
    assert record.nodes_after > record.nodes_before
    assert 0 <= record.max_abs_error < 1e-4
    files = [entry for entry in manifest.artifacts if entry.format == "onnx"]
    assert {entry.precision for entry in files} == {"fp32", "fp16"}
    for entry in files:
        report = check_onnx(bundle.path / entry.files[0].path, tensorrt="8.2", precision=entry.precision)
        assert report.errors == ()
    assert manifest.artifact(manifest.selected.artifact).precision == "fp16"
    assert bundle.verify().passed


def test_what_no_rewrite_helps_ends_the_build_with_exit_5(make, source, tmp_path):
    model = source(
        "(float[batch, 3, 3] x) => (float[batch] y) { h = MatMul(x, w)  y = Det(h) }",
        w=weights(3, 3),
    )
    with pytest.raises(UnsupportedError) as caught:
        make(model, "jetson-fp16", (3, 3), "x", device="jetson-nano")
    assert caught.value.exit_code == 5
    expected = "jetson-fp16: TensorRT 8.2 does not run onnx-fp32 as it is: 'det_1': TensorRT 8.2 has no Det"
    assert caught.value.message == expected
    assert caught.value.next_step == NEXT_STEP
    assert not list((tmp_path / "cache").glob("accuracy/*"))
    assert not list((tmp_path / "dist").glob("*"))


def test_candidates_that_are_all_refused_end_the_build_with_exit_5(make, source, tmp_path, monkeypatch):
    """A TensorRT that takes the graph in floating point, and no quantized one."""
    table = device_check.tensorrt_table()
    fact = Fact("always", ("QuantizeLinear",), "refused", "8.4", "8.4", "it is not taken here", "")
    monkeypatch.setattr(device_check, "tensorrt_table", lambda: replace(table, facts=(*table.facts, fact)))
    model = source("(float[batch, 4, 16] x) => (float[batch, 4, 8] y) { y = MatMul(x, w) }", w=weights(16, 8))
    with pytest.raises(UnsupportedError) as caught:
        make(model, "a100-int8", (4, 16), "x", device="@tensorrt-8.4")
    assert caught.value.exit_code == 5
    assert caught.value.message.startswith(
        "no candidate for a100-int8 runs on a100: TensorRT 8.4 does not run int8-tensorrt-minmax as it is: "
    )
    assert ": it is not taken here" in caught.value.message
    assert caught.value.next_step == NEXT_STEP
    assert not list((tmp_path / "cache").glob("accuracy/*"))
    assert not list((tmp_path / "dist").glob("*"))


def test_a_computed_bias_ends_the_build_before_candidates_are_made(make, source, tmp_path):
    model = source(
        "(float[batch, 4, 16] x) => (float[batch, 4, 14] y)"
        " { m = ReduceMax<keepdims = 0>(x)  s = Sign(m)  b = Mul(s, c)  y = Conv(x, w, b) }",
        w=weights(4, 4, 3),
        c=weights(4),
    )
    with pytest.raises(UnsupportedError, match="'conv_3': the bias must be an initializer"):
        make(model, "a100-int8", (4, 16), "x", device="@tensorrt-8.4")
    assert not list((tmp_path / "dist").glob("*"))


def test_a_rewrite_that_does_not_prove_itself_is_named(make, source):
    """Beside a mean of 10,000 a deviation of 0.01 is lost in ONNX Runtime's operator, and not in the parts."""
    model = source(
        "(float[batch, 4] x) => (float[batch, 4] y)"
        " { a = Mul(x, small)  h = Add(a, far)  n = LayerNormalization(h, s)  y = MatMul(n, w) }",
        small=np.array(0.01),
        far=np.array(1e4),
        s=np.ones(4),
        w=weights(4, 4),
    )
    with pytest.raises(UnsupportedError) as caught:
        make(model, "jetson-fp16", (4,), "x", device="xavier-nx@jetpack-5.1")
    assert "TensorRT 8.5 has no LayerNormalization; rewrite layer-norm-as-parts not kept: output y departs by" in (
        caught.value.message
    )
