"""Sensitivity: the layer that is bad by construction comes first, and rounding is what numpy says."""

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tsexport.calibration.arrays import ArrayDataset
from tsexport.calibration.metrics import OutputError
from tsexport.exporters.onnx_file import ort_run
from tsexport.quantize.sensitivity import Probe, find_layers, round_weights

WIDTH = 16
HEAD = f'<ir_version: 8, opset_import: ["" : 17]> g (float[batch, {WIDTH}] x) => (float[batch, {WIDTH}] y) '
CHAIN = (
    "{ [one] a = MatMul(x, w0)  b = Relu(a)  [two] c = MatMul(b, w1)  d = Relu(c)  [three] e = MatMul(d, w2) "
    "y = Identity(e) }"
)


def weight(seed, shape=(WIDTH, WIDTH)):
    return (np.random.default_rng(seed).standard_normal(shape) / WIDTH**0.5).astype(np.float32)


def written(path, body, weights):
    model = onnx.parser.parse_model(HEAD + body)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return model


@pytest.fixture
def windows():
    return np.random.default_rng(5).standard_normal((24, WIDTH)).astype(np.float32)


def sensitivities(path, windows, count=8, per_channel=True):
    probe = Probe(path, ArrayDataset({"x": windows}), count)
    return {
        layer.name: probe.error(layer.name, per_channel=per_channel) for layer in find_layers(path, {"x": windows[:1]})
    }


def with_outlier_weight(weights):
    """A row of w1 is 400 times as large and meets an activation of 0: it costs all other weights their steps."""
    weights["w0"][:, 3] = 0
    weights["w1"][3] *= 400


def with_outlier_activation(weights):
    """A column of w0 makes one activation of layer two a thousand times as large; its row of w1 takes it back."""
    weights["w0"][:, 3] *= 1000
    weights["w1"][3] /= 1000


@pytest.mark.parametrize("spoil", [with_outlier_weight, with_outlier_activation])
def test_the_layer_that_is_bad_by_construction_is_the_most_sensitive(tmp_path, windows, spoil):
    weights = {f"w{i}": weight(i) for i in range(3)}
    path = tmp_path / "chain.onnx"
    written(path, CHAIN, weights)
    sound = sensitivities(path, windows)
    assert list(sound) == ["one", "two", "three"]
    assert all(0 < error < 0.03 for error in sound.values())
    spoil(weights)
    written(path, CHAIN, weights)
    spoiled = sensitivities(path, windows)
    assert max(spoiled, key=spoiled.get) == "two"
    assert spoiled["two"] > 5 * max(spoiled["one"], spoiled["three"])


def test_one_scale_for_the_tensor_is_worse_where_its_channels_differ(tmp_path, windows):
    weights = {f"w{i}": weight(i) for i in range(3)}
    weights["w1"][:, 3] *= 300
    weights["w2"][3] /= 300
    path = tmp_path / "chain.onnx"
    written(path, CHAIN, weights)
    one, many = (sensitivities(path, windows, per_channel=kind)["two"] for kind in (False, True))
    assert many < 0.03
    assert one > 10 * many


def test_an_error_is_that_of_numpy_with_one_layer_rounded(tmp_path, windows):
    weights = {f"w{i}": weight(i) for i in range(3)}
    path = tmp_path / "chain.onnx"
    model = written(path, CHAIN, weights)
    low, high = min(0.0, windows.min()), max(0.0, windows.max())
    scale = np.float32((high - low) / 255)
    zero = round(float(-low / scale))
    rounded = (np.clip(np.rint(windows / scale) + zero, 0, 255) - zero) * scale
    hidden = np.maximum(rounded @ round_weights(weights["w0"], -1), 0)
    answer = np.maximum(hidden @ weights["w1"], 0) @ weights["w2"]
    error = OutputError()
    error.update({"y": answer}, ort_run(model, {"x": windows}))
    assert sensitivities(path, windows, len(windows))["one"] == pytest.approx(error.worst[1], rel=2e-3)


def test_the_graph_is_put_back_after_each_layer(tmp_path, windows):
    path = tmp_path / "chain.onnx"
    written(path, CHAIN, {f"w{i}": weight(i) for i in range(3)})
    probe = Probe(path, ArrayDataset({"x": windows}), 4)
    before = probe._model.SerializeToString(deterministic=True)
    first = [probe.error(name, per_channel=True) for name in ("two", "one", "three")]
    assert probe._model.SerializeToString(deterministic=True) == before
    assert [probe.error(name, per_channel=True) for name in ("two", "one", "three")] == first


def test_layers_are_nodes_with_constant_weights_and_their_work(tmp_path):
    body = (
        "{ [gemm] a = Gemm<transB = 1>(x, w0, bias)  [plain] b = MatMul(a, w1)  t = Transpose<perm = [1, 0]>(b) "
        "[of_activations] c = MatMul(b, t)  [constant_first] d = MatMul(w1, t)  e = MatMul(a, w2) "
        "s = ReduceSum<keepdims = 1>(c)  z = ReduceSum<keepdims = 1>(d)  f = Add(e, s)  y = Add(f, z) }"
    )
    weights = {f"w{i}": weight(i) for i in range(3)} | {"bias": weight(9, (WIDTH,))}
    path = tmp_path / "mixed.onnx"
    written(path, body, weights)
    layers = find_layers(path, {"x": np.ones((1, WIDTH), np.float32)})
    assert [(one.name, one.operator, one.output, one.macs) for one in layers] == [
        ("gemm", "Gemm", "a", WIDTH * WIDTH),
        ("plain", "MatMul", "b", WIDTH * WIDTH),
    ]


@pytest.mark.parametrize(
    ("operator", "shape", "attributes", "extra", "macs"),
    [
        ("Conv", (6, 4, 3), "<kernel_shape = [3], pads = [1, 1]>", "", 10 * 6 * 4 * 3),
        ("ConvTranspose", (4, 6, 3), "<kernel_shape = [3], pads = [1, 1]>", "", 10 * 6 * 4 * 3),
        ("LSTM", (1, 24, 10), "<hidden_size = 6>", ", r", 4 * (24 * 10 + 24 * 6)),
        ("GRU", (1, 18, 10), "<hidden_size = 6>", ", r", 4 * (18 * 10 + 18 * 6)),
    ],
)
def test_every_kind_of_layer(tmp_path, operator, shape, attributes, extra, macs):
    """For LSTM and GRU the window is [steps 4, batch, 10]: four steps of one row."""
    recurrent = operator in ("LSTM", "GRU")
    inputs = "float[4, batch, 10] x" if recurrent else "float[batch, 4, 10] x"
    outputs = "float[4, 1, batch, 6] y" if recurrent else "float[batch, 6, 10] y"
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => ({outputs}) '
        f"{{ [it] y = {operator}{attributes}(x, w{extra}) }}"
    )
    weights = {"w": weight(1, shape)} | ({"r": weight(2, (1, shape[1], 6))} if recurrent else {})
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.checker.check_model(model, full_check=True)
    path = tmp_path / "layer.onnx"
    onnx.save(model, path)
    x = np.random.default_rng(3).standard_normal((4, 1, 10) if recurrent else (1, 4, 10)).astype(np.float32)
    (layer,) = find_layers(path, {"x": x})
    assert (layer.name, layer.operator, layer.macs) == ("it", operator, macs)
    # the four steps of a recurrent layer are the dataset's samples here, and go in together
    probe = Probe(path, ArrayDataset({"x": x}), 4)
    assert 0 < probe.error("it", per_channel=True) < 0.05


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 5)), elements=st.floats(-1e3, 1e3, width=32)),
    st.sampled_from([0, 1, -1, None]),
)
@example(np.array([[4e-45]], np.float32), 0)
def test_rounded_weights_are_within_half_a_step_of_their_channel(array, axis):
    rounded = round_weights(array, axis)
    others = tuple(one for one in range(2) if axis is None or one != axis % 2)
    largest = np.abs(array).max(axis=others, keepdims=True)
    assert np.all(np.abs(rounded - array) <= largest / 127 * 0.5 + 1e-5 * largest)
    assert rounded.dtype == np.float32
    assert np.all(np.sign(rounded) * np.sign(array) >= 0)
