"""OpenVINO's bf16: named layers are computed in f32, which the compiled model itself tells."""

from dataclasses import replace

import numpy as np
import openvino
import pytest

from tsexport.calibration.arrays import ArrayDataset
from tsexport.exporters.conversion import convert_to_onnx, convert_to_openvino
from tsexport.exporters.rewrites.modules import run_plainly
from tsexport.models.sources import identify, open_source
from tsexport.quantize.candidates import build_candidate
from tsexport.quantize.cpu_recipes import OPENVINO_BF16, OPENVINO_BF16_ELSEWHERE
from tsexport.quantize.openvino_bf16 import STANDS_IN
from tsexport.quantize.sources import Fp32Sources
from tsexport.runtimes.comparison import relative_rms
from tsexport.runtimes.registry import load
from tsexport.runtimes.simulation import simulate, stand_in_beside
from tsexport.targets import host_cpu
from tsexport.types import random_feeds

SMALL = {
    **{"days": 6, "daily_features": 4, "minutes": 12, "minute_features": 5, "h_width": 24, "h_layers": 1, "h_heads": 2},
    **{"h_feed_forward": 24, "l_width": 40, "l_layers": 1, "l_heads": 2, "l_feed_forward": 160},
}
NEEDS_BF16 = pytest.mark.skipif(not host_cpu().bf16, reason="this CPU has no bf16")
MAX_ERROR = 2e-2
"""Relative RMS of an output in bf16: 8 bits round by 2^-8 at most, and a few layers add up."""


@pytest.fixture(scope="module")
def hrm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hrm")
    source = open_source(identify("hrm-27m", settings=SMALL))
    feeds = random_feeds(source.spec.inputs, 8, 3)
    onnx = convert_to_onnx(source.module, None, source.spec, feeds, folder / "model.onnx").artifact
    return source, Fp32Sources(onnx, convert_to_openvino(onnx, folder / "model.xml").artifact), feeds, folder


def build(hrm, **changes):
    source, sources, feeds, folder = hrm
    spec = replace(source.spec, **changes)
    built = build_candidate(OPENVINO_BF16, sources, spec, ArrayDataset(feeds), folder / "out")
    assert built.reason == ""
    return built.artifact


def precisions(artifact, kinds, hint):
    """Return by operator what precision OpenVINO computes it in."""
    properties = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(artifact.path, "CPU", properties)
    found = {}
    for operation in compiled.get_runtime_model().get_ops():
        told = {key: value.astype(str) for key, value in operation.get_rt_info().items() if isinstance(key, str)}
        if told.get("layerType") in kinds:
            found[told["originalLayersNames"]] = told["runtimePrecision"]
    return found


@NEEDS_BF16
def test_film_and_q_head_are_computed_in_f32_and_the_rest_in_bf16(hrm):
    artifact = build(hrm)
    convolutions = precisions(artifact, ("Convolution",), "bf16")
    assert list(convolutions.values()) == ["f32", "f32"]
    products = precisions(artifact, ("FullyConnected", "MatMul"), "bf16")
    assert products
    assert set(products.values()) == {"bf16"}
    plain = precisions(build(hrm, fp32_layers=()), ("FullyConnected", "MatMul", "Convolution"), "bf16")
    assert set(plain.values()) == {"bf16"}


@NEEDS_BF16
def test_the_answers_hold(hrm):
    source, _, feeds, _ = hrm
    with load(build(hrm), "openvino", threads=1) as session:
        found = session.run(feeds)
    for name, expected in source.run(feeds).items():
        assert 1e-5 < relative_rms(expected, found[name]) < MAX_ERROR, name


def test_the_rewritten_layers_compute_the_same_sums(hrm):
    _, sources, feeds, _ = hrm
    artifact = build(hrm)
    # In f32 nothing but the order of sums is left of the change.
    exact = replace(artifact, precision="fp32", options=(("INFERENCE_PRECISION_HINT", "f32"),))
    with load(exact, "openvino", threads=1) as session, load(sources.openvino, "openvino", threads=1) as plain:
        for name, expected in plain.run(feeds).items():
            np.testing.assert_allclose(session.run(feeds)[name], expected, rtol=1e-4, atol=1e-5)


def test_the_file_says_what_stays_and_is_the_same_each_time(hrm):
    artifact = build(hrm)
    assert artifact.provenance[-1] == (
        "in fp32 by name: /film/Gemm_matmul_in_fp32, /film/Gemm_matmul_add, /q_head/Gemm_matmul_in_fp32"
    )
    text = artifact.path.read_text(encoding="utf-8")
    assert text.count('name="DisablePrecisionConversion" version="0" value="dynamic:f16"') == 3
    assert build(hrm).sha256 == artifact.sha256
    assert build(hrm, fp32_layers=()).provenance[-1] == OPENVINO_BF16.summary


def worst_error(session, source, feeds):
    expected = run_plainly(source.module, feeds)
    with session as opened:
        answers = opened.run(feeds)
    return max(map(relative_rms, expected.values(), answers.values()))


def test_another_cpus_bf16_is_judged_by_a_graph_that_rounds_at_every_operator(hrm):
    """On a CPU with bf16 it errs as OpenVINO does, within the factor that fused operators make."""
    source, sources, feeds, folder = hrm
    built = build_candidate(OPENVINO_BF16_ELSEWHERE, sources, source.spec, ArrayDataset(feeds), folder / "elsewhere")
    artifact = built.artifact
    assert artifact.provenance[-1] == STANDS_IN
    assert stand_in_beside(artifact.path).exists()
    assert stand_in_beside(artifact.path) not in artifact.files
    error = worst_error(simulate(artifact, "openvino", 1), source, feeds)
    assert 1e-4 < error < MAX_ERROR
    if host_cpu().bf16:
        assert 1 / 3 < error / worst_error(load(artifact, "openvino", 1), source, feeds) < 3


def test_without_onnx_nothing_can_stand_in(hrm):
    source, sources, feeds, folder = hrm
    without = replace(sources, onnx=None)
    built = build_candidate(OPENVINO_BF16_ELSEWHERE, without, source.spec, ArrayDataset(feeds), folder / "without")
    assert built.artifact is None
    assert built.reason == "bf16 is judged by an ONNX graph where the target is not here, and the model has none"
