"""ResNet-12: residual blocks of three 3x3 convolutions, each followed by a halving; the field's standard deep backbone.

    x -> drop( pool( lrelu( norm(conv(lrelu(norm(conv(lrelu(norm(conv(x)))))))) + norm(conv1x1(x)) ) ) )

Lee, Maji, Ravichandran & Soatto 2019 (MetaOptNet, section 4.1): widths 64-160-320-640, leaky ReLU of slope 0.1, 2x2
max-pooling, dropout after every block but the last two, DropBlock (Ghiasi et al. 2018) after those, and the last map
flattened. Most later work averages it over space (`readout: mean`).

Difference: the authors raise DropBlock's rate from 0 to `dropblock` over their first 40,000 iterations; here it is
`dropblock` all along, since a network here does not know the iteration. Where a map is smaller than a square of
`dropblock_size`, the square is as large as the map.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Generator, Tensor

from metarun.layers import Norm, conv, conv_init, he, max_pool
from metarun.models.network import READOUTS, ImageNetwork, check_widths
from metarun.types import Meta, register, setting

SLOPE = 0.1
CONVOLUTIONS = 3
"""in a block"""
DROPBLOCKS = 2
"""How many of the last blocks have DropBlock in place of dropout"""


@register("model", "resnet12")
@dataclass(frozen=True, kw_only=True)
class ResNet12(ImageNetwork):
    widths: list[int] = setting([64, 160, 320, 640])
    readout: str = setting("flatten", choices=READOUTS)
    dropout: float = setting(0.1, least=0, below=1)
    dropblock: float = setting(0.1, least=0, below=1)
    dropblock_size: int = setting(5, least=1)

    def check(self) -> None:
        check_widths("widths", self.widths)
        for width in self.widths:
            self._check_groups(width, "width")
        self._check_images(len(self.widths), f"{len(self.widths)} blocks'")

    @property
    def random(self) -> bool:
        return self.dropout > 0 or self.dropblock > 0

    @property
    def map_shape(self) -> tuple[int, int, int]:
        h, w = (side // 2 ** len(self.widths) for side in self.item_shape[1:])
        return self.widths[-1], h, w

    def trunk_init(self, generator: Generator, norm: Norm) -> Meta:
        meta: Meta = {}
        for i, (inputs, width) in enumerate(pairwise([self.item_shape[0], *self.widths])):
            for j in range(CONVOLUTIONS):
                kernel = he((width, width if j else inputs, 3, 3), generator)
                meta |= conv_init(f"block{i}.conv{j}", kernel, norm) | norm.init(f"block{i}.norm{j}", width)
            meta |= conv_init(f"block{i}.skip", he((width, inputs, 1, 1), generator), norm)
            meta |= norm.init(f"block{i}.norm_skip", width)
        return meta

    def maps(self, meta: Meta, x: Tensor, norm: Norm) -> Tensor:
        for i in range(len(self.widths)):
            y = x
            for j in range(CONVOLUTIONS):
                slope = SLOPE if j < CONVOLUTIONS - 1 else None
                y = norm(meta, f"block{i}.norm{j}", conv(meta, f"block{i}.conv{j}", y), slope)
            y = y + norm(meta, f"block{i}.norm_skip", conv(meta, f"block{i}.skip", x))
            x = max_pool(y, SLOPE)
            if i < len(self.widths) - DROPBLOCKS:
                x = self._drop(x)
            elif self.noise is not None:
                x = self.noise.dropblock(x, self.dropblock, self.dropblock_size)
        return x
