"""Whole builds with --include-preprocessing, and what quantizers make of such a graph."""

from pathlib import Path

import numpy as np
import onnx
import pytest

import tsexport
from tsexport.calibration.market import CLOSE, FEATURES, HORIZON_BARS, last_window, minmax_range, minmax_window
from tsexport.calibration.market import reference_table as market_table
from tsexport.exporters.conversion import convert_to_onnx, convert_to_openvino
from tsexport.exporters.preprocessing import BEFORE, BEHIND
from tsexport.models.sources import identify, open_source
from tsexport.options import BuildOptions
from tsexport.pipeline import plan_build
from tsexport.quantize.candidates import build_candidate
from tsexport.quantize.cpu_recipes import DYNAMIC_S8, NNCF_MIXED, STATIC_U8S8
from tsexport.quantize.sources import Fp32Sources
from tsexport.runtimes.registry import load
from tsexport.types import FORMATS

ATOL = 1e-4
"""Of a window's range: the named fp32 tolerances allow three times as much of the level, which is larger."""
SMALL = {"width": 16, "layers": 1, "feed_forward": 32, "heads": 2}


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_cache")
def test_a_bundle_takes_raw_bars_and_gives_closes(small_build):
    bundle = small_build("patchtst-cpu", include_preprocessing=True)
    manifest = bundle.manifest
    assert [str(spec) for spec in manifest.model.inputs] == ["raw_features float32[batch, 128, 8]"]
    assert manifest.config["preprocessing"]["scaling"] == "minmax-window"
    assert any("preparation in the graph: gaps, minmax-window scaling, scaling back" in note for note in manifest.notes)
    assert bundle.verify().samples == manifest.golden.samples == 16
    golden = np.load(bundle.path / "golden" / "inputs.npz")["raw_features"]
    assert np.isnan(golden[8:]).any()
    assert not np.isnan(golden[:8]).any()

    table, _ = market_table()
    rows = np.array([5_000, 12_345, 23_000])
    windows = np.stack([table[row - 128 : row] for row in rows])
    short = np.full((1, 128, len(FEATURES)), np.nan, np.float32)
    short[0, -50:] = table[100:150]
    given = np.concatenate([windows, short])
    by_hand = np.concatenate([windows, last_window(table[100:150])[None]])
    plain = open_source(identify("patchtst-cpu")).run({"features": minmax_window(by_hand).astype(np.float32)})
    low, span = (array[:, 0, [CLOSE]] for array in minmax_range(by_hand))
    for runtime in ("onnxruntime", "openvino", "torchscript", "tract"):
        with tsexport.load(bundle, runtime=runtime) as session:
            answer = session.run({"raw_features": given})["forecast"]
        np.testing.assert_allclose((answer - low) / span, plain["forecast"], rtol=0, atol=ATOL)
    close = table[rows + HORIZON_BARS - 1, CLOSE]
    assert np.abs(answer[:3, 0] - close).max() < 0.05 * close.max()  # prices, not numbers around 0..1


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_cache")
def test_an_int8_bundle_of_raw_bars(small_build):
    bundle = small_build("patchtst-cpu", "cpu4-int8", include_preprocessing=True, races=True, set=SMALL)
    assert {entry.format for entry in bundle.manifest.artifacts} == set(FORMATS)
    for one in bundle.manifest.candidates:
        assert one.status in ("selected", "eligible", "rejected"), one.reason
    assert bundle.verify().samples == 16


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    options = BuildOptions("patchtst-cpu", "cpu4-int8", Path("dist"), name="prepared", include_preprocessing=True)
    context = plan_build(options).context
    source = context.source
    exported = convert_to_onnx(source.module, None, source.spec, None, folder / "model.onnx").artifact
    ir = convert_to_openvino(exported, folder / "model.xml").artifact
    return context, Fp32Sources(exported, ir), folder


@pytest.mark.parametrize("recipe", [DYNAMIC_S8, STATIC_U8S8, NNCF_MIXED], ids=lambda recipe: recipe.name)
def test_quantizers_leave_the_preparation_in_fp32(sources, recipe):
    context, fp32, folder = sources
    source = context.source
    built = build_candidate(recipe, fp32, source.spec, context.calibration.dataset, folder)
    assert built.artifact is not None, built.reason
    quantized, inside = _quantized(built.artifact.path)
    assert quantized
    assert not inside
    batch = next(iter(context.evaluation.dataset.batches(128)))
    expected = source.run(batch.feeds)["forecast"]
    with load(built.artifact, recipe.runtimes[0], threads=1) as session:
        got = session.run(batch.feeds)["forecast"]
    span = np.ptp(batch.feeds["raw_features"][:, :, CLOSE], axis=1)[:, None]
    # Of the windows' range, as int8 without preparation is judged: the level of prices would hide any error.
    assert np.sqrt(np.mean(np.square((got - expected) / span))) < 0.02


def _quantized(path):
    """Return the operators whose input is quantized, and those of them that belong to the preparation."""
    if path.suffix == ".onnx":
        nodes = onnx.load(path).graph.node
        kinds = ("DynamicQuantizeLinear", "QuantizeLinear")
        values = {name for node in nodes if node.op_type in kinds for name in node.output}
        names = [node.name for node in nodes if values & {*node.input} and node.op_type not in kinds]
        inside = [node.name for node in nodes if node.op_type in kinds and _prepares(node.name)]
        return names, [*inside, *filter(_prepares, names)]
    import openvino

    model = openvino.Core().read_model(path)
    fakes = [one for one in model.get_ordered_ops() if one.get_type_name() == "FakeQuantize"]
    users = [user.get_node().get_friendly_name() for one in fakes for user in one.output(0).get_target_inputs()]
    last = model.get_results()[0].input_value(0).get_node().get_friendly_name()
    return users, [name for name in users if _prepares(name) or name == last]


def _prepares(name):
    return f"/{BEFORE}/" in name or f"/{BEHIND}/" in name
