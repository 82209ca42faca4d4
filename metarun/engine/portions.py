"""How many tasks an evaluation takes at a time: enough to fill the device, few enough for its memory."""

from __future__ import annotations

from math import prod

import torch

from metarun.types import Episodes, Meta

MAPS = 64
"""feature maps as large as an image, the most that the usual networks make of it"""
ALIVE = 4
"""such layers, and copies of the weights, that there are at once"""
CPU_BYTES = 2**30
"""of a CPU's memory; more makes no evaluation faster there"""
GPU_PART = 1 / 4
"""of a GPU's"""


def tasks_at_once(asked: int | None, episodes: Episodes, meta: Meta) -> int:
    """`asked`, or as many tasks as are thought to fit, 1 or more; all are taken to be like the first.

    Goes by the sizes of items and weights and by the device's whole memory, never by what is free in it: the same
    evaluation is always cut into the same batches, and so gives the same bits.
    """
    if asked is not None:
        return asked
    task = episodes(0, 1)
    x = task.support_x
    items, shape = x.shape[1] + task.query_x.shape[1], x.shape[2:]
    numbers = items * max(prod(shape), MAPS * prod(shape[1:])) + sum(w.numel() for w in meta.values())
    whole = GPU_PART * torch.cuda.get_device_properties(x.device).total_memory if x.is_cuda else CPU_BYTES
    return max(1, int(whole / (numbers * ALIVE * x.element_size())))
