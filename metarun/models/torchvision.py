"""Any torchvision classification network by name, with its published weights, a file's, or fresh ones.

`arch`         torchvision's name: resnet50, vit_b_16, ...; `arch_args` goes to its builder ({width_mult: 0.5} of
               mobilenet_v2, {image_size: 84} of vit_b_16)
`weights`      null, a state_dict's PATH.pth, or a name of torchvision's (IMAGENET1K_V2, DEFAULT), which it downloads
`frozen`       the trunk is not trained and its batch norms use their pretrained averages, whatever `statistics` says.
               The weights are then no meta-parameters: they travel with the moving averages, so that a checkpoint
               holds them
`image_size`   images are resized to this; null: as they are
`norm`         batch: the network's own norms. Others take the place of its batch norms; layer norms stay

Images of one channel are given to all three, and with weights they are normalised as ImageNet's were. Features are
what the network's classifier would get: pooled for most, a whole flattened map for vgg and alexnet. `dropout` is on
them; the network's own dropout and stochastic depth are off.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from metarun.layers import Norm
from metarun.models.backbone import Backbone, Traced, backbone
from metarun.models.network import Network, check_images
from metarun.models.pretrained import (
    Pretrained,
    build,
    is_path,
    known_archs,
    normalisation,
    pretrained,
    published,
    split,
    wanted_args,
)
from metarun.types import Meta, register, setting

FROZEN = "frozen."
"""What the names of a frozen trunk's weights start with, among the moving averages"""


@register("model", "torchvision")
@dataclass(frozen=True, kw_only=True)
class TorchVision(Network):
    arch: str = setting("resnet18")
    arch_args: dict[str, Any] = setting({})
    weights: str | None = setting(None)
    frozen: bool = setting(False)
    image_size: int | None = setting(None, least=1)

    def check(self) -> None:
        check_images(self.item_shape)
        if self.item_shape[0] not in (1, 3):
            raise ValueError(f"torchvision's networks take 1 or 3 channels, this dataset has {self.item_shape[0]}")
        if self.arch not in (archs := known_archs()):
            near = get_close_matches(self.arch, archs) or archs
            raise ValueError(f"arch={self.arch}: torchvision has no such network; did you mean {', '.join(near)}?")
        if self.frozen and self.weights is None:
            raise ValueError("frozen=true would keep random numbers: give model.weights")
        if self.weights is not None and self.norm != "batch":
            raise ValueError(
                f"norm={self.norm}: weights={self.weights} were trained with the network's own: norm=batch"
            )
        if self.weights is not None and not is_path(self.weights):
            published(self.arch, self.weights)
        _ = self._trace
        for channels in self._backbone.batch_norms.values():
            self._check_groups(channels, "channels")
        if self.weights is not None:
            _ = self._pretrained

    @property
    def _args(self) -> dict[str, Any]:
        return wanted_args(self.arch, self.arch_args, self.weights)

    @property
    def _backbone(self) -> Backbone:
        return backbone(self.arch, self._args)

    @property
    def _pretrained(self) -> Pretrained:
        assert self.weights is not None
        return pretrained(self.arch, self._args, self.weights)

    @property
    def _trace(self) -> Traced:
        h, w = self.item_shape[1:]
        return self._backbone.traced((self.image_size or h, self.image_size or w))

    @property
    def feature_size(self) -> int:
        return self._trace.features

    @property
    def norm_names(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        if self.frozen:
            return ()  # their weights are no meta-parameters
        batch = self._backbone.batch_norms if self.norm == "none" else {}
        return tuple(name for name in self._trace.norms if name not in batch)

    @property
    def tracks(self) -> bool:
        return super().tracks and not self.frozen and bool(self._backbone.batch_norms)

    @property
    def statistics_used(self) -> str:
        if not self._backbone.batch_norms or self.norm == "none":
            return "per example" if self._backbone.layer_norms else "none"
        return "running" if self.frozen else super().statistics_used

    def trunk_init(self, generator: Generator, norm: Norm) -> Meta:
        if self.frozen:
            return {}
        if self.weights is not None:
            return {name: w.clone() for name, w in self._pretrained.weights.items()}
        seed = int(torch.randint(2**62, (), generator=generator))
        fresh = split(build(self.arch, self._args, seed=seed)).weights
        gone = self._backbone.batch_norms if norm.kind == "none" else ()
        return {name: w for name, w in fresh.items() if name.rpartition(".")[0] not in gone}

    def trunk(self, meta: Meta, x: Tensor, norm: Norm) -> Tensor:
        if self.frozen:
            carried = self.running or {n: v.to(x.device, x.dtype) for n, v in self.fresh_running().items()}
            meta = {n.removeprefix(FROZEN): w for n, w in carried.items() if n.startswith(FROZEN)}
            norm = replace(norm, running=carried)
        return self._drop(self._backbone(meta, self._as_wanted(x), norm))

    def _as_wanted(self, x: Tensor) -> Tensor:
        """(n, 1 or 3, h, w) in [0, 1] -> (n, 3, image_size, image_size), as the pretrained network saw images"""
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        if self.image_size is not None and tuple(x.shape[-2:]) != (self.image_size, self.image_size):
            x = F.interpolate(x, (self.image_size, self.image_size), mode="bilinear", antialias=True)
        if self.weights is not None:
            x = torch.stack([(x[:, i] - mean) / std for i, (mean, std) in enumerate(normalisation(self.arch))], 1)
        return x

    def features(self, meta: Meta, x: Tensor, support: Tensor | None = None, moments: Meta | None = None) -> Tensor:
        return super().features(meta, x, None if self.frozen else support, moments)

    def norm_layer(self, support: int = 0, moments: Meta | None = None) -> Norm:
        layer = super().norm_layer(support, moments)
        return replace(layer, running=None) if self.frozen else layer  # a frozen trunk's averages are only its own

    def fresh_running(self) -> Meta:
        """Moving averages as the weights come with them; a frozen trunk's weights too."""
        if self.frozen:
            weights = {f"{FROZEN}{name}": w.clone() for name, w in self._pretrained.weights.items()}
            return weights | {name: w.clone() for name, w in self._pretrained.running.items()}
        if not self.tracks:
            return {}
        if self.weights is not None:
            return {name: w.clone() for name, w in self._pretrained.running.items()}
        sizes = self._backbone.batch_norms
        means = {f"{name}.mean": torch.zeros(size) for name, size in sizes.items()}
        return means | {f"{name}.var": torch.ones(size) for name, size in sizes.items()}

    def at_train(self, running: Meta, ticket: Tensor) -> Network:
        net = super().at_train(running, ticket)
        return replace(net, running=running) if self.frozen and running else net

    def at_test(self, running: Meta) -> Network:
        return replace(self, running=running) if self.frozen and running else super().at_test(running)
