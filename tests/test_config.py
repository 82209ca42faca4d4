"""From a config to checked settings: what is read, what is refused, and that conf/ and the code say the same."""

from __future__ import annotations

import importlib.metadata
from dataclasses import MISSING, dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from metarun import config, registry
from metarun.cli import conf_dir
from metarun.config import Changes, Plan, read, settled, settled_request
from metarun.data import torchvision
from metarun.hints import did_you_mean, nearest
from metarun.registry import ROOMS, known, load_plugins
from metarun.schema import checked, convert, limits_of, shown, spelled_out
from metarun.types import InputError, setting

CONF = conf_dir()
SHARED = {("dataset", "torchvision"): set(torchvision.KNOWN)}
"""one yaml for many names: dataset=torchvision dataset.name=MNIST"""


def names(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def composed(*words: str, command: str = "train") -> dict[str, Any]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(command, [*words])
    GlobalHydra.instance().clear()
    tree: Any = OmegaConf.to_container(cfg, resolve=True)
    tree.pop("resume", None)
    return tree


# conf/ and the code


COMBINATIONS = {
    *product(names("algo"), ["glyphs"], names("model")),
    *product(["maml"], names("dataset"), ["mlp"]),
}


@pytest.mark.parametrize("words", sorted(COMBINATIONS), ids="-".join)
def test_every_combination_is_a_plan(words: tuple[str, str, str]) -> None:
    algo, dataset, model = words
    plan = read(settled(composed(f"algo={algo}", f"dataset={dataset}", f"model={model}")))
    assert isinstance(plan, Plan)
    assert plan.model(item_shape=(1, 28, 28), outputs=5).outputs == 5


def test_every_option_of_every_group_is_known_to_the_code() -> None:
    for kind in ROOMS:
        reached = set[str]().union(*(SHARED.get((kind, file), {file}) for file in names(kind)))
        assert reached == set(known(kind)), f"conf/{kind} and @register('{kind}', ...)"


COMPONENTS = [(kind, name) for kind in ROOMS for name in names(kind)]


@pytest.mark.parametrize(("kind", "name"), COMPONENTS, ids=lambda word: word)
def test_a_yaml_file_has_every_setting_of_its_class(kind: str, name: str) -> None:
    """So that all can be overridden without a `+`, and `--help` shows them; with the default of the class."""
    text: Any = OmegaConf.to_container(OmegaConf.load(CONF / kind / f"{name}.yaml"))
    node = {key: value for key, value in text.get(kind, text).items() if key != "defaults"}
    assert node["name"] in SHARED.get((kind, name), {name})
    cls = known(kind)[node.pop("name")]
    wanted = {
        f.name: f.default_factory() if f.default_factory is not MISSING else f.default
        for f in fields(cls)
        if f.name in limits_of(cls)
    }
    assert node.keys() == wanted.keys()
    assert checked(cls, node, kind) == wanted


def test_the_plain_nodes_of_train_have_every_setting() -> None:
    tree = composed()
    for node, cls in config.NODES.items():
        assert tree[node].keys() == limits_of(cls).keys()
    assert tree.keys() == {*config.NODES, *config.PLAIN, *ROOMS}


def test_the_plain_nodes_of_eval_have_every_setting() -> None:
    tree = composed("run=latest", command="eval")
    assert tree["eval"].keys() == limits_of(Changes).keys()
    assert settled_request(tree)["eval"] == spelled_out(Changes, {}, "eval")


@pytest.mark.parametrize("file", sorted(CONF.glob("*/*.yaml")), ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_every_option_says_what_it_is(file: Path) -> None:
    from metarun.cli import choices

    assert 5 < len(choices(file.parent.name)[file.stem]) < 160


# What is read


def test_a_settled_config_is_whole_and_stays_as_it_is() -> None:
    tree = composed("train.lr=1", "train.iterations=1e1", "logger=none", "train.optimizer_args=null")
    once = settled(tree)
    assert once["train"]["iterations"] == 10
    assert isinstance(once["train"]["iterations"], int)
    assert isinstance(once["train"]["lr"], float)
    assert once["train"]["optimizer_args"] == {}
    assert settled(once) == once
    assert yaml.safe_load(yaml.safe_dump(once)) == once
    tree["model"] = {"name": "mlp", "widths": [4]}
    rest = {"residual": False, "norm": "batch", "statistics": "batch", "groups": 8, "dropout": 0.0}
    assert settled(tree)["model"] == {"name": "mlp", "widths": [4]} | rest


CONVERSIONS = [
    (3, int, 3), (3.0, int, 3), (1e4, int, 10000), (2.5, int, None), (True, int, None), ("3", int, None),
    (float("inf"), int, None), (3, float, 3.0), (10**400, float, None), (float("nan"), float, None),
    ("1e-3", float, None),
    (False, float, None), (1, bool, None), (True, bool, True), ("true", bool, None), (3, str, None), ("a", str, "a"),
    (None, int | None, None), (3, int | None, 3), ([1, 2], list[int], [1, 2]), ([1, "a"], list[int], None),
    (3, list[int], None), ({"a": 1}, dict[str, Any], {"a": 1}), (None, dict[str, Any], {}), (3, dict[str, Any], None),
]  # fmt: skip


@pytest.mark.parametrize(("value", "hint", "wanted"), CONVERSIONS, ids=str)
def test_conversions(value: Any, hint: Any, wanted: Any) -> None:
    """Nothing is parsed out of text, and no number becomes another."""
    got, ok = convert(value, hint)
    assert ok == (wanted is not None or value is None)
    if ok:
        assert got == wanted
        assert type(got) is type(wanted)


def test_values_are_shown_as_they_are_typed() -> None:
    assert [shown(v) for v in (None, True, [1, "a"], "text", 0.5)] == ["null", "true", '[1, "a"]', "text", "0.5"]
    assert len(shown("x" * 1000)) == 60


@dataclass(frozen=True)
class Strict:
    count: int = setting(3, least=1, most=5)
    share: float = setting(0.5, above=0, below=1)
    kind: str = setting("a", choices=("a", "b"))
    more: list[int] = setting([])
    own: int = field(default=7)
    """no setting: only the code gives it"""


def test_checked_tells_all_that_is_wrong() -> None:
    with pytest.raises(InputError) as refused:
        checked(Strict, {"count": 9, "share": 1.0, "kind": "c", "more": 3, "own": 1, "cont": 2}, "algo")
    assert str(refused.value).splitlines() == [
        "algo.count=9: must be at most 5",
        "algo.share=1.0: must be less than 1",
        "algo.kind=c: must be one of a, b",
        "algo.more=3: must be a list, each a whole number",
        "algo.own: no such setting; choose from: count, kind, more, share",
        "algo.cont: no such setting; did you mean count?",
    ]
    assert checked(Strict, {"name": "strict", "count": 5, "share": 0.1}, "algo") == {"count": 5, "share": 0.1}


def test_read_tells_what_is_missing_and_what_is_too_much() -> None:
    tree = composed()
    del tree["train"], tree["seed"]
    tree["extra"] = 1
    with pytest.raises(InputError) as refused:
        read(tree)
    lines = str(refused.value).splitlines()
    assert any(line.startswith("train, seed: missing") for line in lines), lines
    assert any(line.startswith("extra: no such node") for line in lines)


def test_a_new_run_must_have_every_setting_but_an_older_one_goes_on_with_the_default() -> None:
    tree = composed()
    del tree["train"]["clip"]
    assert read(tree).train.clip is None
    with pytest.raises(InputError, match=r"^train\.clip: missing; "):
        settled(tree)


def test_defaults_that_are_lists_are_not_shared() -> None:
    spelled_out(Strict, {}, "algo")["more"].append(1)
    assert spelled_out(Strict, {}, "algo")["more"] == []


# Names


def test_near_names() -> None:
    keys = ["algo.inner_lr", "algo.inner_steps", "train.lr", "train.clip", "eval.way", "task.way", "seed", "train"]
    assert nearest("algo.inner_lrr", keys) == ["algo.inner_lr"]
    assert nearest("trian.lr", keys) == ["train.lr"]
    assert nearest("inner_lr", keys) == ["algo.inner_lr"]
    assert nearest("way", keys) == ["eval.way", "task.way"]
    assert nearest("seed", keys) == [], "who types just this means something else"
    assert nearest("epochs", keys) == []
    assert did_you_mean("x", ["b", "a"]) == "choose from: a, b"
    assert did_you_mean("x", [str(i) for i in range(100)]) == "see --help for what there is"
    assert did_you_mean("x", []) == "see --help for what there is"


def test_a_broken_installed_plugin_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        value, dist = "their.module", None

        def load(self) -> None:
            raise RuntimeError("out of date")

    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [Entry()])
    registry.load_installed.cache_clear()
    with pytest.raises(InputError, match=r"installed plugin 'their\.module' is broken: RuntimeError: out of date"):
        registry.known("algo")


def test_no_plugin_is_no_work() -> None:
    load_plugins([])
    with pytest.raises(InputError, match="must be a list of modules"):
        load_plugins("os")


# Files of run folders: see also tests/cli/test_run_folders.py


def test_a_run_config_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    tree = settled(composed("experiment=omniglot_maml_5w1s"))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    assert config.load_tree(tmp_path / "config.yaml") == tree


def test_flat() -> None:
    assert config.flat({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}
