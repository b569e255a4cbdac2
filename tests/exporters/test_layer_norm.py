"""LayerNormalization written out: the same values, over any axes, with and without a bias."""

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from tsexport.exporters.layer_norm import decompose_layer_norms
from tsexport.exporters.rewrites.proofs import answer

HEAD = '<ir_version: 8, opset_import: ["" : 17]> g (float[batch, 3, 4] x) => (float[batch, 3, 4] y) '
X = (5 + 2 * np.random.default_rng(1).standard_normal((6, 3, 4))).astype(np.float32)


def written_out(model):
    opened = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    count = decompose_layer_norms(opened)
    result = ir.to_proto(opened)
    onnx.checker.check_model(result, full_check=True)
    return result, count


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


def test_an_output_of_the_graph_keeps_its_name():
    model = onnx.parser.parse_model(HEAD + "{ y = LayerNormalization(x, x) }")
    model.graph.node[0].input[1] = "scale"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(4, np.float32), "scale"))
    result, _ = written_out(model)
    assert [output.name for output in result.graph.output] == ["y"]


def test_a_mean_that_is_read_is_refused():
    model = onnx.parser.parse_model(HEAD + "{ n, m = LayerNormalization(x, s)  y = Add(n, m) }")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(4, np.float32), "s"))
    model.graph.node[0].name = "norm"
    with pytest.raises(ValueError, match="norm gives its mean or deviation too"):
        written_out(model)


def test_an_unknown_rank_is_refused():
    model = onnx.parser.parse_model(HEAD + "{ r = Reshape(x, t)  n = LayerNormalization(r, s)  y = Reshape(n, t) }")
    model.graph.node[0].input[1] = model.graph.node[2].input[1] = "t"
    model.graph.input.append(onnx.helper.make_tensor_value_info("t", onnx.TensorProto.INT64, ["n"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(4, np.float32), "s"))
    opened = ir.from_proto(model)
    with pytest.raises(ValueError, match=r"the rank of r, which .* normalises, is not known"):
        decompose_layer_norms(opened)
