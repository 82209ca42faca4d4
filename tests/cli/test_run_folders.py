"""What a run leaves behind, and what is made of a run folder that is damaged, odd or hostile."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commandline import TINY, Said, files, inside, typed

from metarun import runs

Metarun = Callable[..., Said]


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def edit(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = run / "config.yaml"
    tree = yaml.safe_load(path.read_text())
    change(tree)
    path.write_text(yaml.safe_dump(tree))


def refused(said: Said, run: Path, before: dict[str, bytes]) -> list[str]:
    """The complaints; nothing in the run's folder may have changed."""
    assert said.code == 2
    assert contents(run) == before
    return said.errors


def contents(run: Path) -> dict[str, bytes]:
    return {str(f.relative_to(run)): f.read_bytes() for f in run.rglob("*") if f.is_file()}


def both(metarun: Metarun, run: Path) -> list[list[str]]:
    """What eval and resume complain about."""
    before = contents(run)
    return [refused(metarun(*words), run, before) for words in (("eval", f"run={run}"), ("train", f"resume={run}"))]


def test_what_a_run_leaves_behind(made: Path) -> None:
    assert {"config.yaml", "environment.json", "metrics.jsonl", "eval.json", "log.txt"} < files(made)
    assert {"checkpoints/last.pt", "checkpoints/best.pt"} < files(made)
    assert not [name for name in files(made) if name.endswith(".tmp")]
    assert made.parent.name == "glyphs-protonet-5w1s"
    evaluated = json.loads((made / "eval.json").read_text())
    assert evaluated.keys() >= {"metric", "mean", "ci95", "tasks", "protocol"}
    assert evaluated["tasks"] == 4
    assert [(row["step"], row["split"]) for row in rows(made)] == [
        (2, "train"), (2, "val"), (4, "train"), (4, "val")
    ]  # fmt: skip


def test_the_config_is_whole_and_needs_nothing_else(made: Path) -> None:
    """Resolved, every setting spelled out, so that no later default changes what the run is."""
    text = (made / "config.yaml").read_text()
    assert "${" not in text
    tree = yaml.safe_load(text)
    norms = {"norm": "batch", "statistics": "batch", "groups": 8}
    assert tree["model"] == {"name": "mlp", "widths": [8], "residual": False, "dropout": 0.0} | norms
    assert tree["eval"] == {"episodes": 4, "way": 5, "shot": 1, "query": 1, "seed": 0}
    assert Path(tree["data_root"]).is_absolute()


def test_numbers_are_kept_as_what_they_are(metarun: Metarun, tmp_path: Path) -> None:
    """`1e1` is a float to YAML; as a count it is 10."""
    assert metarun("train", *TINY, "eval.episodes=1e1", "hydra.run.dir=here").code == 0
    assert yaml.safe_load((tmp_path / "here" / "config.yaml").read_text())["eval"]["episodes"] == 10


def test_a_run_folder_of_ones_own(metarun: Metarun, tmp_path: Path) -> None:
    assert metarun("train", *TINY, "hydra.run.dir=mine/first").code == 0
    first = contents(tmp_path / "mine" / "first")
    assert {"config.yaml", "eval.json"} < first.keys()
    said = metarun("train", *TINY, "hydra.run.dir=mine/first", "seed=1")
    assert said.code == 0
    assert f"run: {tmp_path}/mine/first-2" in said.out
    assert contents(tmp_path / "mine" / "first") == first
    assert (tmp_path / "mine" / "first-2" / "eval.json").exists()
    assert files(tmp_path) & {"outputs"} == set()


def test_eval_rebuilds_the_run_and_writes_beside_it(metarun: Metarun, copied: Path, tmp_path: Path) -> None:
    before = contents(copied)
    said = metarun("eval", "run=latest")
    assert said.code == 0, said.err
    assert contents(copied) == before
    (written,) = (tmp_path / "outputs" / "eval").rglob("eval.json")
    again, at_the_end = (json.loads(path.read_text()) for path in (written, copied / "eval.json"))
    assert {k: again[k] for k in ("mean", "ci95", "tasks")} == {k: at_the_end[k] for k in ("mean", "ci95", "tasks")}
    assert "95 % interval over tasks" in said.out
    assert max(len(line) for line in said.out.splitlines() if "eval:" not in line) <= 80


def test_eval_under_another_protocol(metarun: Metarun, copied: Path, tmp_path: Path) -> None:
    line = "run=latest eval.way=3 eval.shot=2 eval.query=4 eval.episodes=6 eval.split=val checkpoint=last"
    said = metarun("eval", *line.split())
    assert said.code == 0, said.err
    (written,) = (tmp_path / "outputs" / "eval").rglob("eval.json")
    protocol = json.loads(written.read_text())["protocol"]
    assert (protocol["way"], protocol["shot"], protocol["query"], protocol["split"]) == (3, 2, 4, "val")
    assert protocol["checkpoint"] == "last"


def test_eval_asks_for_what_the_method_has(metarun: Metarun, copied: Path) -> None:
    assert metarun("eval", "run=latest", "eval.steps=3").errors == [
        "eval.steps=3: protonet takes no inner steps at test time"
    ]
    assert "split 'test' has 240 classes" in metarun("eval", "run=latest", "eval.way=300").errors[0]


HOSTILE = {
    "no yaml": ("train: [1,\n", "is not a run's config"),
    "not utf-8": (b"\xff\xfe\x00", "is not a run's config"),
    "empty": ("", "it holds no settings"),
    "a list": ("- 1\n", "it holds no settings"),
    "interpolation": ("data_root: ${oc.env:SECRET}\n", "holds an interpolation '${...}'"),
    "nested interpolation": ("algo: {name: 'a', list: ['${oc.env:SECRET}']}\n", "holds an interpolation"),
    "python tag": ("!!python/object/apply:os.system ['touch pwned']\n", "is not a run's config"),
    "python tag inside": ("seed: !!python/object/apply:os.system ['touch pwned']\n", "is not a run's config"),
    "python name": ("seed: !!python/name:os.system\n", "is not a run's config"),
    "numbers for names": ("1: 2\n", "the key 1 is no name"),
    "endless": ("algo: &a {name: maml, more: *a}\n", "nested too deep"),
    "deep": ("a: " + "[" * 3000 + "]" * 3000 + "\n", "is not a run's config"),
    "half": ("task: {way: 5}\nseed: 0\n", "missing"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_config_that_no_run_wrote(
    metarun: Metarun, copied: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hush")
    text, complaint = HOSTILE[name]
    (copied / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    for errors in both(metarun, copied):
        assert complaint in " ".join(errors)
        assert "config.yaml" in errors[0]
        assert "hush" not in " ".join(errors)
    assert not [name for name in files(tmp_path) if name.endswith("pwned")]


def test_nothing_is_imported_because_a_run_names_it(metarun: Metarun, copied: Path, tmp_path: Path) -> None:
    (tmp_path / "evil_plugin.py").write_text("from pathlib import Path\nPath('pwned').touch()\n")
    edit(copied, lambda tree: tree.update(plugins=["evil_plugin"]))
    assert metarun("eval", "run=latest").code == 0  # its own classes are metarun's, so it needs no plugin
    assert metarun("train", "resume=latest").code == 0
    assert not (tmp_path / "pwned").exists()
    for name in ("evil_plugin", "evil_plugin.Evil", "os.system", "torch.nn.Linear"):
        edit(copied, lambda tree, name=name: tree["algo"].update(name=name))
        for errors in both(metarun, copied):
            assert f"no algo is called '{name}'" in " ".join(errors)
    assert not (tmp_path / "pwned").exists()
    assert metarun("eval", "run=latest", "plugins=[evil_plugin]").code == 2  # typed by a person, it is imported
    assert (tmp_path / "pwned").exists()


def test_settings_of_a_run_are_checked_again(metarun: Metarun, copied: Path) -> None:
    edit(copied, lambda tree: tree["train"].update(lr=-1, epochs=3))
    for errors in both(metarun, copied):
        assert any("train.lr=-1.0: must be greater than 0" in error for error in errors)
        assert any("train.epochs: no such setting" in error for error in errors)


class Evil:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def spoil_pickle(path: Path, proof: Path) -> None:
    path.write_bytes(pickle.dumps(Evil(str(proof))))


def spoil_tensor_file(path: Path, proof: Path) -> None:
    torch.save({"format": 1, "meta": Evil(str(proof))}, path)


def spoil_cut(path: Path, proof: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil_text(path: Path, proof: Path) -> None:
    path.write_text("not a checkpoint")


def spoil_empty(path: Path, proof: Path) -> None:
    path.write_bytes(b"")


def spoil_other(path: Path, proof: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, path)


def spoil_missing(path: Path, proof: Path) -> None:
    path.unlink()
    (path.parent / "last.pt").unlink(missing_ok=True)
    (path.parent / "best.pt").unlink(missing_ok=True)


def spoil_parts(path: Path, proof: Path) -> None:
    content = torch.load(path, weights_only=True)
    torch.save({k: v for k, v in content.items() if k not in ("meta", "optimizer")}, path)


def spoil_kinds(path: Path, proof: Path) -> None:
    content = torch.load(path, weights_only=True)
    torch.save(content | {"meta": {"linear0.weight": "text"}, "step": "three"}, path)


def spoil_shape(path: Path, proof: Path) -> None:
    content = torch.load(path, weights_only=True)
    content["meta"] = {name: torch.zeros(2, 3) for name in content["meta"]}
    torch.save(content, path)


SPOILS = [
    spoil_pickle, spoil_tensor_file, spoil_cut, spoil_text, spoil_empty, spoil_other, spoil_parts, spoil_kinds,
    spoil_shape,
]  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILS, ids=lambda f: f.__name__.removeprefix("spoil_"))
def test_a_checkpoint_that_cannot_be_used(metarun: Metarun, copied: Path, tmp_path: Path, spoil: Any) -> None:
    for which in ("best", "last"):
        spoil(copied / "checkpoints" / f"{which}.pt", tmp_path / "pwned")
    for errors, which in zip(both(metarun, copied), ("best", "last"), strict=True):
        assert len(errors) == 1
        assert f"{which}.pt" in errors[0]
    assert not (tmp_path / "pwned").exists()


def test_a_run_that_had_not_saved_yet(metarun: Metarun, copied: Path) -> None:
    shutil.rmtree(copied / "checkpoints")
    said = metarun("eval", "run=latest")
    assert said.code == 2
    assert "the run had not saved one yet" in said.errors[0]


def test_a_checkpoint_of_another_way(metarun: Metarun, tmp_path: Path) -> None:
    words = [word for word in TINY if not word.startswith("algo=")]
    assert metarun("train", *words, "algo=maml").code == 0
    said = metarun("eval", "run=latest", "eval.way=4")
    assert said.code == 2
    assert "'head.bias' has shape (5,) there, (4,) here" in said.errors[0]
    assert "eval.way = task.way" in said.errors[0]


def test_latest_is_the_run_started_last(metarun: Metarun, copied: Path, tmp_path: Path) -> None:
    later = shutil.copytree(copied, tmp_path / "outputs" / "multirun" / "t" / "0")
    os.utime(copied / "config.yaml", (1, 1))
    with inside(tmp_path):
        assert runs.find("latest", "run").resolve() == later


def test_the_folder_may_have_moved(copied: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.move(str(copied), elsewhere / "run")
    said = typed(elsewhere, "eval", "run=run")
    assert said.code == 0, said.err
