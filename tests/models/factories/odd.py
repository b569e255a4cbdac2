"""Factories that are wrong in one way each, and modules with unusual answers."""

from collections import namedtuple
from typing import ClassVar

import torch
from helpers_of_odd import SCALE
from torch import nn

Answer = namedtuple("Answer", ["mean", "spread"])
not_a_function = 3


def linear(width: int = 4, bias: bool = True, label: str = ""):
    return nn.Linear(width, 2, bias=bias)


def wrong_type():
    return [1, 2]


def loads(path):
    return torch.load(path)


def raises():
    raise ValueError("no weights today")


class Answers(nn.Module):
    tsexport_inputs: ClassVar = {"x": ("batch", 4)}

    def __init__(self, kind):
        super().__init__()
        self.kind, self.layer = kind, nn.Linear(4, 2)

    def forward(self, x):
        y = SCALE * self.layer(x)
        if self.kind == "random":
            return y + torch.rand_like(y)
        if self.kind == "fixed":
            return y.reshape(2, 2)
        if self.kind == "time-major":
            return y.transpose(0, 1)
        return {
            "dict": {"mean": y, "spread": y.exp(), "absent": None},
            "namedtuple": Answer(y, y.exp()),
            "nested": (y, (y.exp(), y.abs())),
            "number": 3.0,
        }[self.kind]


def answers(kind):
    return Answers(kind)


def bad_inputs():
    module = nn.Linear(4, 2)
    module.tsexport_inputs = {"x": (1, 4)}
    return module
