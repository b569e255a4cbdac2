"""Factories of tests: small models, and models that are hard to export."""

import torch
from torch import nn


class Forecaster(nn.Module):
    """Two linear layers over eight bars of three features."""

    def __init__(self, width: int = 16, horizon: int = 4):
        super().__init__()
        self.tsexport_inputs = {"bars": ("batch", 8, 3)}
        self.encode, self.answer = nn.Linear(24, width), nn.Linear(width, horizon)

    def forward(self, bars):
        return self.answer(torch.relu(self.encode(bars.flatten(1))))


class Inverse(nn.Module):
    """A matrix inverse, which ONNX has no operator for."""

    def __init__(self):
        super().__init__()
        self.tsexport_inputs = {"bars": ("batch", 3, 3)}
        self.mix = nn.Linear(3, 3)

    def forward(self, bars):
        return torch.linalg.inv(self.mix(bars) + 20 * torch.eye(3))


class TwoFaced(Forecaster):
    """Answers otherwise while it is exported: a bug of real models, whose `forward` asks whether it is exported."""

    def forward(self, bars):
        hidden = torch.relu(self.encode(bars.flatten(1)))
        if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export():
            hidden = hidden * 1.25
        return self.answer(hidden)


class TwoFacedTrace(Forecaster):
    """The same for TorchScript."""

    def forward(self, bars):
        hidden = torch.relu(self.encode(bars.flatten(1)))
        return self.answer(hidden * 1.25 if torch.jit.is_tracing() else hidden)


class TwoFacedAsTorchScript(Forecaster):
    """Wrong as TorchScript alone."""

    def forward(self, bars):
        hidden = torch.relu(self.encode(bars.flatten(1)))
        wrong = torch.jit.is_tracing() and not torch.onnx.is_in_onnx_export()
        return self.answer(hidden * 1.25 if wrong else hidden)


class Chaotic(nn.Module):
    """A state of 24 values that is fed back; what differs a little at first differs altogether after some steps."""

    def __init__(self):
        super().__init__()
        self.tsexport_inputs = {"state": ("batch", 24)}
        self.step = nn.Linear(24, 24, bias=False)
        nn.init.normal_(self.step.weight, std=0.4)

    def forward(self, state):
        return torch.tanh(self.step(state))


class CloseQuantiles(nn.Module):
    """Three quantiles that are nearer to each other than INT8 can tell them apart; none cross in fp32."""

    def __init__(self, quantiles):
        super().__init__()
        self.tsexport_inputs = {"bars": ("batch", 24)}
        self.encode, self.head = nn.Linear(24, 32), nn.Linear(32, len(quantiles))
        with torch.no_grad():
            rows = torch.randn(1, 32) + 5e-3 * torch.randn(len(quantiles), 32)
            self.head.weight.copy_(rows)
            self.head.bias.copy_(0.045 * torch.arange(len(quantiles)))

    def forward(self, bars):
        return self.head(torch.relu(self.encode(bars)))


def chaotic():
    return Chaotic()


def close_quantiles(quantiles):
    return CloseQuantiles(quantiles)


def forecaster(width: int = 16, horizon: int = 4):
    return Forecaster(width, horizon)


def inverse():
    return Inverse()


def two_faced():
    return TwoFaced()


def two_faced_as_torchscript():
    return TwoFacedAsTorchScript()


def two_faced_trace():
    return TwoFacedTrace()
