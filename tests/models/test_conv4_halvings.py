"""A conv4 of which only the first blocks halve, beside plain torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Generator

from metarun.models.conv4 import Conv4


@pytest.mark.parametrize("halving", ["pool", "stride"])
@pytest.mark.parametrize("halvings", [0, 2, 3, None])
def test_the_first_blocks_alone_halve(halving: str, halvings: int | None) -> None:
    net = Conv4(item_shape=(1, 32, 16), outputs=5, filters=4, halving=halving, halvings=halvings, norm="none")
    meta = {name: w.double() for name, w in net.init(Generator().manual_seed(0)).items()}
    x = images = torch.rand(3, 1, 32, 16, dtype=torch.double)
    for i in range(4):
        halves = i < (4 if halvings is None else halvings)
        stride = 2 if halves and halving == "stride" else 1
        x = F.conv2d(x, meta[f"conv{i}.weight"], meta[f"conv{i}.bias"], stride, padding=1).relu()
        if halves and halving == "pool":
            x = F.max_pool2d(x, 2)
    assert net.feature_shape == tuple(x.shape[1:])
    torch.testing.assert_close(net.features(meta, images), x.flatten(1))


def test_more_halvings_than_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="halvings=5: there are only 4 blocks to halve in"):
        Conv4(item_shape=(1, 28, 28), outputs=5, halvings=5)
    assert Conv4(item_shape=(1, 28, 28), outputs=5, halving="pool", halvings=2).feature_shape == (64, 7, 7)
