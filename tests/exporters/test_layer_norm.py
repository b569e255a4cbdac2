"""LayerNormalization written out: the same values, over any axes, with and without a bias."""

import numpy as np
import onnx
import onnx.parser
import pytest

from tsexport.exporters.device_rewrites import rewrite_for_device
from tsexport.exporters.rewrites.proofs import answer

HEAD = '<ir_version: 8, opset_import: ["" : 17]> g (float[batch, 3, 4] x) => (float[batch, 3, 4] y) '
X = (5 + 2 * np.random.default_rng(1).standard_normal((6, 3, 4))).astype(np.float32)


def written_out(model):
    result, done = rewrite_for_device(model, ({"x": X}, {"x": X[:2]}), "8.5")
    onnx.checker.check_model(result, full_check=True)
    return result, sum(one.changes for one in done if one.kept)


@pytest.mark.parametrize(
    ("node", "shape"),
    [
        ("LayerNormalization(x, scale, bias)", (4,)),
        ("LayerNormalization<axis = 1, epsilon = 0.5>(x, scale, bias)", (3, 4)),
        ("LayerNormalization<axis = -2>(x, scale)", (3, 4)),
    ],
)
def test_the_parts_answer_as_the_operator(node, shape):
    model = onnx.parser.parse_model(HEAD + f"{{ r = Relu(x)  n = {node}  y = Neg(n) }}")
    generator = np.random.default_rng(2)
    for name in ("scale", "bias")[: node.count(",") - node.count(", epsilon")]:
        array = generator.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    result, count = written_out(model)
    assert count == 1
    assert "LayerNormalization" not in {one.op_type for one in result.graph.node}
    np.testing.assert_allclose(answer(result, {"x": X})["y"], answer(model, {"x": X})["y"], rtol=2e-5, atol=2e-6)


def with_scale(body, *names):
    model = onnx.parser.parse_model(HEAD + body)
    for name in names:
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(4, np.float32), name))
    return model


def test_an_output_of_the_graph_keeps_its_name():
    result, count = written_out(with_scale("{ y = LayerNormalization(x, s) }", "s"))
    assert count == 1
    assert [output.name for output in result.graph.output] == ["y"]


def test_one_whose_mean_is_read_stays():
    model = with_scale("{ n, m = LayerNormalization(x, s)  y = Add(n, m) }", "s")
    assert written_out(model) == (model, 0)


def test_one_whose_rank_is_not_known_stays():
    model = with_scale("{ r = Reshape(x, t)  n = LayerNormalization(r, s)  y = Reshape(n, t) }", "s")
    model.graph.input.append(onnx.helper.make_tensor_value_info("t", onnx.TensorProto.INT64, ["n"]))
    feeds = {"x": X, "t": np.array([6, 3, 4])}
    assert rewrite_for_device(model, (feeds,), "8.5") == (model, ())
