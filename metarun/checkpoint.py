"""A run's state on disk: written whole or not at all, read back without trusting what is in it."""

from __future__ import annotations

import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from metarun.engine.state import TrainState
from metarun.files import write_atomic
from metarun.types import InputError, Meta

FORMAT = 1


def save(path: Path, state: TrainState) -> None:
    content = {
        "format": FORMAT,
        "step": state.step,
        "meta": {name: w.detach() for name, w in state.meta.items()},
        "running": state.running,
        "optimizer": state.optimizer.state_dict(),
        "scheduler": state.scheduler.state_dict() if state.scheduler else None,
        "totals": state.totals,
        "count": state.count,
        "best": state.best,
        "chunk": state.chunk,
    }
    write_atomic(path, lambda file: torch.save(content, file))


def load(path: Path) -> dict[str, Any]:
    """The content of a checkpoint. Raises `InputError` when it is missing, damaged or holds anything but data."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickles it then refuses
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"no checkpoint at {path}: the run had not saved one yet") from None
    except (RuntimeError, EOFError, OSError, UnpicklingError, ValueError, KeyError) as e:
        reason = str(e).split("\n")[0].split(". ")[0]
        raise InputError(f"checkpoint {path} cannot be read ({reason}); is it whole, and metarun's own?") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or not _is_state(content):
        raise InputError(f"{path} is not a metarun checkpoint of format {FORMAT}")
    return content


def _is_state(content: dict[str, Any]) -> bool:
    """Whether everything is there and of its kind."""
    tensors = [content.get(key) for key in ("meta", "running", "totals")]
    return (
        all(isinstance(t, dict) and all(isinstance(v, Tensor) for v in t.values()) for t in tensors)
        and all(isinstance(content.get(key), int) for key in ("step", "count"))
        and all(isinstance(content.get(key), dict) for key in ("optimizer", "best"))
        and "scheduler" in content
        and isinstance(content.get("chunk"), (int, type(None)))  # an older one has none
    )


def match(found: Meta, wanted: Meta, path: Path) -> Meta:
    """`found`, if it has just the tensors of `wanted`; `InputError` naming the first that differs otherwise."""
    for name in sorted(found.keys() | wanted.keys()):
        there, here = (tuple(m[name].shape) if name in m else None for m in (found, wanted))
        if there != here:
            raise InputError(
                f"checkpoint {path} does not fit this configuration: '{name}' has shape {there or 'none'} there, "
                f"{here or 'none'} here; a trained head keeps its way (eval.way = task.way), and the model its settings"
            )
    return found


def restore(state: TrainState, content: dict[str, Any], path: Path) -> None:
    """Puts a loaded checkpoint into `state`, on the devices its tensors are on."""
    with torch.no_grad():
        for own, saved in ((state.meta, content["meta"]), (state.running, content["running"])):
            for name, value in match(saved, own, path).items():
                own[name].copy_(value)
    try:
        state.optimizer.load_state_dict(content["optimizer"])
        if state.scheduler is not None:
            state.scheduler.load_state_dict(content["scheduler"])
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise InputError(f"checkpoint {path} holds another optimizer or schedule than its run's config: {e}") from None
    device = next(iter(state.meta.values())).device
    state.step, state.count, state.best = content["step"], content["count"], content["best"]
    state.chunk = content.get("chunk")
    state.totals = {name: value.to(device) for name, value in content["totals"].items()}
