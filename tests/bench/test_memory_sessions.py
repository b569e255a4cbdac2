"""What each runtime asks for, fuses and keeps, on graphs small enough to count by hand, and the estimate made of it."""

from dataclasses import replace

import pytest

from tsexport.bench.memory_buffers import buffer_events, reordered
from tsexport.bench.memory_forms import ModelGraphs, Use, onednn_gates
from tsexport.bench.memory_fusing import SUMS, fuse_activation, fuse_bias, fuse_gelu, fuse_skip, fuse_sum
from tsexport.bench.memory_model import (
    RULES,
    counts_of,
    engine_parts,
    estimate_parts,
    estimated_bytes,
    estimated_range,
    models_of,
    weights_scale,
)
from tsexport.bench.memory_plan import MemoryGraph, Size, Step, Weights, live_peak
from tsexport.bench.memory_sessions import SESSIONS
from tsexport.bench.memory_torch import torch_scratch, torchscript_range

HEAVY = 40_000_000
LIGHT = 4000


def step(name, operator, reads, constants=(), kind="step", scratch=0, makes=None):
    return Step(name, operator, kind, tuple(reads), makes or (name,), Size(0, scratch), tuple(constants))


def graph_of(*steps, size=1000, constants=None, computes_shapes=False, outputs=None):
    """A graph of an input x and steps that make tensors of their own names."""
    constants = constants or {}
    names = ("x", *(name for one in steps for name in one.makes))
    sizes = {name: Size(0, size) for name in names}
    weights = Weights(0, sum(constants.values()), sum(constants.values()))
    return MemoryGraph(
        steps,
        sizes,
        ("x",),
        outputs or steps[-1].makes,
        weights,
        computes_shapes,
        constants=constants,
        symbolic=frozenset(names),
        matrices=frozenset(constants),
    )


def products(count, weight=LIGHT, **given):
    """A chain of products, each with a matrix of its own."""
    names = ["x", *(f"p{i}" for i in range(count))]
    steps = [step(names[i + 1], "MatMul", (names[i],), (f"w{i}",)) for i in range(count)]
    return graph_of(*steps, constants={f"w{i}": weight for i in range(count)}, **given)


def forms(graph):
    return ModelGraphs(graph, graph, graph, graph)


def test_steps_are_computed_from_the_last_back_and_what_was_made_last_first():
    graph = graph_of(
        step("a", "MatMul", ("x",)),
        step("b", "MatMul", ("x",)),
        step("c", "Relu", ("b",)),
        step("d", "Add", ("a", "c")),
    )
    assert [one.name for one in reordered(graph).steps] == ["b", "c", "a", "d"]


def test_activations_overwrite_and_sums_do_not():
    relu = graph_of(step("a", "MatMul", ("x",)), step("r", "Relu", ("a",)), step("y", "MatMul", ("r",)))
    double = graph_of(step("a", "MatMul", ("x",)), step("r", "Add", ("a",)), step("y", "MatMul", ("r",)))
    assert [event.key for event in buffer_events(relu, 1, fixed=True) if event.take] == ["a", "y"]
    assert [event.key for event in buffer_events(double, 1, fixed=True) if event.take] == ["a", "r", "y"]


def test_a_free_buffer_of_the_same_shape_is_used_again_where_shapes_are_known():
    graph = products(4)
    taken = [event.key for event in buffer_events(graph, 1, fixed=True) if event.take]
    assert taken == ["p0", "p1", "p3"]  # p2 where p0 was; p3 is the output
    unknown = replace(graph, symbolic=frozenset())
    assert [event.key for event in buffer_events(unknown, 1, fixed=False) if event.take] == ["p0", "p1", "p2", "p3"]
    assert live_peak(list(buffer_events(unknown, 1, fixed=False))) == 2000


def test_every_buffer_but_the_output_is_given_back_once():
    graph = products(6)
    held = {}
    for event in buffer_events(graph, 3, fixed=True):
        if event.take:
            assert event.key not in held
            held[event.key] = event.size
        else:
            assert held.pop(event.key) == event.size
    assert list(held) == ["p5"]


def test_a_bias_and_the_activation_after_it_leave_no_tensor():
    graph = graph_of(
        step("p", "MatMul", ("x",), ("w",)), step("b", "Add", ("p",), ("v",)), step("r", "Relu", ("b",)),
        step("y", "MatMul", ("r",), ("w2",)), constants={"w": 10, "v": 10, "w2": 10},
    )  # fmt: skip
    fused = fuse_activation(fuse_bias(graph))
    assert [(one.operator, one.reads, one.makes) for one in fused.steps] == [
        ("Gemm", ("x",), ("r",)),
        ("MatMul", ("r",), ("y",)),
    ]
    batched = replace(graph, matrices=frozenset())  # a product with a constant of three dimensions takes no bias
    assert len(fuse_bias(batched).steps) == 4


def test_what_others_read_too_is_not_fused():
    graph = graph_of(
        step("p", "MatMul", ("x",), ("w",)), step("b", "Add", ("p",), ("v",)), step("y", "Add", ("p", "b")),
        constants={"w": 10, "v": 10},
    )  # fmt: skip
    assert len(fuse_bias(graph).steps) == 3
    assert len(fuse_bias(replace(graph, outputs=("p", "y"))).steps) == 3


def test_a_gelu_that_is_written_out_is_one_step():
    graph = graph_of(
        step("p", "MatMul", ("x",)), step("d", "Div", ("p",), kind="pointwise"), step("e", "Erf", ("d",)),
        step("a", "Add", ("e",), kind="pointwise"), step("m", "Mul", ("p", "a"), kind="pointwise"),
        step("h", "Mul", ("m",), kind="pointwise"), step("y", "MatMul", ("h",)),
    )  # fmt: skip
    assert [(one.operator, one.reads) for one in fuse_gelu(graph).steps] == [
        ("MatMul", ("x",)),
        ("Gelu", ("p",)),
        ("MatMul", ("h",)),
    ]


def test_a_residual_joins_the_normalization_after_it():
    graph = graph_of(
        step("p", "MatMul", ("x",)), step("q", "MatMul", ("p",)), step("s", "Add", ("p", "q")),
        step("n", "LayerNormalization", ("s",)), step("y", "MatMul", ("n",)),
    )  # fmt: skip
    assert [one.name for one in fuse_skip(graph).steps] == ["p", "q", "n", "y"]
    pre_norm = graph_of(*graph.steps[:4], step("y", "Add", ("s", "n")))
    assert len(fuse_skip(pre_norm).steps) == 5


def test_a_convolution_writes_its_sum_into_the_other_term():
    graph = graph_of(
        step("c", "Conv", ("x",)), step("d", "Conv", ("c",)), step("s", "Add", ("d", "c")), step("r", "Relu", ("s",)),
        step("y", "Conv", ("r",)),
    )  # fmt: skip
    fused = fuse_activation(fuse_sum(graph))
    assert [(one.operator, one.reads) for one in fused.steps] == [
        ("Conv", ("x",)),
        (SUMS, ("c", "c")),
        ("Conv", ("r",)),
    ]


def test_onednn_copies_a_convolution_and_an_lstm_s_weights():
    conv = step("c", "Conv", ("x",), ("w",))
    lstm = step("l", "LSTM", ("x",), ("w", "r", "b"), scratch=100)
    gru = step("g", "GRU", ("x",), ("w", "r", "b"), scratch=300)
    graph = graph_of(conv, lstm, gru, constants={"w": 7, "r": 8, "b": 9})
    assert list(torch_scratch(graph, conv, 2)) == [(2000, 7), (2000,)]
    assert list(torch_scratch(graph, conv, 1)) == []
    assert list(torch_scratch(graph, lstm, 2)) == [(7, 8, 300)]
    assert list(torch_scratch(graph, gru, 2)) == [(600, 200)]
    assert list(onednn_gates(graph, lstm, 200)) == [(10_000,)]


def load(runtime, graph, batch=1):
    use = Use(batch, models_of(forms(graph), runtime, batch), activations=False)
    return SESSIONS[runtime](forms(graph), use) / HEAVY


def test_how_often_each_runtime_holds_the_weights():
    one = products(1, weight=HEAVY)
    assert load("torchscript", one) == pytest.approx(1, rel=0.01)
    assert load("openvino", one) == pytest.approx(2, rel=0.01)  # the file and the packed copy
    assert load("openvino", one, 8) == pytest.approx(4, rel=0.01)
    assert 1 < load("onnxruntime", one) <= 2.2
    shapes = replace(one, computes_shapes=True)
    assert load("onnxruntime", shapes, 8) > load("onnxruntime", shapes) + 0.9
    lstm = graph_of(step("l", "LSTM", ("x",), ("w", "r", "b")), constants={"w": HEAVY // 2, "r": HEAVY // 2, "b": 16})
    assert load("openvino", lstm) == pytest.approx(4, rel=0.01)  # the file, reordered, copied, packed
    conv = graph_of(step("c", "Conv", ("x",), ("w",)), constants={"w": HEAVY})
    assert load("onnxruntime", conv) > load("onnxruntime", one) + 0.9


@pytest.mark.parametrize("runtime", RULES)
def test_parts_add_up_and_grow_with_the_batch(runtime):
    graph = forms(products(4, size=10_000))
    totals = [estimate_parts(graph, runtime, batch).total_bytes for batch in (2, 8, 32, 128)]
    assert totals == sorted(totals)
    assert totals[-1] - totals[0] >= 126 * 20_000
    parts = estimate_parts(graph, runtime, 8)
    assert parts.total_bytes == (
        parts.runtime_bytes + parts.weights_bytes + parts.activations_bytes + parts.workspace_bytes
    )


def test_precisions_narrow_what_they_can():
    graph = forms(replace(products(1), weights=Weights(0, 1000, 800)))
    assert weights_scale(graph, "fp32") == 1
    assert weights_scale(graph, "int8") == pytest.approx(0.4)  # 800 to 200, and 200 stay
    assert weights_scale(graph, "bf16") == pytest.approx(0.5)
    assert weights_scale(graph, "bf16", fp32_bytes=200) == pytest.approx(0.6)


def test_an_engine_holds_the_weights_once():
    graph = forms(products(1, weight=10**8))
    assert engine_parts(graph, 1, weights_scale=0.5, floats_scale=0.5).weights_bytes == 5 * 10**7


@pytest.mark.parametrize("runtime", RULES)
def test_the_total_alone_is_that_of_the_parts(runtime):
    graph = forms(products(4, size=10_000, weight=HEAVY))
    for batch in (1, 8):
        parts = estimate_parts(graph, runtime, batch)
        assert estimated_bytes(graph, runtime, batch) == parts.total_bytes
        counted = sum(
            rule * count
            for rule, count in zip(vars(RULES[runtime]).values(), counts_of(graph, runtime, batch), strict=True)
        )
        assert parts.runtime_bytes == round(counted)


def test_peaks_lie_within_their_ranges_and_openvino_has_none():
    graph = forms(products(12, size=300_000))
    least, most = estimated_range(graph, "torchscript", 8)
    assert least <= estimated_bytes(graph, "torchscript", 8) <= most
    assert least < most  # holes that do not join cost something
    assert estimated_range(graph, "openvino", 8) is None
    least, most = estimated_range(graph, "onnxruntime", 8)
    assert least <= estimated_bytes(graph, "onnxruntime", 8) <= most
    use = Use(8, ())
    assert torchscript_range(graph, use)[1] >= SESSIONS["torchscript"](graph, use)
