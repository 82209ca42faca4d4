"""The convolutional network of R2-D2: four blocks, and the last two blocks' maps side by side as features.

Bertinetto, Henriques, Torr & Vedaldi 2019 (section 4.2): 96-192-384-512 filters, 3x3 convolution, norm, 2x2
max-pooling, leaky ReLU of slope 0.1, and dropout on the last two blocks. As in the authors' code, the last pooling has
stride 1, and the block before is pooled once more with stride 1 on its way to the features, so that the two maps are
of the same size. That makes 3,584 features of 28x28 images, 8,064 of 32x32 and 72,576 of 84x84.

Differences: a convolution before batch norm has no bias (it would do nothing), and weights start from Glorot's
distribution, as conv4's do.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from metarun.layers import Norm, conv, conv_init, max_pool, xavier
from metarun.models.network import Network, check_images, check_widths
from metarun.types import Meta, register, setting

SLOPE = 0.1


@register("model", "conv_r2d2")
@dataclass(frozen=True, kw_only=True)
class ConvR2D2(Network):
    filters: list[int] = setting([96, 192, 384, 512])
    dropout: float = setting(0.1, least=0, below=1)

    def check(self) -> None:
        check_images(self.item_shape)
        check_widths("filters", self.filters, 2)
        for width in self.filters:
            self._check_groups(width, "filters")
        if min(self._sides) < 1:
            h, w = self.item_shape[1:]
            raise ValueError(f"{len(self.filters)} blocks leave nothing of {h}x{w}")

    @property
    def _sides(self) -> tuple[int, int]:
        """Height and width of the two last maps: all blocks but one halve, then a pooling of stride 1 takes one off."""
        h, w = self.item_shape[1:]
        halves = 2 ** (len(self.filters) - 1)
        return h // halves - 1, w // halves - 1

    @property
    def feature_size(self) -> int:
        h, w = self._sides
        return sum(self.filters[-2:]) * h * w

    def trunk_init(self, generator: Generator, norm: Norm) -> Meta:
        meta: Meta = {}
        for i, (inputs, width) in enumerate(pairwise([self.item_shape[0], *self.filters])):
            meta |= conv_init(f"conv{i}", xavier((width, inputs, 3, 3), generator), norm)
            meta |= norm.init(f"norm{i}", width)
        return meta

    def trunk(self, meta: Meta, x: Tensor, norm: Norm) -> Tensor:
        last, before = len(self.filters) - 1, x
        for i in range(last + 1):
            before = x
            x = norm(meta, f"norm{i}", conv(meta, f"conv{i}", x))
            x = F.leaky_relu(F.max_pool2d(x, 2, stride=1), SLOPE) if i == last else max_pool(x, SLOPE)
            if i >= last - 1:
                x = self._drop(x)
        return torch.cat([F.max_pool2d(before, 2, stride=1).flatten(1), x.flatten(1)], 1)
