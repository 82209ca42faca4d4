"""Counter-based random numbers: what is drawn depends on what it is for, never on what was drawn before.

SplitMix64 (Steele, Lea & Flood 2014) in integer arithmetic, so every device draws the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Number = int | Tensor
"""a number of an episode or a ticket; a () int64 tensor on the device in a step that is recorded once and replayed"""

GAMMA = 0x9E3779B97F4A7C15
MIX = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    return (value + 2**63) % 2**64 - 2**63


def counted(first: Number, count: int, device: Any) -> Tensor:
    """(count,) first, first + 1, ..."""
    return torch.arange(count, device=device) + first


def shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift (torch's is arithmetic on int64)."""
    return (x >> bits) & (2 ** (64 - bits) - 1)


def mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser: int64 -> int64, a bijection whose output looks random."""
    x = x + signed(GAMMA)
    x = (x ^ shift(x, 30)) * signed(MIX[0])
    x = (x ^ shift(x, 27)) * signed(MIX[1])
    return x ^ shift(x, 31)


def uniform(keys: Tensor) -> Tensor:
    """int64 -> float32 in [0, 1), from the 24 highest bits"""
    return shift(keys, 40).float() * 2.0**-24
