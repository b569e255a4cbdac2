"""Builds from every kind of MODEL, each ending in a bundle that verifies; and caches that never serve another model."""

import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import tsexport
from tsexport.errors import ExportError, ParityError, UsageError
from tsexport.types import FORMATS, random_feeds

SMALL = Path(__file__).parent / "factories" / "small.py"
FACTORIES = Path(__file__).parent.parent / "models" / "factories"
ATOL = 1e-5
"""Outputs of these models have an RMS below 1; rounding in fp32 stays below 1e-6."""


@pytest.fixture(autouse=True)
def cache_of_its_own(fresh_cache):
    return fresh_cache


def forecaster(seed=0, **settings):
    """The module that small.py:forecaster makes, with its weights."""
    from tsexport.models.sources import identify, open_source

    return open_source(identify(f"{SMALL}:forecaster", settings=settings, seed=seed)).module


def expected(bundle, module, name="bars"):
    """Feeds of the bundle's inputs, and what the module answers."""
    feeds = random_feeds(bundle.manifest.model.inputs, 5, seed=3)
    with torch.inference_mode():
        return feeds, module(torch.from_numpy(feeds[name])).numpy()


def answers_as(bundle, module):
    """Whether every artifact on each of its runtimes answers as the module does."""
    (feed_name,) = (spec.name for spec in bundle.manifest.model.inputs)
    feeds, right = expected(bundle, module, feed_name)
    for entry in bundle.manifest.artifacts:
        for runtime in entry.runtimes:
            with tsexport.load(bundle, precision="fp32", runtime=runtime, threads=1) as session:
                (found,) = session.run(feeds).values()
                if not np.allclose(found, right, atol=ATOL, rtol=0):
                    return False
    return True


# --- kinds -----------------------------------------------------------------------------------------------------------


def test_a_factory(small_build):
    bundle = small_build(f"{SMALL}:forecaster", set={"width": 12})
    manifest = bundle.manifest
    assert manifest.name == "forecaster-cpu4-fp32"
    assert manifest.model.source == "small.py:forecaster", "a bundle names no folder of this machine"
    assert manifest.config == {"width": 12}
    assert manifest.provenance.checkpoint is None
    assert manifest.caveats == ("no data was given: artifacts were compared on random inputs alone",)
    assert "no --checkpoint: the weights are those that the factory returned" in manifest.notes
    assert {entry.format for entry in manifest.artifacts} == set(FORMATS)
    assert bundle.verify()
    assert answers_as(bundle, forecaster(width=12))


def test_an_own_checkpoint_in_fp32_without_data(small_build, tmp_path):
    module = forecaster(seed=5)
    torch.save({"state_dict": {f"module.{name}": value for name, value in module.state_dict().items()}},
               tmp_path / "mine.pth")  # fmt: skip
    bundle = small_build(f"{SMALL}:forecaster", checkpoint=tmp_path / "mine.pth", formats=["onnx"])
    record = bundle.manifest.provenance.checkpoint
    assert (record.name, record.reference) == ("mine.pth", False)
    assert record.wrapping == "checkpoint unwrapped: state_dict, module."
    assert "no data was given: artifacts were compared on random inputs alone" in bundle.manifest.caveats
    assert {one.feeds for one in bundle.manifest.parity} == {"random"}
    assert answers_as(bundle, module)


def test_an_onnx_file(small_build, tmp_path):
    module = forecaster()
    path = tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that gives a true opset is deprecated as a whole
        torch.onnx.export(module, (torch.zeros(2, 8, 3),), path, dynamo=False, opset_version=13, input_names=["bars"],
                          output_names=["values"], dynamic_axes={"bars": {0: "n"}, "values": {0: "n"}})  # fmt: skip
    bundle = small_build(str(path))
    manifest = bundle.manifest
    assert manifest.name == "net-cpu4-fp32"
    assert manifest.provenance.checkpoint.name == "net.onnx"
    assert [absent.format for absent in manifest.absent_formats] == ["torchscript"]
    assert "the source is an ONNX file" in manifest.absent_formats[0].reason
    assert manifest.artifact("onnx-fp32").opset == 17
    assert [spec.shape for spec in manifest.model.inputs] == [("batch", 8, 3)]
    assert bundle.verify()
    assert answers_as(bundle, module)


@pytest.mark.parametrize("formats", [("onnx", "openvino"), pytest.param(FORMATS, marks=pytest.mark.slow)])
def test_a_torchscript_file(small_build, tmp_path, formats):
    module = forecaster()
    path = tmp_path / "net.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch announces the end of TorchScript
        torch.jit.save(torch.jit.trace(module, torch.zeros(2, 8, 3)), path)
    with pytest.raises(UsageError, match=r"inputs of .*net.pt are not known"):
        small_build(str(path))
    bundle = small_build(
        str(path), inputs=[tsexport.types.TensorSpec("bars", "float32", ("batch", 8, 3))], formats=formats
    )
    assert {entry.format for entry in bundle.manifest.artifacts} == set(formats)
    assert bundle.verify()
    assert answers_as(bundle, module)


def test_a_torchscript_file_takes_its_inputs_from_arrays(small_build, tmp_path, arrays):
    module = forecaster()
    path = tmp_path / "net.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch announces the end of TorchScript
        torch.jit.save(torch.jit.trace(module, torch.zeros(2, 8, 3)), path)
    data = arrays("data.npz", 80, bars=(8, 3), target=(4,))
    bundle = small_build(str(path), evaluation=data, formats=["onnx"])
    manifest = bundle.manifest
    assert [str(spec) for spec in manifest.model.inputs] == ["bars float32[batch, 8, 3]"]
    assert {one.feeds for one in manifest.parity} == {"random", "real"}
    assert manifest.provenance.evaluation.windows == 80
    assert manifest.provenance.calibration is None, "an fp32 target calibrates nothing"
    assert {accuracy.metric for accuracy in manifest.accuracy} == {"mse"}


@pytest.mark.parametrize("formats", [("onnx", "openvino"), pytest.param(FORMATS, marks=pytest.mark.slow)])
def test_a_pt2_file(small_build, tmp_path, formats):
    module = forecaster()
    path = tmp_path / "net.pt2"
    batch = torch.export.Dim("batch", min=1, max=1024)
    program = torch.export.export(module, (torch.zeros(2, 8, 3),), dynamic_shapes={"bars": {0: batch}})
    torch.export.save(program, path)
    bundle = small_build(str(path), formats=formats)
    assert {entry.format for entry in bundle.manifest.artifacts} == set(formats)
    assert bundle.verify()
    assert answers_as(bundle, module)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factory", "checkpoint", "shape"),
    [
        ("cryptocast.py:lstm", "cryptocast_LSTM.pth", {"bars": (60, 16)}),
        ("cryptocast.py:cnn", "cryptocast_1D-CNN.pth", {"bars": (60, 16)}),
        ("m2lines.py:fcnn", "m2lines_fcnn_q_to_Sqtot1_0.pt", {"field": (2, 64, 64)}),
    ],
)
def test_public_checkpoints_in_int8(small_build, shared, arrays, factory, checkpoint, shape):
    data = arrays("data.npz", 200, **shape)
    bundle = small_build(
        f"{FACTORIES / factory}", "cpu4-int8", races=True, checkpoint=shared / "data" / "checkpoints" / checkpoint,
        calibration=data,
    )  # fmt: skip
    manifest = bundle.manifest
    assert bundle.verify()
    assert manifest.budget.max_output_error == 0.05
    judged = [one for one in manifest.candidates if one.accuracy]
    assert judged, [one.reason for one in manifest.candidates]
    assert all(one.accuracy.degradation is None for one in judged), "there are no labels"
    calibration, evaluation = manifest.provenance.calibration, manifest.provenance.evaluation
    assert calibration.windows + evaluation.windows <= 200
    assert calibration.window_ids != evaluation.window_ids


@pytest.mark.slow
def test_an_int8_build_of_a_factory(small_build, arrays):
    """Without labels the output error decides; the candidates that no library can build are listed with the reason."""
    data = arrays("data.npz", 120, bars=(8, 3))
    bundle = small_build(f"{SMALL}:forecaster", "cpu4-int8", calibration=data, formats=["onnx"], races=True)
    candidates = bundle.manifest.candidates
    assert {one.status for one in candidates if one.recipe["tool"] == "nncf"} == {"failed"} or any(
        one.recipe["tool"] == "nncf" and one.accuracy for one in candidates
    )
    assert any(one.accuracy and one.accuracy.degradation is None for one in candidates)
    assert bundle.verify()


# --- formats ---------------------------------------------------------------------------------------------------------


def test_formats_that_were_not_asked_for_are_named(small_build):
    bundle = small_build(f"{SMALL}:forecaster", formats=["onnx"])
    assert [entry.name for entry in bundle.manifest.artifacts] == ["onnx-fp32"]
    assert {(one.format, one.reason) for one in bundle.manifest.absent_formats} == {
        ("torchscript", "not asked for"),
        ("openvino", "not asked for"),
    }
    assert sorted(path.name for path in (bundle.path / "artifacts").iterdir()) == ["onnx-fp32.onnx"]


def test_a_model_that_one_format_cannot_hold(small_build, one_selection):
    bundle = small_build(f"{SMALL}:inverse", selection=one_selection("torchscript-fp32", "torchscript"))
    assert [entry.format for entry in bundle.manifest.artifacts] == ["torchscript"]
    absent = {one.format: one.reason for one in bundle.manifest.absent_formats}
    assert "linalg_inv" in absent["onnx"]
    assert absent["openvino"] == "OpenVINO IR is made from ONNX, and there is no ONNX artifact"
    assert bundle.verify()


def test_a_model_that_no_format_asked_for_can_hold(small_build, tmp_path):
    with pytest.raises(ExportError, match=r"inverse can be exported to none of onnx. onnx: .*linalg_inv") as caught:
        small_build(f"{SMALL}:inverse", formats=["onnx"])
    assert caught.value.exit_code == 2
    assert caught.value.next_step.startswith("change the layer that is named, or ask for another format")
    assert not (tmp_path / "dist").exists()


@pytest.mark.parametrize("factory", ["two_faced", "two_faced_trace"])
def test_a_parity_miss_names_the_output_and_the_first_layer(small_build, tmp_path, factory):
    with pytest.raises(ParityError) as caught:
        small_build(f"{SMALL}:{factory}")
    assert caught.value.exit_code == 3
    assert "output 'output' has max error" in caught.value.message
    assert "the first layer that departs is 'answer' (Linear)" in caught.value.message
    assert not (tmp_path / "dist").exists()


def test_a_format_that_is_left_out_misses_nothing(small_build):
    """What the message of a parity miss advises must work."""
    with pytest.raises(ParityError, match="the TorchScript trace of 'two_faced_as_torchscript' differs from the mod"):
        small_build(f"{SMALL}:two_faced_as_torchscript")
    bundle = small_build(f"{SMALL}:two_faced_as_torchscript", formats=["onnx", "openvino"])
    assert [entry.format for entry in bundle.manifest.artifacts] == ["onnx", "openvino"]
    assert bundle.verify()


def test_openvino_alone_is_made_from_an_onnx_file_that_is_not_packed(small_build, one_selection):
    selection = one_selection("openvino-fp32", "openvino")
    bundle = small_build(f"{SMALL}:forecaster", formats=["openvino"], selection=selection)
    assert sorted(path.name for path in (bundle.path / "artifacts").iterdir()) == [
        "openvino-fp32.bin",
        "openvino-fp32.xml",
    ]
    assert bundle.verify()


def test_a_tolerance_that_nothing_holds(small_build, tmp_path):
    with pytest.raises(ParityError, match=r"does not answer as 'forecaster' .* output 'output' has max error .*'user'"):
        small_build(f"{SMALL}:forecaster", atol=0.0, rtol=0.0)
    assert not (tmp_path / "dist").exists()


def test_a_tolerance_of_the_user_is_stated(small_build):
    bundle = small_build(f"{SMALL}:forecaster", formats=["onnx"], atol=1e-3)
    tolerances = {comparison.tolerance for one in bundle.manifest.parity for comparison in one.comparisons}
    assert {(one.name, one.atol) for one in tolerances} == {("user", 1e-3)}


# --- a cache that served another model -------------------------------------------------------------------------------


def test_the_same_path_with_other_content(small_build, tmp_path):
    path = tmp_path / "net.onnx"
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[b, 2] x) => (float[b, 2] y) <float k = {K}>{ y = Mul(x, k) }'
    )
    for factor in ("2.0", "3.0"):
        onnx.save(onnx.parser.parse_model(text.replace("{K}", "{" + factor + "}")), path)
        bundle = small_build(str(path), formats=["onnx"], force=True)
        with tsexport.load(bundle) as session:
            (found,) = session.run({"x": np.ones((1, 2), np.float32)}).values()
        assert found.tolist() == [[float(factor)] * 2]


def test_the_same_content_under_another_name(small_build, tmp_path):
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[b, 2] x) => (float[b, 2] y) { y = Relu(x) }'
    for name in ("one", "two"):
        onnx.save(onnx.parser.parse_model(text), tmp_path / f"{name}.onnx")
        manifest = small_build(str(tmp_path / f"{name}.onnx"), formats=["onnx"]).manifest
        assert (manifest.model.name, manifest.provenance.checkpoint.name) == (name, f"{name}.onnx")
        assert any(f"{name}.onnx" in note for note in manifest.notes)


def test_the_same_checkpoint_name_with_other_weights(small_build, tmp_path):
    for seed in (1, 2):
        module = forecaster(seed=seed)
        torch.save(module.state_dict(), tmp_path / "mine.pth")
        bundle = small_build(f"{SMALL}:forecaster", checkpoint=tmp_path / "mine.pth", formats=["onnx"], force=True)
        assert answers_as(bundle, module)


def test_the_same_factory_with_other_settings(small_build):
    for settings in ({}, {"width": 8}, {"horizon": 2}):
        bundle = small_build(f"{SMALL}:forecaster", set=settings, formats=["onnx"], force=True)
        assert bundle.manifest.config == settings
        assert answers_as(bundle, forecaster(**settings))


def test_the_same_file_with_other_inputs(small_build, tmp_path):
    """The program takes any number of bars; what the artifacts take follows --input, and so does their cache."""
    path = tmp_path / "mean.pt"

    class Mean(torch.nn.Module):
        def forward(self, bars):
            return bars.mean(1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch announces the end of TorchScript
        torch.jit.save(torch.jit.trace(Mean().eval(), torch.zeros(2, 8, 3)), path)
    spec = tsexport.types.TensorSpec("bars", "float32", ("batch", 8, 3))
    for given in (spec, replace(spec, shape=("batch", 6, 3)), replace(spec, name="rows")):
        bundle = small_build(str(path), inputs=[given], formats=["onnx"], force=True)
        assert bundle.manifest.artifact("onnx-fp32").inputs == (given,)
        feeds = random_feeds((given,), 3, 0)
        with tsexport.load(bundle) as session:
            (found,) = session.run(feeds).values()
        np.testing.assert_allclose(found, feeds[given.name].mean(1), atol=ATOL, rtol=0)


def test_data_of_the_same_name_with_other_content_and_the_other_way_round(small_build, arrays, tmp_path):
    seen = []
    for seed in (0, 1):
        data = arrays("data.npz", 80, seed=seed, bars=(8, 3), target=(4,))
        bundle = small_build(f"{SMALL}:forecaster", evaluation=data, formats=["onnx"], force=True)
        seen.append((bundle.manifest.provenance.evaluation.sha256, bundle.manifest.accuracy[0].source_value))
    assert len({sha256 for sha256, _ in seen}) == len({value for _, value in seen}) == 2
    data.rename(tmp_path / "renamed.npz")
    bundle = small_build(f"{SMALL}:forecaster", evaluation=tmp_path / "renamed.npz", formats=["onnx"], force=True)
    assert bundle.manifest.provenance.evaluation.source == "renamed.npz"
    assert bundle.manifest.accuracy[0].source_value == seen[1][1]


SAMPLES = """
import sys
from pathlib import Path
from tsexport.options import BuildOptions
from tsexport.pipeline import plan_build
from tsexport.stages.samples import take_samples
plan = plan_build(BuildOptions(sys.argv[1], "cpu4-fp32", Path(sys.argv[2])))
samples, reused = take_samples(plan.context)
(feeds,), (answers,) = samples.feeds.values(), samples.outputs.values()
print(reused, round(float((answers / feeds).mean()), 3))
"""


def test_a_factory_whose_source_or_helper_changed(tmp_path, fresh_cache):
    """No change touches a weight: the model has none."""
    model, helper = tmp_path / "changing.py", tmp_path / "changing_helper.py"
    body = """
from torch import nn
from changing_helper import FACTOR

class Net(nn.Module):
    tsexport_inputs = {"x": ("batch", 2)}
    def forward(self, x):
        return x * SOURCE * FACTOR

def make():
    return Net()
"""

    def answered(source, factor):
        model.write_text(body.replace("SOURCE", str(source)))
        helper.write_text(f"FACTOR = {factor}\n")
        done = subprocess.run(
            [sys.executable, "-B", "-c", SAMPLES, f"{model}:make", str(tmp_path)],
            env={**os.environ, "TSEXPORT_CACHE": str(fresh_cache)},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    assert answered(2.0, 1.0) == "False 2.0"
    assert answered(3.0, 1.0) == "False 3.0", "the factory's own file changed"
    assert answered(3.0, 2.0) == "False 6.0", "a module that it imports changed"
