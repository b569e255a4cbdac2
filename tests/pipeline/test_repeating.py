"""A selection with layers left in floating point, repeated: the selected recipe alone, the same bytes."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import onnx
import onnx.parser
import pytest

import tsexport.quantize.candidates
from tsexport.bundles.bundle import open_bundle
from tsexport.bundles.manifest import RankedArtifact, Selection
from tsexport.errors import AccuracyError, BundleError, UsageError
from tsexport.options import BuildOptions
from tsexport.pipeline import plan_build, run_build
from tsexport.quantize.cpu_recipes import DYNAMIC_U8, STATIC_U8S8
from tsexport.stages.repeating import recipe_to_repeat

WIDTH = 16
BODY = (
    "{ [first] a = MatMul(x, w0)  b = Relu(a)  [bad] c = MatMul(b, w1)  d = Relu(c)  [third] e = MatMul(d, w2) "
    "f = Relu(e)  [last] y = MatMul(f, w3) }"
)
RECIPES = (DYNAMIC_U8, STATIC_U8S8)
FALLBACK = "int8-static-u8s8-fp1"


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """A model whose second layer INT8 cannot hold (see test_searching), and windows."""
    folder = tmp_path_factory.mktemp("material")
    generator = np.random.default_rng(0)
    weights = {f"w{i}": (generator.standard_normal((WIDTH, WIDTH)) / WIDTH**0.5).astype(np.float32) for i in range(4)}
    weights["w0"][:, 3] = 0
    weights["w1"][3] *= 400
    parsed = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[batch, {WIDTH}] x) => (float[batch, {WIDTH}] y) {BODY}'
    )
    parsed.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.save(parsed, folder / "outlier.onnx")
    np.savez(folder / "windows.npz", x=generator.standard_normal((300, WIDTH)).astype(np.float32))
    return folder


def build(material, output, **options):
    given = {"calibration": material / "windows.npz", "formats": ("onnx",), "runtime": "onnxruntime",
             "batches": (1,), "seconds": 0.1, "threads": 1, "output": output, **options}  # fmt: skip
    plan = plan_build(BuildOptions(str(material / "outlier.onnx"), "cpu4-int8", **given))
    return run_build(replace(plan, recipes=RECIPES), quiet=True)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def first(material, cache, tmp_path_factory):
    """A build that chose for itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TSEXPORT_CACHE", str(cache))
        return build(material, tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def chosen(first, material, cache, tmp_path_factory):
    """The build repeated with the fallback selected."""
    folder = tmp_path_factory.mktemp("chosen")
    document = json.loads((first.path / "selection.json").read_text())
    document |= {"artifact": FALLBACK, "runtime": "onnxruntime", "order": [], "why": "chosen by a test", "recipe": {}}
    (folder / "selection.json").write_text(json.dumps(document))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TSEXPORT_CACHE", str(cache))
        return build(material, folder, selection=folder / "selection.json")


@pytest.fixture
def made(monkeypatch):
    """Names of the recipes that are really built."""
    names, real = [], tsexport.quantize.candidates.build_candidate

    def counted(recipe, *rest):
        names.append(recipe.name)
        return real(recipe, *rest)

    monkeypatch.setattr(tsexport.quantize.candidates, "build_candidate", counted)
    return names


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "measurements" not in path.parts and path.name != "report.html"
    }


def by_name(bundle):
    return {(one.name, one.runtime): one for one in bundle.manifest.candidates}


def test_a_build_lists_the_plain_candidate_and_the_fallback_beside_it(first):
    names = [name for name, runtime in by_name(first) if runtime == "onnxruntime"]
    assert names == ["dynamic-u8", "dynamic-u8-fp1", "static-u8s8 on onnxruntime", "static-u8s8-fp1 on onnxruntime"]
    plain, fallback = by_name(first)["dynamic-u8", "onnxruntime"], by_name(first)["dynamic-u8-fp1", "onnxruntime"]
    assert plain.status == "rejected"
    assert plain.coverage is None
    assert "; 1 of 4 layers left in floating point give " in plain.reason
    assert fallback.status in ("selected", "eligible")
    assert fallback.recipe["float_layers"] == ("bad",)
    assert fallback.coverage.int8_share == 0.75
    assert first.manifest.coverage is not None


def test_what_a_build_chose_repeats_to_the_same_bytes_with_nothing_built(
    first, material, cache, tmp_path, monkeypatch, made
):
    monkeypatch.setenv("TSEXPORT_CACHE", str(cache))
    again = build(material, tmp_path, selection=first.path / "selection.json")
    assert digests(again.path) == digests(first.path)
    assert made == []


def test_a_fallback_is_selected_with_its_layers(chosen, first):
    selection = chosen.selection
    assert (selection.artifact, selection.candidate) == (FALLBACK, "static-u8s8-fp1 on onnxruntime")
    assert selection.layers_left_in_float == ("bad",)
    assert chosen.manifest.coverage.int8_share == 0.75
    (selected,) = (one for one in chosen.manifest.candidates if one.status == "selected")
    assert selected.artifact == FALLBACK
    assert [one.name for one in chosen.manifest.candidates] == [one.name for one in first.manifest.candidates]
    assert chosen.verify()


@pytest.mark.slow
def test_a_fallback_repeats_to_the_same_bytes_from_an_empty_cache(chosen, material, tmp_path, monkeypatch, made):
    """The selected recipe is built; and one plain static recipe, whose calibration table the bundle holds."""
    monkeypatch.setenv("TSEXPORT_CACHE", str(tmp_path / "cache"))
    again = build(material, tmp_path, selection=chosen.path / "selection.json")
    assert digests(again.path) == digests(chosen.path)
    assert sorted(made) == ["static-u8s8", "static-u8s8-fp1"]


def test_with_another_budget_the_records_of_the_others_are_not_repeated(chosen, material, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("TSEXPORT_CACHE", str(cache))
    again = build(material, tmp_path, selection=chosen.path / "selection.json", max_output_error=0.2)
    assert [(one.name, one.status) for one in again.manifest.candidates] == [
        ("static-u8s8-fp1 on onnxruntime", "selected")
    ]
    with pytest.raises(AccuracyError, match=f"selects {FALLBACK} on onnxruntime, which is out: output error"):
        build(material, tmp_path, selection=chosen.path / "selection.json", max_output_error=1e-4, name="strict")


def test_other_layers_than_the_graph_has(chosen, material, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("TSEXPORT_CACHE", str(cache))
    document = json.loads((chosen.path / "selection.json").read_text())
    path = tmp_path / "selection.json"
    path.write_text(json.dumps({**document, "layers_left_in_float": ["good"]}))
    with pytest.raises(
        AccuracyError, match=r"which is out: .*float_layers names 'good', and the graph has no such node"
    ):
        build(material, tmp_path, selection=path)


def selection(**changes):
    base = Selection(
        schema_version=1,
        artifact="int8-dynamic-u8",
        runtime="onnxruntime",
        why="why",
        candidate="dynamic-u8",
        recipe={},
        layers_left_in_float=(),
        order=(RankedArtifact("onnx-fp32", "onnxruntime"),),
        threads=1,
        triton_batch_sizes=(1,),
    )
    return replace(base, **changes)


def test_the_recipe_of_a_selection():
    from dataclasses import asdict

    assert recipe_to_repeat(selection(), RECIPES) == DYNAMIC_U8
    assert recipe_to_repeat(selection(artifact="onnx-fp32"), RECIPES) is None
    assert recipe_to_repeat(selection(runtime="openvino"), RECIPES) is None
    own = asdict(replace(DYNAMIC_U8, name="mine", reduce_range=True))
    found = recipe_to_repeat(selection(artifact="int8-mine", recipe=own, layers_left_in_float=("a", "b")), RECIPES)
    assert (found.name, found.reduce_range, found.float_layers) == ("mine", True, ("a", "b"))
    with pytest.raises(BundleError, match=r"selection\.json: recipe: unknown key 'wieghts'") as caught:
        recipe_to_repeat(selection(recipe={**own, "wieghts": "u8"}), RECIPES)
    assert "build again without --selection" in caught.value.next_step


def test_an_artifact_that_no_recipe_makes(chosen, material, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("TSEXPORT_CACHE", str(cache))
    document = json.loads((chosen.path / "selection.json").read_text())
    path = tmp_path / "selection.json"
    path.write_text(json.dumps({**document, "artifact": "int8-unheard-of"}))
    with pytest.raises(UsageError, match="selects int8-unheard-of on onnxruntime, which this build does not make"):
        build(material, tmp_path, selection=path)
    assert open_bundle(chosen.path).selection.artifact == FALLBACK
