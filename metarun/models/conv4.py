"""Conv4: blocks of 3x3 convolution, norm, ReLU and a halving; the field's standard small backbone.

Vinyals et al. 2016 (section 4.1) with max-pooling; Finn et al. 2017 (section 5.2) with stride 2 on Omniglot, whose
released code averages the last map over space (`readout: mean`).

`residual` adds a skip connection around each block, before the ReLU (He et al. 2016): the identity, or a 1x1
convolution where the number of channels changes, halved as the block is. `halvings` leaves all blocks but the first few
as large as they are: relation networks (Sung et al. 2018) halve in 2 of 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Generator, Tensor

from metarun.layers import Norm, conv, conv_init, max_pool, xavier
from metarun.models.network import READOUTS, ImageNetwork, halved
from metarun.types import Meta, register, setting


@register("model", "conv4")
@dataclass(frozen=True, kw_only=True)
class Conv4(ImageNetwork):
    filters: int = setting(64, least=1)
    blocks: int = setting(4, least=1, most=8)
    halving: str = setting("stride", choices=("stride", "pool"))
    halvings: int | None = setting(None, least=0)
    readout: str = setting("flatten", choices=READOUTS)
    residual: bool = setting(False)

    def check(self) -> None:
        self._check_groups(self.filters, "filters")
        if self._halvings > self.blocks:
            raise ValueError(f"halvings={self.halvings}: there are only {self.blocks} blocks to halve in")
        self._check_images(self._halvings if self.halving == "pool" else 0, f"blocks={self.blocks}")

    @property
    def _halvings(self) -> int:
        return self.blocks if self.halvings is None else self.halvings

    @property
    def map_shape(self) -> tuple[int, int, int]:
        """Stride rounds a half up, pooling down."""
        h, w = self.item_shape[1:]
        if self.halving == "pool":
            return self.filters, h // 2**self._halvings, w // 2**self._halvings
        return self.filters, halved(h, self._halvings), halved(w, self._halvings)

    def trunk_init(self, generator: Generator, norm: Norm) -> Meta:
        meta: Meta = {}
        channels = self.item_shape[0]
        for i in range(self.blocks):
            meta |= conv_init(f"conv{i}", xavier((self.filters, channels, 3, 3), generator), norm)
            meta |= norm.init(f"norm{i}", self.filters)
            if self.residual and channels != self.filters:
                meta[f"skip{i}.weight"] = xavier((self.filters, channels, 1, 1), generator)
            channels = self.filters
        return meta

    def maps(self, meta: Meta, x: Tensor, norm: Norm) -> Tensor:
        for i in range(self.blocks):
            halves = i < self._halvings
            stride = 2 if halves and self.halving == "stride" else 1
            pools = halves and self.halving == "pool"
            at_once = not (self.residual or pools)
            y = norm(meta, f"norm{i}", conv(meta, f"conv{i}", x, stride), 0.0 if at_once else None)
            if self.residual:
                y = y + (conv(meta, f"skip{i}", x, stride) if f"skip{i}.weight" in meta else x[..., ::stride, ::stride])
            x = self._drop(max_pool(y, 0.0) if pools else y if at_once else F.relu(y))
        return x
