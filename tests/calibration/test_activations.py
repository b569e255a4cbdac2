"""Ranges of a graph's tensors: what numpy finds in them, group by group, with errors that name tensors."""

import numpy as np
import onnx
import onnx.parser
import onnx_ir
import pytest

from tsexport.calibration import activations
from tsexport.calibration.activations import answers, groups_of, model_digest
from tsexport.calibration.arrays import ArrayDataset
from tsexport.calibration.table import Observer, calibrate
from tsexport.errors import DataError
from tsexport.types import file_sha256, files_sha256

HEAD = '<ir_version: 8, opset_import: ["" : 17]> g (float[batch, 4] x, int64[batch, 4] ids) => (float[batch, 4] y) '
BODY = (
    "<float[4, 4] w = {"
    + ",".join(str((i * 7 % 5) - 2) for i in range(16))
    + "}>"
    + """{
  a = MatMul(x, w)  b = Relu(a)  c = Cast<to=1>(ids)  d = Add(b, c)  n = Log(x)  e = Shape(x)  y = Tanh(d)
}"""
)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(onnx.parser.parse_model(HEAD + BODY), path)
    return path


@pytest.fixture
def feeds():
    generator = np.random.default_rng(0)
    x = generator.standard_normal((70, 4)).astype(np.float32)
    return {"x": np.abs(x) + 0.1, "ids": generator.integers(0, 9, (70, 4))}


def expected(model, feeds):
    """All tensors, by numpy."""
    w = onnx.numpy_helper.to_array(onnx.load(model).graph.initializer[0])
    a = feeds["x"] @ w
    b = np.maximum(a, 0)
    d = b + feeds["ids"].astype(np.float32)
    return {"x": feeds["x"], "a": a, "b": b, "d": d, "y": np.tanh(d), "n": np.log(feeds["x"])}


@pytest.mark.parametrize("group_bytes", [1, 40, 300, 2**28])
def test_ranges_are_those_of_the_tensors(model, feeds, group_bytes, monkeypatch):
    monkeypatch.setattr(activations, "GROUP_BYTES", group_bytes)
    monkeypatch.setattr(activations, "PROBED_TENSORS", 2)
    tensors = ("y", "a", "x", "d", "n")
    table = calibrate(model, ArrayDataset(feeds), tensors, Observer())
    assert table.tensors == tensors
    for name, array in expected(model, feeds).items():
        if name in tensors:
            found = table.range_of(name)
            assert (found.low, found.high) == pytest.approx((array.min(), array.max()), rel=1e-5)
            assert found.amax == max(abs(found.low), abs(found.high))


def test_batches_shrink_before_tensors_are_taken_in_groups(model, feeds):
    def passes(group_bytes):
        return [tuple(part) for part in answers(model, ArrayDataset(feeds), ("a", "b", "y"), group_bytes=group_bytes)]

    row = 4 * 4  # bytes of each tensor for one window; there are 70, and 16 are a batch at most
    assert passes(3 * row * 16) == [("a", "b", "y")] * 5
    assert passes(3 * row * 7) == [("a", "b", "y")] * 10
    assert passes(2 * row) == [("a", "b")] * 70 + [("y",)] * 70
    assert groups_of({"a": 3, "b": 9, "c": 1, "d": 1}, 4) == (("a",), ("b",), ("c", "d"))


def test_per_channel(model, feeds):
    table = calibrate(model, ArrayDataset(feeds), ("a",), Observer(axis=1))
    found, array = table.range_of("a"), expected(model, feeds)["a"]
    assert found.channel_lows == pytest.approx(array.min(axis=0), rel=1e-5)
    assert found.channel_highs == pytest.approx(array.max(axis=0), rel=1e-5)


def test_a_table_says_what_it_was_made_with(model, feeds):
    dataset = ArrayDataset(feeds)
    table = calibrate(model, dataset, ("a",), Observer("mse"))
    assert table.model_sha256 == file_sha256(model)
    assert table.data_sha256 == dataset.digest
    assert table.window_ids == dataset.ids(range(70))
    assert "onnxruntime 1." in table.tool
    assert table == calibrate(model, dataset, ("a",), Observer("mse"))


def test_weights_in_another_file_belong_to_the_model(tmp_path, feeds, model):
    large = tmp_path / "large" / "m.onnx"
    large.parent.mkdir()
    onnx_ir.save(onnx_ir.load(model), large, external_data="m.data", size_threshold_bytes=0)
    assert model_digest(large) == files_sha256((large, large.with_name("m.data")))
    table = calibrate(large, ArrayDataset(feeds), ("a",), Observer())
    assert table.ranges == calibrate(model, ArrayDataset(feeds), ("a",), Observer()).ranges


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (("aa",), r"m.onnx: the tensor 'aa' is none that the graph computes \(did you mean 'a'\?\)"),
        (("w",), r"m.onnx: the tensor 'w' is a constant"),
        (("a", "b", "a"), "the tensor 'a' is to be observed twice"),
        (("ids",), "the tensor 'ids' holds int64; ranges are taken of floating-point tensors"),
        (("a", "e"), "the tensor 'e' holds int64; ranges are taken of floating-point tensors"),
    ],
)
def test_tensors_that_cannot_be_observed(model, feeds, tensors, words):
    with pytest.raises(DataError, match=words):
        calibrate(model, ArrayDataset(feeds), tensors, Observer())


def test_nan_names_the_tensor(model, feeds):
    feeds["x"][40, 1] = -1
    with pytest.raises(
        DataError, match="the tensor 'n' held NaN or infinity in 1 of 64 values while it was calibrated"
    ):
        calibrate(model, ArrayDataset(feeds), ("a", "n"), Observer("percentile", 99.0))


def test_a_tensor_that_is_not_there():
    from tsexport.calibration.table import CalibrationTable, TensorRange

    table = CalibrationTable("0" * 64, "0" * 64, (), Observer(), "tests", (TensorRange("act/1", 0, 1),))
    with pytest.raises(DataError, match=r"no range of the tensor 'act/2' \(did you mean 'act/1'\?\)"):
        table.range_of("act/2")
