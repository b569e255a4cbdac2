"""A 1-D convolution that keeps the length, with its BatchNorm: what `resnet1d` and `inception-time` are made of.

Zeros are added on both sides; an even kernel needs one more, which stands behind the series, so that it sees one step
more after the current one than before it.  The convolution has no bias, which BatchNorm would take off again.
"""

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


@cache
def same_conv() -> "type[nn.Module]":
    """Return the class SameConv(inputs, outputs, kernel) (defined here so that importing this file needs no torch)."""
    from torch import nn

    class SameConv(nn.Module):
        """[batch, inputs, time] -> [batch, outputs, time]."""

        def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
            super().__init__()
            self.after = 1 - kernel % 2
            self.conv = nn.Conv1d(inputs, outputs, kernel, padding=(kernel - 1) // 2, bias=False)
            self.norm = nn.BatchNorm1d(outputs)

        def forward(self, series: "Tensor") -> "Tensor":
            if self.after:
                series = nn.functional.pad(series, (0, self.after))
            return self.norm(self.conv(series))  # type: ignore[no-any-return]

    return SameConv
