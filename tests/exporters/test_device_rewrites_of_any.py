"""The rewrites that TensorRT versions need, on any numbers and equations; and what none of them can write otherwise."""

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsexport.exporters.device_check import check_onnx
from tsexport.exporters.device_rewrites import rewrite_for_device
from tsexport.exporters.rewrites.device_products import dft_matrix
from tsexport.exporters.rewrites.proofs import answer


def f32(*shape, seed=5):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rewritten(text, version, feeds, **constants):
    """Return what a graph answers before and after, and the names of the rewrites that were kept."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {text}')
    for name, array in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    after, done = rewrite_for_device(model, (feeds,), version)
    assert all(one.kept for one in done), done
    return answer(model, feeds)["y"], answer(after, feeds)["y"], [one.name for one in done]


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_any_einsum_of_two_terms(data):
    letters = data.draw(st.permutations("bcdefghi"))
    kinds = [[letters.pop() for _ in range(data.draw(st.integers(0, 2)))] for _ in range(4)]
    terms = [
        data.draw(st.permutations(one)) for one in (kinds[0] + kinds[1] + kinds[3], kinds[0] + kinds[2] + kinds[3])
    ]
    made = data.draw(st.permutations([*kinds[0], *kinds[1], *kinds[2]]))
    sizes = {letter: data.draw(st.integers(1, 4)) for kind in kinds for letter in kind}
    left, right = (f32(*(sizes[one] for one in term)) for term in terms)
    equation = f"{''.join(terms[0])},{''.join(terms[1])}->{''.join(made)}"
    shape = ", ".join(str(sizes[one]) for one in made)
    text = f'(float{list(left.shape)} x) => (float[{shape}] y) {{ y = Einsum<equation = "{equation}">(x, w) }}'
    before, after, names = rewritten(text.replace("float[]", "float"), "8.0", {"x": left}, w=right)
    assert names == ["einsum-as-product"]
    np.testing.assert_allclose(after, before, rtol=2e-5, atol=2e-5)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 2), st.booleans(), st.booleans())
def test_any_dft(given_length, taken, parts, inverse, onesided):
    if inverse and onesided:
        onesided = False
    made = taken // 2 + 1 if onesided else taken
    x = f32(2, given_length, parts)
    padded = np.zeros((2, taken), complex)
    used = min(given_length, taken)
    padded[:, :used] = x[:, :used, 0] + (1j * x[:, :used, 1] if parts == 2 else 0)
    exact = (np.fft.ifft if inverse else np.fft.fft)(padded)[:, :made]
    matrix = dft_matrix(given_length, taken, parts, inverse=inverse, onesided=onesided)
    found = (x.reshape(2, -1) @ matrix).reshape(2, made, 2)
    np.testing.assert_allclose(found[..., 0] + 1j * found[..., 1], exact, atol=2e-5 * max(1.0, np.abs(exact).max()))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(-7, 6), min_size=1, max_size=20))
def test_any_places_of_a_scatter(places):
    feeds = {"x": f32(2, 7, 3), "u": f32(2, len(places), 3, seed=6)}
    text = (
        f"(float[batch, 7, 3] x, float[batch, {len(places)}, 3] u) => (float[batch, 7, 3] y)"
        ' { s = Shape(u)  e = Expand(i, s)  y = ScatterElements<axis = 1, reduction = "add">(x, e, u) }'
    )
    before, after, names = rewritten(text, "8.5", feeds, i=np.array(places).reshape(-1, 1))
    assert names == ["scatter-as-sums"]
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(-99, 99), st.integers(-9, 9).filter(bool)), min_size=1, max_size=9))
def test_any_remainder(pairs):
    a, b = np.array(pairs).T
    text = f"(int64[batch, {len(pairs)}] x) => (int64[batch, {len(pairs)}] y) {{ y = Mod(x, d) }}"
    before, after, names = rewritten(text, "8.2", {"x": a[None]}, d=np.ascontiguousarray(b))
    assert names == ["remainder-by-division"]
    np.testing.assert_array_equal(after, before)
    np.testing.assert_array_equal(after[0], a % b)


# --- what stays ------------------------------------------------------------------------------------------------------

STAYS = {
    "a scatter whose places are computed": (
        "(float[batch, 3, 4] x, int64[batch, 3, 4] i) => (float[batch, 3, 4] y)"
        ' { y = ScatterElements<axis = 1, reduction = "add">(x, i, x) }'
    ),
    "a scatter that multiplies": (
        "(float[batch, 3, 4] x) => (float[batch, 3, 4] y) <int64[3, 1] i = {0, 0, 2}>"
        ' { s = Shape(x)  e = Expand(i, s)  y = ScatterElements<axis = 1, reduction = "mul">(x, e, x) }'
    ),
    "a scatter of rows that do not cover their place": (
        "(float[batch, 3, 4] x, float[batch, 1, 2] u) => (float[batch, 3, 4] y) <int64[1, 1] i = {1}>"
        ' { s = Shape(u)  e = Expand(i, s)  y = ScatterElements<axis = 1, reduction = "add">(x, e, u) }'
    ),
    "a DFT of an unknown length": "(float[batch, n, 1] x) => (float[batch, n, 2] y) { y = DFT<axis = 1>(x) }",
    "a sum over a letter of one term alone": (
        '(float[batch, 3, 4] x, float[4, 5] w) => (float[batch, 5] y) { y = Einsum<equation = "Bij,jk->Bk">(x, w) }'
    ),
    "a letter twice in a term": (
        '(float[batch, 3, 3] x, float[3, 5] w) => (float[batch, 5] y) { y = Einsum<equation = "bii,ik->bk">(x, w) }'
    ),
    "three terms": (
        "(float[batch, 3, 3] x, float[3, 3] w) => (float[batch, 3, 3] y)"
        ' { y = Einsum<equation = "Bij,jk,kl->Bil">(x, w, w) }'
    ),
    "a triangle of unknown dimensions": "(float[batch, n, m] x) => (float[batch, n, m] y) { y = Trilu(x) }",
    "a remainder of fp32": "(float[batch, 3] x) => (float[batch, 3] y) { y = Mod<fmod = 1>(x, x) }",
    "a depth that is computed": (
        "(int64[batch, 3] x, int64 n) => (float[batch, 3, d] y) <float[2] v = {0, 1}> { y = OneHot(x, n, v) }"
    ),
    "a convolution whose weights are computed": (
        "(float[batch, 3, 9] x, float[3, 2, 3] w) => (float[batch, 2, n] y) { y = ConvTranspose(x, w) }"
    ),
}


@pytest.mark.parametrize("text", STAYS.values(), ids=STAYS)
def test_what_cannot_be_written_otherwise_stays(text, tmp_path):
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {text}')
    model.graph.node[-1].name = "stays"
    sizes, feeds = {"batch": 2, "n": 4, "m": 5}, {}
    for value in model.graph.input:
        shape = [one.dim_value or sizes[one.dim_param] for one in value.type.tensor_type.shape.dim]
        whole = value.type.tensor_type.elem_type == onnx.TensorProto.INT64
        feeds[value.name] = np.ones(shape, np.int64) if whole else 1 + np.abs(f32(*shape))
    assert rewrite_for_device(model, (feeds,), "8.2") == (model, ())
    onnx.save(model, tmp_path / "m.onnx")
    assert "stays" in {one.node for one in check_onnx(tmp_path / "m.onnx", tensorrt="8.2", precision="fp32").errors}
