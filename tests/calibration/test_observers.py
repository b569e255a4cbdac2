"""Every observer against plain numpy on the raw data, and what must hold for any data."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tsexport.calibration.activations import tensor_range
from tsexport.calibration.histograms import Histograms
from tsexport.calibration.observers import quantization_of, range_of
from tsexport.calibration.table import Observer
from tsexport.errors import ConfigurationError

GENERATOR = np.random.default_rng(7)
SHAPES = {
    "normal": GENERATOR.standard_normal(20_000),
    "behind relu": np.maximum(GENERATOR.standard_normal(20_000), 0),
    "laplace": GENERATOR.laplace(size=20_000) * 1e-3,
    "outliers": np.concatenate([GENERATOR.standard_normal(20_000), [60.0, -30.0]]),
    "away from 0": GENERATOR.standard_normal(20_000) + 20,
    "heavy tails": GENERATOR.standard_t(3, 20_000) * 1e4,
    "behind gelu": (x := GENERATOR.standard_normal(20_000)) * 0.5 * (1 + np.tanh(0.8 * (x + 0.045 * x**3))),
}
OBSERVERS = [
    Observer(method, percentile=99.9 if method == "percentile" else None, symmetric=symmetric)
    for method in ("minmax", "percentile", "mse", "entropy")
    for symmetric in (False, True)
]
FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)


def seen_of(values, axis=None):
    histograms = Histograms("t", axis)
    for part in np.array_split(values.astype(np.float32), 7):
        histograms.update(part)
    return histograms


def in_eight_bits(values, low, high, symmetric):
    """Quantize and dequantize, as numpy does it."""
    if symmetric:
        scale = high / 127
        return np.clip(np.round(values / scale), -127, 127) * scale
    low, high = min(low, 0), max(high, 0)
    scale = (high - low) / 255
    zero_point = np.round(-low / scale)
    return (np.clip(np.round(values / scale) + zero_point, 0, 255) - zero_point) * scale


def mean_squared_error(values, low, high, symmetric):
    return np.mean((values - in_eight_bits(values, low, high, symmetric)) ** 2)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("symmetric", [False, True])
def test_minmax_is_exact(name, symmetric):
    values = SHAPES[name].astype(np.float32)
    low, high = range_of(seen_of(values).channels[0], Observer(symmetric=symmetric))
    assert (low, high) == ((-abs(values).max(), abs(values).max()) if symmetric else (values.min(), values.max()))


def value_of_rank(values, share):
    """The smallest value that at least this share of all does not exceed."""
    return np.sort(values.astype(float))[max(0, int(np.ceil(np.round(share * len(values), 6))) - 1)]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("percentile", [90.0, 99.9, 99.99, 100.0])
def test_percentile_is_numpys_to_one_bin(name, percentile):
    values = SHAPES[name].astype(np.float32)
    (seen,) = seen_of(values).channels
    cut = (1 - percentile / 100) / 2
    exact_low, exact_high = value_of_rank(values, cut), value_of_rank(values, 1 - cut)
    low, high = range_of(seen, Observer("percentile", percentile))
    assert exact_low - seen.width <= low <= exact_low
    assert exact_high <= high <= exact_high + seen.width
    exact = value_of_rank(np.abs(values), percentile / 100)
    low, amax = range_of(seen, Observer("percentile", percentile, symmetric=True))
    assert low == -amax
    assert exact <= amax <= exact + seen.magnitudes.width


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("symmetric", [False, True])
def test_mse_is_within_two_percent_of_the_best_of_a_grid(name, symmetric):
    values = SHAPES[name]
    (seen,) = seen_of(values).channels
    low, high = range_of(seen, Observer("mse", symmetric=symmetric))
    factors = np.concatenate([np.linspace(0.01, 1, 60), [high / seen.maximum if seen.maximum > 0 else 1]])
    least = min(
        mean_squared_error(values, *ends, symmetric)
        for ends in (
            [(-f * abs(values).max(), f * abs(values).max()) for f in factors]
            if symmetric
            else [(f * min(values.min(), 0), g * values.max()) for f in factors for g in factors[::4]]
        )
    )
    assert mean_squared_error(values, low, high, symmetric) <= 1.02 * least
    assert mean_squared_error(values, low, high, symmetric) <= mean_squared_error(
        values, values.min(), abs(values).max() if symmetric else values.max(), symmetric
    )


def plain_entropy(values, width, bins, levels):
    """The threshold by loops, from the raw values."""
    counts, _ = np.histogram(np.abs(values), bins=np.arange(bins + 1) * width)
    counts = counts.astype(float)
    counts[0] = counts[1]
    best = (np.inf, bins)
    for kept in sorted({*range(levels, bins, 8), bins}):
        p = counts[:kept].copy()
        p[-1] += counts[kept:].sum()
        q = np.zeros(kept)
        for level in range(levels):
            group = [i for i in range(kept) if i * levels // kept == level]
            filled = [i for i in group if p[i] > 0]
            for i in filled:
                q[i] = counts[group].sum() / len(filled)
        some = p > 0
        if (q[some] == 0).any():
            continue
        p, q = p[some] / p.sum(), q[some] / q[some].sum()
        best = min(best, (float(np.sum(p * np.log(p / q))), kept))
    return best[1] * width


@pytest.mark.parametrize("name", ["behind relu", "laplace", "outliers"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_entropy_is_the_plain_loops(name, symmetric):
    values = SHAPES[name].astype(np.float32)
    histograms = Histograms("t", bins=512)
    histograms.update(values)
    (seen,) = histograms.channels
    magnitudes = seen.magnitudes
    levels = 256 if values.min() >= 0 and not symmetric else 128
    threshold = plain_entropy(values.astype(float), magnitudes.width, len(magnitudes.counts), levels)
    low, high = range_of(seen, Observer("entropy", symmetric=symmetric))
    assert high == pytest.approx(min(threshold, abs(values).max() if symmetric else values.max()), rel=1e-12)
    assert low == pytest.approx(-high if symmetric else max(-threshold, values.min()), rel=1e-12)


def test_entropy_and_mse_give_outliers_up():
    many = np.random.default_rng(0).standard_normal(200_000)
    (far,) = seen_of(np.concatenate([many, [60.0, -30.0]])).channels
    assert range_of(far, Observer("entropy"))[1] < 10
    (near,) = seen_of(np.concatenate([many, [8.0]])).channels
    assert range_of(near, Observer("mse"))[1] < 6


@pytest.mark.parametrize("observer", OBSERVERS, ids=str)
def test_channels_have_the_ranges_of_tensors(observer):
    values = np.stack([SHAPES[name][:2000] for name in ("normal", "behind relu", "heavy tails")], axis=1)
    axis = Observer(observer.method, observer.percentile, observer.symmetric, axis=1)
    found = tensor_range("t", seen_of(values, 1).channels, axis)
    for index in range(3):
        alone = Histograms("t", bins=1024)
        alone.update(values[:, index].astype(np.float32))
        assert (found.channel_lows[index], found.channel_highs[index]) == range_of(alone.channels[0], observer)
    assert (found.low, found.high) == (min(found.channel_lows), max(found.channel_highs))


@settings(deadline=None)
@given(hnp.arrays(np.float32, st.integers(1, 50), elements=FLOATS), st.sampled_from(OBSERVERS))
def test_a_range_is_ordered_and_reaches_no_further_than_the_data(values, observer):
    low, high = range_of(seen_of(values).channels[0], observer)
    assert low <= high
    if observer.symmetric:
        assert low == -high
        assert high <= np.abs(values).max()
    else:
        assert values.min() <= low
        assert high <= values.max()
    if observer.method == "minmax":
        assert (low <= values).all()
        assert (values <= high).all()


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, st.integers(1, 50), elements=FLOATS),
    st.sampled_from(OBSERVERS),
    st.sampled_from(["s8", "u8"]),
)
def test_scale_and_zero_point_hold_zero_and_the_range(values, observer, integer):
    low, high = range_of(seen_of(values).channels[0], observer)
    found = quantization_of(low, high, integer, symmetric=observer.symmetric)
    least, most = (0, 255) if integer == "u8" else (-128, 127)
    assert found.scale > 0
    assert np.isfinite(np.float32(found.scale))
    assert np.float32(found.scale) == found.scale
    assert least <= found.zero_point <= most
    if observer.symmetric:
        assert found.zero_point == (0 if integer == "s8" else 128)
    slack = found.scale * (0.5 + 1e-4)
    assert (least - found.zero_point) * found.scale - slack <= min(low, 0)
    assert max(high, 0) <= (most - found.zero_point) * found.scale + slack


@pytest.mark.parametrize("observer", OBSERVERS, ids=str)
@pytest.mark.parametrize("value", [0.0, 3.0, -1e-40, 1e30])
def test_constant_tensors_have_a_scale(observer, value):
    low, high = range_of(seen_of(np.full(40, value)).channels[0], observer)
    assert max(abs(low), abs(high)) == np.abs(np.float32(value))
    found = quantization_of(low, high, "s8", symmetric=observer.symmetric)
    assert found.scale > 0
    if value == 0:
        assert (low, high, found.scale) == (0, 0, 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("min-max",), r"the observer 'min-max' is unknown \(did you mean 'minmax'\?\); allowed are minmax, entropy"),
        (("mse", 99.9), "the observer 'mse' has percentile 99.9; a percentile belongs to the method 'percentile'"),
        (("percentile",), "the observer 'percentile' has percentile None"),
        (("percentile", 50.0), r"percentile is 50.0; allowed is above 50 and up to 100"),
        (("percentile", 100.1), r"percentile is 100.1; allowed is above 50 and up to 100"),
        (("minmax", None, False, 0), "the observer's axis is 0; allowed is 1 or more, since 0 is the batch"),
    ],
)
def test_an_observer_that_cannot_be(arguments, words):
    with pytest.raises(ConfigurationError, match=words):
        Observer(*arguments)


def test_an_observer_says_what_it_is():
    assert str(Observer("percentile", 99.99)) == "percentile 99.99, affine, per tensor"
    assert str(Observer("mse", symmetric=True, axis=1)) == "mse, symmetric, per channel on axis 1"
