"""MAML's meta-step in JAX, jitted, with a `vmap` over tasks: what `scripts/bench gpu` shows beside metarun's.

The same work as the case's in `bench_cases.py`: conv4 with strides, batch norm on the batch's statistics, second order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench_cases import Case, drawn, episodes


def jax_step(case: Case, device: str) -> tuple[Callable[[], None], Callable[[], Any]]:
    """A step, which may return before it is done, and what waits for it. Raises `ImportError` without JAX."""
    import jax  # pyright: ignore[reportMissingImports]  # an environment for comparisons may have it
    import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
    import torch

    def features(w: dict[str, Any], x: Any) -> Any:
        for i in range(4):
            kernel = w[f"conv{i}.weight"]
            x = jax.lax.conv_general_dilated(x, kernel, (2, 2), ((1, 1), (1, 1)))
            mean, var = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
            scale, shift = (w[f"norm{i}.{part}"][None, :, None, None] for part in ("weight", "bias"))
            x = jax.nn.relu((x - mean) * jax.lax.rsqrt(var + 1e-5) * scale + shift)
        return x.reshape(len(x), -1)

    def loss(w: dict[str, Any], x: Any, y: Any) -> Any:
        logits = features(w, x) @ w["head.weight"].T + w["head.bias"]
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()

    def task(w: dict[str, Any], support_x: Any, support_y: Any, query_x: Any, query_y: Any) -> Any:
        for _ in range(case.steps):
            slopes = jax.grad(loss)(w, support_x, support_y)
            w = jax.tree.map(lambda a, b: a - case.inner_lr * b, w, slopes)
        return loss(w, query_x, query_y)

    def adam(w: Any, m: Any, v: Any, t: Any, batch: Any) -> Any:
        slopes = jax.grad(lambda w: jax.vmap(task, (None, 0, 0, 0, 0))(w, *batch).mean())(w)
        m = jax.tree.map(lambda a, g: 0.9 * a + 0.1 * g, m, slopes)
        v = jax.tree.map(lambda a, g: 0.999 * a + 0.001 * g * g, v, slopes)
        t = t + 1
        size = 1e-3 * jnp.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        return jax.tree.map(lambda a, m, v: a - size * m / (jnp.sqrt(v) + 1e-8), w, m, v), m, v, t

    to = lambda tensor: jnp.asarray(tensor.cpu().numpy())  # noqa: E731
    batch = tuple(to(part) for part in episodes(case, torch.float32, torch.device("cpu")))
    weights = {name: to(w) for name, w in drawn(case)[2].items()}
    zeros = jax.tree.map(jnp.zeros_like, weights)
    state = [weights, zeros, zeros, jnp.zeros(())]
    compiled = jax.jit(adam)

    def step() -> None:
        state[:] = compiled(*state, batch)

    return step, lambda: jax.block_until_ready(state)
