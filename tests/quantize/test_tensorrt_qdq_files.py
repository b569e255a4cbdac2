"""Files with Q/DQ pairs for TensorRT: what recipes make of graphs, and what they refuse."""

from dataclasses import replace

import onnx
import onnx.parser
import pytest
from qdq_graphs import FLAT, PLACES, ROWS, answer, parse, quantized, spec_of, table, windows_of

from tsexport.calibration.arrays import ArrayDataset
from tsexport.exporters.device_rewrites import rewrite_for_device
from tsexport.exporters.qdq_rules import check_rules
from tsexport.quantize import tensorrt_qdq
from tsexport.quantize.candidates import build_candidate
from tsexport.quantize.recipes import recipes_for
from tsexport.quantize.tensorrt_qdq import quantize_tensorrt
from tsexport.quantize.tensorrt_recipes import (
    TENSORRT_ATTENTION,
    TENSORRT_INT8,
    TENSORRT_INT8_BEFORE_AMPERE,
    TENSORRT_MINMAX,
    TENSORRT_MSE,
)
from tsexport.runtimes.comparison import relative_rms
from tsexport.targets import host_cpu, parse_target


def test_names_that_are_taken_are_left_alone(tmp_path):
    model = parse(ROWS, "x_scale = Relu(x)  x_quantized = MatMul(x, w)  h = Add(x_scale, x_quantized)  y = Add(h, r)")
    feeds = windows_of(model)
    made = quantized(model, tmp_path, TENSORRT_MINMAX, feeds)
    onnx.checker.check_model(made, full_check=True)
    assert relative_rms(answer(model, feeds, tmp_path), answer(made, feeds, tmp_path)) < 0.02


def test_a_weight_of_a_constant_node_becomes_an_initializer(tmp_path):
    model = parse(ROWS, "h = MatMul(x, w)  y = Add(h, r)")
    node = onnx.helper.make_node("Constant", [], ["w"], value=model.graph.initializer.pop(0), name="make_w")
    model.graph.node.insert(0, node)
    made = quantized(model, tmp_path, TENSORRT_MINMAX, windows_of(model))
    assert "w_weight" in {one.name for one in made.graph.initializer}
    assert check_rules(made) == ()


def test_a_weight_of_two_layers_has_one_pair_for_each_axis(tmp_path):
    model = parse(FLAT, "a = MatMul(x, w)  b = MatMul(a, w)  y = Gemm<transB=1>(b, w)")
    made = quantized(model, tmp_path, TENSORRT_MINMAX, windows_of(model))
    pairs = [node.name for node in made.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == "w"]
    assert sorted(pairs) == ["w_axis0_quantize", "w_axis1_quantize"]
    assert check_rules(made) == ()


def test_the_same_inputs_give_the_same_bytes(tmp_path):
    model = parse(ROWS, PLACES["bias and residual"][1])
    files = [quantized(model, tmp_path, TENSORRT_MSE, windows_of(model)).SerializeToString() for _ in range(2)]
    assert files[0] == files[1]


def built(model, folder, recipe):
    from tsexport.exporters.onnx_file import finish_onnx
    from tsexport.quantize.sources import Fp32Sources

    source = finish_onnx(model, spec_of(model), folder / "fp32.onnx", ("onnx.parser",))
    calibration = ArrayDataset(windows_of(model))
    return build_candidate(recipe, Fp32Sources(source, None), spec_of(model), calibration, folder / "out")


OWN = [recipe for recipe in (*TENSORRT_INT8, *TENSORRT_INT8_BEFORE_AMPERE) if recipe.tool == "tensorrt-qdq"]


@pytest.mark.parametrize("recipe", OWN, ids=lambda recipe: recipe.name)
def test_every_recipe_builds_an_artifact(tmp_path, recipe):
    body = "o = MatMul(x, r)  f = Softmax<axis=-1>(o)  h = MatMul(f, x)  b = MatMul(h, w)  y = Add(b, r)"
    candidate = built(parse(ROWS, body), tmp_path, recipe)
    assert candidate.reason == ""
    artifact = candidate.artifact
    assert (artifact.name, artifact.precision, artifact.opset) == (f"int8-{recipe.name}", "int8", 17)
    assert recipe.summary in artifact.provenance[-1]
    model = onnx.load(artifact.path)
    assert check_rules(model, every_kernel=recipe.every_kernel) == ()
    pairs = sum(node.op_type == "QuantizeLinear" for node in model.graph.node)
    # h, w and r; with attention's products x and f as well
    assert pairs == (5 if recipe.attention_products else 3)
    assert not model.graph.value_info


@pytest.mark.parametrize(
    ("body", "recipe", "reason"),
    [
        ("y = Add(x, r)", TENSORRT_MINMAX, "no Conv, ConvTranspose, Gemm or MatMul that TensorRT computes in INT8"),
        ("y = MatMul(x, r)", TENSORRT_MINMAX, "no Conv, ConvTranspose, Gemm or MatMul that TensorRT computes in INT8"),
        ("h = MatMul(x, w)  y = Add(h, r)", TENSORRT_ATTENTION, "no product of two activations"),
        (
            "h = MatMul(x, w)  y = Add(h, r)",
            replace(TENSORRT_MINMAX, float_layers=("make_z",)),
            "float_layers names 'make_z', and the graph has no such node",
        ),
    ],
    ids=["no layer", "no weights", "no attention", "unknown layer"],
)
def test_what_cannot_be_quantized_is_listed_with_the_reason(tmp_path, body, recipe, reason):
    candidate = built(parse(ROWS, body), tmp_path, recipe)
    assert candidate.artifact is None
    assert reason in candidate.reason


def test_a_graph_that_breaks_a_rule_fails_the_candidate(tmp_path, monkeypatch):
    """What guards against a fault of the quantizer itself: here it is made to forget a residual operand."""
    monkeypatch.setattr(tensorrt_qdq, "residual_operand", lambda *_: None)
    candidate = built(parse(ROWS, "h = MatMul(x, w)  y = Add(h, r)"), tmp_path, TENSORRT_MINMAX)
    assert candidate.artifact is None
    assert candidate.reason == (
        "the Q/DQ pairs break TensorRT's rules: residual: node 'make_y' adds 'r' to what a quantized layer gives, "
        "without a pair; allowed is a pair in front of the residual operand"
    )


def test_one_table_serves_every_choice_of_layers(tmp_path):
    """The search takes layers back to floating point; what was calibrated once stays enough."""
    model = parse(ROWS, "h = MatMul(x, w)  k = MatMul(r, v)  y = Add(k, h)")
    asked = []

    def remember(path, dataset, tensors, observer):
        asked.append(tensors)
        return table({name: (-1.0, 1.0) for name in tensors})

    path = tmp_path / "fp32.onnx"
    onnx.save(model, path)
    for layers in ((), ("make_k",), ("make_h",), ("make_y",)):
        recipe = replace(TENSORRT_MINMAX, float_layers=layers)
        made = quantize_tensorrt(path, recipe, ArrayDataset(windows_of(model)), remember)
        assert check_rules(made, float_layers=layers) == ()
    assert len(set(asked)) == 1


@pytest.mark.parametrize(
    ("target", "device", "every_kernel", "attention"),
    [
        ("jetson-int8", "@jetpack-6.2", True, True),
        ("jetson-int8", "agx-orin@jetpack-5.1.1", True, True),
        ("jetson-int8", "xavier-nx@jetpack-5.1", False, False),
        ("t4-int8", "host", False, False),
        ("a100-int8", "@tensorrt-8.5", True, True),
        ("h100-int8", "host", True, True),
    ],
)
def test_the_recipes_of_a_target(target, device, every_kernel, attention):
    """GPUs before compute capability 8.0 lack kernels."""
    recipes = recipes_for(parse_target(target, device), host_cpu())
    assert {recipe.every_kernel for recipe in recipes} == {every_kernel}
    assert {recipe.attention_products for recipe in recipes} == ({True, False} if attention else {False})
    assert {recipe.observer.method for recipe in recipes} == {"minmax", "entropy", "percentile", "mse"}
    assert {recipe.tool for recipe in recipes} == {"tensorrt-qdq", "modelopt"}
    assert len({recipe.name for recipe in recipes}) == len(recipes)


def test_a_normalization_that_is_written_out_stays_in_floating_point(tmp_path):
    """The constants of the normalization stay in floating point, and its input has no pair."""
    body = "n = LayerNormalization<axis=-1>(x, bias, bias)  h = MatMul(n, w)  y = Add(h, n)"
    model = parse(ROWS, body)
    feeds = windows_of(model)
    plain = quantized(model, tmp_path, TENSORRT_MINMAX, feeds)
    written = quantized(rewrite_for_device(model, (feeds,), "8.5")[0], tmp_path, TENSORRT_MINMAX, feeds)
    assert not any(node.op_type == "LayerNormalization" for node in written.graph.node)
    assert check_rules(written) == ()
    pairs = [[n.input[0] for n in one.graph.node if n.op_type == "QuantizeLinear"] for one in (plain, written)]
    assert pairs == [["n", "w"], ["n", "w"]]
    assert relative_rms(answer(plain, feeds, tmp_path), answer(written, feeds, tmp_path)) < 1e-3
