"""Conv4: blocks of 3x3 convolution, norm, ReLU and a halving; the field's standard small backbone.

Vinyals et al. 2016 (section 4.1) with max-pooling; Finn et al. 2017 (section 5.2) with stride 2 on Omniglot, whose
released code averages the last map over space (`readout: mean`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from metarun.layers import Norm, conv2d, xavier
from metarun.models.network import Network
from metarun.types import Meta, register, setting


@register("model", "conv4")
@dataclass(frozen=True, kw_only=True)
class Conv4(Network):
    filters: int = setting(64, least=1)
    blocks: int = setting(4, least=1, most=8)
    halving: str = setting("stride", choices=("stride", "pool"))
    readout: str = setting("flatten", choices=("flatten", "mean"))

    def check(self) -> None:
        self._check_groups(self.filters, "filters")
        if len(self.item_shape) != 3:
            raise ValueError(f"needs images (channels, height, width), this dataset's items are {self.item_shape}")
        if min(self._sides) < 1:
            raise ValueError(
                f"blocks={self.blocks} halvings leave nothing of {self.item_shape[1]}x{self.item_shape[2]}"
            )

    @property
    def _sides(self) -> tuple[int, int]:
        """Height and width of the last map: stride rounds a half up, pooling down."""
        h, w = self.item_shape[1:]
        for _ in range(self.blocks):
            h, w = (h // 2, w // 2) if self.halving == "pool" else (-(-h // 2), -(-w // 2))
        return h, w

    @property
    def feature_shape(self) -> tuple[int, ...]:
        return (self.filters, *self._sides) if self.readout == "flatten" else (self.filters,)

    @property
    def feature_size(self) -> int:
        return prod(self.feature_shape)

    def trunk_init(self, generator: Generator, norm: Norm) -> Meta:
        meta: Meta = {}
        channels = self.item_shape[0]
        for i in range(self.blocks):
            meta[f"conv{i}.weight"] = xavier((self.filters, channels, 3, 3), generator)
            if not norm.subtracts_channel_mean:
                meta[f"conv{i}.bias"] = torch.zeros(self.filters)
            meta |= norm.init(f"norm{i}", self.filters)
            channels = self.filters
        return meta

    def trunk(self, meta: Meta, x: Tensor, norm: Norm) -> Tensor:
        stride = 2 if self.halving == "stride" else 1
        for i in range(self.blocks):
            x = conv2d(x, meta[f"conv{i}.weight"], meta.get(f"conv{i}.bias"), stride)
            x = norm(meta, f"norm{i}", x)
            if self.halving == "pool":
                x = F.max_pool2d(x, 2)  # before the ReLU, which it commutes with, so that fewer numbers pass that
            x = F.relu(x)
        return x.flatten(1) if self.readout == "flatten" else x.mean((2, 3))
