"""WRN-28-10: a wide residual network, in which norm and ReLU come before each convolution.

    x -> conv(relu(norm(conv(relu(norm(x)))))) + x        conv1x1 of relu(norm(x)) in place of x where the width changes

Zagoruyko & Komodakis 2016 (table 1): a 3x3 convolution to 16 channels, three groups of (depth - 4) / 6 blocks with 16,
32 and 64 times `widen` channels, the second and third of which halve, norm, ReLU, and the mean over space. Dropout is
inside each block, between the convolutions (section 2.4).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Generator, Tensor

from metarun.layers import Norm, conv, conv_init, he
from metarun.models.network import READOUTS, ImageNetwork, halved
from metarun.types import Meta, register, setting

GROUPS = 3


@register("model", "wrn28_10")
@dataclass(frozen=True, kw_only=True)
class WideResNet(ImageNetwork):
    depth: int = setting(28, least=10)
    widen: int = setting(10, least=1)
    base: int = setting(16, least=1)
    readout: str = setting("mean", choices=READOUTS)

    def check(self) -> None:
        if (self.depth - 4) % 6:
            raise ValueError(f"depth={self.depth}: must be 6 n + 4, for n blocks in each group (10, 16, 22, 28, ...)")
        self._check_groups(self.base, "base")
        self._check_images()

    @property
    def map_shape(self) -> tuple[int, int, int]:
        h, w = (halved(side, GROUPS - 1) for side in self.item_shape[1:])
        return self._width(GROUPS - 1), h, w

    def _width(self, group: int) -> int:
        return self.base * self.widen * 2**group

    def _blocks(self) -> Iterator[tuple[str, int, int, int]]:
        """Each block from input to output: name, channels in and out, stride"""
        inputs = self.base
        for group in range(GROUPS):
            for i in range((self.depth - 4) // 6):
                yield f"group{group}.block{i}", inputs, self._width(group), 2 if group and not i else 1
                inputs = self._width(group)

    def trunk_init(self, generator: Generator, norm: Norm) -> Meta:
        meta = conv_init("conv", he((self.base, self.item_shape[0], 3, 3), generator), norm)
        for name, inputs, width, _ in self._blocks():
            meta |= norm.init(f"{name}.norm0", inputs)
            meta |= conv_init(f"{name}.conv0", he((width, inputs, 3, 3), generator), norm)
            meta |= norm.init(f"{name}.norm1", width)
            meta |= conv_init(f"{name}.conv1", he((width, width, 3, 3), generator), norm)
            if inputs != width:
                meta |= conv_init(f"{name}.skip", he((width, inputs, 1, 1), generator), norm)
        return meta | norm.init("norm", self._width(GROUPS - 1))

    def maps(self, meta: Meta, x: Tensor, norm: Norm) -> Tensor:
        x = conv(meta, "conv", x)
        for name, inputs, width, stride in self._blocks():
            y = norm(meta, f"{name}.norm0", x, 0.0)
            if inputs != width:
                x = conv(meta, f"{name}.skip", y, stride)
            y = norm(meta, f"{name}.norm1", conv(meta, f"{name}.conv0", y, stride), 0.0)
            x = x + conv(meta, f"{name}.conv1", self._drop(y))
        return norm(meta, "norm", x, 0.0)
