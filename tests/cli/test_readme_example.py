"""The README's own method, typed off the page."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import Said

Metarun = Callable[..., Said]

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """What is typed after `metarun`, in a folder where all that stands above it has been done."""
    section = README.read_text(encoding="utf-8").split("## Your own method")[1].split("\n## ")[0]
    code, commands = re.findall(r"```(?:python|sh)\n(.*?)```", section, re.S)[:2]
    assert len(code.splitlines()) < 40
    (tmp_path / "my_method.py").write_text(code)
    *setup, command = commands.splitlines()
    for line in setup:
        subprocess.run(line, shell=True, cwd=tmp_path, check=True)
    assert command.startswith("metarun train")
    return command.split()[1:]


def test_a_method_of_ones_own_takes_less_than_40_lines_and_learns(
    metarun: Metarun, words: list[str], tmp_path: Path
) -> None:
    more = "model.filters=16 train.iterations=60 train.val_every=60 eval.episodes=100 logger=none device=cpu"
    said = metarun(*words, *more.split())
    assert said.code == 0, said.err
    (result,) = tmp_path.glob("outputs/train/*/*/eval.json")
    found = json.loads(result.read_text())
    assert found["mean"] - found["ci95"] > 0.4  # chance is 0.2
    assert found["protocol"]["algo"] == {"name": "my_method", "sharpness": 1.0}


@pytest.mark.parametrize(
    ("typo", "told"),
    [
        ("algo.sharpness=-1", "algo.sharpness=-1.0: must be greater than 0"),
        ("algo.sharp=2", "did you mean algo.sharpness?"),
        ("dataset=sinusoid", "algo=my_method: needs classes to tell apart"),
    ],
)
def test_its_settings_and_tasks_are_checked_as_any(metarun: Metarun, words: list[str], typo: str, told: str) -> None:
    said = metarun(*words, "model=mlp", typo)
    assert said.code == 2
    assert told in said.err
