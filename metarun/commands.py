"""A composed Hydra config to a command's exit code."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from metarun.types import InputError, TrainingError


def execute(command: str, cfg: DictConfig) -> int:
    """Runs one job. 0, or 2 for the person's mistake, 1 for a run that failed; a signal ends the process."""
    code = guarded(lambda: _execute(command, cfg))
    if code >= 128:
        raise SystemExit(code)  # also out of a multirun's remaining jobs
    return code


def guarded(work: Callable[[], int], told: Callable[[str], object] = lambda line: None) -> int:
    """The code that `work` gives; 2 or 1 where it raises what a person can do something about, which is said.

    `told` hears each line of that as well.
    """

    def fail(code: int, message: str) -> int:
        for line in message.splitlines():
            print(f"error: {line}", file=sys.stderr, flush=True)
            told(line)
        return code

    try:
        return work()
    except InputError as e:
        return fail(2, str(e))
    except TrainingError as e:
        return fail(1, str(e))
    except (RuntimeError, MemoryError) as e:
        from metarun.engine.memory import is_about_memory

        if not is_about_memory(e):
            raise
        size = re.search(r"tried to allocate ([\d.]+ \w+)", str(e), re.I)
        return fail(1, f"not enough memory{f' for {size[1]}' if size else ''}; {LESS_MEMORY}")
    except OSError as e:
        if e.errno not in NOT_WRITABLE | FULL:
            raise
        way_out = "make room, or" if e.errno in FULL else "run metarun where it can write, or"
        where = e.filename or "the run's files"
        return fail(1 if e.errno in FULL else 2, f"{where}: {e.strerror}; {way_out} name a folder: hydra.run.dir=PATH")


NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
LESS_MEMORY = "lower device.eval_batch or device.chunk (tasks at a time; the result is the same), or the model's size"


def _execute(command: str, cfg: DictConfig) -> int:
    from metarun import config, evaluation, inspection, planning, profiling, run, runs

    tree = plain(command, cfg)
    config.load_plugins(tree["plugins"])
    if command == "data":
        return inspection.inspect(tree)
    if command == "eval":
        return evaluation.evaluate(config.settled_request(tree), _asked_folder())
    resume = tree.pop("resume", None)
    if command in ("profile", "plan"):
        wanted = tree.pop(command)
        if resume is not None:
            raise InputError(f"resume={resume}: goes on with a run, which is metarun train's to do")
        if command == "plan":
            return planning.plan(config.settled(tree), wanted)
        return profiling.profile(config.settled(tree), wanted, _asked_folder())
    if resume == "":
        raise InputError("resume= needs the path of a run, or latest")
    tree = config.settled(tree)
    if resume is not None:
        return run.resume(runs.find(str(resume), "resume"), tree, _typed(tree))
    return run.train(with_protocol(command, tree), _asked_folder())


def with_protocol(command: str, tree: dict[str, Any]) -> dict[str, Any]:
    """The config with its recipe's protocol at full length, so that evaluation needs nothing else."""
    from metarun import config, recipe

    hydra = HydraConfig.get()
    chosen = hydra.runtime.choices.get("experiment")
    if not chosen or not tree.get("paper"):
        return tree
    words = [o for o in hydra.overrides.hydra if o.startswith("hydra.searchpath=")]
    loader = GlobalHydra.instance().config_loader()
    own = loader.load_configuration(hydra.job.config_name, [*words, f"experiment={chosen}"], RunMode.RUN)
    with open_dict(own):
        del own["hydra"]
    whole = config.whole(plain(command, own))
    return tree | {"paper": tree["paper"] | {"protocol": recipe.protocol(whole, tree["paper"])}}


def _typed(tree: dict[str, Any]) -> list[str]:
    """The nodes and settings that were typed, whatever Hydra's syntax for it."""
    from metarun.config import flat
    from metarun.resume import FREE

    words = [o.split("=")[0].lstrip("+~") for o in HydraConfig.get().overrides.task]
    typed = [word.split("@")[0].replace("/", ".") for word in words]
    if "experiment" in typed:
        # It may set anything. How long to train is the run's own to say, unless it is typed.
        # Its number and protocol are the run's own as well, whatever the recipe says by now.
        own = ("paper", *FREE)
        typed += [leaf for leaf in flat(tree) if leaf != "train.iterations" and leaf.split(".")[0] not in own]
    return typed


def plain(command: str, cfg: DictConfig) -> Any:
    """The config as plain data, its interpolations resolved."""
    try:
        missing = OmegaConf.missing_keys(cfg)
        if missing:
            raise InputError("\n".join(f"metarun {command} needs {key}=VALUE" for key in sorted(missing)))
        tree: Any = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as e:
        reason, *more = str(e).splitlines()
        reason = re.sub(r"^\w+ raised while resolving interpolation: ", "", reason).strip('"')
        key = next((line.split(": ")[1] for line in more if "full_key" in line), "a setting")
        raise InputError(f"{key}: {reason}; write a value, or name what there is") from None
    if tree.get("data_root") == "":  # METARUN_DATA= is how a shell takes it away
        tree["data_root"] = None if command == "eval" else "data"
    return tree | {"plugins": tree.get("plugins") or []}


def _asked_folder() -> Path | None:
    """Where Hydra was told to put the run; None where metarun is to choose."""
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    # Hydra counts from where it was called, and so does `hydra.run.dir=.`, which is what metarun's own config says.
    return None if hydra.mode == RunMode.RUN and folder.resolve() == Path(hydra.runtime.cwd).resolve() else folder
