"""`--help` with what each setting means: the comments of the config files beside the values they were written for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import fill, wrap

import yaml

from metarun.hints import FEW

LINE = re.compile(r"(?P<indent> *)(?P<key>\w+):(?P<value>[^#]*)(?:# *(?P<note>.*))?$")
WIDTH, COLUMN, LEAST = 80, 30, 24
BASES = ("train",)
"""commands whose config others build on"""


def notes(conf: Path, command: str, choices: Mapping[str, str | None]) -> dict[str, str]:
    """`train.clip` -> `largest norm of the meta-gradient`, for a command's settings and those of the chosen options."""
    bases = ("train",) if command in ("profile", "plan") else ()
    out = {key: note for name in (*bases, command) for key, note in _notes_in(conf / f"{name}.yaml", "").items()}
    for group, name in choices.items():
        file = conf / group / f"{name}.yaml"
        if name is not None and file.is_file():  # an option of one's own may lie elsewhere
            own = "" if "# @package _global_" in file.read_text(encoding="utf-8") else f"{group}."
            out |= _notes_in(file, own)
    return out


def _notes_in(file: Path, prefix: str) -> dict[str, str]:
    lines = file.read_text(encoding="utf-8").splitlines()
    return {prefix + key: match["note"] for key, match in _keys(lines) if key and match and match["note"]}


def _keys(lines: list[str]) -> Iterator[tuple[str, re.Match[str] | None]]:
    """Each line's place in its config, as far as it has a key: `train`, `train.clip`."""
    path: list[tuple[int, str]] = []
    for line in lines:
        match = LINE.match(line)
        if match:
            depth = len(match["indent"])
            path = [(d, key) for d, key in path if d < depth] + [(depth, match["key"])]
        yield ".".join(key for _, key in path) if match else "", match


def annotated(config: str, said: Mapping[str, str]) -> str:
    """A config as YAML, with notes beside its settings."""
    lines = config.splitlines()
    out = []
    for line, (key, _) in zip(lines, _keys(lines), strict=True):
        if key not in said:
            out.append(line)
            continue
        start = max(COLUMN, len(line) + 2)
        if WIDTH - start < LEAST:
            out.append(line)
            line, start = "", COLUMN
        first, *more = wrap(said[key], WIDTH - start - 2)
        out += [f"{line:<{start}}# {first}", *(f"{'':<{start}}# {rest}" for rest in more)]
    return "\n".join(out)


def row(group: str, names: list[str], width: int) -> str:
    """A config group and its options, or where to see them if they are many."""
    text = ", ".join(sorted(names)) if len(names) <= FEW else f"one of {len(names)}: metarun list {group}"
    return fill(text, WIDTH, initial_indent=f"  {group:<{width}}  ", subsequent_indent=" " * (width + 4))


def groups(conf: Path, command: str) -> list[str]:
    """The config groups that a command lets choose from."""
    defaults = yaml.safe_load((conf / f"{command}.yaml").read_text(encoding="utf-8")).get("defaults", [])
    own = [key for entry in defaults if isinstance(entry, dict) for key in entry if " " not in key]
    return own + [key for base in defaults if base in BASES for key in groups(conf, base)]
