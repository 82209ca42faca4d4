"""argv to a command. Light: `--help`, `--version` and `list` import neither torch nor hydra.

Each command is a Hydra application of its own: overrides, `-m`, `--cfg job`, `--info`, `--help`, `--config-dir` and
shell completion stand behind it as Hydra users know them.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from textwrap import wrap

from metarun import __version__

COMMANDS = {
    "train": "train a run and evaluate it; resume=PATH|latest goes on with one",
    "eval": "evaluate run=PATH|latest on test classes; versus=PATH, runs='GLOB'",
    "sweep": "search settings, many runs at a time; rebuild: its record anew",
    "data": "what is in a dataset, and making it ready: data info|prepare NAME",
    "profile": "where the time of a training step goes, by phase and operator",
    "plan": "the time and memory that a run will take; train ... --dry-run too",
    "list": "what there is to choose from: list [algo|dataset|model|experiment]",
}
GROUPS = ("algo", "dataset", "model", "experiment", "device", "logger", "sweep")
DRY_RUN = "--dry-run"
WIDTH = 80


def usage() -> str:
    lines = [f"  {name:<8} {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: metarun COMMAND [SETTING=VALUE ...]",
            "",
            *lines,
            "",
            "  metarun train                                 MAML on the built-in glyphs",
            "  metarun train algo=protonet dataset=omniglot  any method on any data",
            "  metarun train -m algo=maml,anil seed=0,1      one run for each combination",
            "  metarun data info omniglot                    classes, images, a contact sheet",
            "  metarun COMMAND --help                        every setting of a command",
            "  metarun COMMAND ... --cfg job                 the config, without running",
            '  eval "$(metarun -sc install=bash)"            shell completion',
            "",
            "  -h, --help     this text",
            "  -V, --version  the version",
        ]
    )


def _warn(message: Warning | str, category: type[Warning], *where: object, **more: object) -> None:
    """Our own are for the person, and say it all; a library's keep the place they come from."""
    text = f"warning: {message}" if category is UserWarning else f"{category.__name__}: {message} {where[:2]}"
    print(text, file=sys.stderr)


def main() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a ± where there is only ASCII is no reason to stop
    warnings.showwarning = _warn
    try:
        code = _among_others(sys.argv[1:])
        sys.stdout.flush()
    except KeyboardInterrupt:
        # While training, a run ends itself and says how to go on; here there was nothing to save yet, or any more.
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:
        # Whoever read this has closed (`metarun list | head -1`). Nothing may be written any more, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    sys.exit(code)


def _among_others(args: list[str]) -> int:
    """`dispatch`, unless this is one of many processes that share a run and not the first of them."""
    from metarun import world

    here, more = world.found(os.environ, args)
    if here is None:
        return dispatch(args)
    if here.rank == 0:
        from metarun.company import lead

        return lead(here, more, lambda: dispatch(args))
    from metarun.company import serve
    from metarun.helping import JOBS

    return serve(here, more, JOBS)


def dispatch(args: list[str]) -> int:
    """Runs what the words after `metarun` ask for; the exit code."""
    if args[:1] in (["-sc"], ["--shell-completion"]):
        return _completion(args)
    if not args:
        print(usage(), file=sys.stderr)
        return 2
    if args[0] in ("-h", "--help"):
        print(usage())
        return 0
    command, *rest = args
    if command in ("-V", "--version") or rest in (["-V"], ["--version"]):
        print(f"metarun {__version__}")
        return 0
    if command not in COMMANDS:
        return _fail(f"no command '{command}'; {_hint(command, COMMANDS)}")
    if command == "list":
        return _list(rest)
    if command == "train" and DRY_RUN in rest:
        command, rest = "plan", [word for word in rest if word != DRY_RUN]
    if command == "sweep" and rest[:1] == ["rebuild"]:
        rest = ["action=rebuild", *rest[1:]]
    return _hydra(command, _data_words(rest) if command == "data" else rest)


def _data_words(args: list[str]) -> list[str]:
    """`info NAME ...` as settings: action=info dataset=NAME."""
    plain = [word for word in args[:2] if "=" not in word and not word.startswith("-")]
    keys = ("dataset",) if len(plain) == 1 and plain[0] in choices("dataset") else ("action", "dataset")
    return [f"{key}={word}" for key, word in zip(keys, plain)] + args[len(plain) :]


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def _hint(word: str, options: Iterable[str]) -> str:
    from metarun.hints import did_you_mean

    return did_you_mean(word, options)


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
        print(f"usage: metarun list [{'|'.join(GROUPS)}] ...")
        return 0
    for group in args:
        if group not in GROUPS:
            return _fail(f"nothing called '{group}' to list; {_hint(group, GROUPS)}")
    for group in args or GROUPS:
        if len(args) != 1:
            print(f"{group}=")
        names = choices(group)
        width = max((len(name) for name in names), default=0)
        for name, text in names.items():
            first, *more = wrap(text, WIDTH - width - 4) or [""]
            print(f"  {name:<{width}}  {first}".rstrip())
            for line in more:
                print(f"  {'':<{width}}  {line}")
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
    with _ctrl_c_ends_at_once() as usual:
        from metarun.app import run

        return run(command, args, conf_dir(), usual)


@contextmanager
def _ctrl_c_ends_at_once() -> Iterator[Callable[[], None]]:
    """Until the function that it gives is called: somewhere in all that is imported an exception may be forgotten."""
    before = signal.getsignal(signal.SIGINT)
    ours = before is signal.default_int_handler and threading.current_thread() is threading.main_thread()

    def end(number: int, frame: object) -> None:
        os.write(2, b"interrupted\n")
        os._exit(130)

    def usual() -> None:
        if ours:
            signal.signal(signal.SIGINT, before)

    if ours:
        signal.signal(signal.SIGINT, end)
    try:
        yield usual
    finally:
        usual()
