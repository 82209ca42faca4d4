"""A command as a Hydra application: what Hydra does with the words typed, and its complaints in few words.

Hydra refuses an unknown group, option or key before a job starts; the values are metarun's to check (see `config`).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from string import Template
from typing import Any, NoReturn

import hydra
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from metarun.hints import did_you_mean, nearest
from metarun.manual import annotated, groups, notes, row

VERSION_BASE = "1.3"
FULL_ERROR = "HYDRA_FULL_ERROR"
SWEEP = "sweep"
OURS = ("hydra.sweep.dir=", "hydra.searchpath=", "hydra.mode=")
"""words of Hydra's that a multirun may have and still be run by metarun, side by side"""


def run(command: str, args: list[str], conf: Path, started: Callable[[], None]) -> int:
    """Runs a command under Hydra; the exit code. A person's mistake is a short message and 2, never a traceback.

    `started` is called once all is imported and a job begins.
    """
    app = App(command, conf, started)
    asked_full = os.environ.get(FULL_ERROR, "0") not in ("", "0")
    before = sys.argv, os.environ.get(FULL_ERROR)
    try:
        sys.argv = [sys.argv[0], *app.read(replacing(args))]
        if app.help:
            print(app.manual())
            return 0
        # With it Hydra raises what it would print and exit on, which is how its messages can be made short.
        os.environ[FULL_ERROR] = "1"
        if app.side_by_side or (app.command == SWEEP and not app.looks):
            return app.sweep()
        task = app.task()
        hydra.main(version_base=VERSION_BASE, config_path=str(conf), config_name=command)(task)()
    except _Refused as e:
        return _fail(str(e))
    except SystemExit as e:  # after --help and the like; from a run that was stopped
        return e.code if isinstance(e.code, int) else int(e.code is not None)
    except BrokenPipeError:
        raise  # whoever read this has closed; cli knows what to do
    except Exception as e:
        # Before the first job anything that goes wrong comes from what was typed; afterwards, from metarun.
        if asked_full or (app.codes and not isinstance(e, HydraException)) or app.running:
            raise
        return _fail(app.explain(e))
    finally:
        sys.argv = before[0]
        _set_env(FULL_ERROR, before[1])
        app.tidy()
    if len(app.codes) > 1 and any(app.codes):
        failed = [f"#{n}" for n, code in enumerate(app.codes) if code]
        _fail(f"{len(failed)} of {len(app.codes)} jobs failed: {', '.join(failed)}")
    return max(app.codes, default=0)


FREE_FORM = (
    "train.optimizer_args",
    "train.schedule_args",
    "model.arch_args",
    "dataset.args",
    "dataset.of",
    "sweep.space",
)
"""Mappings whose keys are for torch, torchvision or another dataset to know."""


def replacing(args: list[str]) -> list[str]:
    """The same words, with Hydra's syntax for new keys where they set something in a free-form mapping.

    `train.schedule_args={T_max: 9}` replaces the mapping, `train.schedule_args.T_max=9` sets one key of it.
    """
    out = []
    for word in args:
        key = word.partition("=")[0]
        if key in FREE_FORM:
            out += [f"{key}=null", f"++{word}"]
        else:
            out.append(f"++{word}" if key.startswith(tuple(f"{name}." for name in FREE_FORM)) else word)
    return out


class _Refused(Exception):
    """Not for Hydra. The message is for the person."""


def _fail(message: str) -> int:
    for line in message.splitlines():
        print(f"error: {line}", file=sys.stderr)
    return 2


def _set_env(name: str, value: str | None) -> None:
    os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value


@dataclass
class App:
    """One call of a command: what was typed, and what its jobs returned."""

    command: str
    conf: Path
    started: Callable[[], None]
    overrides: list[str] = field(default_factory=list)
    config_dir: str | None = None
    help: bool = False
    looks: bool = False
    """whether something is only to be shown"""
    side_by_side: Path | None = None
    """where the runs of a multirun go that metarun runs itself; None: Hydra does, one after another"""
    codes: list[int] = field(default_factory=list)
    running: bool = False
    folders: list[Path] = field(default_factory=list)
    there: Path | None = None
    """the nearest folder that was there before Hydra made one for this call; None where it makes none"""

    def read(self, args: list[str]) -> list[str]:
        """Checks what Hydra checks late or not at all; the words for Hydra, whose parser wants its flags first."""
        flags = _parse(args, self.command)
        if flags.experimental_rerun is not None:
            raise _Refused(
                "--experimental-rerun: reads a pickle, which could run anything; go on with a run with resume=PATH"
            )
        self.overrides, self.config_dir, self.help = flags.overrides, flags.config_dir, flags.help
        multirun = flags.multirun or "hydra.mode=MULTIRUN" in flags.overrides
        if self.command == SWEEP and (flags.config_path or flags.config_name):
            raise _Refused("--config-path, --config-name: a sweep's runs are metarun train's; use --config-dir")
        ignored = [o for o in self.overrides if o.startswith("hydra") and not o.startswith(OURS)]
        if self.command == SWEEP and ignored:
            raise _Refused(f"{ignored[0]}: is not for a sweep; sweep.name=NAME names its folder under outputs/sweep")
        self.looks = bool(flags.help or flags.hydra_help or flags.cfg or flags.info or flags.shell_completion)
        if self.command == SWEEP and self.looks:
            args = self._without_searched(args)
        hydras = multirun or any(o.startswith("hydra.") for o in self.overrides)
        if self.command != SWEEP and not self.looks and not flags.config_path and hydras:
            folder = self._preview(multirun)
            plain = not (ignored or flags.config_name or any(o.startswith("resume=") for o in self.overrides))
            if multirun and self.command == "train" and plain:
                self.side_by_side = folder
        words, rest = [], [*self.overrides]
        for word in args:
            if rest and word == rest[0]:
                rest.pop(0)
            else:
                words.append(word)
        return words + self.overrides

    def manual(self) -> str:
        """What `--help` says: Hydra's template, filled in with more than Hydra knows."""
        with self._composer():
            cfg = compose(self.command, self.overrides, return_hydra_config=True)
            choices = {k: v for k, v in cfg.hydra.runtime.choices.items() if not k.startswith("hydra")}
            loader = GlobalHydra.instance().config_loader()
            options = {group: loader.get_group_options(group) for group in groups(self.conf, self.command)}
        said = notes(self.conf, self.command, choices)
        width = max(map(len, options))
        template = Template(cfg.hydra.help.template)
        with open_dict(cfg):
            del cfg["hydra"]
        return template.substitute(
            GROUPS="\n".join(row(group, names, width) for group, names in options.items()),
            CONFIG=annotated(OmegaConf.to_yaml(cfg), said),
        ).strip()

    def task(self) -> Any:
        """What Hydra calls for each job."""

        def task(cfg: DictConfig) -> None:
            importlib.import_module("metarun.run")
            from metarun.commands import execute

            self.started()
            self._note_folders()
            self.running = True
            self.codes.append(execute(self.command, cfg))
            self.running = False

        task.__module__ = "metarun"
        return task

    def sweep(self) -> int:
        """Many runs, each of which Hydra composes, and no more."""
        from metarun.sweep import nursery

        def started() -> None:
            self.started()
            self.running = True

        # It imports torch while this process does.
        with self._composer(), contextlib.closing(nursery.Nursery()) as warm:
            importlib.import_module("metarun.run")
            from metarun.commands import guarded
            from metarun.sweep.command import Typed, sweep
            from metarun.sweep.multirun import multirun

            loader = GlobalHydra.instance().config_loader()
            words = [word for word in self.overrides if not word.startswith("hydra.") or "searchpath" in word]
            parsed = OverridesParser.create(config_loader=loader).parse_overrides(words)
            groups = loader.list_groups("")
            typed = Typed(words, parsed, groups, self._unknown, replacing, started, warm, self.config_dir)
            folder = self.side_by_side
            return guarded(lambda: sweep(typed) if folder is None else multirun(typed, folder))

    def _without_searched(self, args: list[str]) -> list[str]:
        """To show a config, what is searched is left at what it would be otherwise."""
        with self._composer():
            parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
            searched = [w for w in self.overrides if parser.parse_override(w).is_sweep_override()]
        self.overrides = [word for word in self.overrides if word not in searched]
        return [word for word in args if word not in searched]

    def _preview(self, multirun: bool) -> Path:
        """Composes what can be wrong with the jobs before any of them starts and before Hydra makes folders.

        Gives where they go. Names are all that composing checks, so each choice of a swept group is tried once, and one
        value of the rest.
        """
        about = ""
        try:
            with self._composer():
                parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
                words, swept = self._sweeps(parser.parse_overrides(self.overrides), multirun)
                cfg = compose(self.command, [*words, *(options[0] for options in swept.values())], True)
                wanted = Path(cfg.hydra.sweep.dir if multirun else cfg.hydra.run.dir).absolute()
                for group in swept.keys() & cfg.hydra.runtime.choices.keys():
                    for about in swept[group]:
                        others = [options[0] for key, options in swept.items() if key != group]
                        compose(self.command, [*words, about, *others])
        except Exception as e:
            self.overrides = [*self.overrides, about] if about else self.overrides
            said = self.explain(e)
            raise _Refused(f"{about}: {said}" if about and not said.startswith(about) else said) from e
        self.there = next(p for p in (wanted, *wanted.parents) if p.exists())
        return wanted

    def _sweeps(self, parsed: list[Override], multirun: bool) -> tuple[list[str], dict[str, list[str]]]:
        """The overrides that all jobs share, and by key what a multirun tries one after another: `seed=0`, `seed=1`."""
        words: list[str] = []
        swept: dict[str, list[str]] = {}
        for typed, o in zip(self.overrides, parsed, strict=True):
            if not (multirun and o.is_sweep_override()):
                words.append(typed)
            elif not o.is_discrete_sweep():
                raise _Refused(f"{typed}: Hydra's own sweeper tries lists only, as in {o.key_or_group}=1e-3,1e-2")
            else:
                values = o.sweep_string_iterator()
                if not o.is_choice_sweep():
                    values = islice(values, 1)  # only a group's choices need be tried, and they may be very many
                options = swept[o.key_or_group] = [f"{o.get_key_element()}={value}" for value in values]
                if not options:
                    raise _Refused(f"{typed}: this is no value at all, so there is nothing to run")
        return words, swept

    @contextlib.contextmanager
    def _composer(self) -> Iterator[None]:
        """Where `compose` works as it does for the command line. Leaves nothing behind."""
        GlobalHydra.instance().clear()
        more = [f"hydra.searchpath=[file://{Path(self.config_dir).resolve()}]"] if self.config_dir else []
        typed = self.overrides
        self.overrides = typed + more
        try:
            with initialize_config_dir(str(self.conf), version_base=VERSION_BASE, job_name=self.command):
                yield
        finally:
            self.overrides = typed
            GlobalHydra.instance().clear()

    def _note_folders(self) -> None:
        cfg = HydraConfig.get()
        self.folders.append(Path(cfg.runtime.output_dir))
        if cfg.mode == RunMode.MULTIRUN:
            self.folders.append(Path(cfg.sweep.dir).absolute())

    def tidy(self) -> None:
        """Takes away the folders that Hydra made for jobs that left nothing in them."""
        if self.there is None:
            return
        for folder in sorted(set(self.folders), key=lambda f: len(f.parts), reverse=True):
            for p in (folder, *folder.parents):
                if self.there not in p.parents:
                    break
                with contextlib.suppress(OSError):
                    if [child.name for child in p.iterdir()] == ["multirun.yaml"]:
                        (p / "multirun.yaml").unlink()
                    p.rmdir()  # refuses unless it is empty

    def explain(self, e: Exception) -> str:
        """A complaint about what was typed, as one line that says what to type instead."""
        if isinstance(e, _Refused):
            return str(e)
        text = str(e)
        lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(e).__name__]
        if isinstance(e, OverrideParseException):
            return self._unreadable(e.override)
        if isinstance(e, MissingConfigException):
            return self._missing(e, lines[0])
        if found := re.match(r"Could not (?:override|append|delete)[^']*'([^']+)'", lines[0]):
            return self._unknown(re.split("[=@]", found[1])[0])
        if found := re.match(r"Multiple values for (\S+?)\.", lines[0]):
            return f"{found[1]} is chosen twice; write {found[1]}=NAME once, without a +"
        if found := re.match(r"Ambiguous value for argument '(.*)'", lines[0]):
            key, _, value = found[1].partition("=")
            return f"{found[1]}: several values make several runs: add -m (one value that is a list: {key}=[{value}])"
        if "Config group override must be a string" in text:
            bad = next((o for o in self.overrides if re.match(r"[a-z_/]*=(null|[\d.]*)$", o)), "=")
            group = bad.partition("=")[0]
            return (
                f"{bad}: names no option; write {group}=NAME (metarun list {group})" if group else self._unreadable(bad)
            )
        if isinstance(e, OSError) and e.filename:
            return f"{e.filename}: {e.strerror}; give another folder: hydra.run.dir=PATH"
        if found := re.match(r"Error merging override (.*)", lines[0]):
            return f"{found[1]}: {str(e.__cause__ or text).splitlines()[0]}"
        return lines[0]

    def _unreadable(self, override: str) -> str:
        word = override.strip()
        if word == "latest" or (word and Path(word).exists()):
            key = "run" if self.command == "eval" else "resume"
            return f"'{override}' is no SETTING=VALUE; did you mean {key}={word}?"
        if "=" in word.lstrip("+~="):
            return f"'{override}' cannot be read; quote a value that holds more than a word: 'key=\"a, (b)\"'"
        for group in groups(self.conf, self.command):
            if nearest(word, [file.stem for file in (self.conf / group).glob("*.yaml")]):
                return f"'{override}' is no SETTING=VALUE; did you mean {group}={word}?"
        return f"'{override}' is no SETTING=VALUE, as train.lr=1e-4 is; see metarun {self.command} --help"

    def _missing(self, e: MissingConfigException, first: str) -> str:
        group, slash, name = (e.missing_cfg_file or "").rpartition("/")
        if not slash:
            return first
        hint = did_you_mean(name, e.options or [], f"metarun list {group}")
        return f"{group}={name}: no such {group.split('/')[-1]}; {hint}"

    def _unknown(self, key: str) -> str:
        if key.startswith("hydra."):
            return f"{key}: Hydra has no such setting; see metarun {self.command} --cfg hydra"
        known = self._keys()
        if self.command == "eval" and key.split(".")[0] in ("algo", "dataset", "model", "task", "train", "seed"):
            free = ", ".join(k for k in known if k.startswith("eval."))
            return f"{key}: metarun eval takes it from the run; what it can change: {free}"
        near = nearest(key, known)
        inside = [k for k in known if k.rpartition(".")[0] == key.rpartition(".")[0]]
        return f"{key}: no such setting; {did_you_mean(key, near or inside or [k for k in known if '.' not in k])}"

    def _keys(self) -> list[str]:
        """Every group and key that the command knows under the groups that were chosen."""

        def leaves(node: dict[str, Any], prefix: str = "") -> list[str]:
            out = []
            for key, value in node.items():
                out.append(f"{prefix}{key}")
                out += leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else []
            return out

        own = groups(self.conf, self.command)
        with self._composer():
            chosen = [o for o in self.overrides if re.match(r"\w+=\w+$", o) and o.split("=")[0] in own]
            chosen += [o for o in self.overrides if o.startswith("hydra.searchpath=")]
            try:
                cfg = compose(self.command, chosen)
            except HydraException:
                cfg = compose(self.command)
        return [*own, *leaves(OmegaConf.to_container(cfg))]  # type: ignore[arg-type]


def _parse(args: list[str], command: str) -> argparse.Namespace:
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise _Refused(f"{message}; see metarun {command} --help")

    parser.error = refuse
    return parser.parse_intermixed_args(args)
