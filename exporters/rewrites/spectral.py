"""Module rewrite: a `tsexport.models.spectral.SpectralConv` as products with truncated DFT matrices.

Only M frequencies of each sign along latitude and N along longitude are kept, so each direction of the transform is a
product with a matrix of that many rows.  For x [batch, channels, H, W] with parts p (real, imaginary):

    along longitude   x F                  F [W, (p, kx)]            -> [batch, channels, (row, p), kx]
    along latitude    G x                  G [(ky, p), (row, p)]     -> [batch, channels, (ky, p), kx]
    mixing            [ky, (p, batch, kx), C] @ A [ky, C, (p, C)], then the same with B over kx; of the four products of
                      parts, real = rr - ii and imaginary = ri + ir
    back              G^T, then F^T, in which kx > 0 counts twice: it stands for -kx as well

Both large products keep [.., H, W] where it is: the first from the right, the second from the left.  Each of the four
transforms is unitary (factors 1 / sqrt(W) and 1 / sqrt(H)), so that values keep their size from stage to stage.
Unscaled, the zero frequency is the sum over the grid and overflows in fp16; unitary it is the mean times sqrt(H W).

Why: no exporter takes `torch.fft` to ONNX opset 17, runtimes' own DFT is slower (`bench/suites/spectral_layer.py`), and
tract and TensorRT have none.  A trace of `torch.fft` is slower than the products as well.
Limits: the class named above; each layer is called with the grid that it was made for.
Source: the definition of the discrete Fourier transform, written as a matrix.
"""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from tsexport.models.spectral import SpectralConv
from tsexport.types import Array, Feeds


def longitude_matrix(points: int, frequencies: int) -> Array:
    """Return F [points, 2 frequencies] in float64: x F is the real parts of x's transform, then the imaginary ones."""
    angle = 2 * np.pi * np.outer(np.arange(points), np.arange(frequencies)) / points
    return np.concatenate([np.cos(angle), -np.sin(angle)], axis=1) / math.sqrt(points)


def latitude_matrix(points: int, frequencies: int) -> Array:
    """Return G [(ky, part), (row, part)] in float64, ky from 0 to frequencies - 1 and then from -frequencies to -1.

    As a map of real and imaginary parts, exp(-i a) is [[cos a, sin a], [-sin a, cos a]].
    """
    signed = np.concatenate([np.arange(frequencies), np.arange(-frequencies, 0)])
    angle = 2 * np.pi * np.outer(signed, np.arange(points)) / points  # [ky, row]
    cos, sin = np.cos(angle), np.sin(angle)
    parts = np.array([[cos, sin], [-sin, cos]])  # [part out, part in, ky, row]
    return parts.transpose(2, 0, 3, 1).reshape(4 * frequencies, 2 * points) / math.sqrt(points)


@cache
def _matrices(height: int, width: int, rows: int, columns: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return F, G, G^T and F^T with its doubled frequencies; layers of one size share them."""
    along, down = longitude_matrix(width, columns), latitude_matrix(height, rows)
    counted = np.tile(np.where(np.arange(columns) > 0, 2.0, 1.0), 2)
    arrays = (along, down, down.T, (along * counted).T)
    first, second, third, fourth = (torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32)) for a in arrays)
    return first, second, third, fourth


class MatrixSpectralConv(nn.Module):
    """[batch, channels, latitudes, longitudes] -> the same, equal to the layer that it is made from.

    The weights are views of that layer's: nothing large is copied.
    """

    def __init__(self, layer: SpectralConv) -> None:
        super().__init__()
        self.channels, self.height, self.width = layer.channels, layer.latitudes, layer.longitudes
        self.rows, self.columns = 2 * layer.latitude_modes, layer.longitude_modes
        matrices = _matrices(self.height, self.width, layer.latitude_modes, self.columns)
        for name, matrix in zip(("along", "down", "up", "back"), matrices, strict=True):
            self.register_buffer(name, matrix)
        width = self.channels
        self.latitude_weight = nn.Parameter(layer.latitude_weight.detach().reshape(self.rows, width, 2 * width))
        self.longitude_weight = nn.Parameter(layer.longitude_weight.detach().reshape(self.columns, width, 2 * width))

    def mix(self, spectrum: Tensor, weight: Tensor, frequencies: int) -> Tensor:
        """[frequencies, part, others, channels] -> the same, by one product for all frequencies."""
        products = spectrum.reshape(frequencies, -1, self.channels) @ weight
        products = products.reshape(frequencies, 2, -1, 2, self.channels)  # parts of x, and of the weight
        real, imaginary = products[:, 0], products[:, 1]
        return torch.stack([real[:, :, 0] - imaginary[:, :, 1], real[:, :, 1] + imaginary[:, :, 0]], dim=1)

    def forward(self, field: Tensor) -> Tensor:
        channels, height, rows, columns = self.channels, self.height, self.rows, self.columns
        along = field @ self.along  # type: ignore[operator]  # [batch, channels, row, (part, kx)]
        spectrum = self.down @ along.reshape(-1, channels, 2 * height, columns)  # type: ignore[operator]
        spectrum = spectrum.reshape(-1, channels, rows, 2, columns).permute(2, 3, 0, 4, 1)  # [ky, part, batch, kx, C]
        mixed = self.mix(spectrum, self.latitude_weight, rows)
        mixed = mixed.reshape(rows, 2, -1, columns, channels).permute(3, 1, 2, 0, 4)  # [kx, part, batch, ky, C]
        mixed = self.mix(mixed, self.longitude_weight, columns)
        mixed = mixed.reshape(columns, 2, -1, rows, channels).permute(2, 4, 3, 1, 0)  # [batch, C, ky, part, kx]
        up = self.up @ mixed.reshape(-1, channels, 2 * rows, columns)  # type: ignore[operator]
        return up.reshape(-1, channels, height, 2 * columns) @ self.back  # type: ignore[operator]


def spectral_layers(module: nn.Module) -> dict[str, SpectralConv]:
    """Return the spectral layers of a module by name."""
    return {name: part for name, part in module.named_modules() if type(part) is SpectralConv}


class SpectralAsMatrixProducts:
    """Replace every spectral layer by its products."""

    name = "spectral-as-matrix-products"
    torchscript = True
    required = True  # torch.fft has no form in opset 17

    def requires(self, module: nn.Module) -> bool:
        return bool(spectral_layers(module))

    def call(self, module: nn.Module, probes: Sequence[Feeds]) -> tuple[nn.Module, int]:
        layers = spectral_layers(module)
        for name, layer in layers.items():
            product = MatrixSpectralConv(layer).eval()
            if not name:
                return product, 1
            module.set_submodule(name, product)
        return module, len(layers)
