"""What is in memory when a run's first step is done: nothing that took seconds to import and is not used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from contract.test_imports import HEAVY, PACKAGE

COMPILER = {"torch._dynamo", "torch._inductor", "sympy"}
"""what torch imports to compile; together longer than torch itself"""
SYMBOLS_OF_ITS_OWN = {"imaml"}
"""methods whose step asks torch for a product with a Hessian, for which torch imports sympy, though no compiler"""

FIRST_STEP = """
import json, sys
from metarun.cli import dispatch
from metarun.engine import loop

update = loop.meta_update

def first(*args):
    done = update(*args)
    print("\\nLOADED " + json.dumps(sorted(sys.modules)))
    loop.meta_update = update
    return done

loop.meta_update = first
words = "train logger=none device=cpu device.threads=1 model.filters=4 train.iterations=1 train.meta_batch=2 "
code = dispatch((words + "train.val_episodes=2 eval.episodes=2 " + " ".join(sys.argv[1:])).split())
assert code == 0, code
print("\\nLOADED " + json.dumps(sorted(sys.modules)))
"""

EVERY_METHOD = """
import json, sys, torch
from dataclasses import fields
from metarun.config import known
from metarun.engine.compiled import Compiled
from metarun.engine.optim import make_optimizer
from metarun.engine.state import TrainState
from metarun.engine.step import per_task, train_step
from metarun.types import Episode, HostSide, TaskShape

torch.set_num_threads(1)
short = {"inner_steps": 2, "eval_steps": 2, "inner_batch": 4, "cg_steps": 2}
loaded = {}
for name, cls in sorted(known("algo").items(), key=lambda one: one[0] in LAST):
    if issubclass(cls, HostSide):
        continue
    method = cls(**{k: v for k, v in short.items() if k in {f.name for f in fields(cls)}})
    for model, settings in ("conv4", {"filters": 4, "blocks": 2}), ("mlp", {"widths": [4]}):
        net = known("model")[model](item_shape=(1, 8, 8), outputs=2, **settings)
        try:
            method.check(net, TaskShape("classification", 2, 2, 1))
        except ValueError:
            continue
        meta = {n: w.requires_grad_() for n, w in method.init(net, torch.Generator().manual_seed(0)).items()}
        state = TrainState(meta, make_optimizer("Adam", meta.values(), 1e-3, {}), None, method.fresh_running(net))
        y = torch.tensor([[0, 1, 0, 1]])
        task = Episode(torch.rand(1, 4, 1, 8, 8), y, torch.rand(1, 2, 1, 8, 8), y[:, :2])
        listed = Compiled(sys.exit)  # what it says is why there is no list
        for portion in ({}, {"portion": listed}, {"portion": listed}, {"portion": listed}):
            train_step(method.at_step(0, 2), net, state, task, **portion)
        test_net, at_test = net.at_test(state.running), method.at_test(meta)
        with torch.no_grad():
            per_task(lambda e: method.predict(test_net, at_test, e), task)
        loaded[name] = sorted(set(sys.modules) & COMPILER)
print("\\nLOADED " + json.dumps(loaded))
"""


def told(folder: Path, script: str, *words: str) -> list[object]:
    """What a script prints of its process after LOADED."""
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line.split(" ", 1)[1]) for line in done.stdout.splitlines() if line.startswith("LOADED ")]


def test_the_first_step_of_a_run_waits_for_nothing_it_does_not_use(tmp_path: Path) -> None:
    """MAML's, a gradient of a gradient."""
    first, last = (set(names) for names in told(tmp_path, FIRST_STEP, "algo=maml"))  # type: ignore[call-overload]
    assert {"torch", "hydra", "metarun.algorithms.maml"} <= first
    assert not first & (HEAVY | COMPILER)
    assert not last & COMPILER
    assert not first & {"metarun.algorithms.protonet", "metarun.models.mlp", "metarun.data.union"}, "what it named"


def test_the_step_of_every_method_needs_no_compiler_nor_does_its_list(tmp_path: Path) -> None:
    own = f"COMPILER, LAST = {COMPILER!r}, {SYMBOLS_OF_ITS_OWN!r}\n"
    (loaded,) = told(tmp_path, own + EVERY_METHOD)
    assert isinstance(loaded, dict)
    assert {"maml", "protonet", "reptile", "r2d2"} <= loaded.keys()
    needed = {name: found for name, found in loaded.items() if found}
    assert needed == {name: ["sympy"] for name in SYMBOLS_OF_ITS_OWN}
