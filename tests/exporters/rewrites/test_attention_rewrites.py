"""Rewrites of attention: packed projections, masks added once, products of rows; what each changes and leaves."""

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

from tsexport.exporters.conversion import convert_to_onnx
from tsexport.exporters.rewrites.attention import PlainAttention, SeparateProjections
from tsexport.exporters.rewrites.masks import MaskAsAddition
from tsexport.exporters.rewrites.modules import rewrite_module
from tsexport.exporters.rewrites.proofs import rewrite_graph
from tsexport.exporters.rewrites.rows import RowProducts
from tsexport.types import ModelSpec, TensorSpec

STEPS, WIDTH, HEADS, LAYERS = 6, 16, 4, 3
EXACT = 1e-5
"""The same sums in another order, over some ten terms of about unit size."""


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def probes() -> list[dict[str, np.ndarray]]:
    return [{"x": random(b, STEPS, WIDTH, seed=b), "m": random(b, STEPS, seed=b + 9)} for b in (1, 3)]


def valid(m: torch.Tensor) -> torch.Tensor:
    """[batch, STEPS] -> which steps are valid; the first always is."""
    return torch.cat([torch.ones_like(m[:, :1]) > 0, m[:, 1:] > 0], dim=1)


class Packed(nn.Module):
    """LAYERS of torch's own attention; `masks` says which ones it is called with."""

    def __init__(self, masks: str = "", **settings: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.masks = masks
        self.layers = nn.ModuleList(
            nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **settings) for _ in range(LAYERS)
        )

    def forward(self, x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        padded = ~valid(m)
        later = torch.ones(STEPS, STEPS, dtype=torch.bool).triu(1)
        for layer in self.layers:
            if self.masks == "padding":
                x = x + layer(x, x, x, key_padding_mask=padded, need_weights=False)[0]
            elif self.masks == "causal":
                x = x + layer(x, x, x, attn_mask=later, need_weights=False)[0]
            elif self.masks == "heads":
                scores = m[:, None, :, None].expand(-1, HEADS, -1, STEPS).reshape(-1, STEPS, STEPS)
                x = x + layer(x, x, x, attn_mask=scores)[0]
            elif self.masks == "cross":
                x = x + layer(x, x[:, :2], x[:, :2])[0]
            else:
                x = x + layer(query=x, key=x, value=x)[0] + 0 * m[:, :, None]
        return x


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("masks", ["", "padding", "causal", "heads", "cross"])
def test_separate_projections_are_equal(masks, bias):
    module = Packed(masks, bias=bias).eval()
    rewritten, (applied,) = rewrite_module(module, probes(), (SeparateProjections(),))
    assert applied.kept, applied.reason
    assert applied.changes == LAYERS
    assert applied.max_abs_error < EXACT
    assert isinstance(rewritten.layers[0], PlainAttention)
    assert isinstance(module.layers[0], nn.MultiheadAttention)


def test_an_encoder_called_with_a_mask_has_its_attention_replaced():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
            encoded: torch.Tensor = self.encoder(x, src_key_padding_mask=~valid(m))
            return encoded

    rewritten, (applied,) = rewrite_module(Net().eval(), probes(), (SeparateProjections(),))
    assert applied.kept, applied.reason
    assert applied.changes == 2
    assert isinstance(rewritten.encoder.layers[1].self_attn, PlainAttention)


def test_where_the_weights_of_the_attention_are_used_it_is_taken_back():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

        def forward(self, x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
            mixed, weights = self.attention(x, x, x)
            return mixed * weights.sum() + m[:, :, None]

    module = Net().eval()
    rewritten, (applied,) = rewrite_module(module, probes(), (SeparateProjections(),))
    assert rewritten is module
    assert not applied.kept
    assert "the module fails with it: AttributeError" in applied.reason


@pytest.mark.parametrize("settings", [{"add_bias_kv": True}, {"add_zero_attn": True}, {"kdim": WIDTH, "vdim": 8}])
def test_other_attentions_are_left_as_they_are(settings):
    module = nn.Sequential(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **settings))
    assert not SeparateProjections().requires(module)


class Spelled(nn.Module):
    """Attention with a linear layer each, as most code spells it; one mask for all layers."""

    def __init__(self, mask: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mask = mask
        self.layers = nn.ModuleList(nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4)) for _ in range(LAYERS))

    def forward(self, x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        keep = valid(m)[:, None, None, :]
        for q, k, v, out in self.layers:
            a, b, c = (f(x).reshape(-1, STEPS, HEADS, WIDTH // HEADS).transpose(1, 2) for f in (q, k, v))
            if self.mask == "sdpa":
                mixed = functional.scaled_dot_product_attention(a, b, c, attn_mask=keep)
            elif self.mask == "sdpa, float":
                mixed = functional.scaled_dot_product_attention(a, b, c, attn_mask=m[:, None, None, :])
            elif self.mask == "fill":
                scores = (a @ b.transpose(-1, -2) / 2).masked_fill(~keep, float("-inf"))
                mixed = torch.softmax(scores, dim=-1) @ c
            else:
                scores = torch.where(keep, a @ b.transpose(-1, -2) / 2, torch.full((), -1e9))
                mixed = torch.softmax(scores, dim=-1) @ c
            x = x + out(mixed.transpose(1, 2).reshape(-1, STEPS, WIDTH))
        return x


SPEC = ModelSpec(
    *("net", "test", "unknown"),
    (TensorSpec("x", "float32", ("batch", STEPS, WIDTH)), TensorSpec("m", "float32", ("batch", STEPS))),
    (TensorSpec("y", "float32", ("batch", STEPS, WIDTH)),),
)


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(Packed("padding"), id="nn.MultiheadAttention"),
        pytest.param(Spelled("sdpa"), id="scaled_dot_product_attention, boolean"),
        pytest.param(Spelled("sdpa, float"), id="scaled_dot_product_attention, float"),
        pytest.param(Spelled("fill"), id="masked_fill"),
        pytest.param(Spelled("where"), id="where"),
    ],
)
def test_every_spelling_of_attention_becomes_one_product_a_layer_and_one_mask(module, tmp_path):
    made = convert_to_onnx(module.eval(), None, SPEC, None, tmp_path / "m.onnx")
    names = {applied.name for applied in made.rewrites if applied.kept}
    assert {"fold-scale", "fuse-parallel-linears", "row-products"} <= names
    nodes = list(onnx.load(made.artifact.path).graph.node)
    kinds = Counter(node.op_type for node in nodes)
    assert kinds["MatMul"] == 4 * LAYERS  # q with k and v, scores, mixture, output
    assert kinds["Mul"] == kinds["Div"] == kinds["Gather"] == 0
    # torch's own guard against rows without a valid step stands beside the boolean mask, one in each layer
    guards = kinds["IsNaN"]
    assert kinds["Where"] - guards == (0 if module.__dict__.get("mask") == "sdpa, float" else 1)


# ---------------------------------------------------------------- on graphs as text


def graph(body: str, **constants: np.ndarray) -> onnx.ModelProto:
    head = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[batch, {STEPS}, {WIDTH}] x, float[batch, {STEPS}] m) => (float[batch, {STEPS}, {WIDTH}] y)"""
    model = onnx.parser.parse_model(head + " {" + body + "}")
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in constants.items())
    onnx.checker.check_model(model, full_check=True)
    return model


def apply(model: onnx.ModelProto, rewrite: object) -> tuple[list[str], tuple]:
    rewritten, applied = rewrite_graph(model, probes(), (rewrite,))
    onnx.checker.check_model(rewritten, full_check=True)
    return [node.op_type for node in rewritten.graph.node], applied


MASK = "k = Greater(x, zero)  a = Where(k, x, fill)  s = Softmax<axis=-1>(a)  b = Where(k, s, fill)"


@pytest.mark.parametrize("fill", [-np.inf, -1e9, -2e4])
def test_a_mask_is_added_and_computed_once(fill):
    body = MASK + "  y = Softmax<axis=-1>(b)"
    model = graph(body, zero=np.float32(-3), fill=np.float32(fill))
    kinds, (applied,) = apply(model, MaskAsAddition())
    assert applied.kept, applied.reason
    assert applied.changes == 2
    assert Counter(kinds) == {"Greater": 1, "Where": 1, "Add": 2, "Softmax": 2}


def test_a_constant_mask_is_one_constant_of_the_file():
    causal = np.tril(np.ones((STEPS, STEPS), dtype=bool))
    body = """t = Transpose<perm=[0, 2, 1]>(x)  p = MatMul(x, t)  a = Where(k, p, fill)  s = Softmax<axis=-1>(a)
    q = MatMul(s, p)  b = Where(k, q, fill)  r = Softmax<axis=-1>(b)  y = MatMul(r, x)"""
    model = graph(body, k=causal, fill=np.float32(-np.inf))
    rewritten, (applied,) = rewrite_graph(model, probes(), (MaskAsAddition(),))
    assert applied.kept, applied.reason
    assert not [node for node in rewritten.graph.node if node.op_type == "Where"]
    (mask,) = rewritten.graph.initializer
    assert list(mask.dims) == [STEPS, STEPS]


@pytest.mark.parametrize(
    ("body", "fill"),
    [
        pytest.param(MASK + "  y = Softmax<axis=-1>(b)", -5.0, id="a value that still counts"),
        pytest.param(MASK + "  y = Add(b, b)", 0.0, id="no softmax behind it"),
        pytest.param(
            "k = Greater(x, zero)  a = Where(k, x, fill)  s = Softmax<axis=-1>(a)  y = Add(s, a)", -1e9, id="used twice"
        ),
        pytest.param("k = Greater(x, zero)  a = Where(k, x, fill)  y = Softmax<axis=1>(a)", -1e9, id="another axis"),
    ],
)
def test_what_is_no_mask_of_attention_is_left(body, fill):
    model = graph(body, zero=np.float32(-3), fill=np.float32(fill))
    assert apply(model, MaskAsAddition()) == ([node.op_type for node in model.graph.node], ())


LINEAR = {"w": random(WIDTH, WIDTH), "b": random(WIDTH)}


def test_a_product_over_several_axes_becomes_one_of_rows():
    kinds, (applied,) = apply(graph("p = MatMul(x, w)  y = Add(p, b)", **LINEAR), RowProducts())
    assert applied.kept, applied.reason
    assert kinds == ["Reshape", "MatMul", "Add", "Reshape"]


def test_an_activation_stays_beside_its_product():
    body = "p = MatMul(x, w)  a = Add(p, b)  r = Relu(a)  y = Add(r, x)"
    kinds, (applied,) = apply(graph(body, **LINEAR), RowProducts())
    assert applied.kept, applied.reason
    assert kinds == ["Reshape", "MatMul", "Add", "Relu", "Reshape", "Add"]


def test_reshapes_between_two_products_are_merged():
    from tsexport.exporters.rewrites.cleaning import DropNoOps

    body = "p = MatMul(x, w)  a = Add(p, b)  q = MatMul(a, w)  y = Add(q, b)"
    rewritten, applied = rewrite_graph(graph(body, **LINEAR), probes(), (RowProducts(), DropNoOps()))
    assert all(one.kept for one in applied)
    assert Counter(node.op_type for node in rewritten.graph.node)["Reshape"] <= 3


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("y = MatMul(x, w)", id="no bias"),
        pytest.param("r = Reshape(x, flat)  p = MatMul(r, w)  a = Add(p, b)  y = Reshape(a, back)", id="rows already"),
    ],
)
def test_what_gains_nothing_is_left(body):
    extra = {"flat": np.array([-1, WIDTH]), "back": np.array([-1, STEPS, WIDTH])} if "flat" in body else {}
    model = graph(body, **LINEAR, **extra) if "b)" in body else graph(body, w=LINEAR["w"])
    assert apply(model, RowProducts()) == ([node.op_type for node in model.graph.node], ())
