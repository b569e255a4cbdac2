"""migt-tvdt exported: what its files hold, the mask in the graph, and quantiles sorted in int8.

Formats and runtimes are held against the model in the matrix.
"""

import math
from dataclasses import asdict

import numpy as np
import onnx
import pytest

from tsexport.calibration.reference import reference_windows
from tsexport.exporters.checks import check_parity, feed_sets
from tsexport.exporters.conversion import convert_to_onnx, convert_to_openvino
from tsexport.models import migt_tvdt
from tsexport.models.sources import identify, open_source
from tsexport.quantize.candidates import build_candidate
from tsexport.quantize.cpu_recipes import DYNAMIC_U8, NNCF_MIXED_REDUCED, STATIC_U8S8_REDUCED
from tsexport.quantize.sources import Fp32Sources
from tsexport.runtimes.comparison import TOLERANCES
from tsexport.runtimes.registry import load
from tsexport.types import random_feeds

SMALL = migt_tvdt.Config(
    context_length=12, n_variables=5, width=16, heads=2, temporal_layers=2, variable_layers=1, feed_forward=24
)
ATOL = 2e-5
"""fp32 sums in another order."""
NAMES = tuple(spec.name for spec in SMALL.inputs)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The small model and its ONNX artifact."""
    folder = tmp_path_factory.mktemp("migt")
    source = open_source(identify("migt-tvdt", settings=asdict(SMALL)))
    return source, convert_to_onnx(source.module, None, source.spec, None, folder / "model.onnx").artifact, folder


@pytest.mark.parametrize(
    "recipe", [DYNAMIC_U8, STATIC_U8S8_REDUCED, NNCF_MIXED_REDUCED], ids=lambda recipe: recipe.name
)
def test_quantiles_are_sorted_in_int8(exported, recipe):
    source, artifact, folder = exported
    openvino = convert_to_openvino(artifact, folder / "model.xml").artifact if recipe.tool == "nncf" else None
    calibration, _ = reference_windows("migt-tvdt", asdict(SMALL), 0, "train", NAMES)
    built = build_candidate(recipe, Fp32Sources(artifact, openvino), source.spec, calibration, folder)
    assert built.artifact is not None, built.reason
    feeds = random_feeds(SMALL.inputs, 256, seed=4)
    feeds["bars"] *= np.random.default_rng(5).choice([0.1, 1, 100], (256, 1, 1)).astype(np.float32)
    for runtime in built.artifact.runtimes:
        with load(built.artifact, runtime, threads=1) as session:
            quantiles = session.run(feeds)["quantiles"]
        assert (np.diff(quantiles, axis=2) >= 0).all(), runtime
        assert np.abs(quantiles - source.run(feeds)["quantiles"]).max() > 0  # it is another artifact


def test_the_file_holds_the_weights_and_no_table_of_positions(tmp_path):
    """A position for each of 96 x 24 tokens of width 32 would take 295 kB, six times what is allowed beside weights."""
    sizes = {"context_length": 96, "width": 32, "temporal_layers": 1, "variable_layers": 1, "feed_forward": 64}
    source = open_source(identify("migt-tvdt", settings=sizes))
    artifact = convert_to_onnx(source.module, None, source.spec, None, tmp_path / "model.onnx").artifact
    assert artifact.size_bytes < 4 * source.spec.parameters + 50_000
    graph = onnx.load(artifact.path).graph
    operators = [node.op_type for node in graph.node]
    assert not {"Shape", "Expand", "Tile", "Identity"} & set(operators)
    assert (
        max(math.prod(one.dims) for one in graph.initializer) <= 96 * 32
    )  # no constant is larger than the largest weight


def test_a_day_without_a_valid_bar_is_finite_in_the_export_too(exported):
    source, artifact, _ = exported
    feeds = random_feeds(SMALL.inputs, 3, seed=1)
    feeds["valid"][1] = False
    feeds["bars"][1] = np.nan
    with load(artifact, "onnxruntime", threads=1) as session:
        quantiles = session.run(feeds)["quantiles"]
    np.testing.assert_allclose(quantiles, source.run(feeds)["quantiles"], atol=ATOL, rtol=0)
    assert np.isfinite(quantiles).all()


def test_the_mask_is_computed_once_and_added_once_a_layer(exported):
    _, artifact, _ = exported
    graph = onnx.load(artifact.path).graph
    makers = {name: node for node in graph.node for name in node.output}
    softmaxes = [node for node in graph.node if node.op_type == "Softmax"]
    assert len(softmaxes) == SMALL.temporal_layers + SMALL.variable_layers + 1
    added = [makers[node.input[0]] for node in softmaxes[: SMALL.temporal_layers]]
    assert [node.op_type for node in added] == ["Add"] * SMALL.temporal_layers
    assert len({node.input[1] for node in added}) == 1


@pytest.mark.slow
def test_the_default_size_in_onnx(tmp_path):
    source = open_source(identify("migt-tvdt"))
    artifact = convert_to_onnx(source.module, None, source.spec, None, tmp_path / "model.onnx").artifact
    assert artifact.size_bytes < 1.01 * 4 * source.spec.parameters
    sets = feed_sets(source.spec.inputs, batches=(1,))
    for parity in check_parity(source, artifact, "onnxruntime", sets, TOLERANCES["fp32-export"], scaled=True):
        assert parity.passed, parity.worst
