"""hrm-27m in steps: a day of `stream-step` is the whole causal pass, in torch and in the ONNX file."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tsexport.exporters.conversion import convert_to_onnx
from tsexport.models import hrm_27m
from tsexport.models.sources import identify, open_source
from tsexport.runtimes.registry import load
from tsexport.types import random_feeds

ATOL = 2e-5
"""fp32 against a sum in another order, in a few layers of unit scale."""
STREAM_ATOL = 5e-5
"""A day in steps against the whole pass: the same fp32 sums over caches of another length, layer upon layer."""

SMALL = hrm_27m.Config(
    **{"days": 5, "daily_features": 4, "minutes": 14, "minute_features": 3, "h_width": 16, "h_layers": 2, "h_heads": 2},
    **{"h_feed_forward": 20, "l_width": 24, "l_layers": 2, "l_heads": 3, "l_feed_forward": 40},
    causal=True,
)
STREAMS = {
    "a minute at a time": SMALL,
    "seven minutes at a time": replace(SMALL, stream_minutes=7),
    "windows": replace(SMALL, l_window=4),
    "steps across windows": replace(SMALL, l_window=3, stream_minutes=7),
    "cross-attention": replace(SMALL, l_window=5, cross_attention=True, stream_minutes=2),
}


@pytest.fixture(scope="module")
def make(random_weights):
    return lambda config: random_weights(hrm_27m.build, config, 0.5)


def stream_day(step, config, day, batch):
    """Run `step` over a day; `day` holds minutes, scale, shift and history."""
    spec = hrm_27m.COMPONENTS[-1].tensors(config)
    feeds = {one.name: np.zeros(one.with_batch(batch), one.dtype) for one in spec.inputs}
    feeds |= {name: day[name] for name in feeds if name in day}
    forecasts = []
    for first in range(0, config.minutes, config.stream_minutes):
        feeds["minutes"] = np.ascontiguousarray(day["minutes"][:, first : first + config.stream_minutes])
        answer = step(feeds)
        assert {name: (value.shape, value.dtype.name) for name, value in answer.items()} == {
            one.name: (one.with_batch(batch), one.dtype) for one in spec.outputs
        }
        forecasts.append(answer["forecast"])
        feeds |= {name.removeprefix("next_"): value for name, value in answer.items() if name.startswith("next_")}
    assert (feeds["position"] == config.minutes).all()
    return np.concatenate(forecasts, axis=1)


def day_of(whole, config, batch):
    """Return what a day's steps are fed, and the forecast of the whole pass."""
    known = {name: torch.from_numpy(array) for name, array in random_feeds(config.inputs, batch, 1).items()}
    with torch.inference_mode():
        forecast, _ = whole(**known)
        known["history"] = whole.h_module(known["daily"])
        known["scale"], known["shift"] = whole.conditioning.modulation(known["history"])
    return {name: value.numpy() for name, value in known.items()}, forecast.numpy()


def in_torch(whole, config):
    step, spec = hrm_27m.COMPONENTS[-1].take(whole), hrm_27m.COMPONENTS[-1].tensors(config)

    def run(feeds):
        with torch.inference_mode():
            answers = step(*(torch.from_numpy(feeds[one.name]) for one in spec.inputs))
        return {one.name: value.numpy() for one, value in zip(spec.outputs, answers, strict=True)}

    return run


@pytest.mark.parametrize("config", STREAMS.values(), ids=STREAMS)
def test_a_day_in_steps_is_the_whole_causal_pass(make, config):
    whole = make(config)
    day, expected = day_of(whole, config, batch=3)
    actual = stream_day(in_torch(whole, config), config, day, batch=3)
    np.testing.assert_allclose(actual, expected, atol=STREAM_ATOL, rtol=STREAM_ATOL)


def test_rows_of_a_batch_may_stand_at_different_minutes(make):
    config = STREAMS["windows"]
    whole = make(config)
    day, _ = day_of(whole, config, batch=1)
    step = in_torch(whole, config)
    early = {one.name: np.zeros(one.with_batch(1), one.dtype) for one in hrm_27m.COMPONENTS[-1].tensors(config).inputs}
    early |= {name: day[name] for name in ("scale", "shift")}
    answers = []
    for minute in range(6):
        early["minutes"] = day["minutes"][:, minute : minute + 1]
        answers.append((early.copy(), answer := step(early)))
        early |= {name.removeprefix("next_"): value for name, value in answer.items() if name.startswith("next_")}
    (first, first_answer), (last, last_answer) = answers[1], answers[5]
    together = step({name: np.concatenate([first[name], last[name]]) for name in first})
    for name, value in together.items():
        apart = np.concatenate([first_answer[name], last_answer[name]])
        np.testing.assert_allclose(value, apart, atol=ATOL, rtol=0)


def test_what_lies_before_the_day_or_the_window_in_a_cache_is_not_seen(make):
    config = STREAMS["windows"]
    whole = make(config)
    day, _ = day_of(whole, config, batch=1)
    spec = hrm_27m.COMPONENTS[-1].tensors(config)
    feeds = random_feeds(spec.inputs, 1, 0) | {name: day[name] for name in ("scale", "shift")}
    for position, seen in ((0, 0), (2, 2), (4, 0), (7, 3)):
        feeds["position"] = np.array([position])
        other = dict(feeds)
        for name in ("keys", "values"):
            other[name] = feeds[name].copy()
            other[name][:, :, : config.span - 1 - seen] += 5
        first, second = (in_torch(whole, config)(one)["forecast"] for one in (feeds, other))
        np.testing.assert_array_equal(first, second)


def stream_in_onnx(config, folder, seed=0):
    """Export the step, run a day through tsexport's session, and return it with the whole pass in torch."""
    settings = {name: getattr(config, name) for name in config.__dataclass_fields__}
    whole = open_source(identify("hrm-27m", settings=settings, seed=seed))
    step = open_source(identify("hrm-27m", settings=settings, seed=seed, component="stream-step"))
    artifact = convert_to_onnx(step.module, None, step.spec, None, folder / "step.onnx").artifact
    day, expected = day_of(whole.module, config, batch=2)
    with load(artifact, "onnxruntime", threads=1) as session:
        return stream_day(session.run, config, day, batch=2), expected


@pytest.mark.parametrize("config", STREAMS.values(), ids=STREAMS)
def test_a_day_in_steps_of_the_onnx_file_is_the_whole_causal_pass(config, tmp_path):
    actual, expected = stream_in_onnx(config, tmp_path)
    np.testing.assert_allclose(actual, expected, atol=STREAM_ATOL, rtol=STREAM_ATOL)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"l_window": 60, "stream_minutes": 5}], ids=["minutes", "windows of 60"])
def test_a_day_of_the_full_size_in_steps_of_the_onnx_file(changes, tmp_path):
    actual, expected = stream_in_onnx(hrm_27m.Config(causal=True, **changes), tmp_path)
    print(f"largest difference {np.abs(actual - expected).max():.2g}, largest value {np.abs(expected).max():.2g}")
    np.testing.assert_allclose(actual, expected, atol=STREAM_ATOL, rtol=STREAM_ATOL)
