"""The rewrites that TensorRT versions need: equal numbers, nothing left that is refused, and none where none is needed.

Which versions need one was written down here before the rewrites were.
"""

from dataclasses import dataclass

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx.reference import ReferenceEvaluator

from tsexport.exporters.device_check import check_onnx
from tsexport.exporters.device_rewrites import DEVICE_REWRITES, rewrite_for_device
from tsexport.exporters.rewrites.proofs import answer


@dataclass(frozen=True)
class Row:
    """A graph, the rewrite that it needs in a version, and the first version that needs none ("" for never).

    `x` is [batch, ...] of so many dimensions; `constants` are initializers by name.
    """

    rewrite: str
    version: str
    without: str
    body: str
    x: tuple[int, ...] = (3, 4)
    y: str = "float[batch, n, m] y"
    kind: str = "float"
    constants: tuple[tuple[str, np.ndarray], ...] = ()


def f32(*shape, seed=5):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


ROWS = [
    Row(
        "layer-norm-as-parts", "8.5", "8.6", "y = LayerNormalization(x, s, b)", constants=(("s", f32(4)), ("b", f32(4)))
    ),
    Row(
        "dft-as-product",
        "10.3",
        "",
        "u = Unsqueeze(x, last)  d = DFT<axis = 2>(u)  y = ReduceSum<keepdims = 0>(d, m)",
        constants=(("last", np.array([3])), ("m", np.array([3]))),
    ),
    Row("dft-as-product", "11.0", "", "y = DFT<axis = 1>(x)", (6, 2)),
    Row("dft-as-product", "8.2", "", "y = DFT<axis = 1, inverse = 1>(x)", (6, 2)),
    Row(
        "dft-as-product",
        "8.2",
        "",
        "u = Unsqueeze(x, last)  y = DFT<axis = 1, onesided = 1>(u)",
        (7, 5),
        "float[batch, n, m, k] y",
        constants=(("last", np.array([3])),),
    ),
    Row("dft-as-product", "8.2", "", "y = DFT<axis = 1>(x, length)", (6, 2), constants=(("length", np.array(4)),)),
    Row("dft-as-product", "8.2", "", "y = DFT<axis = 1>(x, length)", (6, 2), constants=(("length", np.array(9)),)),
    Row("einsum-as-product", "8.2", "8.4", 'y = Einsum<equation = "bIj,Kj->bKI">(x, w)', constants=(("w", f32(5, 4)),)),
    Row(
        "einsum-as-product",
        "8.5",
        "",
        'y = Einsum<equation = "...ij,jk->...ki">(x, w)',
        (2, 3, 4),
        "float[batch, n, m, k] y",
        constants=(("w", f32(4, 5)),),
    ),
    Row(
        "einsum-as-product",
        "8.0",
        "8.2",
        'y = Einsum<equation = "bijk,jhk->bih">(x, w)',
        (2, 3, 4),
        constants=(("w", f32(3, 5, 4)),),
    ),
    Row(
        "convolution-with-height",
        "8.2",
        "8.5",
        "y = ConvTranspose<strides = [2], pads = [1, 0], output_padding = [1]>(x, w, b)",
        constants=(("w", f32(3, 2, 3)), ("b", f32(2))),
    ),
    Row(
        "convolution-with-height",
        "8.0",
        "8.2",
        "y = Conv<dilations = [2], pads = [2, 2]>(x, w)",
        (3, 9),
        constants=(("w", f32(4, 3, 3)),),
    ),
    Row(
        "scatter-as-sums",
        "8.2",
        "10.0",
        "u = Gather<axis = 1>(x, g)  s = Shape(u)  e = Expand(i, s)"
        '  y = ScatterElements<axis = 1, reduction = "add">(x, e, u)',
        constants=(("i", np.array([0, 2, 0, 1, 0]).reshape(5, 1)), ("g", np.array([1, 1, 0, 2, 2]))),
    ),
    Row(
        "scatter-nd-as-sums",
        "8.2",
        "",
        "t = Transpose<perm = [1, 0, 2]>(x)  u = Gather<axis = 0>(t, g)"
        '  r = ScatterND<reduction = "add">(t, i, u)  y = Transpose<perm = [1, 0, 2]>(r)',
        constants=(("i", np.array([[2], [2], [-1], [0]])), ("g", np.array([1, 1, 0, 2]))),
    ),
    Row(
        "scatter-nd-as-sums",
        "10.3",
        "10.9",
        "t = Transpose<perm = [1, 0, 2]>(x)  u = Gather<axis = 0>(t, g)"
        '  r = ScatterND<reduction = "none">(t, i, u)  y = Transpose<perm = [1, 0, 2]>(r)',
        constants=(("i", np.array([[2], [0]])), ("g", np.array([1, 1]))),
    ),
    Row(
        "one-hot-as-comparison",
        "8.2",
        "8.5",
        "y = OneHot(x, depth, values)",
        (3,),
        kind="int64",
        constants=(("depth", np.array(4)), ("values", np.array([0.5, 2], np.float32))),
    ),
    Row(
        "one-hot-as-comparison",
        "8.2",
        "8.5",
        "y = OneHot<axis = 1>(x, depth, values)",
        (3,),
        kind="int64",
        constants=(("depth", np.array([4])), ("values", np.array([0, 1], np.float32))),
    ),
    Row("triangle-as-mask", "8.2", "8.5", "y = Trilu(x)"),
    Row(
        "triangle-as-mask",
        "8.5",
        "8.6",
        "y = Trilu<upper = 0>(x, k)",
        (2, 3, 4),
        "float[batch, n, m, k] y",
        constants=(("k", np.array(1)),),
    ),
    Row(
        "topk-of-negatives",
        "8.2",
        "8.5",
        "y, places = TopK<axis = 1, largest = 0>(x, two)",
        constants=(("two", np.array([2])),),
    ),
    Row("part-of-shape-as-slice", "8.6", "10.0", "s = Shape<start = -2>(x)  y = Expand(x, s)"),
    Row(
        "part-of-shape-as-slice", "8.2", "10.0", "s = Shape<start = 1, end = -1>(x)  f = Cast<to = 1>(s)  y = Mul(x, f)"
    ),
    Row(
        "remainder-by-division",
        "8.2",
        "8.5",
        "m = Mod(x, d)  y = Cast<to = 1>(m)",
        kind="int64",
        constants=(("d", np.array([3, -3, 4, -4])),),
    ),
    Row(
        "remainder-by-division",
        "8.2",
        "8.5",
        "m = Mod<fmod = 1>(x, d)  y = Cast<to = 1>(m)",
        kind="int64",
        constants=(("d", np.array([3, -3, 4, -4])),),
    ),
    Row(
        "is-infinite-as-comparison",
        "8.5",
        "8.6",
        "z = Div(x, zero)  m = IsInf(z)  y = Cast<to = 1>(m)",
        constants=(("zero", np.array([0, 1, 0, 2], np.float32)),),
    ),
    Row(
        "is-infinite-as-comparison",
        "8.5",
        "8.6",
        "z = Div(x, zero)  m = IsInf<detect_negative = 0>(z)  y = Cast<to = 1>(m)",
        constants=(("zero", np.array([0, 1, 0, 2], np.float32)),),
    ),
    Row(
        "is-infinite-as-comparison",
        "8.5",
        "8.6",
        "z = Div(x, zero)  m = IsInf<detect_positive = 0>(z)  y = Cast<to = 1>(m)",
        constants=(("zero", np.array([0, 1, 0, 2], np.float32)),),
    ),
    Row("is-nan-as-comparison", "8.0", "8.2", "z = Sqrt(x)  m = IsNaN(z)  y = Cast<to = 1>(m)"),
    Row("hard-swish-as-product", "8.2", "8.4", "y = HardSwish(x)"),
    Row(
        "where-as-logic",
        "8.2",
        "8.5",
        "c = Greater(x, half)  d = Less(x, one)  w = Where(c, d, c)  y = Cast<to = 1>(w)",
        constants=(("half", np.array(0.5, np.float32)), ("one", np.array(1, np.float32))),
    ),
    *(
        Row(
            "booleans-as-integers",
            "8.2",
            without,
            f"t = Transpose<perm = [1, 0, 2]>(x)  c = Greater(t, zero)  m = {node}"
            "  f = Cast<to = 1>(m)  y = Transpose<perm = [1, 0, 2]>(f)",
            constants=(
                *(("zero", np.array(0, np.float32)), ("i", np.array([2, 0])), ("j", np.array([[1], [0], [2]]))),
            ),
        )
        for node, without in (("Gather(c, i)", "8.5"), ("GatherND(c, j)", "8.5"), ("ScatterND(c, j, c)", ""))
    ),
    Row(
        "equal-of-integers",
        "8.2",
        "",
        "c = Greater(x, zero)  d = Greater(x, half)  m = Equal(c, d)  y = Cast<to = 1>(m)",
        constants=(("zero", np.array(0, np.float32)), ("half", np.array(0.5, np.float32))),
    ),
    Row(
        "counts-in-fp32",
        "8.6",
        "9.3",
        "c = Greater(x, zero)  i = Cast<to = 7>(c)  m = ReduceSum(i, axes)  y = Cast<to = 1>(m)",
        constants=(("zero", np.array(0, np.float32)), ("axes", np.array([1]))),
    ),
    Row(
        "counts-in-fp32",
        "8.6",
        "",
        "c = Greater(x, zero)  i = Cast<to = 6>(c)  m = CumSum(i, axis)  y = Cast<to = 1>(m)",
        constants=(("zero", np.array(0, np.float32)), ("axis", np.array(1))),
    ),
    Row(
        "clip-as-max-and-min",
        "8.6",
        "",
        "m = Clip(x, least, most)  y = Cast<to = 1>(m)",
        kind="int64",
        constants=(("least", np.array(-2)), ("most", np.array(5))),
    ),
    Row(
        "clip-as-max-and-min",
        "8.6",
        "",
        "m = Clip(x, least)  y = Cast<to = 1>(m)",
        kind="int64",
        constants=(("least", np.array(-2)),),
    ),
    Row(
        "clip-as-max-and-min",
        "8.6",
        "",
        "m = Clip(x, , most)  y = Cast<to = 1>(m)",
        kind="int64",
        constants=(("most", np.array(5)),),
    ),
    Row("negative-pad-as-slice", "8.2", "", "y = Pad(x, p)", constants=(("p", np.array([0, -1, 0, 0, 0, -2])),)),
    Row(
        "negative-pad-as-slice",
        "11.0",
        "",
        "y = Pad(x, p, v)",
        constants=(("p", np.array([0, -1, 2, 0, 1, -2])), ("v", np.array(0.5, np.float32))),
    ),
    # the rows' numbers, counted from the symbolic batch
    Row(
        "range-in-int32",
        "8.2",
        "8.4",
        "s = Shape(x)  b = Gather(s, zero)  r = Range(zero, b, one)  c = Cast<to = 1>(r)  n = Reshape(c, column)"
        "  y = Add(x, n)",
        constants=(("zero", np.array(0)), ("one", np.array(1)), ("column", np.array([-1, 1, 1]))),
    ),
]


def run_of(row):
    """Return what answers a row: ONNX Runtime, or where that has no kernel, ONNX's own reference."""
    if row.rewrite != "where-as-logic":
        return answer
    return lambda model, feeds: {"y": ReferenceEvaluator(model).run(["y"], dict(feeds))[0]}


def graph(row):
    dims = ", ".join(map(str, ("batch", *row.x)))
    text = f'<ir_version: 8, opset_import: ["" : 17]> g ({row.kind}[{dims}] x) => ({row.y}) {{ {row.body} }}'
    made = onnx.parser.parse_model(text)
    for name, array in row.constants:
        made.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for number, node in enumerate(made.graph.node):
        node.name = f"{node.op_type}_{number}"
    onnx.checker.check_model(made, full_check=True)
    return made


def feeds_of(row, batches=(1, 2, 5)):
    generator = np.random.default_rng(3)
    if row.kind == "int64":
        return [{"x": generator.integers(-9, 9, (batch, *row.x))} for batch in batches]
    return [{"x": generator.standard_normal((batch, *row.x)).astype(np.float32)} for batch in batches]


IDS = [f"{number}-{row.rewrite}-{row.version}" for number, row in enumerate(ROWS)]


@pytest.mark.parametrize("row", ROWS, ids=IDS)
def test_a_version_that_refuses_gets_other_nodes_with_the_same_numbers(row, tmp_path):
    model, feeds = graph(row), feeds_of(row)
    onnx.save(model, tmp_path / "before.onnx")
    assert not check_onnx(tmp_path / "before.onnx", tensorrt=row.version, precision="fp32").accepted
    rewritten, done = rewrite_for_device(model, feeds, row.version, run_of(row))
    assert [(one.name, one.kept, one.reason) for one in done] == [(row.rewrite, True, "")]
    onnx.checker.check_model(rewritten, full_check=True)
    onnx.save(rewritten, tmp_path / "after.onnx")
    report = check_onnx(tmp_path / "after.onnx", tensorrt=row.version, precision="fp32")
    assert report.errors == ()
    for one in feeds_of(row, (3, 4)):
        expected, found = run_of(row)(model, one), run_of(row)(rewritten, one)
        np.testing.assert_allclose(found["y"], expected["y"], rtol=2e-5, atol=5e-6)


@pytest.mark.parametrize("row", [row for row in ROWS if row.without], ids=lambda row: row.rewrite)
def test_a_version_that_takes_the_node_gets_it_as_it_is(row):
    model = graph(row)
    rewritten, done = rewrite_for_device(model, feeds_of(row, (1, 2)), row.without, run_of(row))
    assert (rewritten, done) == (model, ())


def test_a_clip_that_may_become_fp16_is_written_otherwise_before_8_5(tmp_path):
    bounds = (("least", np.array(-0.5, np.float32)), ("most", np.array(0.5, np.float32)))
    row = Row("clip-as-max-and-min", "8.4", "8.5", "y = Clip(x, least, most)", constants=bounds)
    rewritten, (done,) = rewrite_for_device(graph(row), feeds_of(row), "8.4")
    assert (done.name, done.kept) == (row.rewrite, True)
    assert [node.op_type for node in rewritten.graph.node] == ["Max", "Min"]
    (feeds,) = feeds_of(row, (3,))
    np.testing.assert_array_equal(answer(rewritten, feeds)["y"], np.clip(feeds["x"], -0.5, 0.5))
    assert rewrite_for_device(graph(row), feeds_of(row), "8.5")[1] == ()


def test_every_rewrite_has_a_row():
    assert {row.rewrite for row in ROWS} == {one.name for one in DEVICE_REWRITES}


def test_the_same_graph_gives_the_same_bytes():
    row = next(row for row in ROWS if row.rewrite == "scatter-as-sums")
    first, second = (rewrite_for_device(graph(row), feeds_of(row), "8.2")[0] for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
