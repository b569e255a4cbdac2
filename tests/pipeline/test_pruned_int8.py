"""--prune with INT8, and with the preparation in the graph; for a CPU that is not this machine, so nothing is timed."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import tsexport
from tsexport.bundles.bundle import open_bundle
from tsexport.cli import main
from tsexport.targets import host_cpu

ELSEWHERE = "arm64" if host_cpu().instruction_set != "arm64" else "avx2"
UNET = ("channels=3", "latitudes=16", "longitudes=16", "widths=32,64")
PARITY = 1e-4


def widths_of(path: Path) -> list[int]:
    """Return the output channels of every convolution of a graph, in order, from its shapes."""
    shapes = {}
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    for value in (*model.graph.value_info, *model.graph.output):
        shapes[value.name] = [one.dim_value for one in value.type.tensor_type.shape.dim]
    kinds = ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv")
    return [shapes[node.output[0]][1] for node in model.graph.node if node.op_type in kinds]


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unet")
    field = np.random.default_rng(0).standard_normal((96, 3, 16, 16)).astype(np.float32)
    np.savez(folder / "fields.npz", state=np.cumsum(field, axis=2) / 4)
    arguments = ["build", "unet", "--target", "cpu4-int8", "--device", ELSEWHERE, "--prune", "0.3", "--json"]
    arguments += ["--formats", "onnx", "--calibration", str(folder / "fields.npz"), "-o", str(folder)]
    arguments += [part for setting in UNET for part in ("--set", setting)]
    done = CliRunner().invoke(main, arguments, env={"TSEXPORT_CACHE": str(folder / "cache")})
    assert done.exit_code == 0, done.output
    with open_bundle(json.loads(done.stdout)["path"]) as bundle:
        yield bundle


def test_int8_is_made_of_the_pruned_model(unet):
    manifest = unet.manifest
    assert manifest.name == f"unet-cpu4-int8-{ELSEWHERE}-prune30"
    assert manifest.pruning.parameters.share_removed > 0.3
    assert manifest.pruning.recovered > 0
    selected = manifest.artifact(manifest.selected.artifact)
    assert selected.precision == "int8"
    pruned = widths_of(unet.path / manifest.artifact("onnx-fp32").path)
    assert widths_of(unet.path / selected.path) == pruned
    removed = {one.layer: one.after for one in manifest.pruning.removals}
    assert removed
    assert set(removed.values()) <= set(pruned)
    assert {one.after % 16 for one in manifest.pruning.removals} == {0}  # of 32 and 64 whole blocks go


def test_its_budget_is_against_the_pruned_model(unet):
    """What pruning itself costs stands beside it, and is not counted twice."""
    manifest = unet.manifest
    (selected,) = (one for one in manifest.candidates if one.status == "selected")
    assert manifest.accuracy[0] == selected.accuracy
    assert selected.accuracy.output_error <= manifest.budget.max_output_error
    if host_cpu().vnni:  # elsewhere full-range S8 may saturate
        assert unet.verify().passed
    golden = np.load(unet.path / "golden" / "outputs.npz")
    with tsexport.load(unet, precision="fp32") as session:
        answers = session.run(dict(np.load(unet.path / "golden" / "inputs.npz")))
    for name, expected in golden.items():
        np.testing.assert_allclose(answers[name], expected, atol=PARITY, rtol=PARITY)


def test_pruning_behind_a_preparation(tmp_path, monkeypatch):
    """The preparation has nothing to prune, and stays; the model behind it takes raw windows all the same."""
    monkeypatch.setenv("TSEXPORT_CACHE", str(tmp_path / "cache"))
    small = {"width": 32, "layers": 1, "feed_forward": 64, "heads": 4}
    bundle = tsexport.build(
        "patchtst-cpu",
        "cpu4-int8",
        device=ELSEWHERE,
        output=tmp_path,
        set=small,
        prune=0.3,
        include_preprocessing=True,
        formats=["onnx"],
    )
    manifest = bundle.manifest
    assert [str(one) for one in manifest.model.inputs] == ["raw_features float32[batch, 128, 8]"]
    assert manifest.config["preprocessing"]["scaling"] == "minmax-window"
    assert manifest.config["prune"] == 0.3
    assert manifest.pruning.removals
    assert manifest.pruning.parameters.after == manifest.model.parameters < manifest.pruning.parameters.before
    golden = np.load(bundle.path / "golden" / "inputs.npz")["raw_features"]
    with tsexport.load(bundle, precision="fp32") as session:
        answer = session.run({"raw_features": golden})["forecast"]
    expected = np.load(bundle.path / "golden" / "outputs.npz")["forecast"]
    np.testing.assert_allclose(answer, expected, atol=PARITY * np.abs(expected).max(), rtol=PARITY)
