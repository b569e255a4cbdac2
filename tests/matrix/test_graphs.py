"""The graphs that come out: clean encoders, one product for Q, K and V, the scale folded in, nothing computed twice."""

from collections import Counter

import numpy as np
import onnx
import pytest
from cases import BY_NAME

ENCODERS = ("patchtst-cpu", "patchtst-cpu-positional", "patchtst-cpu-small")
PAPER = ("patchtst", "patchtst-stride-5", "patchtst-etth1")
LAYERS = {"patchtst-cpu-small": 1, "patchtst-stride-5": 1}
PUBLISHED_NODES = 91
"""What the graph had when this was first tried, down from 335."""


def load(exported, name):
    return onnx.load(exported(name).artifact("onnx").path)


def operators(model):
    return Counter(node.op_type for node in model.graph.node)


def constants(model):
    return {initializer.name: initializer for initializer in model.graph.initializer}


def test_patchtst_cpu_has_no_more_nodes_than_published(exported):
    nodes = len(load(exported, "patchtst-cpu").graph.node)
    print(f"patchtst-cpu: {nodes} nodes")
    assert nodes <= PUBLISHED_NODES


@pytest.mark.parametrize("name", ENCODERS)
def test_nothing_is_left_of_the_exporters_scaffolding(exported, name):
    found = operators(load(exported, name))
    unwanted = {"Shape", "Cast", "Identity", "Gemm", "Constant", "ConstantOfShape", "Unsqueeze", "Squeeze", "Expand"}
    assert not unwanted & found.keys()
    # The scale 1 / sqrt(d) is in the weights: the encoder has no multiplication but its products.
    assert not {"Mul", "Div", "Sqrt", "Pow"} & found.keys()


@pytest.mark.parametrize("name", BY_NAME)
def test_no_case_keeps_identities_gemms_or_casts(exported, name):
    found = operators(load(exported, name))
    assert not {"Identity", "Gemm", "Constant", "Dropout"} & found.keys()
    # Masks and calendars have to become numbers.
    assert "Cast" not in found or any(tensor.dtype != "float32" for tensor in exported(name).source.spec.inputs)
    # LSTM and GRU make their first state for the batch at hand; nothing else reads shapes.
    assert "Shape" not in found or {"LSTM", "GRU"} & found.keys()


@pytest.mark.parametrize("name", BY_NAME)
def test_the_file_holds_no_weights_that_nothing_reads(exported, name):
    model = load(exported, name)
    read = {value for node in model.graph.node for value in node.input}
    assert [stored for stored in constants(model) if stored not in read] == []


@pytest.mark.parametrize("name", ENCODERS + PAPER)
def test_a_layer_projects_q_k_and_v_in_one_product(exported, name):
    model = load(exported, name)
    layers = LAYERS.get(name, 3)
    weights = constants(model)
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    fused = [
        node
        for node in products
        if node.input[1] in weights and weights[node.input[1]].dims[1] == 3 * weights[node.input[1]].dims[0]
    ]
    assert len(fused) == operators(model)["Split"] == layers
    of_activations = [node for node in products if not {*node.input} & weights.keys()]
    assert len(of_activations) == 2 * layers
    # embedding, head, and four products a layer: Q K V, output, and the two of the feed-forward
    assert len(products) - len(of_activations) == 2 + 4 * layers


@pytest.mark.parametrize("name", ENCODERS + PAPER)
def test_attention_does_not_scale(exported, name):
    """Between the product of queries and keys and its softmax there is nothing but the sum of residual scores."""
    model = load(exported, name)
    made_by = {output: node for node in model.graph.node for output in node.output}
    for softmax in (node for node in model.graph.node if node.op_type == "Softmax"):
        behind = made_by[softmax.input[0]]
        while behind.op_type == "Add":  # residual attention, as in the paper's model
            behind = next(made_by[name] for name in behind.input if made_by[name].op_type in ("MatMul", "Add"))
        assert behind.op_type == "MatMul"


def test_the_scale_is_in_the_query_weights(exported):
    one = exported("patchtst-cpu")
    model = load(exported, "patchtst-cpu")
    weights = {name: onnx.numpy_helper.to_array(tensor) for name, tensor in constants(model).items()}
    original = {name: value.numpy() for name, value in one.source.module.state_dict().items()}
    width, heads = 128, 4
    fused = [array for array in weights.values() if array.shape == (width, 3 * width)]
    for layer in range(3):
        torch_weight = original[f"transformer.layers.{layer}.self_attn.in_proj_weight"].T.copy()
        torch_weight[:, :width] /= np.sqrt(width / heads)
        assert any(np.allclose(array, torch_weight, rtol=1e-6, atol=0) for array in fused)


@pytest.mark.parametrize("name", ENCODERS)
def test_reshapes_are_constant_but_for_the_batch(exported, name):
    model = load(exported, name)
    known = constants(model)
    for node in model.graph.node:
        if node.op_type == "Reshape":
            shape = onnx.numpy_helper.to_array(known[node.input[1]])
            assert (shape == -1).sum() <= 1
            assert (shape[shape != -1] > 0).all()
