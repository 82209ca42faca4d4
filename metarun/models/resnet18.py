"""ResNet-18: stages of residual blocks of two 3x3 convolutions; the first block of each stage but the first halves.

    x -> relu( norm(conv(relu(norm(conv(x))))) + x )        conv1x1 and norm on the way of x where its shape changes

He, Zhang, Ren & Sun 2016 (table 1), as in the few-shot comparison of Chen et al. 2019: 224x224 images, 64-128-256-512
channels, the last map averaged over space. `stem: imagenet` starts with a 7x7 convolution of stride 2 and 3x3
max-pooling of stride 2, and `small` with a 3x3 convolution, for images of 28 to 84 pixels. Other numbers of `blocks` in
each stage make ResNet-10 ([1, 1, 1, 1]) and ResNet-34 ([3, 4, 6, 3]). Dropout, which neither paper has, is after every
stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Generator, Tensor

from metarun.layers import Norm, conv, conv_init, he
from metarun.models.network import READOUTS, ImageNetwork, check_widths, halved
from metarun.types import Meta, register, setting


@register("model", "resnet18")
@dataclass(frozen=True, kw_only=True)
class ResNet18(ImageNetwork):
    widths: list[int] = setting([64, 128, 256, 512])
    blocks: list[int] = setting([2, 2, 2, 2])
    stem: str = setting("imagenet", choices=("imagenet", "small"))
    readout: str = setting("mean", choices=READOUTS)

    def check(self) -> None:
        check_widths("widths", self.widths)
        if len(self.blocks) != len(self.widths) or min(self.blocks) < 1:
            raise ValueError(f"blocks={self.blocks}: give a number of blocks, at least 1, for each of {self.widths}")
        for width in self.widths:
            self._check_groups(width, "width")
        self._check_images()

    @property
    def map_shape(self) -> tuple[int, int, int]:
        times = len(self.widths) - 1 + (2 if self.stem == "imagenet" else 0)
        h, w = (halved(side, times) for side in self.item_shape[1:])
        return self.widths[-1], h, w

    def _blocks(self) -> Iterator[tuple[str, int, int, int, bool]]:
        """Each block from input to output: name, channels in and out, stride, whether its stage ends with it"""
        inputs = self.widths[0]
        for stage, (width, blocks) in enumerate(zip(self.widths, self.blocks)):
            for i in range(blocks):
                yield f"stage{stage}.block{i}", inputs, width, 2 if stage and not i else 1, i == blocks - 1
                inputs = width

    def trunk_init(self, generator: Generator, norm: Norm) -> Meta:
        side = 7 if self.stem == "imagenet" else 3
        kernel = he((self.widths[0], self.item_shape[0], side, side), generator)
        meta = conv_init("conv", kernel, norm) | norm.init("norm", self.widths[0])
        for name, inputs, width, stride, _ in self._blocks():
            for j in range(2):
                kernel = he((width, width if j else inputs, 3, 3), generator)
                meta |= conv_init(f"{name}.conv{j}", kernel, norm) | norm.init(f"{name}.norm{j}", width)
            if stride > 1 or inputs != width:
                meta |= conv_init(f"{name}.skip", he((width, inputs, 1, 1), generator), norm)
                meta |= norm.init(f"{name}.norm_skip", width)
        return meta

    def maps(self, meta: Meta, x: Tensor, norm: Norm) -> Tensor:
        large = self.stem == "imagenet"
        x = norm(meta, "norm", conv(meta, "conv", x, 2 if large else 1), 0.0)
        if large:
            x = F.max_pool2d(x, 3, stride=2, padding=1)
        for name, _, _, stride, ends in self._blocks():
            y = norm(meta, f"{name}.norm0", conv(meta, f"{name}.conv0", x, stride), 0.0)
            y = norm(meta, f"{name}.norm1", conv(meta, f"{name}.conv1", y))
            if f"{name}.skip.weight" in meta:
                x = norm(meta, f"{name}.norm_skip", conv(meta, f"{name}.skip", x, stride))
            x = F.relu(y + x)
            if ends:
                x = self._drop(x)
        return x
