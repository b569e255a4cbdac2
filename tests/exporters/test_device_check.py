"""The verdicts of `check`, written down first: small graphs against TensorRT 8.2, 8.5, 8.6, 10.3 and 11.0."""

import onnx
import onnx.parser
import pytest
from device_cases import CONSTANTS, FLAT, OK, OPERATORS, PAIRED, REFUSED, ROWS, VERSIONS, Case

from tsexport.exporters.device_check import check_onnx
from tsexport.exporters.device_facts import CHECKS
from tsexport.exporters.device_table import tensorrt_table

CASES = (
    *OPERATORS,
    Case(
        "Clip of fp16",
        "(float16[8] x) => (float16[8] y)",
        "y = Clip(x, s16, s16)",
        "wrong ok ok ok ok",
        {"8.0": "wrong", "8.4": "wrong"},
    ),
    Case("Clip of fp32", "(float[8] x) => (float[8] y)", 'y = Clip(x, "", five)', OK, {"8.4": "ok"}),
    Case(
        "Squeeze without axes",
        "(float[batch, 1] x) => (float y)",
        "y = Squeeze(x)",
        "refused refused refused refused refused",
    ),
    Case("Squeeze of a known shape", "(float[8, 1] x) => (float y)", "y = Squeeze(x)", OK),
    Case(
        "boxes by a computed threshold",
        "(float[1, 8, 4] b, float[1, 1, 8] c, float h) => (int64 y)",
        "y = NonMaxSuppression(b, c, k, h)",
        "refused ok ok ok ok",
    ),
    Case(
        "means along an axis that is an input",
        ROWS,
        "y = ReduceMean(x, axes)",
        "wrong wrong wrong ok ok",
        {"9.3": "wrong", "10.0": "ok"},
        opset=18,
    ),
    Case("means along an axis that is an attribute", ROWS, "y = ReduceMean<axes=[2]>(x)", OK),
    Case("sums along a constant axis", ROWS, "y = ReduceSum(x, axes)", OK, opset=13),
    Case("padded along one axis", ROWS, 'y = Pad(x, span, "", axis0)', "wrong wrong wrong ok ok", opset=18),
    Case("padded along the last axis", ROWS, 'y = Pad(x, span, "", axes)', OK, opset=18),
    Case("padded by less than nothing", "(float[8] x) => (float y)", "y = Pad(x, cut)", REFUSED),
    Case("a mean over no axes", ROWS, "y = ReduceMean<noop_with_empty_axes=1>(x)", "wrong wrong wrong ok ok", opset=18),
    Case("three parts of 8", FLAT, "y, a, b = Split<axis=1, num_outputs=3>(x)", "wrong wrong wrong ok ok", opset=18),
    Case("four parts of 8", FLAT, "y, a, b, c = Split<axis=1, num_outputs=4>(x)", OK, opset=18),
    # --- Q/DQ
    Case("a pair", PAIRED, "q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  y = Relu(d)", OK),
    Case(
        "UINT8",
        PAIRED,
        "q = QuantizeLinear(x, s, u)  d = DequantizeLinear(q, s, u)  y = Relu(d)",
        "wrong refused refused refused refused",
    ),
    Case(
        "one scale in one dimension",  # which TensorRT takes for the whole tensor
        PAIRED,
        "q = QuantizeLinear(x, s1, z)  d = DequantizeLinear(q, s1, z)  y = Relu(d)",
        OK,
    ),
    Case(
        "a zero point of INT16",
        PAIRED,
        "q = QuantizeLinear(x, s, z16)  d = DequantizeLinear(q, s, z16)  y = Relu(d)",
        "type type type type type",
        opset=21,
    ),
    Case(
        "no zero point",
        PAIRED,
        "q = QuantizeLinear(x, s)  d = DequantizeLinear(q, s)  y = Relu(d)",
        "refused+wrong refused refused refused refused",
    ),
    Case(
        "a zero point of 3",
        PAIRED,
        "q = QuantizeLinear(x, s, z3)  d = DequantizeLinear(q, s, z3)  y = Relu(d)",
        "refused refused refused refused refused",
    ),
    Case(
        "a scale of 0",
        PAIRED,
        "q = QuantizeLinear(x, none, z)  d = DequantizeLinear(q, none, z)  y = Relu(d)",
        "refused refused refused refused refused",
    ),
    Case(
        "an fp16 scale",
        "(float16[batch, 8, 8] x) => (float16 y)",
        "q = QuantizeLinear(x, s16, z)  d = DequantizeLinear(q, s16, z)  y = Relu(d)",
        "refused+wrong wrong wrong ok ok",
        opset=19,
    ),
    Case(
        "no axis",
        PAIRED,
        "q = QuantizeLinear(w, s8, z8)  d = DequantizeLinear(q, s8, z8)  y = MatMul(x, d)",
        "advice+wrong advice+wrong advice+wrong advice+wrong advice+wrong",
    ),
    Case(
        "too few zero points",
        PAIRED,
        "q = QuantizeLinear<axis=1>(w, s8, z4)  d = DequantizeLinear<axis=1>(q, s8, z4)  y = MatMul(x, d)",
        "advice+refused advice+refused advice+refused advice+refused advice+refused",
    ),
    Case(
        "a quantized bias of INT32",
        PAIRED,
        "b = DequantizeLinear(i32, s, z32)  y = Add(x, b)",
        "advice+refused advice+refused advice+refused advice advice",
    ),
    Case(
        "a bias with a pair",
        "(float[batch, 8, 4, 4] x) => (float y)",
        "xq = QuantizeLinear(x, s, z)  xd = DequantizeLinear(xq, s, z)  kq = QuantizeLinear(kernel, s, z)  "
        "kd = DequantizeLinear(kq, s, z)  bq = QuantizeLinear(one, s, z)  bd = DequantizeLinear(bq, s, z)  "
        "y = Conv(xd, kd, bd)",
        "advice+refused advice+hazard advice+hazard advice+hazard advice+hazard",
    ),
    Case(
        "a computed scale",
        PAIRED,
        "m = ReduceMax<keepdims=0>(x)  q = QuantizeLinear(x, m, z)  d = DequantizeLinear(q, m, z)  y = Relu(d)",
        "refused refused refused refused refused",
    ),
    Case(
        "a pair in front of softmax",
        PAIRED,
        "q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  y = Softmax(d)",
        "advice advice advice advice advice",
    ),
)


def write(case, folder):
    text = f'<ir_version: 8, opset_import: ["" : {case.opset}, "com.other" : 1]> g {case.signature} {{ {case.body} }}'
    made = onnx.parser.parse_model(text)
    inner = [one.g for node in made.graph.node for one in node.attribute if one.type == onnx.AttributeProto.GRAPH]
    used = {name for graph in (made.graph, *inner) for node in graph.node for name in node.input}
    made.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in CONSTANTS.items() if name in used
    )
    for output in made.graph.output:
        if not output.type.tensor_type.shape.dim:  # "float y": of any shape
            output.type.tensor_type.ClearField("shape")
    path = folder / "case.onnx"
    onnx.save(made, path)
    return path


def judged(path, version):
    return check_onnx(path, tensorrt=version, precision="fp32")


def code(finding):
    if finding.level == "warning":
        return "advice" if finding.kind == "Q/DQ" else "hazard"
    if finding.reason.startswith("accepted and computed wrongly: "):
        return "wrong"
    return {"unsupported": "no", "type": "type", "bf16": "bf16"}.get(finding.kind, "refused")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_verdicts(case, tmp_path):
    path = write(case, tmp_path)
    wanted = dict(zip(VERSIONS, case.verdicts.split(), strict=True)) | case.others
    found = {}
    for version in wanted:
        report = judged(path, version)
        at_nodes = {code(one) for one in report.findings if one.node}
        found[version] = "+".join(sorted(at_nodes)) or "ok"
        assert report.accepted == (not at_nodes & {"no", "refused", "wrong", "type", "bf16"})
        assert all(one.reason for one in report.findings)
    assert found == wanted


def test_every_fact_has_a_case(tmp_path):
    seen = set()
    for case in CASES:
        path = write(case, tmp_path)
        for version in (*VERSIONS, "8.0", "8.4", "10.8"):
            seen |= {
                one.reason.removeprefix("accepted and computed wrongly: ") for one in judged(path, version).findings
            }
    assert {fact.reason for fact in tensorrt_table().facts} <= seen


def test_every_fact_is_recognised_by_a_check_and_every_check_is_used():
    assert {fact.check for fact in tensorrt_table().facts} == set(CHECKS)
