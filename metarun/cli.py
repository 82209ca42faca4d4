"""argv to a command. Light: `--help`, `--version` and `list` import neither torch nor hydra.

Each command is a Hydra application of its own: overrides, `-m`, `--cfg job`, `--info`, `--help`, `--config-dir` and
shell completion stand behind it as Hydra users know them.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from metarun import __version__

COMMANDS = {
    "train": "train a run, evaluate its best checkpoint; resume=PATH|latest goes on with one",
    "eval": "evaluate a trained run on test classes: run=PATH|latest",
    "list": "what there is to choose from: list [algo|dataset|model|experiment|...]",
}
GROUPS = ("algo", "dataset", "model", "experiment", "device", "logger")


def usage() -> str:
    lines = [f"  {name:<7}{text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: metarun COMMAND [SETTING=VALUE ...]",
            "",
            *lines,
            "",
            "  metarun train                                  MAML on the built-in glyphs",
            "  metarun train algo=protonet dataset=omniglot   any method on any data",
            "  metarun train -m algo=maml,anil seed=0,1       one run for each combination",
            "  metarun COMMAND --help                         every setting of a command",
            "  metarun COMMAND ... --cfg job                  the composed config, without running",
            '  eval "$(metarun -sc install=bash)"             shell completion',
            "",
            "  -h, --help     this text",
            "  -V, --version  the version",
        ]
    )


def main() -> None:
    sys.exit(dispatch(sys.argv[1:]))


def dispatch(args: list[str]) -> int:
    if args[:1] in (["-sc"], ["--shell-completion"]):
        return _completion(args)
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return 0 if args else 2
    if args[0] in ("-V", "--version"):
        print(f"metarun {__version__}")
        return 0
    command, *rest = args
    if command not in COMMANDS:
        from difflib import get_close_matches

        near = get_close_matches(command, COMMANDS, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(COMMANDS)}"
        return _fail(f"no command '{command}'; {hint}")
    if command == "list":
        return _list(rest)
    return _hydra(command, rest)


def _fail(message: str) -> int:
    for line in message.splitlines():
        print(f"error: {line}", file=sys.stderr)
    return 2


def conf_dir() -> Path:
    """The one config tree: inside the wheel, or beside the package in a checkout."""
    here = Path(__file__).resolve().parent
    return next(c for c in (here / "conf", here.parent / "conf") if c.is_dir())


def choices(group: str) -> dict[str, str]:
    """name -> one line about it: the first comment line of each file of a config group."""
    found = {}
    for file in sorted((conf_dir() / group).glob("*.yaml")):
        comments = (line[1:].strip() for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
        found[file.stem] = next((c for c in comments if not c.startswith("@package")), "")
    return found


def _list(args: list[str]) -> int:
    if args[:1] in (["-h"], ["--help"]):
        print(f"usage: metarun list [{'|'.join(GROUPS)}]")
        return 0
    for group in args or GROUPS:
        if group not in GROUPS:
            return _fail(f"nothing called '{group}' to list; there are {', '.join(GROUPS)}")
    for group in args or GROUPS:
        if len(args) != 1:
            print(f"{group}=")
        names = choices(group)
        width = max((len(name) for name in names), default=0)
        for name, text in names.items():
            print(f"  {name:<{width}}  {text}")
    return 0


def _completion(args: list[str]) -> int:
    """Hydra's completion calls `metarun -sc query=SHELL` with COMP_LINE set; a command's own words come first."""
    if len(args) < 2 or not args[1].startswith("query"):
        return _hydra("train", args)
    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    if len(words) < 2 or (len(words) == 2 and not line.endswith(" ")):
        print(" ".join(c for c in COMMANDS if len(words) < 2 or c.startswith(words[1])))
        return 0
    if words[1] == "list":
        print(" ".join(GROUPS))
        return 0
    if words[1] not in COMMANDS:
        return 0
    # To Hydra the application is one word: take the command out of the line.
    os.environ["COMP_LINE"] = words[0] + line[line.index(words[1]) + len(words[1]) :]
    return _hydra(words[1], args)


def _hydra(command: str, args: list[str]) -> int:
    """Runs a command under Hydra; the exit code. A person's mistake is a short message and 2, never a traceback."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    # With it Hydra raises what it would print and exit on, which is how its messages can be made short. A job's own
    # surprises still get their full traceback.
    asked_full = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    codes: list[int] = []

    def task(cfg: Any) -> None:
        from metarun.commands import execute

        codes.append(execute(command, cfg))

    task.__module__ = "metarun"
    sys.argv = [sys.argv[0], *args]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=command)(task)()
    except (HydraException, OmegaConfBaseException) as e:
        if asked_full and asked_full != "0":
            raise
        return _fail(explain(str(e), command, args))
    return max(codes, default=0)


def explain(message: str, command: str, args: list[str]) -> str:
    """Hydra's complaint as one line that says what to type instead."""
    if found := re.search(r"Could not find '(?:[^']*/)?([^'/]+)'", message):
        options = re.findall(r"^\t(\S+)$", message, re.M)
        group = re.search(r"Available options in '([^']+)'", message)
        where = group[1] if group else "config"
        return f"{where}={found[1]}: no such option; {_suggest(found[1], options)}"
    if found := re.search(r"Could not (?:override|append|delete)[^']*'([^']+)'", message):
        return f"{found[1].split('=')[0]}: no such setting; {_suggest(found[1].split('=')[0], _keys(command, args))}"
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[0] if lines else "the command line cannot be understood"


def _suggest(word: str, options: list[str]) -> str:
    from metarun.hints import did_you_mean

    return did_you_mean(word, options)


def _keys(command: str, args: list[str]) -> list[str]:
    """Every group and key that the command knows under the groups that were chosen."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    def leaves(node: dict[str, Any], prefix: str = "") -> list[str]:
        out = []
        for key, value in node.items():
            out.append(f"{prefix}{key}")
            out += leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else []
        return out

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        try:
            cfg = compose(command, [a for a in args if a.split("=")[0] in GROUPS])
        except HydraException:
            cfg = compose(command)
    return [*GROUPS, *leaves(OmegaConf.to_container(cfg))]  # type: ignore[arg-type]
