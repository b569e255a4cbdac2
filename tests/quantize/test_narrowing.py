"""fp16 and bf16 graphs: valid, sorted, fp32 at the border and where the type is too short; each trap with its graph."""

import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from narrow_graphs import CONV, LAYER_NORM, WIDTH, W, X, conv, error_of, graph, narrowed, types_of
from onnx_ir.passes import common

from tsexport.calibration.arrays import ArrayDataset
from tsexport.errors import ExportError
from tsexport.exporters.device_rewrites import rewrite_for_device
from tsexport.exporters.rewrites.proofs import answer
from tsexport.quantize.casting import NARROW, cast_graph, narrow_places, open_graph
from tsexport.quantize.islands import ALONE, BETWEEN, CONSTANT, COUNT, NAMED, PERIODIC, POWER, SUM, TAIL
from tsexport.quantize.narrowing import NothingNarrowedError, narrow_graph
from tsexport.quantize.overflow import require_finite
from tsexport.runtimes.bf16_rounding import simulate_bf16

SHARED = Path(os.environ.get("TSEXPORT_SHARED", Path(__file__).resolve().parents[3] / "shared"))


@pytest.mark.parametrize(
    ("precision", "low"), [("fp16", onnx.TensorProto.FLOAT16), ("bf16", onnx.TensorProto.BFLOAT16)]
)
def test_products_are_narrow_and_the_border_is_fp32(precision, low):
    model = graph("{ a = MatMul(x, w)  r = Relu(a)  y = MatMul(r, w) }")
    result = narrowed(model, precision)
    types = types_of(result.model)
    assert (types["x"], types["y"]) == (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT)
    assert (types["a"], types["r"]) == (low, low)
    assert [one.name for one in result.model.graph.initializer] == [f"w_{precision}"]
    assert result.notes[0] == f"2 of 2 products in {precision}"
    assert 0 < error_of(model, result.model) < {"fp16": 1e-3, "bf16": 1e-2}[precision]


def test_the_library_converter_leaves_the_graph_unsorted_and_ours_does_not():
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = graph("{ a = MatMul(x, w)  s = Softmax(a)  y = MatMul(s, w) }")
    theirs = convert_float_to_float16(onnx.ModelProto.FromString(model.SerializeToString()), keep_io_types=True)
    with pytest.raises(onnx.checker.ValidationError, match="topologically sorted"):
        onnx.checker.check_model(theirs)
    ours = narrowed(model).model
    assert not common.TopologicalSortPass()(ir.from_proto(ours)).modified


def test_an_output_that_is_read_again_is_cast_once():
    model = graph("{ a = MatMul(x, w)  b = MatMul(a, w)  y = MatMul(b, w) }")
    model.graph.output.append(onnx.helper.make_tensor_value_info("b", onnx.TensorProto.FLOAT, ["batch", WIDTH]))
    result = narrowed(model).model
    assert [output.name for output in result.graph.output] == ["y", "b"]
    assert types_of(result)["b"] == onnx.TensorProto.FLOAT
    assert sum(node.op_type == "Cast" for node in result.graph.node) == 3


def test_the_variance_of_a_written_out_layer_norm_would_overflow_and_does_not(tmp_path):
    """Values of 300 are far inside fp16, their squares are not."""
    body = """{ a = MatMul(x, w)  m = ReduceMean<axes = [-1]>(a)  d = Sub(a, m)  q = Pow(d, two)
                v = ReduceMean<axes = [-1]>(q)  e = Add(v, epsilon)  s = Sqrt(e)  n = Div(d, s)  y = MatMul(n, w) }"""
    model = graph(body, w=W * 300)
    careless = open_graph(model)
    cast_graph(careless, NARROW["fp16"], kept=())
    source = tmp_path / "source.onnx"
    onnx.save(model, source)
    with pytest.raises(ExportError, match="the tensor q becomes infinite or NaN on calibration data"):
        require_finite(ir.to_proto(careless), source, ArrayDataset({"x": X}))
    result = narrowed(model)
    reasons = result.islands.reasons
    assert {name: reasons[name] for name in "mdqvesn"} == {
        **{"m": SUM, "d": BETWEEN, "q": POWER, "v": SUM, "e": CONSTANT, "s": POWER, "n": BETWEEN},
    }
    require_finite(result.model, source, ArrayDataset({"x": X}))
    assert error_of(model, result.model) < 2e-3


def test_layer_norm_stays_an_operator_or_is_written_out_in_fp32():
    model = graph(LAYER_NORM)
    operator = narrowed(model)
    assert types_of(operator.model)["h"] == onnx.TensorProto.FLOAT16
    parts = narrowed(rewrite_for_device(model, ({"x": X},), "8.5")[0])
    operators = {node.op_type for node in parts.model.graph.node}
    assert "LayerNormalization" not in operators
    types = types_of(parts.model)
    assert {types[f"h/{name}"] for name in ("mean", "centred", "square", "variance", "deviation", "normalised")} == {
        onnx.TensorProto.FLOAT
    }
    assert max(error_of(model, one.model) for one in (operator, parts)) < 2e-3


@pytest.mark.parametrize("mask", [-1e9, float(np.finfo(np.float32).min)])
def test_a_mask_that_fp16_cannot_hold_keeps_its_node(mask):
    hidden = np.zeros((1, WIDTH), np.float32)
    hidden[0, : WIDTH // 2] = mask
    model = graph("{ a = MatMul(x, w)  m = Add(a, mask)  s = Softmax(m)  y = MatMul(s, w) }", mask=hidden)
    result = narrowed(model)
    assert result.islands.reasons["m"] == CONSTANT
    assert types_of(result.model)["mask"] == onnx.TensorProto.FLOAT
    assert error_of(model, result.model) < 1e-3


def test_infinite_masks_are_no_overflow(tmp_path):
    hidden = np.where(np.arange(WIDTH) < 8, -np.inf, 0.0).astype(np.float32)
    model = graph("{ a = MatMul(x, w)  m = Add(a, mask)  s = Softmax(m)  y = MatMul(s, w) }", mask=hidden)
    result = narrowed(model)
    source = tmp_path / "source.onnx"
    onnx.save(model, source)
    require_finite(result.model, source, ArrayDataset({"x": X}))
    assert error_of(model, result.model) < 1e-3


def test_a_factor_that_would_vanish_keeps_its_node_and_weights_that_do_are_counted():
    tiny = W.copy()
    tiny[0, :3] = 1e-9
    model = graph("{ a = MatMul(x, w)  m = Mul(a, epsilon)  d = Div(m, epsilon)  y = MatMul(d, t) }", t=tiny)
    result = narrowed(model)
    assert (result.islands.reasons["m"], result.islands.reasons["d"]) == (CONSTANT, CONSTANT)
    assert "3 weights vanish in fp16: each is below its smallest number" in result.notes
    assert error_of(model, result.model) < 1e-3


def test_counts_and_the_arguments_of_waves_stay():
    model = graph(
        """{ i = Cast<to = 7>(x)  f = Cast<to = 1>(i)  p = Mul(f, two)  c = Add(p, one)
             a = MatMul(x, w)  q = Mul(a, two)  s = Sin(q)  t = Mul(c, s)  y = MatMul(t, w) }"""
    )
    reasons = narrowed(model).islands.reasons
    assert {name: reasons[name] for name in "pcqs"} == {"p": COUNT, "c": COUNT, "q": PERIODIC, "s": PERIODIC}


def test_the_tail_stays_so_that_a_level_keeps_its_digits():
    level = np.full((1, WIDTH), 100.3, np.float32)
    model = graph("{ a = MatMul(x, w)  b = Mul(a, zero)  y = Add(b, level) }", level=level)
    result = narrowed(model, "bf16")
    assert result.islands.reasons == {"b": TAIL, "y": TAIL}
    np.testing.assert_array_equal(answer(simulate_bf16(result.model), {"x": X})["y"][:1], level)


def test_named_layers_stay():
    model = graph("{ a = MatMul(x, w)  b = MatMul(a, w)  c = MatMul(b, w)  y = MatMul(c, w) }")
    for node, name in zip(model.graph.node, ("/film/MatMul", "/film_1/MatMul", "/my_film/MatMul", "last"), strict=True):
        node.name = name
    reasons = narrowed(model, layers=("film",), nodes=("last",)).islands.reasons
    assert reasons == {"/film/MatMul": NAMED, "/film_1/MatMul": NAMED, "last": NAMED}


def test_operators_with_no_product_beside_them_stay():
    model = graph("{ r = Relu(x)  s = Softmax(r)  a = MatMul(s, w)  y = MatMul(a, w) }")
    assert narrowed(model).islands.reasons["r"] == ALONE


def test_a_graph_without_products_is_refused():
    with pytest.raises(
        NothingNarrowedError, match="no product of the graph can be computed in fp16: it has none at all"
    ):
        narrow_graph(graph("{ y = Relu(x) }"), "fp16")


def test_control_flow_is_refused():
    body = """{ c = Cast<to = 9>(k)  y = If (c) <then_branch = t () => (float[batch, 32] a) { a = Relu(x) },
                else_branch = e () => (float[batch, 32] b) { b = Neg(x) }> }"""
    with pytest.raises(ValueError, match=r"If y has a subgraph; only graphs without control flow are cast"):
        narrow_graph(graph(body, k=np.float32(1)), "fp16")


def test_a_graph_that_is_narrow_already_is_refused():
    with pytest.raises(ValueError, match="h is in a narrow type already; only fp32 graphs are cast"):
        narrow_graph(graph("{ h = Cast<to = 10>(x)  f = Cast<to = 1>(h)  y = MatMul(f, w) }"), "bf16")


def test_opset_17_has_no_convolution_in_bf16():
    """The checker refuses what a careless cast would write, so the tool does not write it."""
    careless = onnx.parser.parse_model(
        CONV.replace("float[batch, 2, 8]", "bfloat16[batch, 2, 8]") + "{ y = Conv<pads = [1, 1]>(x, k) }"
    )
    careless.graph.initializer.append(onnx.helper.make_tensor("k", onnx.TensorProto.BFLOAT16, [2, 2, 3], [1.0] * 12))
    with pytest.raises(Exception, match="bfloat16"):
        onnx.checker.check_model(careless, full_check=True)
    with pytest.raises(
        NothingNarrowedError,
        match=r"opset 17 has no bf16 for the products of this graph \(Conv\): they take it from opset 22 on, which not "
        r"all runtimes of opset 17 read; use fp16",
    ):
        narrow_graph(conv(), "bf16")
    assert narrow_graph(conv(), "fp16").notes[0] == "1 of 1 products in fp16"


def test_a_convolution_beside_products_is_an_island_in_bf16():
    model = conv("{ c = Conv<pads = [1, 1]>(x, k)  r = Relu(c)  y = MatMul(r, m) }")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(8, dtype=np.float32), "m"))
    result = narrow_graph(model, "bf16")
    onnx.checker.check_model(result.model, full_check=True)
    types = types_of(result.model)
    assert (types["c"], types["k"]) == (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT)
    assert "caveat: 1 Conv stay in fp32: opset 17 has no bf16 for them" in result.notes


def test_what_opset_17_allows_in_bf16_is_what_the_vendors_table_says():
    path = SHARED / "spec" / "onnx_bf16_opset17.json"
    if not path.is_file():
        pytest.skip("the table of operators is not there")
    table = json.loads(path.read_text())
    for operator in ("MatMul", "Gemm", "LayerNormalization", "Softmax", "Add", "Conv", "ConvTranspose", "LSTM", "Sin"):
        row = table[operator]
        schema = onnx.defs.get_schema(operator, 17, "")
        node = ir.node(operator, [ir.val(f"i{index}", ir.DataType.FLOAT) for index in range(schema.min_input)])
        node.outputs[0].dtype = ir.DataType.FLOAT
        places = narrow_places(node, ir.DataType.BFLOAT16)
        assert bool(places[0]) == bool(row["bf16_in"]), operator
        assert bool(places[1]) == bool(row["bf16_out"]), operator


STEPS = {
    "MatMul": "MatMul({0}, w)",
    "Relu": "Relu({0})",
    "Sigmoid": "Sigmoid({0})",
    "Softmax": "Softmax({0})",
    "LayerNormalization": "LayerNormalization({0}, one, zero)",
    "Add": "Add({0}, {1})",
    "Mul": "Mul({0}, {1})",
    "Div": "Div({0}, two)",
    "mean": "ReduceMean<axes = [-1], keepdims = 1>({0})",
    "Sin": "Sin({0})",
    "Clip": "Clip({0}, low, two)",
    "Concat": "Concat<axis = 0>({0}, {1})",
    "Where": "Where(mask, {0}, {1})",
}


@settings(deadline=None, max_examples=40)
@given(
    steps=st.lists(st.tuples(st.sampled_from([*STEPS]), st.integers(0, 3)), min_size=1, max_size=9),
    precision=st.sampled_from(["fp16", "bf16"]),
    kept=st.sets(st.integers(0, 9), max_size=3),
)
def test_any_graph_stays_valid_and_sorted(steps, precision, kept):
    names, lines = ["x"], []
    for index, (step, back) in enumerate(steps):
        other = names[max(0, len(names) - 1 - back)]
        lines.append(f"v{index} = " + STEPS[step].format(names[-1], other))
        # what a mean or a concatenation gives has another shape, so the next step reads what came before
        names.append(names[-1] if step in ("mean", "Concat") else f"v{index}")
    body = "{ " + "  ".join([*lines, f"last = MatMul({names[-1]}, w)  y = Add(last, v0)"]) + " }"
    if steps[0][0] in ("mean", "Concat"):
        body = body.replace("Add(last, v0)", "Identity(last)")
    model = graph(body, low=np.float32(-1), mask=np.arange(WIDTH) % 2 == 0)
    result = narrowed(model, precision, nodes=tuple(f"v{index}" for index in kept))
    assert not common.TopologicalSortPass()(ir.from_proto(result.model)).modified
    assert not {f"v{index}" for index in kept if index < len(steps)} - result.islands.reasons.keys()
    expected, found = answer(model, {"x": X})["y"], answer(simulate_bf16(result.model), {"x": X})["y"]
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
