"""Small ONNX graphs, written as text, and arrays that are like their inputs."""

from collections.abc import Callable

import numpy as np
import onnx
import onnx.parser
import pytest

from tsexport.exporters.onnx_file import finish_onnx
from tsexport.exporters.openvino import export_openvino
from tsexport.quantize.sources import Fp32Sources
from tsexport.types import ModelSpec, TensorSpec

WIDTH = 32
SPEC = ModelSpec(
    name="small",
    family="test",
    task="unknown",
    inputs=(TensorSpec("x", "float32", ("batch", WIDTH)),),
    outputs=(TensorSpec("y", "float32", ("batch", WIDTH)),),
)
HEAD = f'<ir_version: 8, opset_import: ["" : 17]> g (float[batch, {WIDTH}] x) => (float[batch, {WIDTH}] y) '
TWO_PRODUCTS = "{ a = MatMul(x, w)  h = Relu(a)  y = MatMul(h, v) }"
NO_PRODUCT = "{ a = Relu(x)  y = Add(a, a) }"
SHARED_WEIGHT = "{ v = Identity(w)  a = MatMul(x, w)  h = Relu(a)  y = MatMul(h, v) }"


def weight(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((WIDTH, WIDTH)).astype(np.float32)


@pytest.fixture
def windows() -> np.ndarray:
    return np.random.default_rng(4).standard_normal((48, WIDTH)).astype(np.float32)


@pytest.fixture
def graph() -> Callable[[str], onnx.ModelProto]:
    """Return a function from a body to a checked model; the body may use the constants w and v."""

    def parse(body: str) -> onnx.ModelProto:
        model = onnx.parser.parse_model(HEAD + body)
        used = {name for node in model.graph.node for name in node.input}
        made = {name for node in model.graph.node for name in node.output}
        constants = [
            onnx.numpy_helper.from_array(weight(seed), name)
            for seed, name in enumerate("wv")
            if name in used and name not in made
        ]
        model.graph.initializer.extend(constants)
        onnx.checker.check_model(model, full_check=True)
        return model

    return parse


@pytest.fixture
def sources(graph, tmp_path) -> Callable[[str], Fp32Sources]:
    """Return a function from a body to its fp32 artifacts in ONNX and OpenVINO IR."""

    def write(body: str) -> Fp32Sources:
        made = finish_onnx(graph(body), SPEC, tmp_path / "small.onnx", ("onnx.parser",))
        return Fp32Sources(made, export_openvino(made, tmp_path / "small.xml"))

    return write


@pytest.fixture
def spec() -> ModelSpec:
    return SPEC


@pytest.fixture
def bodies() -> dict[str, str]:
    return {"two products": TWO_PRODUCTS, "no product": NO_PRODUCT, "shared weight": SHARED_WEIGHT}
