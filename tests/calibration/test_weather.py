"""The reference weather: of unit scale, the same hours on every grid, learnable, streamed, split in time."""

import subprocess
import sys
import tracemalloc
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tsexport.calibration import weather
from tsexport.calibration.reference import reference_windows
from tsexport.calibration.weather import WeatherHours, amplitudes, fields, mixing_matrix, modes

CHANNELS, LATITUDES, LONGITUDES = 4, 12, 20
RESOLUTION = 1 / weather.STEPS_PER_UNIT
"""Values are rounded to this, so two ways to the same one differ by half of it, and more where both are rounded."""
SMALL = {"channels": CHANNELS, "latitudes": LATITUDES, "longitudes": LONGITUDES}


def split(name, config=SMALL):
    dataset, source = reference_windows("unet", config, 0, name, ("state",))
    assert source == "the reference weather"
    return dataset


def whole(dataset):
    (batch,) = dataset.batches(dataset.count)
    return batch.feeds["state"], batch.target


def test_fields_are_of_unit_scale_in_every_channel_and_zero_at_the_edges():
    values = fields(np.arange(weather.HOURS), 13, 16, 16)
    assert values.shape == (weather.HOURS, 13, 16, 16)
    assert values.dtype == np.float32
    assert np.abs(values.mean(axis=(0, 2, 3))).max() < 0.1
    assert np.abs(values.var(axis=(0, 2, 3)) - 1).max() < 0.2  # the largest waves change slowly
    by_latitude = values.var(axis=(0, 1, 3))
    assert by_latitude[[0, -1]].max() < 0.2 < 0.8 < by_latitude[4:12].min()


def test_a_field_is_the_sum_of_its_modes():
    hour, values = 7, fields(np.array([7]), CHANNELS, LATITUDES, LONGITUDES)[0]
    expected = np.zeros_like(values, dtype=np.float64)
    for index, (zonal, meridional) in enumerate(zip(*modes(), strict=True)):
        for row in range(LATITUDES):
            for column in range(LONGITUDES):
                wave = np.exp(2j * np.pi * zonal * column / LONGITUDES)
                wave *= np.sin(np.pi * meridional * (row + 0.5) / LATITUDES)
                expected[:, row, column] += (amplitudes(CHANNELS)[hour, :, index] * wave).real
    np.testing.assert_allclose(values, expected, atol=0.51 * RESOLUTION, rtol=0)


def test_the_same_hours_come_out_on_every_grid():
    coarse = fields(np.arange(3), CHANNELS, 5, 8)
    fine = fields(np.arange(3), CHANNELS, 15, 24)  # every third point of it is one of the coarse grid
    np.testing.assert_array_equal(coarse, fine[:, :, 1::3, ::3])


def test_mixing_keeps_the_variance():
    mixing = mixing_matrix(np.random.default_rng(3), 13)
    np.testing.assert_allclose(mixing @ mixing.T, np.eye(13), atol=1e-12, rtol=0)
    assert not np.allclose(mixing, np.eye(13), atol=0.1, rtol=0)


def test_the_next_hour_can_be_learned():
    """The formula with the true shift and mixing, but no damping, leaves little more than the noise."""
    state, target = whole(split("test"))
    waves = np.fft.fftfreq(LONGITUDES) * LONGITUDES
    spectrum = np.fft.fft(state, axis=3) * np.exp(-2j * np.pi * weather.SHIFT * waves)
    mixing = mixing_matrix(np.random.default_rng([weather.SEED, 0]), CHANNELS)
    predicted = np.einsum("cd,ndyx->ncyx", mixing, np.fft.ifft(spectrum, axis=3).real)
    persistence = np.square(state - target).mean()
    assert persistence > 0.12
    assert np.square(predicted - target).mean() < 0.25 * persistence


def test_splits_follow_each_other_in_time_and_share_no_hour():
    parts = [split(name) for name in ("train", "validation", "test")]
    hours = [{int(name.partition(":")[2]) for name in part.ids(range(part.count))} for part in parts]
    with_target = [one | {hour + 1 for hour in one} for one in hours]
    assert [len(one) for one in with_target] == [1400, 300, 300]
    assert max(with_target[0]) < min(with_target[1])
    assert max(with_target[1]) < min(with_target[2])
    assert parts[2].ids([0, 2]) == ("test:001700", "test:001702")


def test_the_target_is_the_next_hour():
    state, target = whole(split("validation"))
    np.testing.assert_array_equal(state[1:], target[:-1])


@settings(deadline=None)
@given(st.sets(st.integers(0, 298), min_size=1, max_size=12).map(sorted), st.integers(1, 7))
def test_any_samples_in_any_batches_are_those_of_the_whole(indices, batch_size):
    dataset = split("test")
    state, target = whole(dataset)
    batches = list(dataset.read(indices, batch_size))
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    np.testing.assert_array_equal(np.concatenate([batch.feeds["state"] for batch in batches]), state[indices])
    np.testing.assert_array_equal(np.concatenate([batch.target for batch in batches]), target[indices])
    assert sum((batch.ids for batch in batches), ()) == dataset.ids(indices)


def test_the_digest_follows_everything_configured():
    dataset = split("test")
    others = [
        split("train"),
        split("test", {**SMALL, "channels": 3}),
        split("test", {**SMALL, "latitudes": 14}),
        split("test", {**SMALL, "longitudes": 16}),
        replace(dataset, input_name="field"),
    ]
    assert len({one.digest for one in (dataset, *others)}) == 6
    assert split("test").digest == dataset.digest


def test_one_channel_has_nothing_to_mix_with():
    state, _ = whole(split("test", {**SMALL, "channels": 1}))
    assert state.shape == (299, 1, LATITUDES, LONGITUDES)


def test_reading_holds_one_batch():
    """1400 hours of 13 channels on 64x64 are 298 MB."""
    dataset = WeatherHours("state", 13, 64, 64, "train", 0, 1400)
    next(dataset.batches(1))  # the amplitudes and the modes are kept
    tracemalloc.start()
    try:
        for batch in dataset.batches(4, stop=40):
            assert len(batch) == 4
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * 2**20


def test_another_process_makes_the_same_fields():
    code = (
        "import numpy as np; from tsexport.calibration.weather import fields\n"
        "print(np.round(fields(np.array([0, 1999]), 2, 4, 4) * 1024).astype(int).ravel().tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = np.round(fields(np.array([0, 1999]), 2, 4, 4) * 1024).astype(int).ravel().tolist()
    assert done.stdout.strip() == str(here)


def test_fields_are_those_the_checkpoints_were_trained_on():
    values = fields(np.array([0, 1000, 1999]), 13, 64, 64)
    found = (values[0, 0, 20, 5], values[1, 7, 31, 31], values[2, 12, 40, 60])
    assert [float(value) / RESOLUTION for value in found] == [-2367, -159, -621]
