"""Models as a user would bring them: `factories.py:lstm` and so on.  Attributes are named as in the checkpoints."""

import torch
from torch import Tensor, nn

from tsexport.types import TensorSpec


class StackedLstm(nn.Module):
    """bars [batch, 60, 16] -> [batch, 3]."""

    tsexport_inputs = {"bars": ("batch", 60, 16)}  # noqa: RUF012  # how a user would write it

    def __init__(self) -> None:
        super().__init__()
        self.lstm1 = nn.LSTM(16, 128, batch_first=True)
        self.lstm2 = nn.LSTM(128, 64, batch_first=True)
        self.lstm3 = nn.LSTM(64, 32, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(32, 64), nn.Linear(64, 3)

    def forward(self, bars: Tensor) -> Tensor:
        hidden = self.lstm3(self.lstm2(self.lstm1(bars)[0])[0])[0][:, -1]
        return self.fc2(torch.relu(self.fc1(hidden)))


class Cnn(nn.Module):
    """bars [batch, 60, 16] -> [batch, 3]."""

    tsexport_inputs = {"bars": ("batch", 60, 16)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(16, 64, 3, padding=1)
        self.conv2 = nn.Conv1d(64, 64, 3, padding=1)
        self.conv3 = nn.Conv1d(64, 32, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(32, 64), nn.Linear(64, 3)

    def forward(self, bars: Tensor) -> Tensor:
        x = torch.relu(self.conv1(bars.transpose(1, 2)))  # [batch, 64, 60]
        x = torch.max_pool1d(torch.relu(self.conv2(x)), 2)
        x = torch.relu(self.conv3(x)).mean(-1)
        return self.fc2(torch.relu(self.fc1(x)))


class TwoByTwo(nn.Module):
    """bars [batch, 12, 4], asset [batch] int64 -> mean [batch, 3], spread [batch, 12, 2]."""

    tsexport_inputs = (TensorSpec("bars", "float32", ("batch", 12, 4)), TensorSpec("asset", "int64", ("batch",)))

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 8)
        self.rnn = nn.GRU(4, 8, batch_first=True)
        self.mean, self.spread = nn.Linear(8, 3), nn.Linear(8, 2)

    def forward(self, bars: Tensor, asset: Tensor) -> dict[str, Tensor]:
        states = self.rnn(bars)[0] + self.embedding(asset)[:, None]  # [batch, 12, 8]
        return {"mean": self.mean(states.mean(1)), "spread": nn.functional.softplus(self.spread(states))}


def lstm() -> nn.Module:
    return StackedLstm()


def cnn() -> nn.Module:
    return Cnn()


def two_by_two() -> nn.Module:
    return TwoByTwo()


class PreNorm(nn.Module):
    """bars [batch, 6, 8] -> [batch, 6, 24]; of such an encoder's rows OpenVINO's process once ended."""

    tsexport_inputs = {"bars": ("batch", 6, 8)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(24, 2, 24, batch_first=True, norm_first=True, activation="gelu")
        self.embedding = nn.Linear(8, 24)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, bars: Tensor) -> Tensor:
        return self.encoder(self.embedding(bars))


def pre_norm() -> nn.Module:
    return PreNorm()
