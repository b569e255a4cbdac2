"""Small graphs and what TensorRT 8.2, 8.5, 8.6, 10.3 and 11.0 say of their operators; `test_device_check` asks."""

from dataclasses import dataclass, field

import numpy as np

VERSIONS = ("8.2", "8.5", "8.6", "10.3", "11.0")
F32, I64, S8, U8 = np.float32, np.int64, np.int8, np.uint8
CONSTANTS = {
    "one": np.ones(8, F32),
    "zero": np.zeros(8, F32),
    "w": np.linspace(-1, 1, 64, dtype=F32).reshape(8, 8),
    "whole": np.arange(64, dtype=np.int32).reshape(8, 8),
    "kernel3": np.ones((8, 8, 3), F32),
    "kernel": np.ones((8, 8, 1, 1), F32),
    "k": np.array([2], I64),
    "large": np.array([4000], I64),
    "axis0": np.array([0], I64),
    "axes": np.array([2], I64),
    "two": np.array(2, I64),
    "halves": np.array([4, 4], I64),
    "shape3": np.array([2, 8, 8], I64),
    "indices": np.array([[0]], I64),
    "many": np.zeros((2, 8, 8), I64),
    "back": np.array([-1], I64),
    "scales": np.array([1, 1, 2, 2], F32),
    "pads": np.array([1, 1, 1, 1, 1, 1], I64),
    "pads4": np.array([0, 0, 1, 1, 0, 0, 1, 1], I64),
    "five": np.array(5.0, F32),
    "values": np.array([0, 1], F32),
    "lstm_w": np.ones((1, 32, 8), F32),
    "lstm_r": np.ones((1, 32, 8), F32),
    "lstm_w2": np.ones((2, 32, 8), F32),
    "lstm_r2": np.ones((2, 32, 8), F32),
    "gru_w": np.ones((1, 24, 8), F32),
    "gru_r": np.ones((1, 24, 8), F32),
    "rnn_w": np.ones((1, 8, 8), F32),
    "rnn_r": np.ones((1, 8, 8), F32),
    "s": np.array(0.02, F32),
    "t": np.array(0.05, F32),
    "s16": np.array(0.02, np.float16),
    "none": np.array(0.0, F32),
    "s1": np.array([0.02], F32),
    "z16": np.array(0, np.int16),
    "z": np.array(0, S8),
    "z3": np.array(3, S8),
    "u": np.array(0, U8),
    "s8": np.full(8, 0.02, F32),
    "z8": np.zeros(8, S8),
    "z4": np.zeros(4, S8),
    "i32": np.zeros(8, np.int32),
    "z32": np.array(0, np.int32),
    "step": np.array(4, I64),
    "window": np.ones(8, F32),
    "true": np.array(True),
    "ratio": np.array(0.5, F32),
    "steps": np.array([2], I64),
    "cut": np.array([0, -2], I64),
    "span": np.array([8, 8], I64),
}
ROWS = "(float[batch, 8, 8] x) => (float[batch, 8, 8] y)"
FLAT = "(float[batch, 8] x) => (float[batch, 8] y)"
IMAGE = "(float[batch, 8, 4, 4] x) => (float y)"
PAIRED = "(float[batch, 8, 8] x) => (float[batch, 8, 8] y)"


@dataclass(frozen=True)
class Case:
    """A graph and its verdicts on VERSIONS, and on others where only those tell the difference.

    no: the operator is not there.  refused: the node is.  wrong: it is accepted and computed otherwise.  type, bf16:
    its element type.  hazard: a warning.  advice: a warning on where Q/DQ pairs stand.  Several are joined by "+".
    """

    name: str
    signature: str
    body: str
    verdicts: str
    others: dict[str, str] = field(default_factory=dict)
    opset: int = 17


OK = "ok ok ok ok ok"
REFUSED = "refused refused refused refused refused"
OPERATORS = (
    Case("plain", ROWS, "h = MatMul(x, w)  y = Relu(h)", OK),
    Case("LayerNormalization", ROWS, "y = LayerNormalization(x, one, zero)", "no no ok ok ok"),
    Case("its mean", ROWS, "n, m, d = LayerNormalization(x, one, zero)  y = Add(n, m)", "no no ok refused refused"),
    Case("its stash type", ROWS, "y = LayerNormalization<stash_type=16>(x, one, zero)", "no no hazard hazard hazard"),
    Case("DFT", "(float[batch, 8, 1] x) => (float y)", "y = DFT(x)", "no no no no no"),
    Case("another domain", ROWS, "y = com.other.Thing(x)", "no no no no no"),
    Case("GELU", ROWS, "y = Gelu(x)", "no no no ok ok", opset=20),
    Case("Einsum", FLAT, 'y = Einsum<equation="ij,jk->ik">(x, w)', OK, {"8.0": "no"}),
    Case("Einsum in capitals", FLAT, 'y = Einsum<equation="IJ,JK->IK">(x, w)', "refused ok ok ok ok"),
    Case(
        "Einsum with ellipsis", ROWS, 'y = Einsum<equation="...j,jk->...k">(x, w)', "refused refused refused refused ok"
    ),
    Case(
        "Einsum of a diagonal",
        "(float[8, 8] x) => (float y)",
        'y = Einsum<equation="ii->i">(x)',
        "refused refused refused refused ok",
    ),
    Case("Trilu", ROWS, "y = Trilu(x)", "no ok ok ok ok"),
    Case("Trilu of four", "(float[2, 2, 8, 8] x) => (float y)", "y = Trilu(x)", "no refused ok ok ok"),
    Case(
        "a part of a shape", "(float[batch, 8] x) => (int64[1] y)", "y = Shape<start=1>(x)", "wrong wrong wrong ok ok"
    ),
    Case("TopK", FLAT, "y, i = TopK(x, k)", OK),
    Case("the least", FLAT, "y, i = TopK<largest=0>(x, k)", "wrong ok ok ok ok", {"8.4": "wrong"}),
    Case("K of 4000", "(float[batch, 9000] x) => (float y)", "y, i = TopK(x, large)", "ok ok ok refused refused"),
    Case("unsorted", FLAT, "y, i = TopK<sorted=0>(x, k)", "ok ok ok refused refused"),
    Case("computed K", "(float[batch, 8] x, int64[1] n) => (float y)", "y, i = TopK(x, n)", "refused refused ok ok ok"),
    Case("TopK of INT32", "(int32[batch, 8] x) => (int32 y)", "y, i = TopK(x, k)", "refused+type type ok ok ok"),
    Case("ScatterND", ROWS, "r = Relu(x)  y = ScatterND(x, indices, r)", OK),
    Case(
        "ScatterND that adds",
        "(float[8, 8] x, float[1, 8] r) => (float y)",
        'y = ScatterND<reduction="add">(x, indices, r)',
        "wrong wrong wrong refused refused",
    ),
    Case(
        "ScatterND that says none",
        "(float[8, 8] x, float[1, 8] r) => (float y)",
        'y = ScatterND<reduction="none">(x, indices, r)',
        "ok ok ok refused ok",
    ),
    Case(
        "ScatterElements that adds",
        "(float[8, 8] x, float[1, 1] r) => (float y)",
        'y = ScatterElements<reduction="add">(x, indices, r)',
        "wrong wrong wrong ok ok",
    ),
    Case("LSTM", "(float[5, batch, 8] x) => (float y)", "y = LSTM<hidden_size=8>(x, lstm_w, lstm_r)", OK),
    Case(
        "LSTM batch first",
        "(float[batch, 5, 8] x) => (float y)",
        "y = LSTM<hidden_size=8, layout=1>(x, lstm_w, lstm_r)",
        "wrong wrong wrong wrong wrong",
    ),
    Case(
        "GRU batch first",
        "(float[batch, 5, 8] x) => (float y)",
        "y = GRU<hidden_size=8, layout=1>(x, gru_w, gru_r)",
        "wrong wrong wrong wrong wrong",
    ),
    Case(
        "LSTM coupled",
        "(float[5, batch, 8] x) => (float y)",
        "y = LSTM<hidden_size=8, input_forget=1>(x, lstm_w, lstm_r)",
        REFUSED,
    ),
    Case(
        "LSTM of unlike directions",
        "(float[5, batch, 8] x) => (float y)",
        'y = LSTM<hidden_size=8, direction="bidirectional", '
        'activations=["Sigmoid","Tanh","Tanh","Sigmoid","Relu","Tanh"]>(x, lstm_w2, lstm_r2)',
        "refused refused refused refused refused",
    ),
    Case(
        "normalization in training",
        "(float[batch, 8, 4] x) => (float y)",
        "y, m, v = BatchNormalization<training_mode=1>(x, one, zero, zero, one)",
        "wrong refused refused refused refused",
    ),
    Case("a convolution", IMAGE, "y = Conv(x, kernel, one)", OK),
    Case(
        "a convolution along time",
        "(float[batch, 8, 9] x) => (float y)",
        "y = Conv(x, kernel3)",
        OK,
        {"8.0": "refused"},
    ),
    Case(
        "a transposed one along time",
        "(float[batch, 8, 9] x) => (float y)",
        "y = ConvTranspose(x, kernel3)",
        "refused ok ok ok ok",
    ),
    Case(
        "a computed weight",
        "(float[batch, 8, 4, 4] x, float[8, 8, 1, 1] v) => (float y)",
        "y = Conv(x, v)",
        "refused ok ok ok ok",
    ),
    Case(
        "a computed bias",
        "(float[batch, 8, 4, 4] x, float[8] b) => (float y)",
        "y = Conv(x, kernel, b)",
        "refused hazard hazard hazard hazard",
    ),
    Case(
        "pooling along time",
        "(float[batch, 8, 9] x) => (float y)",
        "y = MaxPool<kernel_shape=[3]>(x)",
        "hazard hazard hazard hazard hazard",
    ),
    Case(
        "pooling along four axes",
        "(float[batch, 8, 4, 4, 4, 4] x) => (float y)",
        "y = MaxPool<kernel_shape=[2, 2, 2, 2]>(x)",
        "refused refused refused refused refused",
    ),
    Case(
        "pooling with holes",
        IMAGE,
        "y = MaxPool<kernel_shape=[2,2], dilations=[2,2]>(x)",
        REFUSED,
    ),
    Case(
        "the places of maxima",
        "(float[batch, 8, 4, 4] x) => (float y, int64 i)",
        "y, i = MaxPool<kernel_shape=[2,2]>(x)",
        "refused refused refused refused refused",
    ),
    Case("instances", IMAGE, "y = InstanceNormalization(x, one, zero)", "hazard hazard hazard ok ok"),
    Case(
        "instances of six",
        "(float[batch, 8, 2, 2, 2, 2] x) => (float y)",
        "y = InstanceNormalization(x, one, zero)",
        "hazard+refused hazard+refused hazard ok ok",
    ),
    Case(
        "instances with computed scale",
        "(float[batch, 8, 4, 4] x, float[8] v) => (float y)",
        "y = InstanceNormalization(x, v, zero)",
        "hazard+refused hazard+refused hazard ok ok",
    ),
    Case(
        "groups",
        IMAGE,
        "y = GroupNormalization<num_groups=4>(x, one, zero)",
        "no no hazard hazard ok",
        opset=21,
    ),
    Case("Gather from behind", FLAT, "y = Gather<axis=1>(x, back)", OK, {"8.0": "refused"}),
    Case("Gather of BOOL", "(bool[8, 8] x) => (bool y)", "y = Gather(x, k)", "type ok ok ok ok"),
    Case(
        "GatherElements of BOOL",
        "(bool[8, 8] x) => (bool y)",
        "y = GatherElements(x, indices)",
        "refused+type ok ok ok ok",
    ),
    Case("Where of BOOL", "(bool[8] c, bool[8] x) => (bool y)", "y = Where(c, x, x)", "refused+type ok ok ok ok"),
    Case(
        "Gemm of three",
        "(float[2, 8, 8] x) => (float y)",
        "y = Gemm(x, w)",
        "refused refused refused refused refused",
    ),
    Case(
        "MatMul of integers",
        "(int32[batch, 8] x) => (int32 y)",
        "y = MatMul(x, whole)",
        "refused+type refused+type refused+type refused+type refused+type",
    ),
    Case("Mod of floats", FLAT, "y = Mod(x, one)", "no refused refused refused refused"),
    Case("Mod as fmod", FLAT, "y = Mod<fmod=1>(x, one)", "no ok ok ok ok"),
    Case("a computed range", "(float a, float b, float c) => (float y)", "y = Range(a, b, c)", "refused ok ok ok ok"),
    Case(
        "tf_half_pixel_for_nn",
        IMAGE,
        'y = Resize<coordinate_transformation_mode="tf_half_pixel_for_nn", nearest_mode="floor">(x, "", scales)',
        "refused refused refused refused refused",
    ),
    Case("cubic", IMAGE, 'y = Resize<mode="cubic">(x, "", scales)', "refused refused refused refused refused"),
    Case(
        "antialias",
        IMAGE,
        'y = Resize<mode="linear", antialias=1>(x, "", scales)',
        "wrong wrong wrong refused refused",
        opset=18,
    ),
    Case("Cast to UINT8", FLAT, "y = Cast<to=2>(x)", "refused ok ok ok ok"),
    Case("Cast to INT16", FLAT, "y = Cast<to=5>(x)", "refused refused refused refused refused"),
    Case("Cast to what is no type", FLAT, "y = Cast<to=99>(x)", "refused refused refused refused refused"),
    Case("Cast of INT16", "(int16[batch, 8] x) => (float y)", "y = Cast<to=1>(x)", "type type type type type"),
    Case("nine dimensions", "(float[1, 1, 1, 1, 1, 1, 1, 1, 8] x) => (float y)", "y = Flatten(x)", REFUSED),
    Case("shapes that do not fit", "(float[batch, 7] x) => (float y)", "y = MatMul(x, w)", REFUSED),
    Case(
        "padded along computed axes",
        "(float[batch, 8, 8] x, int64[1] a) => (float y)",
        'y = Pad(x, span, "", a)',
        "wrong wrong wrong refused ok",
        opset=18,
    ),
    Case("Clip by what is computed", "(float[8] x, float m) => (float y)", "y = Clip(x, m)", OK, {"8.0": "refused"}),
    Case(
        "sums along a computed axis",
        "(float[8] x, int64 a) => (float y)",
        "y = CumSum(x, a)",
        "refused refused refused refused refused",
    ),
    Case(
        "a computed axis to add",
        "(float[8] x, int64[1] a) => (float y)",
        "y = Unsqueeze(x, a)",
        "refused refused refused refused refused",
    ),
    Case(
        "a mean over computed axes",
        "(float[8, 8] x, int64[1] a) => (float y)",
        "y = ReduceMean(x, a)",
        "wrong wrong wrong refused refused",
        opset=18,
    ),
    Case(
        "a slice of computed axes",
        "(float[8, 8] x, int64[1] a) => (float y)",
        "y = Slice(x, axis0, k, a)",
        "refused refused refused ok ok",
    ),
    Case(
        "a computed split",
        "(float[8] x, int64[2] a) => (float y)",
        "y, v = Split(x, a)",
        OK,
        {"8.0": "refused"},
    ),
    Case("OneHot", "(int32[8] x) => (float y)", "y = OneHot(x, two, values)", "no ok ok ok ok"),
    Case(
        "OneHot of computed depth",
        "(int32[8] x, int64 d) => (float y)",
        "y = OneHot(x, d, values)",
        "no ok ok refused refused",
    ),
    Case(
        "a grid of volumes",
        "(float[1, 2, 4, 4, 4] x, float[1, 4, 4, 4, 3] g) => (float y)",
        "y = GridSample(x, g)",
        "no ok ok refused refused",
        opset=20,
    ),
    Case(
        "branches of one name",
        "(bool c) => (float y)",
        "y = If (c) <then_branch = g1 () => (float b) { b = Identity(five) },"
        " else_branch = g2 () => (float b) { b = Identity(five) }>",
        "refused refused refused refused refused",
    ),
    Case("Dropout in training", FLAT, "y = Dropout(x, ratio, true)", REFUSED),
    Case("EyeLike of any size", "(float[n, n] x) => (float y)", "y = EyeLike(x)", REFUSED),
    Case(
        "reversed of any size",
        "(float[8, n] x, int64[n] l) => (float y)",
        "y = ReverseSequence(x, l)",
        "refused refused ok ok ok",
    ),
    Case(
        "a computed window",
        "(float[1, 32, 1] x, float[8] v) => (float y)",
        "y = STFT(x, step, v)",
        "no no no no refused",
    ),
    Case(
        "seeded noise",
        "(float[8] x) => (float y)",
        "y = RandomNormalLike<seed=1.0>(x)",
        "no hazard hazard hazard hazard",
    ),
    Case(
        "seeded uniform noise",
        "(float[8] x) => (float y)",
        "y = RandomUniformLike<seed=1.0>(x)",
        "hazard hazard hazard hazard hazard",
    ),
    Case("padded all around", ROWS, "y = Pad(x, pads)", OK, {"8.0": "refused"}),
    Case(
        "nine dimensions",
        "(float[1,1,1,1,1,1,1,1,2] x) => (float y)",
        "y = Relu(x)",
        "refused refused refused refused refused",
    ),
    Case("BOOL to Relu", "(int64[8] x) => (int64 y)", "y = Neg(x)", "ok ok ok ok ok"),
    Case("a mean of integers", "(int32[8, 8] x) => (int32 y)", "y = ReduceMean<axes=[0]>(x)", "type type type ok ok"),
    Case("bf16", "(bfloat16[8, 8] x) => (bfloat16 y)", "y = MatMul(x, x)", "bf16 bf16 bf16 ok ok"),
    Case(
        "bf16 of a convolution",
        "(bfloat16[1, 8, 4, 4] x, bfloat16[8, 8, 1, 1] v) => (bfloat16 y)",
        "y = Conv(x, v)",
        "bf16+refused bf16 bf16 bf16 bf16",
    ),
    Case(
        "bf16 of a convolution, opset 22",
        "(bfloat16[1, 8, 4, 4] x, bfloat16[8, 8, 1, 1] v) => (bfloat16 y)",
        "y = Conv(x, v)",
        "bf16+refused bf16 bf16 ok ok",
        opset=22,
    ),
)
