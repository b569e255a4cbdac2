"""Small torch modules of the kinds that the project exports, and their specifications."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tsexport.types import ModelSpec, TensorSpec


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 3)
        )

    def forward(self, x):
        return self.net(x)  # [B, 6] -> [B, 3]


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.2, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x)).mean(1))  # [B, 8, 4] -> [B, 3]


class Lstm(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 8, num_layers=2, batch_first=True, dropout=0.1)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])  # [B, 8, 4] -> [B, 3]


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 3, padding=1)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(F.relu(self.norm(self.conv(x))).mean(-1))  # [B, 4, 8] -> [B, 3]


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(4, 6)
        self.body = Mlp()

    def forward(self, x, asset):
        return self.body(x + self.embedding(asset))  # [B, 6], [B] int64 -> [B, 3]


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean, self.spread = nn.Linear(6, 3), nn.Linear(6, 2)

    def forward(self, x):
        return self.mean(x), F.softplus(self.spread(x))  # [B, 6] -> [B, 3], [B, 2]


class Repeated(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.mix(torch.tanh(self.mix(x)))))  # [B, 6] -> [B, 3]


class AlwaysDropout(nn.Module):
    def forward(self, x):
        return F.dropout(x, 0.5, training=True)


class BakedReshape(nn.Module):
    def forward(self, x):
        return x.reshape(int(x.shape[0]), 3, 2).sum(-1)


class BakedValue(nn.Module):
    def forward(self, x):
        return x[:, :3] / len(x)


class Branching(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x * 2
        return x - 100


class UnfoldAfterPad(nn.Module):
    """The TorchScript-based ONNX exporter cannot hold this: "input size not accessible"."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(4, 3)

    def forward(self, x):
        patches = F.pad(x, (0, 2), mode="replicate").unfold(-1, 4, 2)  # [B, 5, 8] -> [B, 5, 4, 4]
        return self.project(patches).mean(-2)  # [B, 5, 3]


class Unexportable(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvals(x).abs()  # [B, 4, 4] -> [B, 4]


def tensor(name, *shape, dtype="float32"):
    return TensorSpec(name, dtype, ("batch", *shape))


CASES = {
    "mlp": (Mlp, [tensor("x", 6)], [tensor("y", 3)]),
    "encoder": (Encoder, [tensor("past", 8, 4)], [tensor("forecast", 3)]),
    "lstm": (Lstm, [tensor("x", 8, 4)], [tensor("y", 3)]),
    "conv": (Conv, [tensor("x", 4, 8)], [tensor("y", 3)]),
    "two-inputs": (TwoInputs, [tensor("x", 6), tensor("asset", dtype="int64")], [tensor("y", 3)]),
    "two-outputs": (TwoOutputs, [tensor("x", 6)], [tensor("mean", 3), tensor("spread", 2)]),
    "repeated": (Repeated, [tensor("x", 6)], [tensor("y", 3)]),
    "always-dropout": (AlwaysDropout, [tensor("x", 6)], [tensor("y", 6)]),
    "baked-reshape": (BakedReshape, [tensor("x", 6)], [tensor("y", 3)]),
    "baked-value": (BakedValue, [tensor("x", 6)], [tensor("y", 3)]),
    "branching": (Branching, [tensor("x", 6)], [tensor("y", 6)]),
    "unfold-after-pad": (UnfoldAfterPad, [tensor("x", 5, 8)], [tensor("y", 5, 3)]),
    "unexportable": (Unexportable, [tensor("x", 4, 4)], [tensor("y", 4)]),
}
SOUND = ("mlp", "encoder", "lstm", "conv", "two-inputs", "two-outputs")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def make() -> Callable[[str], tuple[nn.Module, ModelSpec]]:
    """Build a module by name, left in training mode and with weights that are all different, and its specification."""

    def build(name: str) -> tuple[nn.Module, ModelSpec]:
        kind, inputs, outputs = CASES[name]
        torch.manual_seed(7)
        module = kind()
        with torch.no_grad():
            for parameter in module.parameters():
                # initial zeros and ones are equal tensors, which exporters share
                parameter.add_(0.05 * torch.randn_like(parameter))
        return module, ModelSpec(name, "test", "unknown", tuple(inputs), tuple(outputs))

    return build
