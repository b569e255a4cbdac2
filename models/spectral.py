"""A spectral layer: channels mixed frequency by frequency, low frequencies only, by the 2-D Fourier transform.

For x [batch, channels, H, W] and its unitary transform X(ky, kx),

    Y(ky, kx) = B(kx) A(ky) X(ky, kx)   where -M <= ky < M and 0 <= kx < N,   0 elsewhere,   y = inverse transform of Y

A(ky) and B(kx) are complex matrices [channels, channels]: the weight of a frequency is separable in the two directions,
which takes (2M + N) matrices instead of 2M N.  M = min(modes, H / 2) and N = min(modes, W / 2).

Frequencies along latitude are signed: those of a real field along longitude repeat themselves mirrored, those along
latitude do not, and without the negative ones half of a field's energy is lost.

Limits: the transform is that of a flat, periodic grid.  On a regional patch it is not spherical, and the field wraps
around at the edges.  Without dependence on ky and kx together the layer cannot treat a direction as such.
Source: Li et al. 2021, "Fourier Neural Operator for Parametric Partial Differential Equations", for the layer;
separable weights as in Tran et al. 2023, "Factorized Fourier Neural Operators", but as a product, not a sum.

`torch.fft` is what defines the layer, and what it trains with.  Exporters write it as products with a truncated DFT
matrix (`tsexport.exporters.rewrites.spectral`).
"""

import torch
from torch import Tensor, nn


class SpectralConv(nn.Module):
    """[batch, channels, latitudes, longitudes] -> the same.

    Weights are real: `latitude_weight` [2M, channels in, 2, channels out] is A, with real and imaginary part side by
    side, and `longitude_weight` [N, channels in, 2, channels out] is B.  Frequencies of A are in the order of an FFT:
    0 to M - 1, then -M to -1.
    """

    def __init__(self, channels: int, latitudes: int, longitudes: int, modes: int) -> None:
        super().__init__()
        self.channels, self.latitudes, self.longitudes = channels, latitudes, longitudes
        self.latitude_modes, self.longitude_modes = min(modes, latitudes // 2), min(modes, longitudes // 2)
        deviation = (2 * channels) ** -0.5  # of each part, so that a product keeps the variance
        self.latitude_weight = nn.Parameter(torch.randn(2 * self.latitude_modes, channels, 2, channels) * deviation)
        self.longitude_weight = nn.Parameter(torch.randn(self.longitude_modes, channels, 2, channels) * deviation)

    def forward(self, field: Tensor) -> Tensor:
        rows, columns = self.latitude_modes, self.longitude_modes
        spectrum = torch.fft.rfft2(field, norm="ortho")[..., :columns]
        low = torch.cat([spectrum[:, :, :rows], spectrum[:, :, -rows:]], dim=2)  # [batch, channels, 2M, N]
        mixed = torch.einsum("bcyx,yco->boyx", low, _complex(self.latitude_weight))
        mixed = torch.einsum("bcyx,xco->boyx", mixed, _complex(self.longitude_weight))
        if self.latitudes > 2 * rows:
            none = mixed.new_zeros(mixed.shape[0], self.channels, self.latitudes - 2 * rows, columns)
            mixed = torch.cat([mixed[:, :, :rows], none, mixed[:, :, rows:]], dim=2)
        # columns from N on count as zero
        field = torch.fft.irfft2(mixed, s=(self.latitudes, self.longitudes), norm="ortho")
        return field


def _complex(weight: Tensor) -> Tensor:
    return torch.complex(weight[:, :, 0], weight[:, :, 1])  # [frequencies, channels in, channels out]
