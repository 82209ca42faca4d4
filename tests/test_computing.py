"""How a step is computed, as the device's settings would have it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from metarun.algorithms.maml import MAML
from metarun.algorithms.mamlpp import MAMLPP
from metarun.computing import few_at_once, with_tf32
from metarun.device import allow_tf32, pick
from metarun.settings import DeviceSettings, TrainSettings
from metarun.types import InputError


def tf32() -> tuple[str, str]:
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]


@pytest.fixture
def without_tf32() -> Any:
    before = tf32()
    allow_tf32(False)
    yield
    torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision = before  # type: ignore[attr-defined]


@pytest.mark.parametrize("fails", [False, True])
def test_tf32_is_for_training_steps_alone(without_tf32: None, fails: bool) -> None:
    seen: list[tuple[str, str]] = []

    def compute(*what: object) -> dict[str, Any]:
        seen.append(tf32())
        if fails:
            raise RuntimeError
        return {}

    assert tf32() == ("ieee", "ieee")
    if fails:
        with pytest.raises(RuntimeError):
            with_tf32(compute)(1, 2)
    else:
        assert with_tf32(compute)(1, 2) == {}
    assert seen == [("tf32", "tf32")] and tf32() == ("ieee", "ieee")


def test_tf32_is_a_gpu_s() -> None:
    with pytest.raises(InputError, match=r"device.precision=tf32: is a GPU's.*device.precision=fp32"):
        pick(DeviceSettings(kind="cpu", precision="tf32"))


def few(algorithm: Any = None, steady: bool = True, device: str = "cpu", **settings: Any) -> bool:
    plan: Any = SimpleNamespace(
        device=DeviceSettings(**settings),
        algorithm=algorithm or MAML(),
        train=TrainSettings(iterations=1000),
    )
    return few_at_once(plan, torch.device(device), SimpleNamespace(steady=steady)) is not None  # type: ignore[arg-type]


def test_a_cpu_takes_few_tasks_at_a_time_where_all_steps_are_alike() -> None:
    """Where they are not, what a run sums up together would depend on how often it was resumed."""
    assert few() and few(compile=True)
    assert few(MAMLPP(multi_step_loss=False, first_order_iterations=0))
    assert not few(steady=False)
    assert not few(MAMLPP(multi_step_loss=True, multi_step_iterations=500))
    assert not few(compile=False) and not few(chunk=8) and not few(chunk=None) and not few(device="cuda")
