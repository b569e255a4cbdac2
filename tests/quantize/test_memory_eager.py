"""What torch takes and gives back in a call, recorded on fake tensors, against what a real call takes."""

import pytest
import torch
from torch import nn

from tsexport.bench.memory_plan import Event, Size, live_peak
from tsexport.bench.memory_torch import ONEDNN_BYTES, eager_events
from tsexport.quantize.memory_eager import record_eager
from tsexport.types import ModelSpec, TensorSpec

FLOAT = 4


def spec_of(*shape):
    inputs = (TensorSpec("x", "float32", ("batch", *shape)),)
    answers = (TensorSpec("y", "float32", ("batch",)),)
    return ModelSpec(name="m", family="linear", task="forecast", inputs=inputs, outputs=answers, parameters=0)


def record(module, *shape):
    return record_eager(module.eval(), spec_of(*shape))


def taken(events):
    return [(one.operator, one.size) for one in events if one.take]


def test_each_operator_s_answer_is_taken_and_given_back_after_its_last_use():
    events = record(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), 8)
    assert taken(events) == [
        ("addmm", Size(0, 16 * FLOAT)),
        ("relu", Size(0, 16 * FLOAT)),
        ("addmm", Size(0, 4 * FLOAT)),
    ]
    assert live_peak(list(eager_events(events, 10, scratch=True))) == 10 * 32 * FLOAT
    assert [one.take for one in events].count(False) == 2  # the answer is the caller's


def test_views_and_what_is_written_in_place_take_nothing():
    class Views(nn.Module):
        def forward(self, x):
            doubled = x * 2
            doubled.add_(1)
            return doubled.reshape(x.shape[0], 4, 2).transpose(1, 2)

    assert taken(record(Views(), 8)) == [("mul", Size(0, 8 * FLOAT))]


def test_attention_s_scores_are_there_where_they_are_written_out_alone():
    class Fused(nn.Module):
        def forward(self, x):
            return nn.functional.scaled_dot_product_attention(x, x, x)

    class WrittenOut(nn.Module):
        def forward(self, x):
            return torch.softmax(x @ x.transpose(-1, -2), dim=-1) @ x

    scores = 64 * 64 * FLOAT
    peaks = [
        live_peak([Event(one.take, one.key, one.size.at(1), True) for one in record(module, 2, 64, 8)])
        for module in (Fused(), WrittenOut())
    ]
    assert peaks[0] < scores
    assert peaks[1] >= 2 * 2 * scores


def test_a_convolution_is_copied_by_onednn_where_it_is_large_enough():
    events = record(nn.Conv1d(4, 8, 3, padding=1), 4, 64)
    (conv,) = [one for one in events if one.take and one.weights]
    assert conv.weights == (8 * 4 * 3 * FLOAT,)
    assert conv.reads == Size(0, 4 * 64 * FLOAT)
    assert 4 * 64 * FLOAT < ONEDNN_BYTES
    assert not any(event.key.startswith("scratch") for event in eager_events(events, 1, scratch=True))
    copies = [event.size for event in eager_events(events, 2, scratch=True) if event.take and "scratch" in event.key]
    assert copies == [2 * 4 * 64 * FLOAT, 8 * 4 * 3 * FLOAT, 2 * 8 * 64 * FLOAT]
    assert not any(event.key.startswith("scratch") for event in eager_events(events, 2, scratch=False))


def test_an_lstm_takes_its_gates_and_weights_beside_its_answer():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(8, 16, batch_first=True)

        def forward(self, x):
            return self.lstm(x)[0][:, -1]

    events = list(eager_events(record(Last(), 20, 8), 4, scratch=True))
    gates = 20 * (4 + 1) * 4 * 16 * FLOAT
    assert max(event.size for event in events if event.key.startswith("scratch")) == gates


class Asks(nn.Module):
    def forward(self, x):
        return x * 2 if float(x.sum()) > 0 else x


class Grows(nn.Module):
    def forward(self, x):
        for _ in range(x.shape[0]):
            x = x + 1
        return x


@pytest.mark.parametrize("module", [Asks(), Grows(), nn.TransformerEncoderLayer(16, 2, batch_first=True)])
def test_what_cannot_be_recorded_has_no_record(module):
    assert record(module, 4, 16) == ()
