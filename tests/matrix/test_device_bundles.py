"""Whole bundles for Jetson, T4 and A100: every registered model, in small, with its device kit.

`test_devices.py` holds each model's numbers against the budget; here `tsexport build` runs from the model's name to the
bundle, and what lies in it is looked at: the shipped graph passes the device's check, the kit is complete and its
digests are those of the files, and every rewrite that the device needed is listed.  What cannot be built stands in
`exceptions.DEVICE_EXCEPTIONS`.  `bench/suites/device_bundles.py` does the same in full size.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import onnx
import pytest
from cases import BY_NAME
from exceptions import reason_against_device
from nvidia_builders import DEPRECATIONS, import_builder

import tsexport
from tsexport.bench.suites.device_bundle_records import SUITE, TARGETS
from tsexport.bench.suites.device_bundle_row import kit_problems
from tsexport.bench.suites.device_bundles import read_report
from tsexport.bench.suites.report import RESULTS
from tsexport.bundles.bundle import Bundle
from tsexport.bundles.engines import graph_of
from tsexport.errors import AccuracyError, UnsupportedError
from tsexport.models.registry import list_entries
from tsexport.models.sources import identify
from tsexport.runtimes.options import TENSORRT_BATCHES
from tsexport.runtimes.tensorrt_engine import build_engine
from tsexport.runtimes.tensorrt_plan import plan_build, plan_profile
from tsexport.targets import parse_target
from tsexport.types import random_feeds

SMALL = {
    **{one: f"{one}-small" for one in ("patchtst-cpu", "lstm", "gru", "tcn", "inception-time", "resnet1d", "unet")},
    **{one: f"{one}-small" for one in ("itransformer", "tft", "nhits", "weather-gnn", "sfno-hybrid")},
    **{one: one for one in ("dlinear", "linear", "hrm-27m", "migt-tvdt")},
    "patchtst": "patchtst-classes",
    "sfno-edge": "sfno-edge-test",
}
"""The case of `cases.py` that stands for each registered model."""
SETTINGS = {"patchtst-cpu": {"layers": 1, "width": 24, "heads": 2, "feed_forward": 40}}
"""Instead of the case's: its reference series has 8 channels and one step to forecast."""
WITHOUT_SERIES = ("hrm-27m",)
"""tsexport has no reference series for these: they are calibrated on samples of unit scale, as `hrm_feeds` gives."""
BATCHES = (4, 1, 8)
QUICK = (("linear", "jetson-int8", "host"),)


def rows():
    for model in SMALL:
        for target, device in TARGETS:
            name = f"{model}-{target}" + ("" if device == "host" else f"-{device}")
            marks = [] if (model, target, device) in QUICK else [pytest.mark.slow]
            yield pytest.param(model, target, device, marks=marks, id=name)


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Callable[[str, str, str], Bundle]:
    """Return a function that builds a model's bundle for a target; all of them share one cache."""
    folder = tmp_path_factory.mktemp("device-bundles")

    @cache
    def make(model: str, target: str, device: str) -> Bundle:
        case = BY_NAME[SMALL[model]]
        calibration = None
        if model in WITHOUT_SERIES:
            calibration = folder / f"{model}.npz"
            inputs = identify(model, settings=case.settings).inputs
            np.savez(calibration, **random_feeds(inputs, 96, seed=11))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TSEXPORT_CACHE", str(folder / "cache"))
            return tsexport.build(
                case.model, target, device=device, set=SETTINGS.get(model, case.settings), calibration=calibration,
                batch=BATCHES, formats=["onnx"], seconds=0.05, search_seconds=0, threads=1,
                output=folder / f"{target}-{device}",
            )  # fmt: skip

    return make


def test_every_registered_model_has_its_case():
    assert set(SMALL) == {entry.name for entry in list_entries()}
    assert {BY_NAME[case].model for case in SMALL.values()} == set(SMALL)


@pytest.mark.parametrize(("model", "target", "device"), list(rows()))
def test_a_whole_bundle_with_its_kit(build, model, target, device):
    reason = reason_against_device(target, SMALL[model])
    if reason:
        with pytest.raises((AccuracyError, UnsupportedError)) as caught:
            build(model, target, device)
        assert caught.value.next_step
        return
    bundle = build(model, target, device)
    graph = graph_of(bundle.manifest)
    assert graph is not None
    assert graph.precision == bundle.manifest.target.precision
    assert bundle.verify().passed
    report = tsexport.check(bundle.path / graph.path, target, device=device)
    assert report.accepted, report.errors
    check_rewrites(bundle, model, target, device)
    check_kit(bundle, graph)


def test_what_was_refused_in_full_size_is_an_exception():
    """The committed results of the suite: each row that was run gave a whole bundle, or is listed with its node."""
    report = read_report(RESULTS / f"{SUITE}.json")
    assert report.rows
    for row in report.rows:
        reason = reason_against_device(row.case.target, SMALL[row.case.model])
        assert (row.outcome, row.lacks) == ("refused" if reason else "built", ()), row


TYPED = ("jetson-int8", "jetson-fp16", "a100-bf16", "a100-int8")
NOT_BUILT = {"tft": "TensorRT for RTX 1.7 compiles Elu with its alpha as a second input, and refuses that itself"}


def shipped_graphs():
    for model in SMALL:
        for target in TYPED:
            marks = [pytest.mark.slow]
            if model in NOT_BUILT:
                marks.append(pytest.mark.xfail(reason=NOT_BUILT[model], strict=True))
            yield pytest.param(model, target, marks=marks, id=f"{model}-{target}")


@pytest.mark.filterwarnings(DEPRECATIONS)
@pytest.mark.parametrize(("model", "target"), list(shipped_graphs()))
def test_a_sibling_of_tensorrt_builds_an_engine_of_the_shipped_graph(build, model, target):
    """TensorRT for RTX, where it is installed: NVIDIA's own parser and compiler on the graph, without a GPU."""
    trt = import_builder("tensorrt_rtx")
    if reason_against_device(target, SMALL[model]):
        pytest.skip("there is no bundle")
    bundle = build(model, target, "host")
    graph = graph_of(bundle.manifest)
    plan, profile = plan_build(trt.__version__, graph.precision), plan_profile(graph.inputs, BATCHES)
    assert build_engine(trt, bundle.path / graph.path, plan, profile, 2**30, b"").engine


def check_rewrites(bundle: Bundle, model: str, target: str, device: str) -> None:
    """Every rewrite for the version is listed with its proof, and is in the graph; DFT is in none."""
    version = parse_target(target, device).tensorrt
    listed = [one for one in bundle.manifest.rewrites if one.reason == f"TensorRT {version} needs it"]
    assert all(one.applied and one.matches and one.artifact == "onnx-fp32" for one in listed)
    kinds = set()
    for entry in bundle.manifest.artifacts:
        kinds |= {node.op_type for node in onnx.load(bundle.path / entry.path).graph.node}
    assert not kinds & {"DFT", "STFT"}
    if device == "jetson-nano":
        assert "LayerNormalization" not in kinds
        normalizes = model in ("patchtst-cpu", "itransformer", "tft", "migt-tvdt")  # patchtst by batch
        assert not normalizes or "layer-norm-as-parts" in {one.name for one in listed}


def check_kit(bundle: Bundle, graph) -> None:
    """The kit is complete, and its profile is the one that the runtime will build."""
    assert kit_problems(bundle.path, graph, BATCHES) == ()
    options = {entry.name: dict(entry.options).get(TENSORRT_BATCHES) for entry in bundle.manifest.artifacts}
    assert set(options.values()) == {"4,1,8"}
