"""Liveness and ONNX Runtime's arena, on graphs small enough to count by hand."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tsexport.bench.memory_arena import FIRST_REGION_BYTES, Arena, Region, arena_regions, planned_bytes
from tsexport.bench.memory_plan import Event, MemoryGraph, Size, Step, Weights, live_peak, trace

LIGHT = Weights(0, 4000, 4000)


def chain(*operators: tuple[str, str], size=100, weights=LIGHT, computes_shapes=False):
    """A chain x -> t0 -> t1 ... of steps (operator, kind), each tensor of `size` bytes a sample."""
    names = ["x", *(f"t{i}" for i in range(len(operators)))]
    steps = tuple(
        Step(f"s{i}", operator, kind, (names[i],), (names[i + 1],)) for i, (operator, kind) in enumerate(operators)
    )
    return MemoryGraph(steps, {name: Size(0, size) for name in names}, ("x",), (names[-1],), weights, computes_shapes)


def peak(graph, batch=1, *, in_place=True):
    return live_peak(list(trace(graph, batch, in_place=in_place)))


def test_two_tensors_of_a_chain_live_at_once():
    graph = chain(*[("MatMul", "step")] * 5)
    assert peak(graph) == 200
    assert peak(graph, 8) == 1600


def test_the_caller_s_inputs_count_as_nothing():
    assert peak(chain(("MatMul", "step"))) == 100


def test_a_pointwise_step_overwrites_what_nobody_reads_later():
    graph = chain(("MatMul", "step"), ("Relu", "pointwise"), ("MatMul", "step"))
    assert peak(graph) == 200
    assert (
        peak(chain(("MatMul", "step"), ("Relu", "pointwise"), ("Sigmoid", "pointwise"), ("Relu", "pointwise"))) == 200
    )
    assert peak(chain(("MatMul", "step"), ("Relu", "pointwise"), ("Relu", "pointwise")), in_place=False) == 200


def test_what_is_read_again_is_not_overwritten():
    steps = (
        Step("a", "MatMul", "step", ("x",), ("t",)),
        Step("b", "Relu", "pointwise", ("t",), ("r",)),
        Step("c", "Add", "pointwise", ("t", "r"), ("s",)),
        Step("d", "MatMul", "step", ("s",), ("y",)),
    )
    graph = MemoryGraph(steps, dict.fromkeys("xtrsy", Size(0, 100)), ("x",), ("y",), Weights(0, 0, 0), False)
    assert peak(graph) == 200  # t and r; then s in the place of one; then y beside s
    assert peak(graph, in_place=False) == 300


def test_a_view_takes_nothing_and_keeps_what_it_looks_at():
    graph = chain(("MatMul", "step"), ("Reshape", "view"), ("MatMul", "step"), ("MatMul", "step"))
    assert peak(graph) == 200
    events = list(trace(graph, 1, in_place=True))
    assert [event.key for event in events if event.take] == ["t0", "t2", "t3"]


def test_scratch_lives_only_while_its_step_runs():
    step = Step("lstm", "LSTM", "step", ("x",), ("y",), Size(0, 1000))
    graph = MemoryGraph((step,), {"x": Size(0, 10), "y": Size(0, 10)}, ("x",), ("y",), Weights(0, 0, 0), False)
    assert peak(graph, 2) == 2020


@st.composite
def graphs(draw):
    """Steps that each read one or two tensors made before."""
    count = draw(st.integers(1, 12))
    names, steps = ["x"], []
    for index in range(count):
        reads = tuple(draw(st.lists(st.sampled_from(names), min_size=1, max_size=2)))
        kind = draw(st.sampled_from(("step", "pointwise", "view")))
        steps.append(Step(f"s{index}", "MatMul", kind, reads, (f"t{index}",), Size(draw(st.integers(0, 50)))))
        names.append(f"t{index}")
    sizes = {name: Size(0, draw(st.integers(1, 5)) * 100) for name in names}
    return MemoryGraph(tuple(steps), sizes, ("x",), (names[-1],), Weights(0, 1000, 1000), False)


@given(graphs(), st.integers(1, 40))
@settings(deadline=None)
def test_nothing_is_given_back_twice_and_only_outputs_are_left(graph, batch):
    for in_place in (True, False):
        held = {}
        for event in trace(graph, batch, in_place=in_place):
            if event.take:
                assert event.key not in held
                held[event.key] = event.size
            else:
                assert held.pop(event.key) == event.size
        assert len(held) <= 1  # the output; none where it is a view of the input


@given(graphs(), st.integers(1, 40))
@settings(deadline=None)
def test_arena_and_block_hold_at_least_what_lives_at_once(graph, batch):
    events = list(trace(graph, batch, in_place=True))
    planned = [event for event in events if event.planned]
    assert planned_bytes(events) >= live_peak(planned)
    assert used(arena_regions(events)) >= live_peak(events)
    assert live_peak(events) <= live_peak(list(trace(graph, batch, in_place=False)))


def used(regions):
    return sum(region.used for region in regions)


def test_regions_double_and_only_what_is_used_counts():
    arena = Arena()
    arena.take("a", 1000)
    assert arena.regions == (Region(FIRST_REGION_BYTES, 1024),)
    arena.take("b", FIRST_REGION_BYTES)  # does not fit beside a: a region of its own, of 2 MiB
    assert used(arena.regions) == 1024 + FIRST_REGION_BYTES
    arena.give("b")
    arena.take("c", FIRST_REGION_BYTES)
    assert arena.regions == (Region(FIRST_REGION_BYTES, 1024), Region(2 * FIRST_REGION_BYTES, FIRST_REGION_BYTES))


def test_a_second_run_takes_one_block_beside_what_the_first_one_took():
    mib = 1 << 20
    first = [Event(True, "a", 3 * mib, True), Event(True, "b", 3 * mib, True), Event(False, "a", 3 * mib, True)]
    events = [*first, Event(True, "c", 3 * mib, True), Event(False, "b", 3 * mib, True)]
    events.append(Event(False, "c", 3 * mib, True))
    assert planned_bytes(events) == 6 * mib
    assert used(arena_regions(events)) == 12 * mib
