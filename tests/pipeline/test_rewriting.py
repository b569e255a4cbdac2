"""The choice of rewrites: what is slower is not applied, what brings nothing neither, and a plain export may win.

Two rewrites of a real graph are timed: one that multiplies by the unit matrix forty times more, and one that takes such
products away.  Where the decision alone is tested, the comparison is given.
"""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tsexport.bench import side_by_side
from tsexport.bench.side_by_side import time_side_by_side
from tsexport.bench.statistics import Ratio
from tsexport.bundles.manifest import RewriteChoice, RewriteVerdict
from tsexport.errors import ExportError
from tsexport.exporters.conversion import Converted
from tsexport.exporters.onnx_file import finish_onnx
from tsexport.exporters.rewrites.proofs import rewrite_graph
from tsexport.stages.rewriting import TOGETHER, Variants, choose_rewrites, compare_in_process, left_out, rewrite_records
from tsexport.types import ModelSpec, TensorSpec, random_feeds

WIDTH, PRODUCTS = 192, 40
SPEC = ModelSpec(
    *("m", "test", "unknown"),
    (TensorSpec("x", "float32", ("batch", WIDTH)),),
    (TensorSpec("y", "float32", ("batch", WIDTH)),),
)
FASTER, SLOWER, EVEN = Ratio(1.5, 1.3, 1.7, 0.95), Ratio(0.7, 0.6, 0.8, 0.95), Ratio(1.0, 0.9, 1.1, 0.95)
TOO_FEW = Ratio(2.0, 0.0, None, 0.95)


def unit_products(model: ir.Model) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == "MatMul" and node.name.startswith("unit")]


class MultiplyByUnits:
    """Slower for certain: forty products more, that no runtime can take away."""

    name, speed = "multiply-by-units", True

    def requires(self, model):
        return not any(node.name.startswith("added") for node in model.graph)

    def call(self, model, probes):
        value, unit = model.graph.inputs[0], next(v for v in model.graph.initializers.values() if v.name == "one")
        first = next(iter(model.graph))
        nodes = []
        for number in range(PRODUCTS):
            nodes.append(ir.node("MatMul", [value, unit], name=f"added{number}"))
            value = nodes[-1].outputs[0]
            value.name = f"added{number}"
        first.replace_input_with(0, value)
        model.graph.insert_before(first, nodes)
        return PRODUCTS


class DropUnits:
    """Faster for certain: the products by the unit matrix that the graph has go."""

    name, speed = "drop-units", True

    def requires(self, model):
        return bool(unit_products(model))

    def call(self, model, probes):
        nodes = unit_products(model)
        for node in nodes:
            node.outputs[0].replace_all_uses_with(node.inputs[0])
            model.graph.remove(node, safe=True)
        return len(nodes)


@pytest.fixture
def converter(tmp_path):
    """Return a function from rewrites to Variants of one graph: PRODUCTS products by the unit matrix, then Relu."""
    lines = [f"v{n + 1} = MatMul(v{n}, one)" for n in range(PRODUCTS)]
    body = "\n".join(["v0 = Neg(x)", *lines, f"y = Relu(v{PRODUCTS})"])
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[batch, {WIDTH}] x) => (float[batch, {WIDTH}] y) {{{body}}}'
    )
    for number, node in enumerate(node for node in model.graph.node if node.op_type == "MatMul"):
        node.name = f"unit{number}"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(WIDTH, dtype=np.float32), "one"))
    probes = [random_feeds(SPEC.inputs, batch, batch) for batch in (1, 3)]

    def make(*rewrites):
        def convert(path, without):
            made, done = rewrite_graph(model, probes, rewrites, without=without)
            return Converted(finish_onnx(made, SPEC, path, ()), done, len(made.graph.node))

        names = frozenset(one.name for one in rewrites)
        return Variants(tmp_path / "variants", "m.onnx", convert, names, names)

    return make


def ratios(*speeds):
    """A comparison that answers with these speeds of the second, third, ... artifact against the first."""
    return lambda artifacts, runtime: (EVEN, *speeds)[: len(artifacts)]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_slower_rewrite_is_not_applied_and_a_faster_one_is(converter, runtime):
    variants = converter(DropUnits(), MultiplyByUnits())
    choice = choose_rewrites(variants, runtime, compare_in_process(random_feeds(SPEC.inputs, 2, 0)))
    assert choice == RewriteChoice(
        runtime,
        False,
        (
            RewriteVerdict("drop-units", True, f"faster on {runtime}"),
            RewriteVerdict("multiply-by-units", False, f"slower on {runtime}"),
        ),
    )
    made = variants.make(left_out(choice, variants.every))
    assert made.nodes == 2
    kept, dropped = rewrite_records("a", variants.make(), made, choice)
    assert (kept.name, kept.applied, kept.matches, kept.nodes_after) == ("drop-units", True, PRODUCTS, 2)
    assert (dropped.name, dropped.applied, dropped.matches) == ("multiply-by-units", False, 0)
    assert dropped.reason == f"slower on {runtime}"


def test_the_plain_export_ships_where_all_rewrites_together_lose(converter):
    variants = converter(MultiplyByUnits())
    variants.speed = frozenset()  # a rewrite that cleans, which is not tried alone
    choice = choose_rewrites(variants, "onnxruntime", compare_in_process(random_feeds(SPEC.inputs, 2, 0)))
    assert choice == RewriteChoice("onnxruntime", True, ())
    made = variants.make(left_out(choice, variants.every))
    assert made.nodes == PRODUCTS + 2
    (record,) = rewrite_records("a", variants.make(), made, choice)
    assert not record.applied
    assert record.reason == "the plain export is faster on onnxruntime"


@pytest.mark.parametrize(
    ("without", "rewrite", "applied", "why"),
    [
        (SLOWER, DropUnits(), True, "faster on tract"),
        (EVEN, DropUnits(), True, "as fast on tract, and the graph is smaller"),
        (TOO_FEW, DropUnits(), True, "as fast on tract, and the graph is smaller"),
        (FASTER, DropUnits(), False, "slower on tract"),
        (EVEN, MultiplyByUnits(), False, "no faster on tract, and the graph is no smaller"),
        (TOO_FEW, MultiplyByUnits(), False, "no faster on tract, and the graph is no smaller"),
        (None, DropUnits(), True, "tract cannot run the artifact without it"),
    ],
)
def test_what_the_interval_and_the_size_decide(converter, without, rewrite, applied, why):
    choice = choose_rewrites(converter(rewrite), "tract", ratios(without, EVEN))
    assert choice.verdicts == (RewriteVerdict(rewrite.name, applied, why),)
    assert not choice.plain


def test_what_the_export_cannot_do_without_stays(converter):
    variants = converter(DropUnits())
    convert = variants.convert

    def needs(path, without):
        if without:
            raise ExportError("no such operator")
        return convert(path, without)

    choice = choose_rewrites(replace(variants, convert=needs), "onnxruntime", ratios())
    assert choice.verdicts == (RewriteVerdict("drop-units", True, "the model cannot be exported without it"),)


def test_where_there_is_nothing_to_rewrite_nothing_is_measured(converter):
    def refuse(artifacts, runtime):
        raise AssertionError("measured")

    assert choose_rewrites(converter(), "onnxruntime", refuse) == RewriteChoice("onnxruntime", False, ())


def test_a_runtime_that_runs_none_of_them_decides_nothing(converter):
    choice = choose_rewrites(converter(DropUnits()), "tract", lambda artifacts, runtime: [None] * len(artifacts))
    assert choice == RewriteChoice("tract", False, ())


def test_calls_are_interleaved_and_the_slower_one_is_told():
    order = []

    def quick():
        order.append("quick")

    def slow():
        order.append("slow")
        np.linalg.norm(np.ones((700, 700)) @ np.ones((700, 700)))

    first, second = time_side_by_side([quick, slow], seconds=0.1)
    assert first.value == 1.0
    assert second.high is not None
    assert second.high < 1
    changes = sum(a != b for a, b in itertools.pairwise(order))
    assert changes >= 8


def test_slow_calls_are_timed_a_few_times_and_the_interval_says_how_sure_that_is(monkeypatch):
    """On a clock that only the calls move: a real one stands still for longer than that on a busy machine."""
    clock = [0.0]

    def taking(seconds):
        return lambda: clock.__setitem__(0, clock[0] + seconds)

    monkeypatch.setattr(side_by_side, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(side_by_side, "PATIENCE_SECONDS", 0.1)
    first, second = time_side_by_side([taking(0.06), taking(0.12)], seconds=0.1)
    assert first.value == 1.0
    assert second.high is not None
    assert second.low <= second.value <= second.high < 1
    assert second.confidence == 1 - 2 ** (1 - side_by_side.FEWEST_ROUNDS)


def test_a_costly_model_is_held_against_its_plain_export_alone(converter):
    variants = replace(converter(DropUnits(), MultiplyByUnits()), costly=True)
    asked = []

    def compare(artifacts, runtime):
        asked.append([artifact.path.parent.name for artifact in artifacts])
        return EVEN, SLOWER

    choice = choose_rewrites(variants, "onnxruntime", compare)
    assert asked == [["whole", "plain"]]
    assert not choice.plain
    assert {(one.rewrite, one.applied, one.why) for one in choice.verdicts} == {
        ("drop-units", True, TOGETHER),
        ("multiply-by-units", True, TOGETHER),
    }


def test_a_costly_model_ships_plain_where_that_is_faster(converter):
    variants = replace(converter(DropUnits(), MultiplyByUnits()), costly=True)
    choice = choose_rewrites(variants, "onnxruntime", ratios(FASTER))
    assert choice == RewriteChoice("onnxruntime", True, ())


def test_an_export_without_rewrites_is_made_once(converter):
    """With nothing to leave out it is the plain export already."""
    variants, made = converter(), []
    convert = variants.convert

    def counted(path, without):
        made.append(path.parent.name)
        return convert(path, without)

    variants = replace(variants, convert=counted, every=frozenset({"not-due-here"}))
    assert choose_rewrites(variants, "onnxruntime", ratios()) == RewriteChoice("onnxruntime", False, ())
    assert made == ["whole"]
