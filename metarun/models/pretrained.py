"""torchvision's classification networks by name, without their classifiers, and the weights to be had for them."""

from __future__ import annotations

import json
import re
import warnings
from collections import OrderedDict
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from metarun.types import Meta

CLASSIFIERS = ("fc", "classifier", "heads", "head")
"""what torchvision calls the part from features to classes"""
AUXILIARY = ("aux1", "aux2", "AuxLogits")
"""what it calls classifiers on the way"""
OTHER_TASKS = tuple(
    f"torchvision.models.{t}" for t in ("detection", "segmentation", "video", "optical_flow", "quantization")
)
OTHER_INPUT = ("googlenet", "inception_v3")
"""Their published weights want another normalisation than ImageNet's, and they make it themselves when told to"""
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
"""Names as the published files of densenets have them: norm.1.weight, which is norm1.weight now"""


def known_archs() -> list[str]:
    """The classification networks in torchvision's registry."""
    from torchvision import models

    builders = {name: models.get_model_builder(name).__module__ for name in models.list_models()}
    return [name for name, where in builders.items() if not where.startswith(OTHER_TASKS)]


def build(arch: str, args: dict[str, Any], state: Meta | None = None, seed: int = 0) -> nn.Module:
    """torchvision's module without its classifier, with a state_dict's weights or ones drawn from `seed`."""
    from torchvision import models

    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        torch.default_generator.manual_seed(seed)
        try:
            module = models.get_model_builder(arch)(weights=None, **args)
        except (TypeError, ValueError, RuntimeError, AssertionError, AttributeError, LookupError, ArithmeticError) as e:
            raise ValueError(f"arch_args={args}: arch={arch} does not take them ({e})") from None
    if state is not None:
        _fill(module, state, arch)
    for name in AUXILIARY:
        if hasattr(module, name):
            setattr(module, name, None)
    name = _classifier(module, arch)
    setattr(module, name, _headless(getattr(module, name)))
    return module


def _classifier(module: nn.Module, arch: str) -> str:
    for name in CLASSIFIERS:
        if hasattr(module, name):
            return name
    raise ValueError(f"arch={arch}: where its classifier starts is not known (no {', '.join(CLASSIFIERS)})")


def _headless(classifier: nn.Module) -> nn.Module:
    """What of a classifier makes features: all before its first layer of weights, and pooling after that."""
    if not isinstance(classifier, nn.Sequential):
        return nn.Identity()
    kept: OrderedDict[str, nn.Module] = OrderedDict()
    weighted = False
    for name, layer in classifier.named_children():
        weighted = weighted or isinstance(layer, (nn.Linear, nn.Conv2d))
        if not weighted or isinstance(layer, nn.AdaptiveAvgPool2d):
            kept[name] = layer
    return nn.Sequential(kept)


def _fill(module: nn.Module, state: Meta, arch: str) -> None:
    """Puts a state_dict into a whole module; its classifier may be another, or none. Raises `ValueError` for others."""
    state = {OLD_DENSENET.sub(r"\1\2", name): w for name, w in state.items()}
    unread = (f"{_classifier(module, arch)}.", *(f"{name}." for name in AUXILIARY))
    own = module.state_dict()
    trunk = {k: v for k, v in state.items() if not k.startswith(unread) or (k in own and own[k].shape == v.shape)}
    try:
        missing, unexpected = module.load_state_dict(trunk, strict=False)
    except RuntimeError as e:
        raise ValueError(f"it does not fit arch={arch} ({' '.join(str(e).split())[:200]})") from None
    missing = [k for k in missing if not k.startswith(unread) and not k.endswith("num_batches_tracked")]
    if wrong := missing or [k for k in unexpected if not k.startswith(unread)]:
        has = "lacks" if missing else "holds"
        raise ValueError(f"it does not fit arch={arch}: it {has} '{wrong[0]}'" + (" and more" if wrong[1:] else ""))


class Pretrained(NamedTuple):
    weights: Meta
    running: Meta
    """{"NAME.mean", "NAME.var"} for every batch norm"""


def split(module: nn.Module) -> Pretrained:
    """A headless module's weights and its batch norms' moving averages."""
    running: Meta = {}
    for name, m in module.named_modules():
        if isinstance(m, _BatchNorm) and m.running_mean is not None and m.running_var is not None:
            running |= {f"{name}.mean": m.running_mean, f"{name}.var": m.running_var}
    return Pretrained({name: w.detach() for name, w in module.named_parameters()}, running)


def wanted_args(arch: str, args: dict[str, Any], weights: str | None) -> dict[str, Any]:
    """What the builder of `arch` is to be given, for weights that have been trained."""
    return {"transform_input": True} | args if weights is not None and arch in OTHER_INPUT else args


def pretrained(arch: str, args: dict[str, Any], weights: str) -> Pretrained:
    """The weights that `weights` names, read or downloaded once. Raises `ValueError` where they cannot be had."""
    path = Path(weights).expanduser()
    if is_path(weights):
        if not path.is_file():
            raise ValueError(f"weights={weights}: there is no such file")
        return _from_file(arch, json.dumps(args, sort_keys=True), weights, path.stat().st_mtime_ns)
    return _from_torchvision(arch, json.dumps(args, sort_keys=True), weights)


def is_path(weights: str) -> bool:
    """Whether `weights` is a file rather than a name of torchvision's."""
    path = Path(weights).expanduser()
    return path.is_file() or path.name != weights or path.suffix in (".pth", ".pt")


@lru_cache(maxsize=2)
def _from_file(arch: str, args: str, weights: str, changed: int) -> Pretrained:
    try:
        content = torch.load(Path(weights).expanduser(), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, UnpicklingError, ValueError, KeyError) as e:
        why = str(e).split("\n")[0].split(". ")[0][:120]
        raise ValueError(f"weights={weights}: is no state_dict that torch.save wrote ({why})") from None
    for inner in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(inner), dict):
            content = content[inner]
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"weights={weights}: is no state_dict: a mapping of names to tensors is wanted")
    state = {str(name).removeprefix("module."): w for name, w in content.items()}
    try:
        return split(build(arch, json.loads(args), state))
    except ValueError as e:
        raise ValueError(f"weights={weights}: {e}") from None


@lru_cache(maxsize=2)
def _from_torchvision(arch: str, args: str, weights: str) -> Pretrained:
    chosen = published(arch, weights)
    try:
        state = chosen.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, UnpicklingError) as e:  # no network, a broken file
        where = Path(torch.hub.get_dir()) / "checkpoints"
        raise ValueError(
            f"weights={weights}: could not be downloaded ({' '.join(str(e).split())[:120]}); put {chosen.url} into "
            f"{where} yourself, or give the path of a state_dict: model.weights=PATH.pth"
        ) from None
    return split(build(arch, json.loads(args), state))


def published(arch: str, weights: str) -> Any:
    """torchvision's record of the weights it publishes under a name for `arch`."""
    from torchvision import models

    try:
        options = models.get_model_weights(arch)
    except ValueError:
        raise ValueError(f"weights={weights}: torchvision publishes none for arch={arch}; give a file's path") from None
    names = ["DEFAULT", *(w.name for w in options)]
    if weights.upper() not in names:
        near = get_close_matches(weights.upper(), names)
        raise ValueError(f"weights={weights}: arch={arch} has {', '.join(near or names)}, or give a file's path")
    return options[weights.upper()]


@lru_cache
def normalisation(arch: str) -> list[tuple[float, float]]:
    """Mean and standard deviation of each channel that `arch`'s published weights were trained with."""
    try:
        preset = published(arch, "DEFAULT").transforms()
        return list(zip(preset.mean, preset.std))
    except (ValueError, AttributeError):
        return [(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]  # ImageNet's
