"""Factories for the public cryptocast checkpoints: [batch, 60, 16] -> [batch, 3]."""

from typing import ClassVar

import torch
from torch import nn


class StackedLSTM(nn.Module):
    tsexport_inputs: ClassVar = {"bars": ("batch", 60, 16)}

    def __init__(self):
        super().__init__()
        self.lstm1 = nn.LSTM(16, 128, batch_first=True)
        self.lstm2 = nn.LSTM(128, 64, batch_first=True)
        self.lstm3 = nn.LSTM(64, 32, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(32, 64), nn.Linear(64, 3)

    def forward(self, bars):
        for lstm in (self.lstm1, self.lstm2, self.lstm3):
            bars, _ = lstm(bars)
        return self.fc2(torch.relu(self.fc1(bars[:, -1])))


class ConvolutionalNet(nn.Module):
    tsexport_inputs: ClassVar = {"bars": ("batch", 60, 16)}

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv1d(16, 64, 3, padding=1)
        self.conv2 = nn.Conv1d(64, 64, 3, padding=1)
        self.conv3 = nn.Conv1d(64, 32, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(32, 64), nn.Linear(64, 3)

    def forward(self, bars):
        maps = bars.transpose(1, 2)
        for convolution in (self.conv1, self.conv2, self.conv3):
            maps = torch.relu(convolution(maps))
        return self.fc2(torch.relu(self.fc1(maps.mean(dim=2))))


def lstm():
    return StackedLSTM()


def cnn():
    return ConvolutionalNet()
