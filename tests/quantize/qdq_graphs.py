"""Small graphs for the Q/DQ quantizer of TensorRT, where its pairs belong in them, and what answers them."""

import numpy as np
import onnx
import onnx.parser

from tsexport.calibration.arrays import ArrayDataset
from tsexport.calibration.table import CalibrationTable, Observer, TensorRange
from tsexport.exporters.onnx_file import describe_onnx
from tsexport.quantize.tensorrt_qdq import quantize_tensorrt
from tsexport.runtimes.simulation import simulate
from tsexport.types import ModelSpec, TensorSpec

F32 = np.float32
GENERATOR = np.random.default_rng(11)


def noise(*shape, scale=1.0):
    return (GENERATOR.standard_normal(shape) * scale).astype(F32)


CONSTANTS = {
    "w": noise(8, 8) * np.geomspace(0.1, 3, 8).astype(F32),  # channels of unlike size
    "v": noise(8, 8),
    "column": noise(8, 1),
    "stack": noise(2, 8, 8),
    "kernel": noise(6, 8, 1, 3),
    "turned": noise(8, 6, 1, 3),
    "grouped": noise(8, 2, 1, 3),
    "solid": noise(6, 8, 1, 1, 1),
    "bias": noise(8),
    "bias6": noise(6),
    "mask": np.triu(np.full((8, 8), -1e4, F32), 1),
    "two": np.array(2.0, F32),
    "epsilon": np.array(1e-5, F32),
    "narrow": noise(8, 8, 3),
    "single": noise(8, 1, 3),
}
ROWS = "(float[batch, 8, 8] x, float[batch, 8, 8] r) => (float[batch, 8, 8] y)"
FLAT = "(float[batch, 8] x) => (float[batch, 8] y)"
IMAGE = "(float[batch, 8, 1, 9] x) => (float[batch, 6, 1, 9] y)"


def parse(signature: str, body: str) -> onnx.ModelProto:
    """Return an fp32 model; nodes are called after their outputs."""
    made = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {signature} {{ {body} }}')
    used = {name for node in made.graph.node for name in node.input}
    made.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in CONSTANTS.items() if name in used
    )
    for node in made.graph.node:
        node.name = f"make_{node.output[0]}"
    onnx.checker.check_model(made, full_check=True)
    return made


SQUARE = "m = ReduceMean<axes=[-1]>(h)  c = Sub(h, m)  q = Mul(c, c)  n = ReduceMean<axes=[-1]>(q)  e = Add(n, epsilon)"
PLACES = {
    "product": (ROWS, "h = MatMul(x, w)  y = Add(h, r)", {}, {"x": ["MatMul 0"], "r": ["Add 1"]}, {"w": 1}),
    "bias and residual": (
        ROWS,
        "h = MatMul(x, w)  b = Add(bias, h)  y = Add(r, b)",
        {},
        {"x": ["MatMul 0"], "r": ["Add 0"]},
        {"w": 1},
    ),
    "one pair for two readers": (
        ROWS,
        "h = MatMul(x, w)  b = Add(h, bias)  y = Add(x, b)",
        {},
        {"x": ["MatMul 0", "Add 0"]},
        {"w": 1},
    ),
    "the later layer adds": (
        ROWS,
        "h = MatMul(x, w)  k = MatMul(r, v)  y = Add(k, h)",
        {},
        {"x": ["MatMul 0"], "r": ["MatMul 0"], "h": ["Add 1"]},
        {"w": 1, "v": 1},
    ),
    "an operand that is broadcast is no residual": (
        ROWS,
        "h = MatMul(x, w)  m = ReduceMean<axes=[1]>(r)  y = Add(h, m)",
        {},
        {"x": ["MatMul 0"]},
        {"w": 1},
    ),
    "nothing is added to float": (ROWS, "y = Add(x, r)", {}, {}, {}),
    "Gemm": (FLAT, "y = Gemm(x, w, bias)", {}, {"x": ["Gemm 0"]}, {"w": 1}),
    "Gemm with transB": (FLAT, "y = Gemm<transB=1>(x, w, bias)", {}, {"x": ["Gemm 0"]}, {"w": 0}),
    "convolution": (IMAGE, "y = Conv<pads=[0,1,0,1]>(x, kernel, bias6)", {}, {"x": ["Conv 0"]}, {"kernel": 0}),
    "transposed": (
        IMAGE,
        "y = ConvTranspose<pads=[0,1,0,1]>(x, turned, bias6)",
        {},
        {"x": ["ConvTranspose 0"]},
        {"turned": 1},
    ),
    "transposed in groups has one scale": (
        "(float[batch, 8, 1, 9] x) => (float[batch, 8, 1, 9] y)",
        "y = ConvTranspose<group=4, pads=[0,1,0,1]>(x, grouped)",
        {},
        {"x": ["ConvTranspose 0"]},
        {"grouped": None},
    ),
    "a constant on the left has one scale": (ROWS, "y = MatMul(w, x)", {}, {"x": ["MatMul 1"]}, {"w": None}),
    "a stack of weights has one scale": (
        "(float[batch, 2, 8, 8] x) => (float[batch, 2, 8, 8] y)",
        "y = MatMul(x, stack)",
        {},
        {"x": ["MatMul 0"]},
        {"stack": None},
    ),
    "a column is a vector": ("(float[batch, 8, 8] x) => (float[batch, 8, 1] y)", "y = MatMul(x, column)", {}, {}, {}),
    "one row is a vector": ("(float[1, 8] x) => (float[1, 8] y)", "y = MatMul(x, w)", {}, {}, {}),
    "a row of each window is none": (
        "(float[batch, 1, 8] x) => (float[batch, 1, 8] y)",
        "y = MatMul(x, w)",
        {},
        {"x": ["MatMul 0"]},
        {"w": 1},
    ),
    "a row by each window's matrix is": (
        "(float[batch, 1, 8] x, float[batch, 8, 8] r) => (float[batch, 1, 8] y)",
        "y = MatMul(x, r)",
        {"attention_products": True},
        {},
        {},
    ),
    "attention": (
        ROWS,
        "o = MatMul(x, r)  a = Add(o, mask)  f = Softmax<axis=-1>(a)  y = MatMul(f, x)",
        {},
        {},
        {},
    ),
    "attention with its products": (
        ROWS,
        "o = MatMul(x, r)  a = Add(o, mask)  f = Softmax<axis=-1>(a)  y = MatMul(f, x)",
        {"attention_products": True},
        {"x": ["MatMul 0", "MatMul 1"], "r": ["MatMul 1"], "f": ["MatMul 0"]},
        {},
    ),
    "a computed mask is no residual": (
        ROWS,
        "o = MatMul(x, w)  k = Mul(r, two)  a = Add(o, k)  f = Softmax<axis=-1>(a)  y = MatMul(f, v)",
        {},
        {"x": ["MatMul 0"], "f": ["MatMul 0"]},
        {"w": 1, "v": 1},
    ),
    "a written-out normalization": (
        ROWS,
        f"h = MatMul(x, w)  {SQUARE} d = Sqrt(e)  l = Div(c, d)  g = MatMul(l, v)  y = Add(g, h)",
        {},
        {"x": ["MatMul 0"], "l": ["MatMul 0"], "h": ["Add 1"]},
        {"w": 1, "v": 1},
    ),
    "a layer in floating point": (
        ROWS,
        "h = MatMul(x, w)  k = MatMul(h, v)  y = Add(k, r)",
        {"float_layers": ("make_k",)},
        {"x": ["MatMul 0"]},
        {"w": 1},
    ),
    "a residual in floating point": (
        ROWS,
        "h = MatMul(x, w)  y = Add(h, r)",
        {"float_layers": ("make_y",)},
        {"x": ["MatMul 0"]},
        {"w": 1},
    ),
    "no kernel for transposed convolutions": (
        IMAGE,
        "h = ConvTranspose<pads=[0,1,0,1]>(x, turned)  y = Relu(h)",
        {"every_kernel": False},
        {},
        {},
    ),
    "no kernel for three dimensions": (
        "(float[batch, 8, 2, 2, 2] x) => (float[batch, 6, 2, 2, 2] y)",
        "y = Conv(x, solid)",
        {"every_kernel": False},
        {},
        {},
    ),
    "a kernel for two": (
        IMAGE,
        "y = Conv<pads=[0,1,0,1]>(x, kernel)",
        {"every_kernel": False},
        {"x": ["Conv 0"]},
        {"kernel": 0},
    ),
}


def spec_of(model):
    def tensors(values):
        for value in values:
            dims = value.type.tensor_type.shape.dim
            yield TensorSpec(value.name, "float32", tuple(d.dim_value or d.dim_param for d in dims))

    return ModelSpec("small", "test", "unknown", tuple(tensors(model.graph.input)), tuple(tensors(model.graph.output)))


def windows_of(model, count=16):
    generator = np.random.default_rng(5)
    return {one.name: generator.standard_normal((count, *one.shape[1:])).astype(F32) for one in spec_of(model).inputs}


def answer(model, feeds, folder):
    """Answer by exact simulation: every pair in floating point, no integer kernel."""
    path = folder / "simulated.onnx"
    onnx.save(model, path)
    one = describe_onnx((path,), spec_of(model), ("a test",), name="small", precision="int8", opset=17)
    with simulate(one, "onnxruntime", 1) as session:
        return session.run(feeds)["y"]


def quantized(model, folder, recipe, feeds):
    path = folder / "fp32.onnx"
    onnx.save(model, path)
    return quantize_tensorrt(path, recipe, ArrayDataset(feeds))


def table(ranges):
    rows = tuple(TensorRange(name, low, high) for name, (low, high) in ranges.items())
    return CalibrationTable("0" * 64, "0" * 64, ("0",), Observer(symmetric=True), "a test", rows)
