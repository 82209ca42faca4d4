"""Hydra's own flags behind each command, and shell completion."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from commandline import TINY, Said, files, inside

from metarun import cli

Metarun = Callable[..., Said]


@pytest.mark.parametrize("command", ["train", "eval"])
def test_help(metarun: Metarun, tmp_path: Path, command: str) -> None:
    for flag in ("--help", "-h"):
        said = metarun(command, flag)
        assert (said.code, said.err) == (0, "")
        assert said.out.startswith(f"metarun {command}: ")
        assert "episodes:" in said.out
        assert max(map(len, said.out.splitlines())) <= 80
        assert "Powered by" not in said.out
    assert files(tmp_path) == set()


def test_help_shows_what_was_chosen(metarun: Metarun) -> None:
    text = metarun("train", "--help", "algo=reptile").out
    assert "  algo        anil, baseline, " in text
    assert f"  experiment  one of {len(options('experiment'))}: metarun list experiment\n" in text
    assert "inner_batch: 10" in text


def test_help_says_what_a_setting_means(metarun: Metarun) -> None:
    """The comments of the config files, of the chosen options too, and never beside another setting."""
    text = metarun("train", "--help", "model=mlp").out
    assert "\n  clip: null                  # largest norm of the meta-gradient\n" in text
    assert "\n  groups: 8                   # of norm=group\n" in text
    assert "inner steps at test time" in metarun("eval", "--help").out
    settings = yaml.safe_load(text[text.index("\ntask:") :])
    assert settings["model"]["widths"] == [256, 128, 64, 64]


def test_the_composed_config(metarun: Metarun, tmp_path: Path) -> None:
    said = metarun("train", "--cfg", "job", "algo=anil", "seed=3")
    assert (said.code, said.err) == (0, "")
    tree = yaml.safe_load(said.out)
    assert (tree["algo"]["name"], tree["seed"]) == ("anil", 3)
    assert "hydra" not in tree
    assert yaml.safe_load(metarun("train", "--cfg", "job", "--resolve", "task.way=9").out)["eval"]["way"] == 9
    assert "inner_lr" in metarun("train", "--cfg", "job", "--package", "algo").out
    assert "sweep:" in metarun("train", "--cfg", "hydra").out
    assert files(tmp_path) == set()


def test_info_and_hydras_own_help(metarun: Metarun, tmp_path: Path) -> None:
    assert "algo/maml" in metarun("train", "--info", "defaults").out
    assert metarun("train", "--info").code == 0
    assert "== Flags ==" in metarun("train", "--hydra-help").out
    assert files(tmp_path) == set()


def test_a_config_dir_and_a_plugin_of_ones_own(metarun: Metarun, tmp_path: Path) -> None:
    """A method is a Python file and a yaml file, wherever they lie."""
    (tmp_path / "mine" / "algo").mkdir(parents=True)
    (tmp_path / "mine" / "algo" / "nearest.yaml").write_text("# @package _global_\nalgo: {name: nearest, scale: 2.0}\n")
    (tmp_path / "my_nearest.py").write_text(
        "from dataclasses import dataclass\n"
        "from metarun.algorithms.protonet import ProtoNet\n"
        "from metarun.types import register, setting\n"
        "@register('algo', 'nearest')\n"
        "@dataclass(frozen=True)\n"
        "class Nearest(ProtoNet):\n"
        "    scale: float = setting(1.0, above=0)\n"
        "    def predict(self, net, meta, episode):\n"
        "        return self.scale * super().predict(net, meta, episode)\n"
    )
    words = [word for word in TINY if not word.startswith("algo=")]
    words += ["--config-dir", "mine", "algo=nearest", "plugins=[my_nearest]"]
    assert metarun("train", *words, "algo.scale=0").errors == ["algo.scale=0.0: must be greater than 0"]
    assert metarun("train", *words, "algo.scal=1").errors == ["algo.scal: no such setting; did you mean algo.scale?"]
    assert "did you mean nearest?" in metarun("train", "--config-dir", "mine", "algo=neares").errors[0]
    said = metarun("train", "-m", *words, "algo.scale=1,2")
    assert said.code == 0, said.err
    assert "no algo is called 'nearest'" in metarun("eval", "run=latest").err
    assert metarun("eval", "run=latest", "plugins=[my_nearest]").code == 0


def test_flags_may_stand_anywhere(metarun: Metarun) -> None:
    for words in (("seed=3", "--cfg", "job", "task.way=4"), ("--cfg", "job", "seed=3", "task.way=4")):
        tree = yaml.safe_load(metarun("train", *words).out)
        assert (tree["seed"], tree["task"]["way"]) == (3, 4)


def options(group: str) -> list[str]:
    return sorted(file.stem for file in (cli.conf_dir() / group).glob("*.yaml"))


def completed(folder: Path, line: str) -> list[str]:
    out = io.StringIO()
    with inside(folder), contextlib.redirect_stdout(out), pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMP_LINE", line)
        assert cli.dispatch(["-sc", "query=bash"]) == 0
    return out.getvalue().split()


COMPLETIONS = {
    "metarun ": ["train", "eval", "sweep", "data", "profile", "plan", "list"],
    "metarun tr": ["train"],
    "metarun x": [],
    "metarun list ": [*cli.GROUPS],
    "metarun train algo=": [f"algo={name}" for name in options("algo")],
    "metarun train dataset=om": ["dataset=omniglot"],
    "metarun train algo=reptile algo.inner_b": ["algo.inner_batch="],
    "metarun eval eval.st": ["eval.statistics=", "eval.steps="],
}


@pytest.mark.parametrize("line", COMPLETIONS)
def test_completion(tmp_path: Path, line: str) -> None:
    assert completed(tmp_path, line) == COMPLETIONS[line]
    assert files(tmp_path) == set()


def test_completion_is_installed_by_one_line(metarun: Metarun) -> None:
    said = metarun("-sc", "install=bash")
    assert said.code == 0
    assert "COMP_LINE=$COMP_LINE" in said.out
