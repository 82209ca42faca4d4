"""Relation network: a second network judges how well a query goes with a class, from the two feature maps.

    r_c  = sigmoid(g([sum of f(support of c), f(query)]))      in [0, 1], the maps joined along the channels
    loss = mean over queries and classes of (r_c - [c is the query's class])^2

Sung, Yang, Zhang, Xiang, Torr & Hospedales 2018, section 3. The module g has two blocks of 3x3 convolution, norm, ReLU
and 2x2 max-pooling, then `hidden` units, ReLU, and one. Its first weights are drawn as in the authors' code. A
prediction is the relation score before the sigmoid.

Differences. All convolutions keep the size of their map (in the code the embedding's first two do not, nor do the
module's for mini-ImageNet), and a map with a side of 1 is not pooled. So the paper's embedding, which halves in two of
its four blocks (a conv4 with `halving: pool` and `halvings: 2`), gives 7x7 maps of Omniglot, not 5x5. The first
convolution, of two joined maps, is the sum of one over each: it is computed once for each class and each query, not for
each pair.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from metarun.algorithms.embedding import EmbeddingBased, embedded, members
from metarun.algorithms.inner import accuracy
from metarun.layers import conv2d, linear
from metarun.types import Episode, Meta, Net, Norm, TaskLoss, TaskShape, register, setting

BLOCKS = ("algo.block0", "algo.block1")


@register("algo", "relationnet")
@dataclass(frozen=True)
class RelationNet(EmbeddingBased):
    channels: int = setting(64, least=1)
    hidden: int = setting(8, least=1)

    def check(self, net: Net, task: TaskShape) -> None:
        super().check(net, task)
        if len(net.feature_shape) != 3:
            raise ValueError(
                "compares feature maps, and this network's features are flat; "
                "model=conv4 with model.readout=flatten fits, as does any model whose readout can be set so"
            )
        norm = net.norm_layer()
        try:
            norm(norm.init("try", self.channels), "try", torch.zeros(2, self.channels, 2, 2))
        except RuntimeError:
            raise ValueError(
                f"model.groups does not divide algo.channels={self.channels}, which are normalised as the model's are"
            ) from None

    def init(self, net: Net, generator: Generator) -> Meta:
        channels, *sides = net.feature_shape
        norm = net.norm_layer()
        meta = net.init(generator, head=False)
        inputs = 2 * channels
        for name in BLOCKS:
            spread = (2 / (9 * self.channels)) ** 0.5
            meta[f"{name}.conv.weight"] = spread * torch.randn(self.channels, inputs, 3, 3, generator=generator)
            if not norm.subtracts_channel_mean:
                meta[f"{name}.conv.bias"] = torch.zeros(self.channels)
            meta |= norm.init(f"{name}.norm", self.channels)
            inputs = self.channels
            sides = [pooled(side, min(sides)) for side in sides]
        inputs *= sides[0] * sides[1]
        for name, outputs in (("algo.hidden", self.hidden), ("algo.score", 1)):
            meta[f"{name}.weight"] = 0.01 * torch.randn(outputs, inputs, generator=generator)
            meta[f"{name}.bias"] = torch.ones(outputs)
            inputs = outputs
        return meta

    def fresh_running(self, net: Net) -> Meta:
        running = net.fresh_running()
        if net.tracks:
            for name in BLOCKS:
                running[f"{name}.norm.mean"] = torch.zeros(self.channels)
                running[f"{name}.norm.var"] = torch.ones(self.channels)
        return running

    def judged(self, prediction: Tensor, y: Tensor) -> TaskLoss:
        loss = F.mse_loss(prediction.sigmoid(), members(y, prediction.shape[1], prediction))
        return TaskLoss(loss, {"loss": loss.detach(), "accuracy": accuracy(prediction.detach(), y)})

    def answer(self, net: Net, meta: Meta, episode: Episode, moments: Meta | None) -> Tensor:
        """(query, way) relations of each query and each class, before the sigmoid"""
        support, query = embedded(net, meta, episode, moments)
        classes = members(episode.support_y, net.outputs, support).T @ support
        # Statistics of the support set come from its own pairs with the classes, which go first.
        first = len(support) if net.statistics_used == "support" else 0
        items = torch.cat([support, query]) if first else query
        norm = net.norm_layer(first * net.outputs, moments)
        relations = relate(meta, norm, *(maps.reshape(-1, *net.feature_shape) for maps in (classes, items)))
        return relations.reshape(-1, net.outputs)[first:]


def relate(meta: Meta, norm: Norm, classes: Tensor, items: Tensor) -> Tensor:
    """(way, c, h, w), (n, c, h, w) -> (n * way,) item by item the relation with each class"""
    of_class, of_item = meta["algo.block0.conv.weight"].chunk(2, 1)
    maps = conv2d(classes, of_class, None) + conv2d(items, of_item, meta.get("algo.block0.conv.bias"))[:, None]
    maps = finish(meta, norm, "algo.block0", maps.flatten(0, 1))
    maps = conv2d(maps, meta["algo.block1.conv.weight"], meta.get("algo.block1.conv.bias"))
    maps = finish(meta, norm, "algo.block1", maps)
    hidden = F.relu(linear(maps.flatten(1), meta["algo.hidden.weight"], meta["algo.hidden.bias"]))
    return linear(hidden, meta["algo.score.weight"], meta["algo.score.bias"])[:, 0]


def finish(meta: Meta, norm: Norm, block: str, x: Tensor) -> Tensor:
    """What follows a block's convolution."""
    x = norm(meta, f"{block}.norm", x, 0.0)
    return F.max_pool2d(x, 2) if min(x.shape[-2:]) > 1 else x


def pooled(side: int, shortest: int) -> int:
    """What `finish` leaves of a side of a map whose shortest side is given."""
    return side // 2 if shortest > 1 else side
