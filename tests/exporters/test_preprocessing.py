"""The preparation as a torch module: held against numpy, and exported, against it on every runtime."""

from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import nn

from tsexport.calibration.preparation import (
    FIRST_MINUTE,
    LAST_MINUTE,
    calendar,
    calendar_tables,
    damage,
    fill_gaps,
    finish,
    prepare,
    target_scale_of,
)
from tsexport.exporters.conversion import convert_to_onnx, convert_to_openvino, convert_to_torchscript
from tsexport.exporters.preprocessing import Before, Behind, Calendar, Filled, PreparedModel, sorting_layers, split
from tsexport.preparation import Preparation
from tsexport.runtimes.registry import load
from tsexport.types import ModelSpec, TensorSpec

STEPS = 30
HORIZON = 4
COLUMNS = ("price", "volume", "return")
LEVELS = np.array([120.0, 1e9, 0.0])
SPREADS = np.array([2.0, 3e3, 1e-3])
SCALED_ATOL = 5e-5
"""Scaled values are of size 1, and volumes of 1e9 come in steps of 64 where they vary by 3000: the step is exact, what
is computed from it is rounded to 24 bits some ten times."""
BACK_RTOL = 4 * 2.0**-24
"""Scaling back rounds twice."""

preparation = partial(Preparation, raw="raw_x", columns=COLUMNS, scaling="none")


def raw_windows(count=8, seed=0):
    walk = np.random.default_rng(seed).standard_normal((count, STEPS, 3)).cumsum(axis=1)
    return (walk * SPREADS + LEVELS).astype(np.float32)


def statistics():
    """As if taken from the series: float64, no float32 holds the volume's mean."""
    return {
        "mean": (120.123456789, 1e9 + 37.7, 1e-4),
        "std": (2.5, 4321.0, 3e-3),
        "target_mean": (1e9 + 37.7, 120.123456789),
        "target_std": (4321.0, 2.5),
    }


CASES = {
    "none": preparation(),
    "standard": preparation(scaling="standard", targets=(1, 0), **statistics()),
    "standard-zeros": preparation(scaling="standard", short_windows="zeros", targets=(1, 0), **statistics()),
    "minmax-window": preparation(scaling="minmax-window", targets=(1, 0)),
    "minmax-window-zeros": preparation(scaling="minmax-window", short_windows="zeros", targets=(1, 0)),
    "revin": preparation(scaling="revin", targets=(1, 0)),
}

# --- the parts in eager torch ----------------------------------------------------------------------------------------


gappy = arrays(
    np.float32,
    array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=9),
    elements=st.one_of(st.just(np.nan), st.floats(-1e6, 1e6, width=32)),
)


@given(gappy, st.booleans())
def test_gaps_are_filled_to_the_bit(windows, zeros):
    module = Filled(windows.shape[1], torch.zeros(windows.shape[2]) if zeros else None)
    filled = module(torch.from_numpy(windows)).numpy()
    np.testing.assert_array_equal(filled, fill_gaps(windows, "zeros" if zeros else "repeat").astype(np.float32))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("damaged", [False, True])
def test_scaling_in_float32_is_that_in_float64(name, damaged):
    chosen = CASES[name]
    windows = damage(raw_windows()) if damaged else raw_windows()
    expected = prepare(chosen, {chosen.raw: windows})
    scaled, offset, span = Before(chosen, STEPS, None)(torch.from_numpy(windows))
    unit = np.abs(LEVELS).max() if chosen.scaling == "none" else 1.0
    np.testing.assert_allclose(scaled.numpy(), expected.arrays[0], rtol=1e-6, atol=SCALED_ATOL * unit)
    answer = np.random.default_rng(1).standard_normal((8, HORIZON, 2)).astype(np.float32)
    back = Behind(chosen, 2)(torch.from_numpy(answer), offset, span).numpy()
    wanted = finish(chosen, answer, expected.scale)
    np.testing.assert_allclose(back, wanted, rtol=BACK_RTOL, atol=BACK_RTOL)


def scaled_large(module_preparation, shift, spread):
    windows = (np.linspace(-1, 1, STEPS)[None, :, None] * spread + shift).astype(np.float32)
    windows = np.repeat(windows, 3, axis=2)
    got = Before(module_preparation, STEPS, None)(torch.from_numpy(windows))[0].numpy()
    return got, prepare(module_preparation, {module_preparation.raw: windows}).arrays[0]


@given(st.floats(-1e9, 1e9), st.floats(1e-3, 1e6), st.sampled_from(["standard", "minmax-window", "revin"]))
def test_large_levels_cost_no_precision(shift, spread, scaling):
    """What float32 holds of the raw values is scaled as exactly as float32 can: nothing cancels a second time."""
    chosen = preparation(scaling=scaling)
    if scaling == "standard":
        chosen = preparation(scaling=scaling, mean=(shift,) * 3, std=(spread,) * 3)
    got, expected = scaled_large(chosen, shift, spread)
    size = np.abs(expected).max() + 1
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * size)


@given(st.integers(0, 2**31 - 1), st.integers(1, 10**5))
def test_quotient_and_remainder(whole, part):
    got = [int(number) for number in split(torch.tensor([whole]), part)]
    assert got == list(divmod(whole, part))


def test_every_day_from_1901_to_february_2100():
    days = np.arange(FIRST_MINUTE // 1440, LAST_MINUTE // 1440 + 1)
    minutes = np.minimum(days * 1440 + np.random.default_rng(0).integers(0, 1440, len(days)), LAST_MINUTE)
    for form in ("marks", "indices"):
        got = Calendar(*calendar_tables(form))(torch.from_numpy(minutes[None])).numpy()
        np.testing.assert_array_equal(got, calendar(minutes[None], form))


@given(st.integers(-(2**40), 2**40))
def test_any_time_has_marks(minute):
    minutes = np.array([[minute]])
    marks = Calendar(*calendar_tables("marks"))(torch.from_numpy(minutes)).numpy()
    np.testing.assert_array_equal(marks, calendar(minutes, "marks"))


@pytest.mark.parametrize("count", range(1, 11))
def test_a_network_that_sorts_zeros_and_ones_sorts_everything(count):
    """The 0-1 principle (Knuth, The Art of Computer Programming 3, 5.3.4, theorem Z), over every such input."""
    module = Behind(preparation(sorts_quantiles=True), count)
    rows = np.array(list(product([0.0, 1.0], repeat=count)), np.float32)
    np.testing.assert_array_equal(module(torch.from_numpy(rows), None, None).numpy(), np.sort(rows, axis=-1))


@given(
    arrays(
        np.float32,
        st.tuples(st.just(2), st.just(3), st.integers(1, 12)),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    )
)
def test_quantiles_are_sorted_as_numpy_sorts(values):
    module = Behind(preparation(sorts_quantiles=True), values.shape[-1])
    np.testing.assert_array_equal(module(torch.from_numpy(values), None, None).numpy(), np.sort(values, axis=-1))


def test_layers_touch_a_value_once():
    for count in range(1, 20):
        for layer in sorting_layers(count):
            touched = [place for pair in layer for place in pair]
            assert len(set(touched)) == len(touched)
            assert all(0 <= low < high < count for low, high in layer)


# --- exported --------------------------------------------------------------------------------------------------------


class Recent(nn.Module):
    """[batch, STEPS, 3] -> [batch, HORIZON, 2]: a small model, so that what is compared is the preparation."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Linear(3, 2)

    def forward(self, windows):
        return self.mix(windows[:, -HORIZON:])


class Marked(nn.Module):
    """[batch, STEPS, 3] and marks [batch, STEPS, 4] -> three values a step that cross."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.mix, self.marks = nn.Linear(3, 3), nn.Linear(4, 3)

    def forward(self, windows, marks):
        return self.mix(windows) + self.marks(marks)


SCALED = TensorSpec("forecast", "float32", ("batch", HORIZON, 2))
RAW = TensorSpec("raw_x", "float32", ("batch", STEPS, 3))
TIMES = TensorSpec("time_minutes", "int64", ("batch", STEPS))
MARKED = TensorSpec("quantiles", "float32", ("batch", STEPS, 3))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a function that exports a prepared module to every format, once."""
    done = {}

    def export(name, module, spec, real):
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            onnx = convert_to_onnx(module, None, spec, real, folder / "model.onnx").artifact
            script = convert_to_torchscript(module, spec, real, folder / "model.pt").artifact
            ir = convert_to_openvino(onnx, folder / "model.xml").artifact
            done[name] = {"onnxruntime": onnx, "tract": onnx, "torchscript": script, "openvino": ir}
        return done[name]

    return export


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("runtime", ["torchscript", "onnxruntime", "openvino", "tract"])
def test_every_runtime_prepares_as_numpy(exported, name, runtime):
    chosen = CASES[name]
    model = Recent().eval()
    module = PreparedModel(model, chosen, STEPS, 2, None).eval().requires_grad_(False)
    spec = ModelSpec("recent", "custom", "forecast", (RAW,), (SCALED,))
    artifact = exported(name, module, spec, {RAW.name: damage(raw_windows())})[runtime]
    for windows in (raw_windows(), damage(raw_windows(seed=1)), np.full((1, STEPS, 3), np.nan, np.float32)):
        prepared = prepare(chosen, {RAW.name: windows})
        with torch.no_grad():
            answer = model(torch.from_numpy(prepared.arrays[0])).numpy()
        with load(artifact, runtime, threads=1) as session:
            got = session.run({RAW.name: windows})["forecast"]
        # held against each other in scaled units, where raw ones would hide the variation behind the level
        unit = target_scale_of(chosen, prepared.scale).span if chosen.targets else np.abs(LEVELS).max()
        wanted = finish(chosen, answer, prepared.scale).astype(np.float64)
        steps_of_float32 = np.spacing(np.abs(wanted).astype(np.float32))
        np.testing.assert_array_less(np.abs(got - wanted), SCALED_ATOL * unit + 2 * steps_of_float32 + 1e-30)


@pytest.mark.parametrize("runtime", ["torchscript", "onnxruntime", "openvino", "tract"])
def test_every_runtime_has_the_calendar_and_the_order(exported, runtime):
    chosen = preparation(beside=("marks",), sorts_quantiles=True)
    model = Marked().eval()
    module = PreparedModel(model, chosen, STEPS, 3, Calendar(*calendar_tables("marks"))).eval().requires_grad_(False)
    spec = ModelSpec("marked", "custom", "quantiles", (RAW, TIMES), (MARKED,))
    generator = np.random.default_rng(5)
    windows = generator.standard_normal((64, STEPS, 3)).astype(np.float32)
    midnights = generator.integers(FIRST_MINUTE // 1440, LAST_MINUTE // 1440, (64, STEPS)) * 1440
    artifacts = exported("marked", module, spec, {RAW.name: windows[:4], TIMES.name: midnights[:4]})
    with load(artifacts[runtime], runtime, threads=1) as session:
        for times in (midnights, midnights - 1, midnights + 1, midnights * 0 - 10**9, midnights * 0 + 10**8):
            prepared = prepare(chosen, {RAW.name: windows, TIMES.name: times})
            with torch.no_grad():
                answer = model(*map(torch.from_numpy, prepared.arrays)).numpy()
            got = session.run({RAW.name: windows, TIMES.name: times})["quantiles"]
            np.testing.assert_allclose(got, np.sort(answer, axis=-1), rtol=1e-5, atol=1e-5)
            assert (np.diff(got, axis=-1) >= 0).all()
