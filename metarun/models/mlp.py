"""MLP: fully connected layers with norm and ReLU on flattened items.

256-128-64-64 is the non-convolutional network of Finn et al. 2017 (section 5.2, Omniglot).

`residual` adds a skip connection around each layer, before the ReLU: the identity, or a linear map where the width
changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from metarun.layers import Norm, linear, xavier
from metarun.models.network import Network, check_widths
from metarun.types import Meta, register, setting


@register("model", "mlp")
@dataclass(frozen=True, kw_only=True)
class MLP(Network):
    widths: list[int] = setting([256, 128, 64, 64])
    residual: bool = setting(False)

    def check(self) -> None:
        check_widths("widths", self.widths)
        for width in self.widths:
            self._check_groups(width, "width")

    @property
    def feature_size(self) -> int:
        return self.widths[-1]

    def trunk_init(self, generator: Generator, norm: Norm) -> Meta:
        meta: Meta = {}
        for i, (inputs, width) in enumerate(pairwise([self._inputs, *self.widths])):
            meta[f"linear{i}.weight"] = xavier((width, inputs), generator)
            if not norm.subtracts_channel_mean:
                meta[f"linear{i}.bias"] = torch.zeros(width)
            meta |= norm.init(f"norm{i}", width)
            if self.residual and inputs != width:
                meta[f"skip{i}.weight"] = xavier((width, inputs), generator)
        return meta

    def trunk(self, meta: Meta, x: Tensor, norm: Norm) -> Tensor:
        x = x.flatten(1)
        for i in range(len(self.widths)):
            y = linear(x, meta[f"linear{i}.weight"], meta.get(f"linear{i}.bias"))
            y = norm(meta, f"norm{i}", y, None if self.residual else 0.0)
            if self.residual:
                skip = meta.get(f"skip{i}.weight")
                y = F.relu(y + (x if skip is None else linear(x, skip, None)))
            x = self._drop(y)
        return x
