"""`metarun data`, and what a run does with data: augmentation, a part of it, items that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from commandline import TINY, Said, files, only_run
from PIL import Image

Metarun = Callable[..., Said]


def write_images(root: Path, classes: int = 16, each: int = 8) -> Path:
    for c in range(classes):
        (root / f"class{c:02d}").mkdir(parents=True)
        for i in range(each):
            pixels = np.random.default_rng(100 * c + i).integers(0, 256, (14, 14, 3), np.uint8)
            pixels[:, :, c % 3] //= 1 + c // 3
            Image.fromarray(pixels).save(root / f"class{c:02d}" / f"{i}.png")
    return root


FOLDER = ["dataset=imagefolder", "dataset.path=pictures", "dataset.image_size=14", "data_root=."]


def test_info_tells_what_is_in_a_dataset_and_draws_it(metarun: Metarun, tmp_path: Path) -> None:
    write_images(tmp_path / "pictures")
    said = metarun("data", "info", "imagefolder", *FOLDER[1:], "task.way=4")
    assert said.code == 0, said.err
    lines = [line.split() for line in said.out.splitlines()]
    assert lines[1] == ["split", "classes", "items", "each", "MB", "checksum"]
    assert [line[:4] for line in lines[2:5]] == [
        ["train", "10", "80", "8"],
        ["val", "3", "24", "8"],
        ["test", "3", "24", "8"],
    ]
    assert "items  3 x 14 x 14 uint8" in said.out
    assert max(map(len, said.out.splitlines())) <= 80
    sheet = tmp_path / "outputs/data/imagefolder.png"
    with Image.open(sheet) as image:
        assert image.width > 200 and image.height > 200
        assert len(image.convert("L").getcolors() or ()) > 50
    assert files(tmp_path / "outputs") == {"data", "data/imagefolder.png"}


def test_prepare_makes_it_ready(metarun: Metarun, tmp_path: Path) -> None:
    write_images(tmp_path / "pictures")
    said = metarun("data", "prepare", *FOLDER)
    assert said.code == 0
    assert [line.split(":")[0] for line in said.out.splitlines()] == [
        f"imagefolder {s}" for s in ("train", "val", "test")
    ]
    assert any(line.startswith("preparing imagefolder-train") for line in said.err.splitlines())
    assert metarun("data", "prepare", *FOLDER).err == ""
    assert not (tmp_path / "outputs").exists()


def test_what_has_no_images_is_told_without_a_picture(metarun: Metarun, tmp_path: Path) -> None:
    said = metarun("data", "sinusoid")
    assert said.code == 0 and said.out.startswith("sinusoid\n")
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("data infos glyphs", "metarun data infos: no such action; choose from: info, prepare"),
        ("data info glyph", "dataset=glyph: no such dataset; did you mean glyphs?"),
        ("data info glyphs task.way=1000", "task.way=1000: split 'train' has 864 classes; lower task.way"),
        ("data info glyphs dataset.seed=a", "dataset.seed=a: must be a whole number"),
        ("data info glyphs data.offline=7", "data.offline=7: must be true or false"),
        ("data info imagefolder", "dataset.path: data/images is not there"),
    ],
)
def test_refused(metarun: Metarun, tmp_path: Path, line: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METARUN_DATA", raising=False)
    said = metarun(*line.split())
    assert said.code == 2
    assert said.errors[0].startswith(why)
    assert files(tmp_path) <= {"cache"} or not (tmp_path / "outputs").exists()


def test_a_run_on_pictures_of_ones_own(metarun: Metarun, tmp_path: Path) -> None:
    write_images(tmp_path / "pictures")
    words = [word for word in TINY if not word.startswith(("dataset", "model"))]
    model = ["model=conv4", "model.filters=4", "model.blocks=2", "task.way=3", "augment.crop=2", "augment.flip=true"]
    said = metarun("train", *words, *FOLDER, *model, "hydra.run.dir=run", "device.data_budget=0")
    assert said.code == 0, said.err
    plain = metarun("train", *words, *FOLDER, *model, "hydra.run.dir=plain")
    assert plain.code == 0, plain.err
    # Where the items lie changes nothing.
    assert _rows(tmp_path / "run") == _rows(tmp_path / "plain")
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert config["augment"] == {
        "crop": 2, "flip": True, "zoom": 1.0, "rotation": 0.0, "jitter": 0.0, "erase": 0.0, "turn_classes": False
    }  # fmt: skip
    other = metarun("train", *words, *FOLDER, *model[:-2], "hydra.run.dir=other")
    assert other.code == 0 and _rows(tmp_path / "other") != _rows(tmp_path / "plain")
    evaluated = metarun("eval", "run=run", "hydra.run.dir=found")
    assert evaluated.code == 0, evaluated.err
    assert json.loads((tmp_path / "found/eval.json").read_text())["mean"] == _mean(tmp_path / "run")


def _rows(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("rate", "time")} for row in rows]


def _mean(folder: Path) -> float:
    return json.loads((folder / "eval.json").read_text())["mean"]


def test_a_dataset_that_is_not_of_images_comes_with_a_model_that_takes_it(metarun: Metarun, tmp_path: Path) -> None:
    sizes = [w for w in TINY if not w.startswith(("dataset", "model"))]
    said = metarun("train", *sizes, "algo=maml", "dataset=sinusoid", "hydra.run.dir=run")
    assert said.code == 0, said.err
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["model"]["name"] == "mlp"
    refused = metarun("train", *sizes, "algo=maml", "dataset=sinusoid", "model=conv4")
    assert refused.code == 2 and "model=mlp takes any" in refused.errors[0]


def test_a_part_of_the_training_classes(metarun: Metarun, tmp_path: Path) -> None:
    said = metarun("train", *TINY, "data.classes=7", "data.images=4", "task.way=5", "augment.turn_classes=true")
    assert said.code == 0, said.err
    assert only_run(tmp_path).is_dir()
    refused = metarun("train", *TINY, "data.classes=3", "task.way=5")
    assert refused.code == 2
    assert "task.way=5: split 'train' has 3 classes" in refused.errors[0]
    for words, why in (
        (["data.classes=9999"], "data.classes=9999: the training split has 864"),
        (["data.images=30"], "data.images=30: class"),
        (["dataset=sinusoid", "augment.crop=1"], "augment: changes images"),
        (["dataset=sinusoid", "data.classes=5"], "this dataset has no classes"),
    ):
        said = metarun("train", *[w for w in TINY if "dataset" not in w and "model" not in w], *words)
        assert said.code == 2 and why in said.errors[0], said.err


def test_ways_and_shots_that_vary(metarun: Metarun, tmp_path: Path) -> None:
    varied = [*TINY, "task.way=2", "task.way_to=6", "task.shot_to=3", "task.balanced=false", "eval.way=5"]
    said = metarun("train", *varied, "hydra.run.dir=run")
    assert said.code == 0, said.err
    stopped = metarun("train", *varied, "train.iterations=2", "hydra.run.dir=part")
    assert stopped.code == 0
    assert metarun("train", "resume=part", "train.iterations=4").code == 0
    assert _rows(tmp_path / "part")[-1] == _rows(tmp_path / "run")[-1]
    for words, why in (
        (["algo=maml"], "eval.way=5: 'head.weight' is trained for 6 classes and fits no other; set eval.way=6"),
        (["algo=matchingnet", "algo.fce=true"], "algo.fce=false or task.balanced=true fits"),
        (["task.way_to=1"], "task: way_to=1: is below way=2"),
        (
            ["dataset=sinusoid", "task.way=1", "task.way_to=1", "task.shot=3", "eval.way=1", "algo=maml"],
            "this dataset has no classes",
        ),
    ):
        said = metarun("train", *varied, *words)
        assert said.code == 2 and why in said.errors[0], said.err
    assert metarun("train", *varied, "algo=maml", "eval.way=6").code == 0
