"""A torchvision classification network as a pure function of its weights: without its classifier, in metarun's norms.

What is changed in it, and why:

- Every batch norm and layer norm is replaced: torch's own give silently wrong second-order gradients under the engine's
  transforms (`metarun/layers.py`), and a batch norm must take its statistics from where the model's settings say.
- Attention and hard sigmoids take their plain formulas: torch's own kernels have no second derivative.
- Convolutions are metarun's where it has them, which are the faster ones for weights of each task's own.
- Its dropout and stochastic depth are off, and auxiliary classifiers are taken out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import debug_unwrap, functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from metarun.layers import Norm, conv2d
from metarun.models.pretrained import build
from metarun.types import Meta


class Scope:
    """The norm of the forward pass under way, for the replaced modules to use, and the order they were met in."""

    norm: Norm | None = None
    met: list[str] | None = None

    def meet(self, name: str) -> Norm:
        assert self.norm is not None
        if self.met is not None:
            self.met.append(name)
        return self.norm


class TaskBatchNorm(nn.Module):
    """In place of a batch norm: the norm of the forward pass, with this module's weights."""

    def __init__(self, name: str, old: _BatchNorm, scope: Scope) -> None:
        super().__init__()
        self.name, self.eps, self.scope = name, old.eps, scope
        self.weight, self.bias = old.weight, old.bias

    def forward(self, x: Tensor) -> Tensor:
        weights: Meta = {f"{self.name}.weight": self.weight, f"{self.name}.bias": self.bias}
        return self.scope.meet(self.name)(weights, self.name, x, eps=self.eps)


class TaskLayerNorm(nn.Module):
    """In place of a layer norm over the last dimension, or over the channels of a map."""

    def __init__(self, name: str, old: nn.LayerNorm, scope: Scope, over_channels: bool) -> None:
        super().__init__()
        self.name, self.eps, self.scope, self.over_channels = name, old.eps, scope, over_channels
        self.weight, self.bias = old.weight, old.bias

    def forward(self, x: Tensor) -> Tensor:
        self.scope.meet(self.name)
        if self.over_channels:
            x = x.movedim(1, -1)
        y = F.group_norm(x.reshape(-1, x.shape[-1]), 1, self.weight, self.bias, self.eps).reshape(x.shape)
        return y.movedim(-1, 1) if self.over_channels else y


class PlainHardsigmoid(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x + 3) / 6


class TaskConv2d(nn.Module):
    """In place of a convolution that metarun has too, which then chooses how it is done."""

    def __init__(self, old: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias, self.stride = old.weight, old.bias, old.stride[0]

    def forward(self, x: Tensor) -> Tensor:
        return conv2d(x, self.weight, self.bias, self.stride)

    @staticmethod
    def fits(old: nn.Module) -> bool:
        """Whether its kernel is square and has a middle, and it keeps the size at stride 1."""
        if not isinstance(old, nn.Conv2d) or old.groups > 1 or old.padding_mode != "zeros":
            return False
        k, stride = old.kernel_size[0], old.stride[0]
        plain = old.kernel_size == (k, k) and old.stride == (stride, stride) and old.dilation == (1, 1)
        return plain and k % 2 == 1 and old.padding == (k // 2, k // 2)


class GlobalMean(TorchFunctionMode):
    """Makes adaptive pooling to one pixel a mean: for some layouts it has no batching rule and runs task by task."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.adaptive_avg_pool2d and args[1] in (1, (1, 1), [1, 1]):
            return args[0].mean((2, 3), keepdim=True)
        return func(*args, **(kwargs or {}))


class Traced(NamedTuple):
    """What a forward pass of images of some size shows."""

    features: int
    norms: tuple[str, ...]
    """in the order they are met"""


class Backbone:
    """The network of `arch`, which keeps no weights: they are an argument of every call."""

    def __init__(self, arch: str, args: dict[str, Any]) -> None:
        self._arch, self._scope, self._traced = arch, Scope(), {}
        module = build(arch, args)
        self.batch_norms = {name: m.num_features for name, m in module.named_modules() if isinstance(m, _BatchNorm)}
        self.layer_norms = [name for name, m in module.named_modules() if isinstance(m, nn.LayerNorm)]
        self._replace(module)
        module.eval()
        for m in module.modules():
            if isinstance(m, nn.MultiheadAttention):
                m.training, m.dropout = True, 0.0  # its fast path, taken at test time only, knows no transforms
        self._buffers = {(torch.device("cpu"), torch.float32): dict(module.named_buffers())}
        self.names = tuple(name for name, _ in module.named_parameters())
        self._module = module.to("meta")

    def _replace(self, module: nn.Module) -> None:
        from torchvision.models.convnext import LayerNorm2d

        for name, old in list(module.named_modules()):
            if isinstance(old, _BatchNorm):
                new: nn.Module = TaskBatchNorm(name, old, self._scope)
            elif isinstance(old, nn.LayerNorm):
                new = TaskLayerNorm(name, old, self._scope, isinstance(old, LayerNorm2d))
            elif isinstance(old, nn.Hardsigmoid):
                new = PlainHardsigmoid()
            elif TaskConv2d.fits(old):
                new = TaskConv2d(cast(nn.Conv2d, old))
            else:
                continue
            module.set_submodule(name, new)

    def buffers(self, device: torch.device, dtype: torch.dtype) -> Meta:
        """What its forward pass reads besides weights (tables of positions)."""
        key = (device, dtype)
        if key not in self._buffers:
            plain = self._buffers[torch.device("cpu"), torch.float32]
            # Unwrapped, for a transform of which this call is inside will be over when the next one comes.
            self._buffers[key] = {
                n: debug_unwrap(b.to(device, dtype if b.is_floating_point() else b.dtype)) for n, b in plain.items()
            }
        return self._buffers[key]

    def __call__(self, weights: Mapping[str, Tensor], x: Tensor, norm: Norm) -> Tensor:
        """x: (n, 3, height, width) -> (n, features)"""
        own = {name: weights[name] for name in self.names if name in weights}
        self._scope.norm = norm
        try:
            with sdpa_kernel(SDPBackend.MATH), GlobalMean():
                y = functional_call(self._module, own | self.buffers(x.device, x.dtype), (x,))
        finally:
            self._scope.norm = None
        return y.flatten(1)

    def traced(self, side: tuple[int, int]) -> Traced:
        """What images of these sides make of it. Raises `ValueError` for sides it cannot take."""
        if side not in self._traced:
            self._scope.met = []
            try:
                with torch.no_grad():
                    x = torch.empty(2, 3, *side, device="meta")
                    features = self(dict(self._module.named_parameters()), x, Norm("batch")).shape[1]
            except (RuntimeError, ValueError, AssertionError, IndexError) as e:
                why = " ".join(str(e).split())[:120]
                raise ValueError(
                    f"arch={self._arch} cannot take {side[0]}x{side[1]} images ({why}); give it others with "
                    "image_size, 224 for most"
                ) from None
            finally:
                met, self._scope.met = self._scope.met, None
            self._traced[side] = Traced(features, tuple(dict.fromkeys(met)))
        return self._traced[side]


@lru_cache(maxsize=4)
def _backbone(arch: str, args: str) -> Backbone:
    return Backbone(arch, json.loads(args))


def backbone(arch: str, args: dict[str, Any]) -> Backbone:
    """The backbone, built once. Raises `ValueError` for an arch or arguments that torchvision does not have."""
    return _backbone(arch, json.dumps(args, sort_keys=True))
