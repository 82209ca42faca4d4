"""How many tasks are taken at a time: enough to fill the device, few enough for its memory."""

from __future__ import annotations

from math import ceil, prod

import torch

from metarun.types import EpisodeBatch, Episodes, Meta

MAPS = 64
"""feature maps as large as an image, the most that the usual networks make of it"""
ALIVE = 4
"""such layers, and copies of the weights, that there are at once"""
CPU_BYTES = 2**30
"""of a CPU's memory; more makes no evaluation faster there"""
GPU_PART = 1 / 4
"""of a GPU's"""
SHARE, MOST = 2**27, 2**29
"""of what is worked on at a time in training, for each of a CPU's threads: by choice, as more takes memory and hardly
less time, and for a task of its own"""
PORTIONS, FILLED = 8, 50
"""An evaluation has so many portions at least, for as many GPUs, unless they would be of fewer tasks than this."""


def tasks_at_once(asked: int | None, episodes: Episodes, tasks: int, meta: Meta) -> int:
    """`asked`, or how many of so many `tasks`, all taken to be like the first, to evaluate at a time; 1 or more.

    Goes by the sizes of items and weights and by the device's whole memory, never by what is free in it: the same
    evaluation is always cut into the same portions, and so gives the same bits.
    """
    if asked is not None:
        return asked
    task = episodes(0, 1)
    x = task.support_x
    whole = GPU_PART * torch.cuda.get_device_properties(x.device).total_memory if x.is_cuda else CPU_BYTES
    fit = int(whole / task_bytes(task, meta))
    return max(1, min(fit, max(FILLED, ceil(tasks / PORTIONS))))


def few_at_once(episodes: EpisodeBatch, meta: Meta) -> int:
    """How many such tasks' gradients to compute at a time on a CPU: 1, 2, 4, ... for each of its threads.

    To share a task is slower, by two fifths with 15 queries a class, and by a twentieth at most with large pictures, of
    which there are as many as fit.
    """
    threads, task = torch.get_num_threads(), task_bytes(episodes, meta)
    return threads * _power(SHARE / task) if task <= SHARE else min(threads, _power(threads * MOST / task))


def _power(most: float) -> int:
    """Of two, and at least 1. It divides the usual meta-batches, so that all portions are alike."""
    return 1 << max(int(most).bit_length() - 1, 0)


def task_bytes(episodes: EpisodeBatch, meta: Meta) -> float:
    """About as much does each of these tasks take, with weights of its own."""
    x = episodes.support_x
    items, shape = x.shape[1] + episodes.query_x.shape[1], x.shape[2:]
    numbers = items * max(prod(shape), MAPS * prod(shape[1:])) + sum(w.numel() for w in meta.values())
    return numbers * ALIVE * x.element_size()
