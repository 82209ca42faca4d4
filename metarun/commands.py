"""A composed Hydra config to a command's exit code. The only module that looks at Hydra's own state."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from metarun.types import InputError, TrainingError


def execute(command: str, cfg: DictConfig) -> int:
    """Runs one job. 0, or 2 for the person's mistake, 1 for a training that failed; a signal ends the process."""
    try:
        code = _execute(command, cfg)
    except InputError as e:
        for line in str(e).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return 2
    except TrainingError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    if code >= 128:
        raise SystemExit(code)  # also out of a multirun's remaining jobs
    return code


def _execute(command: str, cfg: DictConfig) -> int:
    for key in OmegaConf.missing_keys(cfg):
        raise InputError(f"metarun {command} needs {key}=PATH or {key}=latest")
    tree: Any = OmegaConf.to_container(cfg, resolve=True)

    from metarun import config, run, runs

    config.load_plugins(tree["plugins"])
    if command == "eval":
        return run.evaluate(tree)
    resume = tree.pop("resume")
    if resume is not None:
        typed = [o.split("=")[0].lstrip("+~") for o in HydraConfig.get().overrides.task]
        return run.resume(
            runs.find(str(resume), "resume"), tree, [key.split("@")[0].replace("/", ".") for key in typed]
        )
    return run.train(tree, _asked_folder())


def _asked_folder() -> Path | None:
    """Where Hydra was told to put the run; None where metarun is to choose."""
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.RUN and hydra.run.dir == ".":
        return None
    return Path(hydra.runtime.output_dir)
