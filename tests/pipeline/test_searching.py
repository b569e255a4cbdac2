"""The search over real candidates: a graph with one layer that INT8 cannot hold, built, judged, interrupted, capped."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx.parser
import pytest

import tsexport.quantize.candidates
import tsexport.quantize.sensitivity
import tsexport.stages.searching
from tsexport.options import BuildOptions
from tsexport.pipeline import plan_build
from tsexport.progress import Progress
from tsexport.quantize.cpu_recipes import (
    DYNAMIC_U8,
    INT8_WITH_BF16,
    NNCF_MIXED,
    OPENVINO_BF16,
    STATIC_U8S8,
    WITH_VNNI,
)
from tsexport.quantize.tensorrt_recipes import TENSORRT_INT8
from tsexport.stages.exporting import export_format, gather
from tsexport.stages.samples import take_samples
from tsexport.stages.searching import search
from tsexport.targets import host_cpu

WIDTH = 16
BODY = (
    "{ [first] a = MatMul(x, w0)  b = Relu(a)  [bad] c = MatMul(b, w1)  d = Relu(c)  [third] e = MatMul(d, w2) "
    "f = Relu(e)  [last] y = MatMul(f, w3) }"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Four layers; a row of the second's weights is 400 times as large and meets an activation that is always 0.

    It changes no answer, and costs all other weights of that layer their steps, with one scale or one a channel.
    """
    generator = np.random.default_rng(0)
    weights = {f"w{i}": (generator.standard_normal((WIDTH, WIDTH)) / WIDTH**0.5).astype(np.float32) for i in range(4)}
    weights["w0"][:, 3] = 0
    weights["w1"][3] *= 400
    parsed = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[batch, {WIDTH}] x) => (float[batch, {WIDTH}] y) {BODY}'
    )
    parsed.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    path = tmp_path_factory.mktemp("model") / "outlier.onnx"
    onnx.save(parsed, path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("data") / "windows.npz"
    np.savez(path, x=np.random.default_rng(1).standard_normal((400, WIDTH)).astype(np.float32))
    return path


def options_of(model, data, output, **options):
    return BuildOptions(
        str(model), "cpu4-int8", calibration=data, formats=("onnx", "openvino"), output=output, **options
    )


def stages_before(plan):
    """Take the samples and export, as a build does."""
    samples, _ = take_samples(plan.context)
    exported = export_format(plan.context, samples, "onnx", None)
    results = {"onnx": exported, "openvino": export_format(plan.context, samples, "openvino", exported.for_openvino)}
    return samples, gather(plan.context, results)


@pytest.fixture(scope="module")
def prepared(model, data, tmp_path_factory) -> Path:
    """A cache that holds the stages before the search."""
    folder = tmp_path_factory.mktemp("prepared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TSEXPORT_CACHE", str(folder / "cache"))
        stages_before(plan_build(options_of(model, data, folder)))
    return folder / "cache"


@pytest.fixture
def searched(model, data, prepared, tmp_path, monkeypatch):
    """Search over recipes, as a build does; returns the candidates by (recipe, runtime)."""
    cache = shutil.copytree(prepared, tmp_path / "cache")
    monkeypatch.setenv("TSEXPORT_CACHE", str(cache))

    def run(*recipes, **options):
        plan = replace(plan_build(options_of(model, data, tmp_path, **options)), recipes=recipes)
        run.progress = Progress(plan.steps, quiet=True)
        tried = search(plan.context, *stages_before(plan), plan, run.progress)
        return {(one.recipe.name, one.runtime): one for one in tried}

    return run


@pytest.fixture
def built(monkeypatch):
    """Names of the recipes that are really built, in order; `built.stop` ends the process at that number."""

    class Built(list):
        stop = None

    names, real = Built(), tsexport.quantize.candidates.build_candidate

    def counted(recipe, *rest):
        if len(names) == names.stop:
            raise KeyboardInterrupt
        names.append(recipe.name)
        return real(recipe, *rest)

    monkeypatch.setattr(tsexport.quantize.candidates, "build_candidate", counted)
    return names


@pytest.mark.parametrize("recipe", [DYNAMIC_U8, STATIC_U8S8, NNCF_MIXED], ids=lambda recipe: recipe.name)
def test_the_bad_layer_is_left_in_floating_point_and_no_other(searched, recipe):
    tried = searched(recipe, max_output_error=0.1)  # NNCF's other three layers alone make 6 %
    runtime = recipe.runtimes[0]
    plain, fallback = tried[recipe.name, runtime], tried[f"{recipe.name}-fp1", runtime]
    assert plain.out == "rejected"
    assert plain.accuracy.output_error > 0.1
    assert fallback.out == ""
    assert fallback.recipe.float_layers == ("bad",)
    assert fallback.accuracy.output_error <= 0.1
    error = f"{fallback.accuracy.output_error:.2%}"
    assert plain.reason.endswith(f"allowed is 10.00%; 1 of 4 layers left in floating point give {error}")
    assert fallback.reason.startswith(f"output error {plain.accuracy.output_error:.2%} with no layer left")
    assert fallback.artifact.name == f"int8-{recipe.name}-fp1"
    assert "1 layer left in floating point" in fallback.artifact.provenance[-1]


def test_an_interrupted_search_goes_on_where_it_ended(searched, built):
    built.stop = 3
    with pytest.raises(KeyboardInterrupt):
        searched(DYNAMIC_U8, STATIC_U8S8)
    before = list(built)
    built.stop = None
    tried = searched(DYNAMIC_U8, STATIC_U8S8)
    assert before == ["dynamic-u8", "static-u8s8", "static-u8s8-fp1"]
    assert len(built) == len(set(built)), "no candidate is built twice"
    assert {name for name, _ in tried} <= set(built)
    assert ("dynamic-u8-fp1", "onnxruntime") in tried
    done = list(built)
    assert searched(DYNAMIC_U8, STATIC_U8S8) == tried
    assert built == done


def test_an_interrupted_measurement_of_layers_goes_on_where_it_ended(searched, monkeypatch):
    real, measured = tsexport.quantize.sensitivity.Probe.error, []

    def counted(probe, layer, **kind):
        if len(measured) == 2 and "again" not in measured:
            raise KeyboardInterrupt
        measured.append(layer)
        return real(probe, layer, **kind)

    monkeypatch.setattr(tsexport.quantize.sensitivity.Probe, "error", counted)
    with pytest.raises(KeyboardInterrupt):
        searched(STATIC_U8S8)
    assert len(measured) == 2
    measured.append("again")
    tried = searched(STATIC_U8S8)
    assert sorted([*measured[:2], *measured[3:]]) == ["bad", "first", "last", "third"], "no layer is measured twice"
    assert ("static-u8s8-fp1", "onnxruntime") in tried


def test_what_did_not_miss_the_budget_is_not_searched(searched, built):
    tried = searched(STATIC_U8S8, OPENVINO_BF16, max_output_error=1e6)
    assert built == ["static-u8s8", "openvino-bf16"]
    assert all(name in ("static-u8s8", "openvino-bf16") for name, _ in tried)


def test_a_tool_that_takes_no_names_is_not_searched_and_says_why(searched, built, monkeypatch):
    """The same artifact would be built under eight names, and claim layers in floating point that it has not."""
    monkeypatch.setattr(tsexport.stages.searching, "BY_NAME", frozenset({"nncf"}))
    tried = searched(DYNAMIC_U8)
    assert built == ["dynamic-u8"]
    (one,) = tried.values()
    assert one.out == "rejected"
    assert one.reason.endswith(
        "; no layers were left in floating point: its tool, onnxruntime, takes no names of layers"
    )


def test_the_tools_that_take_names_are_known():
    """Each tool of INT8 is searched or not, by what it does with `float_layers`."""
    int8 = {one.tool for one in (*WITH_VNNI, *INT8_WITH_BF16, *TENSORRT_INT8) if one.precision == "int8"}
    assert int8 - tsexport.stages.searching.BY_NAME == {"inc", "openvino-dynamic"}


def test_a_narrow_float_that_misses_the_budget_says_why_no_layers_were_left(searched, built):
    if not host_cpu().bf16:
        pytest.skip("this machine computes nothing in bf16")
    tried = searched(OPENVINO_BF16, max_output_error=1e-5)
    assert built == ["openvino-bf16"]
    (one,) = tried.values()
    assert one.out == "rejected"
    assert one.reason.endswith("; no more layers were left in fp32: that is searched for INT8, not for bf16")


def test_no_time_no_search(searched, built):
    tried = searched(STATIC_U8S8, search_seconds=0)
    assert built == ["static-u8s8"]
    assert tried["static-u8s8", "onnxruntime"].reason.endswith("allowed is 5.00%")


def test_time_that_is_up_at_once_builds_nothing_and_says_so(searched, built):
    tried = searched(STATIC_U8S8, search_seconds=1e-9)
    assert built == ["static-u8s8"]
    reason = tried["static-u8s8", "onnxruntime"].reason
    assert reason.endswith("; the time for the search was up before a layer was left in floating point")


def test_a_budget_that_no_layer_helps_is_said_with_the_nearest(searched, built):
    tried = searched(STATIC_U8S8, max_output_error=1e-5)
    assert {name for name, _ in tried} == {"static-u8s8"}
    reason = tried["static-u8s8", "onnxruntime"].reason
    error = float(re.search(r"; 3 of 4 layers left in floating point still give ([\d.]+)%$", reason)[1])
    assert 1e-3 < error < 100 * tried["static-u8s8", "onnxruntime"].accuracy.output_error
    assert built == ["static-u8s8", "static-u8s8-fp3"]


def test_layers_that_time_does_not_reach_are_ordered_by_their_work(searched, monkeypatch):

    monkeypatch.setattr(tsexport.stages.searching, "SENSITIVITY_SHARE", 0.0)
    tried = searched(STATIC_U8S8)
    reasons = [one.reason for one in tried.values()]
    assert any("(0 of 4 layers measured, the others ordered by their work)" in reason for reason in reasons)
    assert all(not one.out for (name, _), one in tried.items() if "-fp" in name)


def test_both_granularities_of_weights_get_their_time(searched, monkeypatch):
    """Half of the time for measuring each: the clock goes on by 60 of 300 seconds with every layer."""

    real, measured, clock = tsexport.quantize.sensitivity.Probe.error, [], [0.0]

    def slow(probe, layer, per_channel):
        measured.append((layer, per_channel))
        clock[0] += 60.0
        return real(probe, layer, per_channel=per_channel)

    monkeypatch.setattr(tsexport.quantize.sensitivity.Probe, "error", slow)
    monkeypatch.setattr(tsexport.stages.searching, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    tried = searched(DYNAMIC_U8, STATIC_U8S8, search_seconds=300.0)
    assert sorted(per_channel for _, per_channel in measured) == [False, True]
    reasons = [one.reason for one in tried.values() if one.out]
    assert reasons
    assert all("(1 of 4 layers measured, the others ordered by their work)" in reason for reason in reasons)
