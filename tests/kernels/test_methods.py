"""A method's meta-gradient is the same by metarun's kernels and by torch's, which a GPU and others' machines have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from contract.small import CONV4, POOLED, RESNET12, make_algorithm, make_episodes, make_meta, make_net, make_running

from metarun.engine.step import meta_gradient
from metarun.kernels import library


@pytest.mark.parametrize("statistics", ["batch", "support", "running"])
@pytest.mark.parametrize(
    ("name", "model"),
    [("maml", CONV4), ("imaml", CONV4), ("protonet", CONV4), ("r2d2", RESNET12), ("anil", POOLED)],
    ids=str,
)
def test_it_is_torchs(name: str, model: Any, statistics: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not library.loaded():
        pytest.skip("the kernels could not be compiled here")
    algorithm, net = make_algorithm(name), make_net(model, statistics=statistics)
    meta = make_meta(algorithm, net)
    running = make_running(algorithm, net, meta)
    used = list[str]()
    monkeypatch.setattr(library, "function", lambda *what, real=library.function: used.append(what[0]) or real(*what))

    def gradient() -> dict[str, torch.Tensor]:
        for w in meta.values():
            w.grad = None
        meta_gradient(algorithm, net, meta, make_episodes(), None, running)
        return {n: w.grad.clone() for n, w in meta.items() if w.grad is not None}

    ours = gradient()
    assert used
    used.clear()
    monkeypatch.setattr(library.State, "library", None)
    theirs = gradient()
    assert not used and ours.keys() == theirs.keys()
    for n in ours:
        torch.testing.assert_close(ours[n], theirs[n], rtol=1e-9, atol=1e-11, msg=n)
