"""Public checkpoints load strictly and reproduce what was published (skipped where they are not at hand)."""

import csv

import numpy as np
import pytest
import torch

from tsexport.errors import CheckpointError
from tsexport.models.sources import identify, open_source
from tsexport.types import random_feeds

CONTEXT, HORIZON = 336, 96
PATCHTST_TOLERANCE = 1e-5
PUBLISHED_DIGITS = 4


@pytest.fixture(scope="module")
def windows(etth1):
    """The published protocol: standardised by the training rows, test windows of stride 1."""
    with etth1.open() as file:
        values = np.array([[float(v) for v in row[1:]] for row in list(csv.reader(file))[1:]])
    train = values[:8640]
    test = ((values - train.mean(0)) / train.std(0)).astype(np.float32)[11520 - CONTEXT : 14400]
    views = np.lib.stride_tricks.sliding_window_view(test, CONTEXT + HORIZON, axis=0).transpose(0, 2, 1)
    return views[:, :CONTEXT], views[:, CONTEXT:]


def errors(opened, inputs, targets):
    parts = [opened.run({"series": inputs[i : i + 128]})["forecast"] for i in range(0, len(inputs), 128)]
    difference = np.concatenate(parts).astype(np.float64) - targets
    return (difference**2).mean(), np.abs(difference).mean()


def test_patchtst_etth1(windows, public_checkpoints):
    path = public_checkpoints / "patchtst_etth1_336_96_kemezeto.pth"
    opened = open_source(identify("patchtst", checkpoint=path))
    assert opened.notes == ("checkpoint unwrapped: model.",)
    whole_batches = len(windows[0]) // 128 * 128
    mse, mae = errors(opened, windows[0][:whole_batches], windows[1][:whole_batches])
    assert abs(mse - 0.381494) <= PATCHTST_TOLERANCE
    assert abs(mae - 0.404952) <= PATCHTST_TOLERANCE


@pytest.mark.parametrize(("name", "mse", "mae"), [("dlinear", 0.3841, 0.4047), ("linear", 0.3747, 0.3967)])
def test_linear_models_etth1(windows, public_checkpoints, name, mse, mae):
    opened = open_source(identify(name, checkpoint=public_checkpoints / f"{name}_etth1_336_96.pth"))
    found = errors(opened, *windows)
    assert [round(value, PUBLISHED_DIGITS) for value in found] == [mse, mae]


def test_another_models_checkpoint_is_refused(public_checkpoints):
    with pytest.raises(CheckpointError, match=r"does not fit linear: missing: Linear.weight"):
        open_source(identify("linear", checkpoint=public_checkpoints / "dlinear_etth1_336_96.pth"))


@pytest.mark.parametrize(
    ("factory", "file", "shape"),
    [
        ("cryptocast.py:lstm", "cryptocast_LSTM.pth", (3,)),
        ("cryptocast.py:cnn", "cryptocast_1D-CNN.pth", (3,)),
        ("m2lines.py:fcnn", "m2lines_fcnn_q_to_Sqtot1_0.pt", (1, 64, 64)),
    ],
)
def test_factories_take_public_checkpoints(public_checkpoints, factories, factory, file, shape):
    path = public_checkpoints / file
    opened = open_source(identify(f"{factories / factory}", checkpoint=path))
    stored = torch.load(path, map_location="cpu", weights_only=True)
    assert all(torch.equal(value, stored[name]) for name, value in opened.module.state_dict().items())
    feeds = random_feeds(opened.spec.inputs, 3, 0)
    (answer,) = opened.run(feeds).values()
    assert answer.shape == (3, *shape)
    assert np.isfinite(answer).all()
    # The answer is the module's own, under other batch sizes too.
    name = opened.spec.inputs[0].name
    alone = opened.run({name: feeds[name][1:2]})["output"][0]
    np.testing.assert_allclose(alone, answer[1], atol=1e-5 * float(np.abs(answer).max()), rtol=0)
