"""Q/DQ pairs for TensorRT in any graph: they never break a rule."""

import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdq_graphs import ROWS, noise, parse, table

from tsexport.calibration.arrays import ArrayDataset
from tsexport.exporters.qdq_rules import check_rules
from tsexport.quantize.sources import NothingQuantizedError
from tsexport.quantize.tensorrt_qdq import insert_pairs, place_pairs, quantize_tensorrt
from tsexport.quantize.tensorrt_recipes import TENSORRT_MINMAX

STEPS = (
    "MatMul({a}, w)",
    "MatMul({a}, v)",
    "MatMul(w, {a})",
    "MatMul({a}, {b})",
    "Add({a}, {b})",
    "Add({a}, bias)",
    "Mul({a}, two)",
    "Relu({a})",
    "Softmax<axis=-1>({a})",
    "LayerNormalization<axis=-1>({a}, bias, bias)",
    "Conv<pads=[1,1]>({a}, narrow)",
    "ConvTranspose<pads=[1,1]>({a}, narrow)",
    "ConvTranspose<pads=[1,1], group=8>({a}, single)",
    "NORMALIZE",
    "COLUMN",
    "MASK",
)


def written_out(step: str, a: str, b: str, name: str) -> str:
    """Return the text of one step, whose result is `name`."""
    if step == "NORMALIZE":
        return (
            f"{name}m = ReduceMean<axes=[-1]>({a})  {name}c = Sub({a}, {name}m)  {name}q = Pow({name}c, two)  "
            f"{name}n = ReduceMean<axes=[-1]>({name}q)  {name}e = Add({name}n, epsilon)  {name}d = Sqrt({name}e)  "
            f"{name} = Div({name}c, {name}d)"
        )
    if step == "COLUMN":
        return f"{name}v = MatMul({a}, column)  {name} = Add({b}, {name}v)"
    if step == "MASK":
        return f"{name}o = MatMul({a}, {b})  {name}a = Add({name}o, mask)  {name} = Softmax<axis=-1>({name}a)"
    return f"{name} = {step.format(a=a, b=b)}"


@st.composite
def graphs(draw):
    """Return the body of a graph whose values are all [batch, 8, 8]."""
    values, lines = ["x", "r"], []
    for number in range(draw(st.integers(1, 10))):
        step = draw(st.sampled_from(STEPS))
        a, b = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        name = f"t{number}"
        lines.append(written_out(step, a, b, name))
        values.append(name)
    return "  ".join([*lines, f"y = Add({values[-1]}, {draw(st.sampled_from(values))})"])


@given(graphs(), st.booleans(), st.booleans(), st.data())
def test_no_graph_makes_the_quantizer_break_a_rule(body, products, every_kernel, data):
    model = parse(ROWS, body)
    names = [node.name for node in model.graph.node]
    float_layers = frozenset(data.draw(st.lists(st.sampled_from(names), max_size=3)))
    inferred = ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True))
    placement = place_pairs(
        inferred.graph, float_layers=float_layers, attention_products=products, every_kernel=every_kernel
    )
    magnitudes = st.floats(0, 2.0**100, width=32)
    ranges = {name: (-data.draw(magnitudes), data.draw(magnitudes)) for name in placement.tensors}
    layers = {node.name for node in placement.layers}
    insert_pairs(inferred.graph, placement, table(ranges))
    made = ir.to_proto(inferred)
    onnx.checker.check_model(made, full_check=True)
    assert check_rules(made, float_layers=float_layers, every_kernel=every_kernel) == ()
    assert not layers & float_layers
    # taking the pairs out again gives the graph as it was
    behind = {n.output[0]: n.input[0] for n in made.graph.node if n.op_type.endswith("tizeLinear")}
    kept = [node for node in made.graph.node if not node.op_type.endswith("tizeLinear")]
    for node in (*kept, *model.graph.node):
        node.ClearField("domain")  # "" may be written or not
        node.input[:] = [behind.get(behind.get(name, name), name) for name in node.input]
    assert [n.SerializeToString() for n in kept] == [n.SerializeToString() for n in model.graph.node]


def test_nothing_is_quantized_without_layers(tmp_path):
    path = tmp_path / "fp32.onnx"
    onnx.save(parse(ROWS, "y = Add(x, r)"), path)
    with pytest.raises(NothingQuantizedError):
        quantize_tensorrt(path, TENSORRT_MINMAX, ArrayDataset({"x": noise(4, 8, 8), "r": noise(4, 8, 8)}))
