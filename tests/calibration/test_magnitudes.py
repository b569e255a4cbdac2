"""The largest magnitude of a graph's tensors: what numpy finds in them, in one pass where every value is finite."""

import math

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tsexport.calibration import magnitudes
from tsexport.calibration.arrays import ArrayDataset
from tsexport.calibration.magnitudes import largest_magnitudes
from tsexport.errors import DataError

GRAPH = """<ir_version: 8, opset_import: ["" : 17]> g (float[batch, 3] x) => (float[batch, 3] y)
<int64[1] from = {9}, int64[1] axis = {1}, float half = {0.5}> {
  a = Mul(x, half)
  none = Slice(x, from, from, axis)
  all = ReduceSum<keepdims=0>(a)
  nothing = ReduceSum<keepdims=0>(none)
  y = Add(a, nothing)
}"""
TENSORS = ("x", "a", "none", "all", "nothing", "y")
VALUES = st.floats(width=32, allow_nan=True, allow_infinity=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("magnitudes") / "m.onnx"
    onnx.save(onnx.parser.parse_model(GRAPH), path)
    return path


def expected(x):
    """By numpy: NaN where a tensor holds NaN, else the largest finite magnitude, 0 for none."""
    with np.errstate(all="ignore"):
        a = x * np.float32(0.5)
        tensors = {"x": x, "a": a, "y": a, "none": x[:, 3:]}
    found = {}
    for name, array in tensors.items():
        there = np.abs(array[~np.isinf(array)])
        found[name] = float(there.max(initial=0.0))
    return found


@given(st.lists(st.tuples(VALUES, VALUES, VALUES), min_size=1, max_size=5), st.sampled_from([1, 100, 2**28]))
@example([(1.0, math.nan, 3.0)], 2**28)
@example([(math.inf, -math.inf, -3.0)], 2**28)
@example([(3e38, 3e38, -2.0), (1.0, 2.0, 3.0)], 1)
def test_magnitudes_are_those_of_the_values(model, rows, group_bytes):
    x = np.array(rows, np.float32)
    found = largest_magnitudes(model, ArrayDataset({"x": x}), TENSORS, group_bytes=group_bytes)
    assert tuple(found) == TENSORS
    for name, value in expected(x).items():
        assert found[name] == value or (math.isnan(found[name]) and math.isnan(value)), name
    assert found["nothing"] == 0


def test_finite_values_stay_in_the_graph(model, monkeypatch):
    """Tensors are asked for themselves only where a sum leaves a doubt."""
    asked = []
    real = magnitudes.answers

    def watched(path, dataset, tensors, *, group_bytes):
        asked.extend(tensors)
        return real(path, dataset, tensors, group_bytes=group_bytes)

    monkeypatch.setattr(magnitudes, "answers", watched)
    x = np.arange(30, dtype=np.float32).reshape(10, 3) - 20
    found = largest_magnitudes(model, ArrayDataset({"x": x}), TENSORS)
    assert (found["x"], found["a"], found["none"], asked) == (20.0, 10.0, 0.0, [])
    x[4, 1] = np.inf
    assert largest_magnitudes(model, ArrayDataset({"x": x}), ("x", "none"))["x"] == 20.0
    assert asked == ["x"]


def test_what_cannot_be_asked_for_is_named(model):
    with pytest.raises(DataError, match="holds no window"):
        largest_magnitudes(model, ArrayDataset({"x": np.zeros((0, 3), np.float32)}), TENSORS)
    with pytest.raises(DataError, match="the tensor 'half' is a constant"):
        largest_magnitudes(model, ArrayDataset({"x": np.zeros((1, 3), np.float32)}), ("half",))
