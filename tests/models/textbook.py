"""The networks once more, in plain torch.nn as one would write them without metarun; weights in the same order."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def norm_module(net: Any, channels: int, images: bool = True) -> nn.Module:
    if net.norm == "batch":
        return nn.BatchNorm2d(channels) if images else nn.BatchNorm1d(channels)
    return nn.Identity() if net.norm == "none" else nn.GroupNorm(net.groups if net.norm == "group" else 1, channels)


def conv_module(net: Any, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=net.norm != "batch")


def readout(net: Any, kind: str) -> list[nn.Module]:
    return [nn.Flatten() if kind == "flatten" else Mean(), nn.LazyLinear(net.outputs)]


class Conv4Block(nn.Module):
    def __init__(self, net: Any, inputs: int) -> None:
        super().__init__()
        stride = 2 if net.halving == "stride" else 1
        self.main = nn.Sequential(conv_module(net, inputs, net.filters, 3, stride), norm_module(net, net.filters))
        self.skip = None
        if net.residual and inputs != net.filters:
            self.skip = nn.Conv2d(inputs, net.filters, 1, stride, bias=False)
        elif net.residual:
            self.skip = nn.AvgPool2d(1, stride)  # every other pixel
        self.pool = nn.MaxPool2d(2) if net.halving == "pool" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.main(x)
        return self.pool(torch.relu(y if self.skip is None else y + self.skip(x)))


def conv4(net: Any, shape: tuple[int, ...]) -> nn.Sequential:
    blocks = [Conv4Block(net, shape[0] if i == 0 else net.filters) for i in range(net.blocks)]
    return nn.Sequential(*blocks, *readout(net, net.readout))


class Layer(nn.Module):
    def __init__(self, net: Any, inputs: int, width: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Linear(inputs, width, bias=net.norm != "batch"), norm_module(net, width, images=False)
        )
        self.skip = nn.Linear(inputs, width, bias=False) if net.residual and inputs != width else nn.Identity()
        self.residual = net.residual

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.main(x) + self.skip(x) if self.residual else self.main(x))


def mlp(net: Any, shape: tuple[int, ...]) -> nn.Sequential:
    sizes = [int(torch.Size(shape).numel()), *net.widths]
    layers = [Layer(net, inputs, width) for inputs, width in pairwise(sizes)]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(sizes[-1], net.outputs))


class R2D2(nn.Module):
    """`RRFeatures` of the authors' code (bertinetto/r2d2), with any number of blocks."""

    def __init__(self, net: Any, inputs: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        for i, width in enumerate(net.filters):
            pool = nn.MaxPool2d(2, stride=1 if i == len(net.filters) - 1 else 2)
            block = [conv_module(net, inputs, width), norm_module(net, width), pool, nn.LeakyReLU(0.1)]
            self.blocks.append(nn.Sequential(*block))
            inputs = width
        self.pool = nn.MaxPool2d(2, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return torch.cat((self.pool(maps[-2]).flatten(1), maps[-1].flatten(1)), 1)


def conv_r2d2(net: Any, shape: tuple[int, ...]) -> nn.Sequential:
    return nn.Sequential(R2D2(net, shape[0]), nn.LazyLinear(net.outputs))


class Block12(nn.Module):
    def __init__(self, net: Any, inputs: int, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_module(net, inputs, width), norm_module(net, width)
        self.conv2, self.bn2 = conv_module(net, width, width), norm_module(net, width)
        self.conv3, self.bn3 = conv_module(net, width, width), norm_module(net, width)
        self.downsample = nn.Sequential(conv_module(net, inputs, width, 1), norm_module(net, width))
        self.relu, self.pool = nn.LeakyReLU(0.1), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.pool(self.relu(self.bn3(self.conv3(out)) + self.downsample(x)))


def resnet12(net: Any, shape: tuple[int, ...]) -> nn.Sequential:
    sizes = [shape[0], *net.widths]
    return nn.Sequential(*(Block12(net, a, b) for a, b in pairwise(sizes)), *readout(net, net.readout))


class Block18(nn.Module):
    def __init__(self, net: Any, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_module(net, inputs, width, 3, stride), norm_module(net, width)
        self.conv2, self.bn2 = conv_module(net, width, width), norm_module(net, width)
        self.skip: nn.Module = nn.Identity()
        if stride > 1 or inputs != width:
            self.skip = nn.Sequential(conv_module(net, inputs, width, 1, stride), norm_module(net, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + self.skip(x))


def resnet18(net: Any, shape: tuple[int, ...]) -> nn.Sequential:
    wide = net.widths[0]
    layers: list[nn.Module] = [conv_module(net, shape[0], wide, 3), norm_module(net, wide), nn.ReLU()]
    if net.stem == "imagenet":
        layers[0] = conv_module(net, shape[0], wide, 7, 2)
        layers.append(nn.MaxPool2d(3, 2, padding=1))
    inputs = wide
    for stage, (width, blocks) in enumerate(zip(net.widths, net.blocks)):
        for i in range(blocks):
            layers.append(Block18(net, inputs, width, 2 if stage > 0 and i == 0 else 1))
            inputs = width
    return nn.Sequential(*layers, *readout(net, net.readout))


class WideBlock(nn.Module):
    def __init__(self, net: Any, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = norm_module(net, inputs), conv_module(net, inputs, width, 3, stride)
        self.bn2, self.conv2 = norm_module(net, width), conv_module(net, width, width)
        self.shortcut = conv_module(net, inputs, width, 1, stride) if inputs != width else None

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(out)
        return skip + self.conv2(torch.relu(self.bn2(self.conv1(out))))


def wrn28_10(net: Any, shape: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = [conv_module(net, shape[0], net.base)]
    inputs = net.base
    for group in range(3):
        width = net.base * net.widen * 2**group
        for i in range((net.depth - 4) // 6):
            layers.append(WideBlock(net, inputs, width, 2 if group > 0 and i == 0 else 1))
            inputs = width
    return nn.Sequential(*layers, norm_module(net, inputs), nn.ReLU(), *readout(net, net.readout))
