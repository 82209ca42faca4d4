"""Parts of a task's loss that are computed again for their gradient, in place of keeping all that they computed.

torch's own checkpointing does not work inside `torch.func`, and the loss of a task is computed under a `vmap`. So here
the part is a function of its own to autograd, over all tasks at once, which keeps what went in. Memory for time: Chen,
Xu, Zhang & Guestrin 2016.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.func import vmap
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from metarun.types import Net

Tree = Any
"""Tensors in dicts, lists and tuples, within one another"""
Flat = Callable[..., tuple[Tensor, ...]]


def recomputed(part: Callable[..., Tree], net: Net, *trees: Tree) -> Tree:
    """`part(net, *trees)`, of which only the tensors in `trees` are kept until the gradient has been taken.

    Whatever else needs a gradient must not be read by `part`: there is an error when the gradient is taken. Random
    numbers are the same again. There are gradients of first order only.
    """
    position = net.noise_position
    leaves, structure = tree_flatten((trees, () if position is None else position[0]))
    made: list[TreeSpec] = []

    def flat(*leaves: Tensor) -> tuple[Tensor, ...]:
        trees, key = tree_unflatten(leaves, structure)
        out, spec = tree_flatten(part(net if position is None else net.with_noise_at(key, position[1]), *trees))
        made[:] = [spec]
        return tuple(out)

    out: Any = _Again.apply(flat, *leaves)
    return tree_unflatten(out, made[0])


class _Again(Function):
    @staticmethod
    def forward(part: Flat, *leaves: Tensor) -> tuple[Tensor, ...]:
        return part(*leaves)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.part, *leaves = inputs
        ctx.save_for_backward(*leaves)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("a part that is computed again has gradients of first order only")
        needed = ctx.needs_input_grad[1:]
        leaves = [leaf.detach().requires_grad_(need) for leaf, need in zip(ctx.saved_tensors, needed)]
        with torch.enable_grad():
            out = ctx.part(*leaves)
        moved = [y for y, slope in zip(out, slopes) if slope is not None and y.requires_grad]
        by = [slope for y, slope in zip(out, slopes) if slope is not None and y.requires_grad]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        if any(all(end is not leaf for leaf in wanted) for end in _ends(moved)):
            raise RuntimeError("a part that is computed again reads a tensor that needs a gradient and was not given")
        found = iter(torch.autograd.grad(moved, wanted, by, allow_unused=True)) if moved else repeat(None)
        return None, *(next(found) if need else None for need in needed)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        part, *leaves = inputs
        out: Any = _Again.apply(vmap(part, in_dims=in_dims[1:]), *leaves)
        return out, (0,) * len(out)


def _ends(outputs: Sequence[Tensor]) -> Iterator[Tensor]:
    """The tensors that the gradient of `outputs` would be added to."""
    seen = {y.grad_fn for y in outputs}
    ahead = list(seen)
    while ahead:
        node = ahead.pop()
        if node is None:
            continue
        if (variable := getattr(node, "variable", None)) is not None:
            yield variable
        new = {after for after, _ in node.next_functions} - seen
        seen |= new
        ahead += new
