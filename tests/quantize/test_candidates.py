"""Candidates from recipes: what is built, and a reason, not an error, for what cannot be."""

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest

from tsexport.calibration.arrays import ArrayDataset
from tsexport.calibration.datasets import calibration_batch
from tsexport.exporters.rewrites.order import REWRITES
from tsexport.exporters.rewrites.proofs import rewrite_graph
from tsexport.quantize.candidates import TOOLS, build_candidate
from tsexport.quantize.cpu_recipes import (
    DYNAMIC_S8_REDUCED,
    DYNAMIC_U8,
    NNCF_MIXED,
    OPENVINO_BF16,
    STATIC_U8S8_REDUCED,
    WITH_VNNI,
    WITHOUT_VNNI,
)
from tsexport.quantize.onnxruntime_quantizer import quantize_onnx
from tsexport.quantize.sources import Fp32Sources, NothingQuantizedError
from tsexport.runtimes.comparison import relative_rms
from tsexport.runtimes.registry import load

RECIPES = {
    recipe.name: recipe for recipe in (*WITHOUT_VNNI, *WITH_VNNI) if recipe.tool in ("onnxruntime", "nncf")
}  # what other tools need beside a graph stands in their own tests
IN_ONNX = [recipe for recipe in RECIPES.values() if recipe.format == "onnx"]


def by_name(recipe):
    return recipe.name


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_recipe_builds_two_products(sources, bodies, spec, windows, tmp_path, recipe):
    fp32 = sources(bodies["two products"])
    built = build_candidate(recipe, fp32, spec, ArrayDataset({"x": windows}), tmp_path / "out")
    assert built.reason == ""
    artifact = built.artifact
    assert (artifact.precision, artifact.format, artifact.runtimes) == ("int8", recipe.format, recipe.runtimes)
    assert artifact.name == f"int8-{recipe.name}"
    assert artifact.path.parent == tmp_path / "out"
    assert artifact.provenance[:-1] == (fp32.onnx if recipe.format == "onnx" else fp32.openvino).provenance
    assert recipe.tool in artifact.provenance[-1]
    assert recipe.summary in artifact.provenance[-1]


@pytest.mark.parametrize("recipe", IN_ONNX, ids=by_name)
def test_a_graph_without_constant_products_gives_the_reason(sources, bodies, spec, windows, tmp_path, recipe):
    fp32 = sources(bodies["no product"])
    built = build_candidate(recipe, fp32, spec, ArrayDataset({"x": windows}), tmp_path)
    assert built.artifact is None
    operators = "MatMul or LSTM" if recipe.activations == "dynamic" else "MatMul or Conv"
    assert built.reason == f"onnxruntime could not build it: the graph has no {operators} with constant weights"
    with pytest.raises(NothingQuantizedError):
        quantize_onnx(fp32.onnx.path, recipe, ArrayDataset({"x": windows}))


def test_nncf_gives_the_reason_too(sources, bodies, spec, windows, tmp_path):
    built = build_candidate(NNCF_MIXED, sources(bodies["no product"]), spec, ArrayDataset({"x": windows}), tmp_path)
    assert built.artifact is None
    assert built.reason == "nncf could not build it: the model has no operator with constant weights"


@pytest.mark.parametrize("recipe", [DYNAMIC_U8, NNCF_MIXED, OPENVINO_BF16], ids=by_name)
def test_a_missing_format_gives_the_reason(spec, windows, tmp_path, recipe):
    built = build_candidate(recipe, Fp32Sources(None, None), spec, ArrayDataset({"x": windows}), tmp_path)
    assert built.artifact is None
    assert built.reason == f"the model has no fp32 artifact in {recipe.format}"


@pytest.mark.parametrize("recipe", [STATIC_U8S8_REDUCED, NNCF_MIXED], ids=by_name)
def test_calibration_that_does_not_fit_gives_the_librarys_reason(sources, bodies, spec, tmp_path, recipe):
    wrong = ArrayDataset({"x": np.zeros((16, 5), np.float32)})
    built = build_candidate(recipe, sources(bodies["two products"]), spec, wrong, tmp_path)
    assert built.artifact is None
    assert built.reason.startswith(f"{recipe.tool} could not build it: ")
    assert "Exception from" not in built.reason
    assert len(built.reason.splitlines()) == 1
    assert any(word in built.reason for word in ("invalid dimensions", "shape", "size"))


def test_a_module_of_ours_that_cannot_be_imported_is_no_recipes_fault(
    sources, bodies, spec, windows, tmp_path, monkeypatch
):
    """As where the code changes under a build that runs: listed as a candidate that failed, it would be cached, too."""
    monkeypatch.setitem(TOOLS, DYNAMIC_U8.tool, "tsexport.quantize.not_there")
    fp32 = sources(bodies["two products"])
    with pytest.raises(ModuleNotFoundError, match="not_there"):
        build_candidate(DYNAMIC_U8, fp32, spec, ArrayDataset({"x": windows}), tmp_path)


def test_a_file_that_finish_refuses_gives_its_message(sources, bodies, spec, windows, tmp_path):
    other = replace(spec, outputs=(replace(spec.outputs[0], name="other"),))
    built = build_candidate(DYNAMIC_U8, sources(bodies["two products"]), other, ArrayDataset({"x": windows}), tmp_path)
    assert built.artifact is None
    assert "as ONNX has the tensors (y float32" in built.reason


def test_bf16_states_its_precision(sources, bodies, spec, windows, tmp_path):
    built = build_candidate(
        OPENVINO_BF16, sources(bodies["two products"]), spec, ArrayDataset({"x": windows}), tmp_path / "out"
    )
    assert built.artifact.precision == "bf16"
    assert built.artifact.name == "openvino-bf16"
    assert built.artifact.options == (("INFERENCE_PRECISION_HINT", "bf16"),)


def products(model):
    return Counter(node.op_type for node in model.graph.node)


def test_weights_behind_identities_are_skipped_and_the_rewrites_cure_it(graph, bodies, windows, tmp_path):
    """The trap itself: as exported, the quantizer takes a shared weight for a computed value."""
    raw = graph(bodies["shared weight"])
    onnx.save(raw, tmp_path / "raw.onnx")
    careless = products(quantize_onnx(tmp_path / "raw.onnx", DYNAMIC_U8, ArrayDataset({"x": windows})))
    assert (careless["MatMulInteger"], careless["MatMul"]) == (1, 1)
    clean, _ = rewrite_graph(raw, [{"x": windows[:1]}, {"x": windows[:3]}], REWRITES)
    onnx.save(clean, tmp_path / "clean.onnx")
    careful = products(quantize_onnx(tmp_path / "clean.onnx", DYNAMIC_U8, ArrayDataset({"x": windows})))
    assert (careful["MatMulInteger"], careful["MatMul"], careful["Identity"]) == (2, 0, 0)


@pytest.mark.parametrize("recipe", [DYNAMIC_U8, STATIC_U8S8_REDUCED], ids=by_name)
def test_products_of_activations_stay_in_float_without_node_names(sources, spec, windows, tmp_path, recipe):
    """A file that a user brings may name no node, and nodes are excluded by name."""
    body = """{
      a = MatMul(x, w)  c = MatMul(x, v)
      r = Unsqueeze(a, last)  s = Unsqueeze(c, first)  o = MatMul(r, s)  y = ReduceSum<keepdims=0>(o, first)
      last = Constant<value_ints=[2]>()  first = Constant<value_ints=[1]>()
    }"""
    # the parser wants constants before their use
    lines = body.strip("{} \n").splitlines()
    fp32 = sources("{" + lines[-1] + "\n".join(lines[:-1]) + "}")
    assert {node.name for node in onnx.load(fp32.onnx.path).graph.node} == {""}
    artifact = build_candidate(recipe, fp32, spec, ArrayDataset({"x": windows}), tmp_path / "out").artifact
    model = onnx.load(artifact.path)
    made_by = {output: node.op_type for node in model.graph.node for output in node.output}
    floats = [
        node
        for node in model.graph.node
        if node.op_type == "MatMul" and not any(made_by.get(name) == "DequantizeLinear" for name in node.input)
    ]
    assert len(floats) == 1
    assert products(model)["MatMulInteger"] == (2 if recipe is DYNAMIC_U8 else 0)


def test_a_dynamic_answer_depends_on_the_batch(sources, bodies, spec, windows, tmp_path):
    """One range of activations for the whole batch: why evaluation tries several batch sizes."""
    fp32 = sources(bodies["two products"])
    artifact = build_candidate(DYNAMIC_S8_REDUCED, fp32, spec, ArrayDataset({"x": windows}), tmp_path / "o").artifact
    feeds = windows[:4].copy()
    feeds[3] *= 50  # stretches the range of the others
    with load(artifact, "onnxruntime", threads=1) as session:
        alone, together = session.run({"x": feeds[:1]})["y"], session.run({"x": feeds})["y"][:1]
    with load(fp32.onnx, "onnxruntime", threads=1) as session:
        exact = session.run({"x": feeds[:1]})["y"]
    assert relative_rms(exact, alone) < 0.05
    assert relative_rms(exact, together) > 0.1


@pytest.mark.parametrize(("width", "windows"), [(32, 16), (30_000, 2), (10**6, 1)])
def test_windows_of_a_large_input_are_calibrated_a_few_at_once(width, windows):
    """A quantizer keeps what every layer answers to them."""
    assert calibration_batch(ArrayDataset({"x": np.zeros((40, width), np.float32)})) == windows
