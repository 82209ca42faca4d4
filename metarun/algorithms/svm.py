"""Multi-class support vector machines, batched and differentiable.

The dual of Crammer & Singer 2001, in LIBLINEAR's signs, for n examples with kernel K = X X' and class y_i:

    min over a  1/2 sum over classes c of a_c' K a_c  -  sum_i a_{y_i, i}
    where  a_{c, i} <= C [c = y_i]  and  sum over c of a_{c, i} = 0

Class c's score of x is sum_i a_{c, i} x_i . x. Solved by a primal-dual interior-point method, Mehrotra's
predictor-corrector (Nocedal & Wright 2006, algorithm 16.4), a fixed number of steps from a point strictly inside. One
step needs (K + D_c)^-1 with D_c diagonal, for each class, and one system of n equations for the sums: never one of
n * classes equations, as in a solver for any problem (OptNet, Amos & Kolter 2017).
"""

from __future__ import annotations

import torch
from torch import Tensor

CENTRE = 1e-8
"""The steps lead to where slack * multiplier is this, relative to its size, for every bound: as good as 0, and the
solution is still smooth in K, with a gradient that exists everywhere."""
RIDGE = 1e-6
"""of the mean of K's diagonal is added to it, so that the solution is unique and rounding does not drown its gradient
where there are more examples than features. Both constants together move scores by less than 1e-4 of the largest."""
INSIDE = 0.995
"""of the way to the nearest bound is as far as a step goes"""


def crammer_singer(kernel: Tensor, member: Tensor, cost: float, steps: int) -> Tensor:
    """(n, n), (n, classes) one-hot -> (n, classes) the a that solves the dual.

    The kernel must have been made in double precision: rounded to single it can be indefinite. Differentiable in it,
    once, by the implicit function theorem: a further step's linear system, for the change of what the step solves.
    """
    own = member.to(kernel.dtype).T  # (classes, n), the layout of everything below
    # a / cost is what is solved for: its bounds are 0 and 1.
    kernel = cost * (kernel + RIDGE * kernel.diagonal().mean() * identity(kernel))
    with torch.no_grad():
        fixed = kernel.detach()
        a, slack, multiplier, price = start(fixed, own)
        for _ in range(steps):
            a, slack, multiplier, price = improved(fixed, own, a, slack, multiplier, price)
        inverse, sums = system(fixed, multiplier / slack)
    change = a @ (kernel - fixed)  # 0, with a gradient
    return cost * (a - solve(inverse, sums, change)[0]).T


def end(kernel: Tensor) -> Tensor:
    """() what slack * multiplier is led to: a small K makes small multipliers, a large one small a.

    The gradient takes it as a constant, and differs by a few millionths for it.
    """
    size = kernel.diagonal().mean().clamp_min(1e-20)
    return CENTRE * torch.minimum(size, 1 / size)


def start(kernel: Tensor, own: Tensor) -> tuple[Tensor, ...]:
    """A point with a, multipliers and prices that fit together, strictly inside the bounds.

    At the optimum  a K - own + multiplier + price = 0,  (classes, n) but the price (n,), and slack * multiplier = 0.
    """
    along = own - (1 - own) / (len(own) - 1)
    # As far as the dual falls, so that a is as small as a large K will have it, but not to the bound of 1.
    a = along * (own.sum() / (along @ kernel * along).sum()).clamp(max=0.5)
    slack = own - a
    slope = own - a @ kernel
    price = slope.amin(0)
    multiplier = slope - price
    push = 0.3 * multiplier.mean() + 1e-3  # off the bounds
    return a, slack, multiplier + push, price - push


def improved(
    kernel: Tensor, own: Tensor, a: Tensor, slack: Tensor, multiplier: Tensor, price: Tensor
) -> tuple[Tensor, ...]:
    """The point after one predictor-corrector step."""
    inverse, sums = system(kernel, multiplier / slack)
    unmet = a @ kernel - own + multiplier + price  # rounding alone: a step of any length keeps it 0

    def direction(excess: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The Newton step that takes `excess` off slack * multiplier."""
        to_a, to_price = solve(inverse, sums, excess / slack - unmet, -a.sum(0))
        return to_a, (multiplier * to_a - excess) / slack, to_price

    product = slack * multiplier
    gap = product.mean()
    to_a, to_multiplier, _ = direction(product)
    length = longest(slack, -to_a, multiplier, to_multiplier)
    hoped = ((slack - length * to_a) * (multiplier + length * to_multiplier)).mean()
    aim = torch.maximum(gap * (hoped / gap).clamp(0, 1) ** 3, end(kernel))
    # The further the aim, the more of the step's own curvature is made up for; at the end it is a plain Newton step.
    curvature = (1 - aim / gap).clamp_min(0) * to_a * to_multiplier
    to_a, to_multiplier, to_price = direction(product - curvature - aim)
    length = longest(slack, -to_a, multiplier, to_multiplier)
    return (
        a + length * to_a,
        slack - length * to_a,
        multiplier + length * to_multiplier,
        price + length * to_price,
    )


def longest(slack: Tensor, to_slack: Tensor, multiplier: Tensor, to_multiplier: Tensor) -> Tensor:
    """() how far to go along a step, at most 1: slack and multiplier stay positive."""
    shrinks = torch.maximum((-to_slack / slack).amax(), (-to_multiplier / multiplier).amax())
    return INSIDE / shrinks.clamp_min(INSIDE)


def system(kernel: Tensor, stiffness: Tensor) -> tuple[Tensor, Tensor]:
    """(classes, n, n) the inverses of K + diag(stiffness_c), and the inverse (n, n) of their sum.

    Scaled to I + w K w with w = stiffness^-1/2, whose smallest eigenvalue is 1 however singular K is.
    """
    w = stiffness.rsqrt()
    scaled = w[:, :, None] * kernel * w[:, None, :] + identity(kernel)
    lower = torch.linalg.cholesky_ex(scaled).L  # _ex: without its wait for the device, to learn whether it could
    root = torch.linalg.solve_triangular(lower, torch.diag_embed(w), upper=False)
    inverse = root.mT @ root
    return inverse, torch.linalg.inv_ex(inverse.sum(0)).inverse


def solve(inverse: Tensor, sums: Tensor, right: Tensor, total: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    """(x, v) where  K x_c + stiffness_c * x_c + v = right_c  and  sum over c of x_c = total"""
    x = (inverse @ right[:, :, None])[:, :, 0]
    v = sums @ (x.sum(0) - total)
    return x - inverse @ v, v


def identity(like: Tensor) -> Tensor:
    return torch.eye(len(like), dtype=like.dtype, device=like.device)
