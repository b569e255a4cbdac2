"""What a build projects for a device that is not here: labels, assumptions, published rows, and why there is none."""

import dataclasses
from pathlib import Path

import onnx
import onnx.checker
import onnx.parser
import pytest

from tsexport.bench.verdicts import judge
from tsexport.devices import list_devices
from tsexport.stages.projecting import project_selected, with_outlook
from tsexport.targets import host_cpu, parse_target
from tsexport.types import Artifact, ModelSpec, TensorSpec, file_sha256

ELSEWHERE = "avx2" if host_cpu().instruction_set != "avx2" else "avx512-vnni"
HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
# 1750 x 17000 by 17000 x 10000: 297.5 GMACs, the 595 GFLOP of a step of the 500 M variant.
STEP = f"""{HEAD} g (float16[n, 1750, 17000] x) => (float16[n, 1750, 10000] y) <int64[2] s = {{17000, 10000}}>
{{ w = ConstantOfShape (s) v = Cast <to = 10> (w) y = MatMul(x, v) }}"""
SMALL = f"""{HEAD} g (float[n, 8] x) => (float[n, 4] y) <int64[2] s = {{8, 4}}>
{{ w = ConstantOfShape <value = float[1] {{0.5}}> (s) h = MatMul(x, w) y = Relu(h) }}"""
PAIRS = f"""{HEAD} g (float[n, 2] x) => (float[n, 2] y)
<float scale = {{0.1}}, int8 zero = {{0}}, int8[2, 2] w = {{1, 2, 3, 4}}, float[2, 2] u = {{1, 2, 3, 4}}>
{{ q = QuantizeLinear(x, scale, zero) d = DequantizeLinear(q, scale, zero) v = DequantizeLinear(w, scale, zero)
h = MatMul(d, v) y = MatMul(h, u) }}"""
STEPS = f"""{HEAD} g (float[7, n, 3] x) => (float[7, 1, n, 5] y)
<int64[3] ws = {{1, 20, 3}}, int64[3] rs = {{1, 20, 5}}>
{{ w = ConstantOfShape (ws) r = ConstantOfShape (rs) y = LSTM <hidden_size = 5> (x, w, r) }}"""
LARGE = f"""{HEAD} g (float[n, 4096, 4096] x) => (float[n, 4096, 4096] y) <int64[2] s = {{4096, 4096}}>
{{ w = ConstantOfShape (s) y = MatMul(x, w) }}"""
UNKNOWN = f"{HEAD} g (float[n, 4] x) => (float[2, m] y) {{ i = NonZero(x) y = Cast <to = 1> (i) }}"
WRONG = f"""{HEAD} g (float[n, 2] x) => (float[n, 2] y) <float[3, 2] c = {{1, 2, 3, 4, 5, 6}}> {{ y = Add(x, c) }}"""


@pytest.fixture
def artifact(tmp_path):
    """Return a function that writes ONNX text as an artifact."""

    def write(text, precision="fp32", format="onnx"):
        model = onnx.parser.parse_model(text)
        path = Path(tmp_path) / "a.onnx"
        path.write_bytes(model.SerializeToString())
        one = (TensorSpec("x", "float32", ("n", 2)),)
        return Artifact(
            "a",
            path,
            format,
            precision,
            one,
            one,
            (path,),
            file_sha256(path),
            path.stat().st_size,
            17,
            ("onnxruntime",),
        )

    return write


def spec(name="m", family="linear"):
    one = (TensorSpec("x", "float32", ("n", 2)),)
    return ModelSpec(name=name, family=family, task="forecast", inputs=one, outputs=one, parameters=1)


def projected(target, artifact, device="host", batches=(1,), **named):
    """Return the record, and what was said."""
    said = []
    record = project_selected(parse_target(target, device), spec(**named), artifact, batches, said.append)
    return record, said


def test_every_mode_and_batch_is_projected_and_said_to_be(artifact):
    record, said = projected("jetson-fp16", artifact(SMALL), batches=(8, 1))
    assert [(one.batch, one.mode) for one in record.projections] == [
        (1, "15 W"), (1, "MAXN super"), (8, "15 W"), (8, "MAXN super"),
    ]  # fmt: skip
    assert [len(one.kernels) for one in record.projections] == [1, 1, 0, 0]
    assert (record.kind, record.device, record.tensorrt, record.reason) == ("projected", "orin-nano", "10.3", "")
    assert all(line.startswith("projected, not measured: ") for line in said)
    assert len(said) == 2


def test_the_assumptions_hold_peaks_efficiencies_fusion_and_error(artifact):
    record, _ = projected("jetson-fp16", artifact(SMALL, "fp16"), device="orin-nano@jetpack-6.2")
    text = "; ".join(record.assumptions)
    for words in (
        "of the dense peak",
        "us to start",
        "TensorRT 10.3 fuses",
        "1024 cores",
        "median error",
        "worst ratio",
    ):
        assert words in text
    assert "products that stay in fp32 run as TF32" in text
    assert "left out of the fit" in text


def test_an_older_version_fuses_no_attention(artifact):
    old, _ = projected("jetson-fp16", artifact(SMALL), device="xavier-nx@jetpack-5.1")
    new, _ = projected("jetson-fp16", artifact(SMALL))
    assert "and no attention" in "; ".join(old.assumptions)
    assert "attention into one kernel" in "; ".join(new.assumptions)
    assert "TF32" not in "; ".join(old.assumptions)


def test_what_is_left_in_fp32_beside_int8_runs_as_tf32(artifact):
    record, _ = projected("a100-int8", artifact(PAIRS, "int8"))
    macs = [dict(one.macs) for one in record.projections[0].kernels if one.macs]
    assert macs == [{"int8": 4}, {"fp32": 4}]
    assert "products that stay in fp32 run as TF32, TensorRT's default" in record.assumptions


def test_an_fp32_engine_is_built_without_tf32(artifact):
    plain, _ = projected("a100-fp32", artifact(LARGE))
    assert "products in fp32 run in full, since an fp32 engine is built with --noTF32" in plain.assumptions
    # 4096^3 products at 19.5 TFLOP/s
    assert plain.projections[0].least_ms == pytest.approx(2 * 4096**3 / 19.5e9, rel=1e-6)


def test_recurrences_and_what_cannot_be_counted_are_told(artifact):
    recurrent, _ = projected("t4-fp16", artifact(STEPS))
    assert "a recurrence starts one kernel a step" in recurrent.assumptions
    unknown, _ = projected("t4-fp16", artifact(UNKNOWN))
    assert "2 node(s) of unknown shape or with a body count as nothing" in "; ".join(unknown.assumptions)


def test_the_published_row_of_the_original_nano_is_answered_and_not_judged(artifact):
    record, _ = projected("jetson-fp16", artifact(STEP, "fp16"), "jetson-nano", name="sfno-hybrid", family="spectral")
    (outlook,) = record.outlooks
    assert outlook.answer == "cannot be met even at peak"
    verdict = judge((outlook.budget,), (), machine=None)[0]
    (shown,) = with_outlook((verdict,), record)
    assert shown.status == verdict.status == "not possible"
    assert shown.reason.startswith(verdict.reason)
    assert "projected " in shown.reason
    assert shown.reason.endswith("cannot be met even at peak")
    assert "at least 1261 ms at peak" in shown.reason
    assert shown.value_ms is None


def test_a_published_row_that_could_be_met_stays_not_measured(artifact):
    record, _ = projected("t4-fp16", artifact(SMALL), batches=(4,), name="sfno-hybrid", family="spectral")
    assert {one.batch for one in record.projections} == {1, 4}  # the row's batch is projected, too
    (outlook,) = record.outlooks
    verdict = dataclasses.replace(judge((outlook.budget,), (), machine=None)[0])
    (shown,) = with_outlook((verdict,), record)
    assert shown.status == "not measured"
    assert shown.reason.endswith("could be met")


def test_rows_of_other_devices_are_left_as_they_are(artifact):
    record, _ = projected("t4-fp16", artifact(SMALL), name="sfno-hybrid", family="spectral")
    (budget,) = (one.budget for one in record.outlooks)
    other = judge((dataclasses.replace(budget, device="a100"),), (), machine=None)
    assert with_outlook(other, record) == other
    assert with_outlook(other, None) == other


def test_another_cpu_is_not_projected_and_that_is_said(artifact):
    record, said = projected("cpu4-int8", artifact(SMALL), device=ELSEWHERE)
    assert record is None
    assert said == [f"latency is not projected: there is no table of what a {ELSEWHERE} CPU reaches at peak"]


def test_nothing_is_projected_for_this_machine(artifact):
    assert projected("cpu4-fp32", artifact(SMALL)) == (None, [])


REASONS = {
    "another format": (SMALL, "torchscript", "a is torchscript, and TensorRT takes ONNX"),
    "contradicting shapes": (WRONG, "onnx", "the graph's shapes contradict each other at batch 2"),
}


@pytest.mark.parametrize("case", REASONS)
def test_what_cannot_be_projected_ends_no_build_and_says_why(artifact, case):
    text, kind, reason = REASONS[case]
    record, said = projected("t4-fp16", artifact(text, format=kind), batches=(2,))
    assert record.projections == ()
    assert record.reason.startswith(reason)
    assert said == [f"latency is not projected: {record.reason}"]


def test_a_device_of_unknown_peaks_is_not_projected_and_that_is_said(artifact, monkeypatch):
    """A third party's device need not name any."""
    devices = [dataclasses.replace(one, peak=()) for one in list_devices()]
    monkeypatch.setattr("tsexport.stages.projecting.list_devices", lambda: devices)
    record, said = projected("t4-fp16", artifact(SMALL))
    assert record.projections == ()
    assert said == ["latency is not projected: nothing is known of what a T4 reaches at peak"]


def test_a_graph_in_a_precision_that_the_device_lacks_says_what_it_has(artifact):
    record, _ = projected("jetson-fp16", artifact(PAIRS), device="jetson-nano")
    assert "the graph computes in int8, the device in fp32, fp16" in record.reason
