"""Small seeded networks for the tests of pruning: each has one thing that pruning meets in a model."""

import torch
from torch import nn


def seeded(build):
    """Build in eval mode, weights from a seed; BatchNorms have statistics that are not 0 and 1."""
    torch.manual_seed(0)
    module = build().eval()
    for one in module.modules():
        if isinstance(one, nn.modules.batchnorm._BatchNorm):
            one.running_mean.uniform_(-0.2, 0.2)
            one.running_var.uniform_(0.5, 1.5)
    return module.requires_grad_(False)


class Branches(nn.Module):
    """Two branches side by side, added to a third way around: [batch, 5, 20] -> [batch, 3]."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv1d(5, 32, 3, padding=1, bias=False), nn.BatchNorm1d(32), nn.ReLU())
        self.left = nn.Conv1d(32, 32, 3, padding=1)
        self.right = nn.Conv1d(32, 16, 1)
        self.around = nn.Conv1d(32, 48, 1)
        self.head = nn.Linear(48, 3)

    def forward(self, series):
        hidden = self.first(series)
        joined = torch.cat([self.left(hidden), self.right(hidden)], dim=1) + self.around(hidden)
        return self.head(torch.relu(joined).mean(dim=2))


class Grid(nn.Module):
    """A strided convolution and its transpose: [batch, 3, 8, 8] -> [batch, 3, 8, 8]."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 24, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 24, 3, padding=2, dilation=2),
            nn.ReLU(),
            nn.ConvTranspose2d(24, 16, 2, stride=2),
            nn.ReLU(),
            nn.Conv2d(16, 3, 1),
        )

    def forward(self, state):
        return self.layers(state)


class Encoder(nn.Module):
    """torch's encoder layer: [batch, 6, 8] -> [batch, 2]."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(8, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 2)

    def forward(self, tokens):
        return self.head(self.layers(self.embed(tokens)).mean(dim=1))


class WrongOrder(nn.Module):
    """Channels change places on the way."""

    def __init__(self):
        super().__init__()
        self.sound, self.first, self.second = nn.Linear(6, 32), nn.Linear(32, 32), nn.Linear(32, 2)

    def forward(self, values):
        hidden = torch.relu(self.first(torch.relu(self.sound(values))))
        return self.second(hidden.flip(1))


class WrittenIn(nn.Module):
    """A width that the forward has as a constant."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 32), nn.Linear(32, 2)

    def forward(self, values):
        return self.second(torch.relu(self.first(values)).reshape(-1, 32))


class OwnWeights(nn.Module):
    """A parameter of its own, an LSTM, a LayerNorm and a layer that is not called: nothing of it can go."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 32)
        self.position = nn.Parameter(torch.randn(5, 32))
        self.recurrent = nn.LSTM(32, 32, batch_first=True)
        self.norm = nn.LayerNorm(32)
        self.uncalled = nn.Linear(32, 32)
        self.head = nn.Linear(32, 2)

    def forward(self, steps):
        states, _ = self.recurrent(self.first(steps) + self.position)
        hidden = nn.functional.linear(self.norm(states[:, -1]), self.uncalled.weight, self.uncalled.bias)
        return self.head(hidden)


class Grouped(nn.Module):
    """A convolution in groups reads the first one's channels; the third has too few for the fraction."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(4, 32, 1), nn.Conv1d(32, 32, 3, groups=4), nn.ReLU(), nn.Conv1d(32, 8, 1), nn.Conv1d(8, 2, 1)
        )

    def forward(self, series):
        return self.layers(series)
