"""The recipes: every published number has one, it composes, it can be trained, and it keeps to its own protocol."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from metarun import config, recipe
from metarun.cli import choices, conf_dir
from metarun.engine import optim
from metarun.engine.evaluate import Score
from metarun.types import TaskShape

OMNIGLOT = ("5w1s", "5w5s", "20w1s", "20w5s")
MINI = ("5w1s", "5w5s")
PUBLISHED: dict[str, tuple[tuple[str, ...], str]] = {
    "omniglot_maml": (OMNIGLOT, "98.7 ± 0.4 / 99.9 ± 0.1 / 95.8 ± 0.3 / 98.9 ± 0.2"),
    "omniglot_maml_mlp": (MINI, "89.7 ± 1.1 / 97.5 ± 0.6"),
    "omniglot_fomaml": (OMNIGLOT, "98.3 ± 0.5 / 99.2 ± 0.2 / 89.4 ± 0.5 / 97.9 ± 0.1"),
    "omniglot_reptile": (OMNIGLOT, "95.39 ± 0.09 / 98.90 ± 0.10 / 88.14 ± 0.15 / 96.65 ± 0.33"),
    "omniglot_reptile_transductive": (OMNIGLOT, "97.68 ± 0.04 / 99.48 ± 0.06 / 89.43 ± 0.14 / 97.12 ± 0.32"),
    "omniglot_protonet": (OMNIGLOT, "98.8 / 99.7 / 96.0 / 98.9"),
    "omniglot_matchingnet": (OMNIGLOT, "98.1 / 98.9 / 93.8 / 98.5"),
    "omniglot_relationnet": (OMNIGLOT, "99.6 ± 0.2 / 99.8 ± 0.1 / 97.6 ± 0.2 / 99.1 ± 0.1"),
    "omniglot_anil": (("20w1s", "20w5s"), "96.2 ± 0.5 / 98.0 ± 0.3"),
    "omniglot_mamlpp": (OMNIGLOT, "99.47 / 99.93 / 97.65 / 99.33"),
    "mini_maml": (MINI, "48.70 ± 1.84 / 63.11 ± 0.92"),
    "mini_fomaml": (MINI, "48.07 ± 1.75 / 63.15 ± 0.91"),
    "mini_reptile": (MINI, "47.07 ± 0.26 / 62.74 ± 0.37"),
    "mini_reptile_transductive": (MINI, "49.97 ± 0.32 / 65.99 ± 0.58"),
    "mini_protonet": (MINI, "49.42 ± 0.78 / 68.20 ± 0.66"),
    "mini_matchingnet": (MINI, "43.40 ± 0.78 / 51.09 ± 0.71"),
    "mini_matchingnet_fce": (MINI, "43.56 ± 0.84 / 55.31 ± 0.73"),
    "mini_relationnet": (MINI, "50.44 ± 0.82 / 65.32 ± 0.70"),
    "mini_metalstm": (MINI, "43.44 ± 0.77 / 60.60 ± 0.71"),
    "mini_anil": (MINI, "46.7 ± 0.4 / 61.5 ± 0.5"),
    "mini_metasgd": (MINI, "50.47 ± 1.87 / 64.03 ± 0.94"),
    "mini_mamlpp": (MINI, "52.15 ± 0.26 / 68.32 ± 0.44"),
    "mini_r2d2": (MINI, "51.8 ± 0.2 / 68.4 ± 0.2"),
    "mini_r2d2_conv64": (MINI, "49.5 / 65.4"),
    "mini_metaoptnet_svm": (MINI, "62.64 ± 0.61 / 78.63 ± 0.46"),
    "mini_metaoptnet_ridge": (MINI, "61.41 ± 0.61 / 77.88 ± 0.46"),
    "mini_baseline": (MINI, "42.11 / 62.53"),
    "mini_baseline_resnet18": (MINI, "51.75 / 74.27"),
    "mini_baselinepp": (MINI, "48.24 / 66.43"),
    "mini_baselinepp_resnet18": (MINI, "51.87 / 75.68"),
    "sinusoid_maml": (("5s",), "0.35"),
    "sinusoid_metasgd": (("5s",), "0.90 ± 0.16"),
}
"""What the papers report, in % (sinusoids: mse), by the name of its recipe."""
NUMBERS = {
    f"{name}_{shape}": number.strip()
    for name, (shapes, numbers) in PUBLISHED.items()
    for shape, number in zip(shapes, numbers.split("/"), strict=True)
}
VARIANTS = {"sinusoid_maml_5s_steady": "sinusoid_maml_5s"}
"""Ways of our own to a published number, by the recipe that they depart from and say so."""
OWN_SPLIT = {
    "omniglot_maml_5w1s": ["model.readout flatten, not mean", "dataset.split official, not maml"],
    "omniglot_protonet_5w1s": ["dataset.split official, not vinyals"],
}


def departures(name: str) -> list[str]:
    return OWN_SPLIT.get(name, [])


@cache
def settled(name: str) -> dict[str, Any]:
    """What `experiment=NAME` alone composes to, checked."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        tree: Any = OmegaConf.to_container(compose("train", [f"experiment={name}"]), resolve=True)
    del tree["resume"]
    return config.settled(tree)


def protocol(name: str) -> dict[str, Any]:
    return recipe.protocol(settled(name), settled(name)["paper"])


def test_every_published_number_has_a_recipe_and_no_other_is_there() -> None:
    assert set(choices("experiment")) == {*NUMBERS, *VARIANTS}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_recipe_has_the_published_number(name: str) -> None:
    """Where it is compared, and where it is listed."""
    paper, metric = settled(name)["paper"], "mse" if name.startswith("sinusoid") else "accuracy"
    number, _, ci95 = NUMBERS[name].partition(" ± ")
    assert paper[metric] == float(number)
    assert paper["ci95"] == (float(ci95) if ci95 else None)
    assert re.search(r" (19|20)\d\d\b", paper["source"])
    assert NUMBERS[name] in choices("experiment")[name]


@pytest.mark.parametrize("name", NUMBERS)
def test_a_recipe_measures_what_its_name_says(name: str) -> None:
    tree, parts = settled(name), name.split("_")
    dataset = {"omniglot": "omniglot", "mini": "mini_imagenet", "sinusoid": "sinusoid"}[parts[0]]
    assert (tree["dataset"]["name"], tree["algo"]["name"]) == (dataset, parts[1])
    shape = re.fullmatch(r"(?:(\d+)w)?(\d+)s", parts[-1])
    assert shape is not None
    assert (tree["eval"]["way"], tree["eval"]["shot"]) == (int(shape[1] or 1), int(shape[2]))


@pytest.mark.parametrize("name", NUMBERS)
def test_a_recipe_keeps_to_its_protocol(name: str) -> None:
    """But for what it has otherwise on purpose. Then `within` can be the verdict; not for a run of another length."""
    tree = settled(name)
    assert recipe.differences(protocol(name), tree) == departures(name)
    metric = "mse" if tree["paper"].get("mse") else "accuracy"
    score = Score(tree["paper"][metric] / (100 if metric == "accuracy" else 1), 0.0, 600)
    paper = tree["paper"] | {"protocol": protocol(name)}
    verdict = recipe.judge(paper, tree, score, metric)
    assert verdict is not None
    assert (verdict.text == "within") == (not departures(name))
    shorter = tree | {"train": tree["train"] | {"iterations": 5}, "eval": tree["eval"] | {"shot": 3}}
    told = recipe.differences(protocol(name), shorter)
    assert f"eval.shot 3, not {tree['eval']['shot']}" in told
    fixed = "train.iterations" not in tree["paper"].get("free", []) and "train" not in tree["paper"].get("free", [])
    assert (f"train.iterations 5, not {tree['train']['iterations']}" in told) == fixed


@pytest.mark.parametrize(("name", "published"), VARIANTS.items())
def test_a_variant_is_never_taken_for_the_papers_protocol(name: str, published: str) -> None:
    """It names every setting in which it departs from the recipe whose number it has."""
    ours, theirs = settled(name), settled(published)
    told = recipe.differences(protocol(name), ours)
    assert ours["paper"]["mse"] == theirs["paper"]["mse"]
    assert told
    assert told == recipe.differences(protocol(published), ours)


CLASSES = {
    "official": (964 - 96, 96, 659), "maml": (1100, 100, 423), "vinyals": (1028, 172, 423), "mini": (64, 16, 20)
}  # fmt: skip
"""of each split of Omniglot and of mini-ImageNet"""


@pytest.mark.parametrize("name", NUMBERS)
def test_a_recipe_can_be_trained_and_tested(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as can be told without its data."""
    tree = settled(name)
    plan = config.read(tree)
    regression = tree["dataset"]["name"] == "sinusoid"
    kind = "regression" if regression else "classification"
    shapes = {"omniglot": (1, 28, 28), "mini_imagenet": (3, *[tree["dataset"].get("image_size")] * 2), "sinusoid": (1,)}
    for task in (plan.task, plan.eval):
        net = plan.model(item_shape=shapes[tree["dataset"]["name"]], outputs=task.way)
        plan.algorithm.check(net, TaskShape(kind, task.way, task.shot, task.query))
        images = {"omniglot": 20, "mini_imagenet": 600}.get(tree["dataset"]["name"], task.shot + task.query)
        assert task.shot + task.query <= images
    if not regression:
        train, val, test = CLASSES[tree["dataset"].get("split", "mini")]
        assert plan.task.way <= train
        assert plan.eval.way <= min(val, test)
    monkeypatch.setattr(optim, "REHEARSED", 10)
    t = plan.train
    optimizer = optim.make_optimizer(t.optimizer, [torch.zeros(1, requires_grad=True)], t.lr, t.optimizer_args)
    optim.make_scheduler(t.schedule, optimizer, t.iterations, t.schedule_args)


def test_the_rate_of_metaoptnet_falls_as_in_its_code() -> None:
    train = config.read(settled("mini_metaoptnet_svm_5w1s")).train
    weight = torch.zeros(1, requires_grad=True)
    optimizer = optim.make_optimizer(train.optimizer, [weight], train.lr, train.optimizer_args)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, **train.schedule_args)
    seen = {}
    for step in range(50001):
        seen[step] = optimizer.param_groups[0]["lr"]
        optimizer.step()
        scheduler.step()
    for steps, factor in (((0, 19999), 1), ((20000, 39999), 0.06), ((40000, 49999), 0.012), ((50000,), 0.0024)):
        assert [seen[step] for step in steps] == pytest.approx([0.1 * factor] * len(steps), rel=5e-3)


def test_maml_20_way_5_shot_is_of_a_model_trained_on_one_shot() -> None:
    one, five = settled("omniglot_maml_20w1s"), settled("omniglot_maml_20w5s")
    for node in ("task", "train", "algo", "model", "dataset"):
        assert one[node] == five[node]
    assert (five["eval"]["shot"], five["eval"]["query"]) == (5, 5)


@pytest.mark.parametrize("shape", [*OMNIGLOT, *(f"mini {shape}" for shape in MINI)])
def test_reptiles_two_rows_are_one_model(shape: str) -> None:
    data = "mini" if shape.startswith("mini") else "omniglot"
    inductive = settled(f"{data}_reptile_{shape.split()[-1]}")
    transductive = settled(f"{data}_reptile_transductive_{shape.split()[-1]}")
    assert inductive["model"] | {"statistics": "batch"} == transductive["model"]
    for node in ("task", "train", "algo", "dataset", "eval"):
        assert inductive[node] == transductive[node]
    shots = inductive["task"]["shot"] + inductive["task"]["query"]
    assert shots == (15 if data == "mini" else 10), "the paper's training shots"


def test_the_list_is_a_line_for_each_recipe() -> None:
    """At 80 columns, but for the sinusoids, whose numbers are several."""
    width = max(map(len, NUMBERS))
    for name, text in choices("experiment").items():
        assert len(text) <= 80 - width - 4 or name.startswith("sinusoid"), text
