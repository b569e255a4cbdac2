"""Factory for the public m2lines checkpoint: eight convolutions with circular padding on a 2-channel field."""

from torch import nn


def fcnn(size: int = 64):
    channels = [2, 128, 64, 32, 32, 32, 32, 32, 1]
    kernels = [5, 5, 3, 3, 3, 3, 3, 3]
    layers: list[nn.Module] = []
    for i, kernel in enumerate(kernels):
        layers.append(nn.Conv2d(channels[i], channels[i + 1], kernel, padding=kernel // 2, padding_mode="circular"))
        if i < len(kernels) - 1:
            layers += [nn.ReLU(), nn.BatchNorm2d(channels[i + 1])]
    net = nn.Sequential(*layers)
    net.tsexport_inputs = {"field": ("batch", 2, size, size)}
    return net
