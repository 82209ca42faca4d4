"""What a person can get wrong: exit 2, a line that says what, why and what instead, and nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from commandline import TINY, Said, files, typed

Metarun = Callable[..., Said]
LONGEST = 420
"""characters of a complaint: what it is about, the limit, the way out"""

NAMES = {
    "trian": "no command 'trian'; did you mean train?",
    "--foo": "no command '--foo'; choose from: data, eval, list, plan, profile, sweep, train",
    "list lago": "nothing called 'lago' to list; did you mean algo?",
    "train algo=mamll": "algo=mamll: no such algo; did you mean maml",
    "train algo=MAML": "algo=MAML: no such algo; did you mean maml?",
    "train dataset=omniglott": "dataset=omniglott: no such dataset; did you mean omniglot?",
    "train experiment=nope": "experiment=nope: no such experiment; see metarun list experiment for what there is",
    "train algo=": "algo=: no such algo; choose from: anil, baseline",
    "train algo=null": "algo=null: names no option; write algo=NAME (metarun list algo)",
    "train algos=maml": "algos: no such setting; did you mean algo?",
    "train algo.inner_lrr=1": "algo.inner_lrr: no such setting; did you mean algo.inner_lr?",
    "train trian.lr=1": "trian.lr: no such setting; did you mean train.lr?",
    "train inner_lr=0.1": "inner_lr: no such setting; did you mean algo.inner_lr?",
    "train model=mlp model.filters=3": "model.filters: no such setting; choose from: model.dropout, model.groups",
    "train +algo.foo=1": "algo.foo: no such setting; choose from: eval_steps, inner_lr, inner_steps",
    "train ++foo=1": "foo: no such node; choose from: ",
    "train +algo=anil": "algo is chosen twice; write algo=NAME once, without a +",
    "train ~train": "train: missing; a setting can be given another value, but not taken away",
    "train ~train.lr": "train.lr: missing; ",
    "train ~algo": "algo: needs a name; choose one with algo=NAME (metarun list algo)",
    "train algo.name=foo": "algo.name: no algo is called 'foo'; choose from: ",
    "train hydra.foo=1": "hydra.foo: Hydra has no such setting; see metarun train --cfg hydra",
    "train hydra/launcher=joblib": "hydra/launcher=joblib: no such launcher; choose from: basic",
    "train experiment=omniglot_maml_5w1s algo=protonet": "algo.inner_lr: no such setting; choose from: ",
    "train train.optimizer=Adamm": "train.optimizer: no optimizer 'Adamm' in torch.optim; did you mean Adam",
    "train train.schedule=linaer": "train.schedule: no schedule 'linaer'; did you mean linear?",
    "train train.optimizer_args={foo:1}": "train.optimizer_args: torch.optim.Adam refuses {'foo': 1}: ",
    "train train.optimizer_args.foo=1": "train.optimizer_args: torch.optim.Adam refuses {'foo': 1}: ",
    "train train.schedule=StepLR": "train.schedule_args: torch.optim.lr_scheduler.StepLR refuses {}: ",
    "train plugins=[no_such_module]": "plugins: cannot import 'no_such_module'; is it in this folder, or installed?",
    "train plugins=[a/b.py]": "plugins: cannot import 'a/b.py': a module's name is wanted",
    "train plugins=no_such_module": "plugins='no_such_module': must be a list of modules",
    "train --config-dir=nowhere": "Additional config directory",
    "train --config-name=nowhere": "Cannot find primary config 'nowhere'",
    "train --frobnicate": "unrecognized arguments: --frobnicate; see metarun train --help",
    "train --cfg nope": "argument --cfg/-c: invalid choice: 'nope'",
    "train --experimental-rerun x.pickle": "--experimental-rerun: reads a pickle, which could run anything",
    "eval run=latest train.lr=1": "train.lr: metarun eval takes it from the run; what it can change: eval.episodes",
    "eval run=latest algo=maml": "algo: metarun eval takes it from the run",
    "eval run=latest eval.wya=1": "eval.wya: no such setting; did you mean eval.way?",
    "eval run=latest +foo=1": "foo: metarun eval has no such setting; choose from: ",
    "eval run=latest +eval.foo=1": "eval.foo: no such setting; choose from: ",
}

WORDS = {
    "train train.lr": "'train.lr' is no SETTING=VALUE, as train.lr=1e-4 is; see metarun train --help",
    "train maml": "'maml' is no SETTING=VALUE; did you mean algo=maml?",
    "train latest": "'latest' is no SETTING=VALUE; did you mean resume=latest?",
    "eval latest": "'latest' is no SETTING=VALUE; did you mean run=latest?",
    "train =3": "'=3' is no SETTING=VALUE",
    "train a=[": "'a=[' cannot be read; quote a value that holds more than a word",
    "train train.lr=1e-3,": "'train.lr=1e-3,' cannot be read",
    "train seed=0,1": "seed=0,1: several values make several runs: add -m (one value that is a list: seed=[0,1])",
    "train algo=maml,anil": "algo=maml,anil: several values make several runs: add -m",
    "train --resolve": "The --resolve flag can only be used",
    "train resume=": "resume= needs the path of a run, or latest",
}

VALUES = {
    "train train.lr=abc": "train.lr=abc: must be a finite number",
    "train train.lr=": "train.lr=: must be a finite number",
    "train train.lr=nan": "train.lr=nan: must be a finite number",
    "train algo.inner_lr=1e999": "algo.inner_lr=inf: must be a finite number",
    "train train.lr=-1": "train.lr=-1.0: must be greater than 0",
    "train train.clip=0": "train.clip=0.0: must be greater than 0",
    "train task.way=2.5": "task.way=2.5: must be a whole number",
    "train task.way=1": "task.way=1: telling classes apart takes 2 or more",
    "train algo.inner_steps=true": "algo.inner_steps=true: must be a whole number",
    "train train.iterations=null": "train.iterations=null: must be a whole number",
    "train train.iterations=1e400": "train.iterations=inf: must be a whole number",
    "train eval.episodes=0": "eval.episodes=0: must be at least 1",
    "train checkpoint.every=0": "checkpoint.every=0: must be at least 1",
    "train seed=-1": "seed=-1: must be a whole number from 0 to 2^63 - 1",
    "train seed=1.5": "seed=1.5: must be a whole number",
    "train seed=99999999999999999999": "seed=99999999999999999999: must be a whole number from 0 to 2^63 - 1",
    "train data_root=3": "data_root=3: must be the path of a folder",
    "train model.norm=bach": "model.norm=bach: must be one of batch, group, layer, none",
    "train model.blocks=99": "model.blocks=99: must be at most 8",
    "train model=mlp model.widths=3": "model.widths=3: must be a list, each a whole number",
    "train device.kind=tpu": "device.kind=tpu: must be one of auto, cpu, cuda",
    "train device.chunk=0": "device.chunk=0: must be at least 1",
    "train device.processes=0": "processes=0: must be at least 1",
    "train device.processes=many": "processes=many: must be a whole number, or auto",
    "eval run=latest device.processes=-1": "processes=-1: must be at least 1",
    "train device=cpu device.processes=3 train.meta_batch=2": "3 processes cannot share a meta-batch of 2; lower",
    "train device=ddp algo=baseline": "algo=baseline trains on one batch at a time, which is not shared",
    "profile device=ddp": "metarun profile looks at one process; set device.processes=1",
    "train logger.mode=onlin": "logger.mode=onlin: must be one of auto, online, offline, disabled",
    "train logger.group=3": "logger.group=3: must be text or null: 'logger.group=\"3\"'",
    "train train=3": "train=3: must be a mapping of settings; set one with train.KEY=VALUE",
    "train train.optimizer_args=3": "train.optimizer_args=3: must be a mapping",
    "train paper={accuracy:x}": "paper.accuracy=x: must be a finite number",
    "train eval.shot=${oc.env:NO_SUCH}": "eval.shot: Environment variable 'NO_SUCH' not found",
    "train eval.shot=${task.shto}": "eval.shot: Interpolation key 'task.shto' not found",
    "train hydra.mode=FOO": "hydra.mode=FOO: ",
    "eval run=latest eval.split=train": "eval.split=train: must be one of test, val",
    "eval run=latest checkpoint=first": "checkpoint=first: must be one of best, last",
    "eval run=latest eval.steps=-1": "eval.steps=-1: must be at least 0",
    "eval run=latest eval=3": "eval=3: must be a mapping of settings",
}

MISFITS = {
    "train task.way=5000": "way=5000: split 'test' has 240 classes; lower eval.way",
    "train eval.way=241": "eval.way=241: split 'test' has 240 classes; lower eval.way",
    "train task.way=865 eval.way=5": "task.way=865: split 'train' has 864 classes; lower task.way",
    "train task.query=20 eval.query=1": "task.shot + task.query = 1 + 20 = 21: lower task.shot or task.query",
    "train eval.query=50": "has 20 examples, eval.shot + eval.query = 1 + 50 = 51: lower eval.shot or eval.query",
    "train algo=maml eval.way=7": "eval.way=7: 'head.weight' is trained for 5 classes and fits no other; set eval.way",
    "train model.norm=group model.groups=7": "model: groups=7 does not divide filters=64",
    "train model.blocks=5 model.halving=pool": "model: blocks=5 halvings leave nothing of 28x28",
    "train model=mlp model.widths=[]": "model: widths=[]: give 1 or more layer widths",
    "train dataset=omniglot dataset.download=false": "no Omniglot in ",
    "train resume=nowhere": "resume=nowhere: nowhere does not exist",
    "train resume=.": "resume=.: . has no config.yaml, so it is not a run folder",
    "train resume=latest": "resume=latest: there is no run under",
    "eval run=latest": "run=latest: there is no run under",
    "eval run=7": "run=7: 7 does not exist; give the path that metarun train printed, or latest",
    "eval": "metarun eval needs run=PATH or run=latest",
    "eval run=": "metarun eval needs run=PATH or run=latest",
}


@pytest.mark.parametrize("line", [*NAMES, *WORDS, *VALUES, *MISFITS])
def test_refused(metarun: Metarun, tmp_path: Path, line: str) -> None:
    said = metarun(*line.split())
    assert said.code == 2
    assert said.out == ""
    assert any((NAMES | WORDS | VALUES | MISFITS)[line] in error for error in said.errors), said.err
    assert max(map(len, said.errors)) <= LONGEST
    assert files(tmp_path) == set()


def test_words_with_spaces_and_none_at_all(metarun: Metarun) -> None:
    assert (
        metarun("train", "algo.inner_lr=0.1 task.way=3").errors[0].startswith("'algo.inner_lr=0.1 task.way=3' cannot")
    )
    assert metarun("train", "").errors == ["'' is no SETTING=VALUE, as train.lr=1e-4 is; see metarun train --help"]
    assert metarun("").errors == ["no command ''; choose from: data, eval, list, plan, profile, sweep, train"]


def test_a_path_typed_alone(metarun: Metarun, tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    assert metarun("eval", "some").errors == ["'some' is no SETTING=VALUE; did you mean run=some?"]


def test_all_complaints_about_settings_come_together(metarun: Metarun) -> None:
    line = "train train.lr=-1 task.way=0 algo.inner_lr=x model.filters=0 eval.episodes=abc seed=-4 logger.mode=x"
    errors = metarun(*line.split()).errors
    for setting in ("train.lr", "task.way", "algo.inner_lr", "model.filters", "eval.episodes", "seed", "logger.mode"):
        assert any(error.startswith(f"{setting}=") for error in errors), setting
    line = "eval run=latest eval.way=0 eval.shot=x checkpoint=y device.kind=z"
    assert len(metarun(*line.split()).errors) == 4


def test_cuda_where_there_is_none(metarun: Metarun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = metarun("train", "device=cuda")
    assert said.errors == ["device=cuda: torch sees no CUDA device here; use device=cpu or device=auto"]
    assert files(tmp_path) == set()


def test_more_processes_than_gpus(metarun: Metarun, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    said = metarun("train", "device=ddp", "device.processes=3")
    assert said.errors == [
        "device.processes=3: this machine has 2 GPUs, and each process needs its own; lower it, or set device.kind=cpu"
    ]


@pytest.mark.parametrize("line", ["", "-m", "hydra.mode=MULTIRUN", "-m hydra.sweep.dir=a/b", "hydra.run.dir=a/b/c"])
def test_folders_that_hydra_makes_go_again(metarun: Metarun, tmp_path: Path, line: str) -> None:
    """Bad input found in a job leaves nothing, also where Hydra has made a folder for the job."""
    (tmp_path / "a").mkdir()
    said = metarun("train", *line.split(), "seed=-1")
    assert said.code == 2
    assert said.errors == ["seed=-1: must be a whole number from 0 to 2^63 - 1"]
    assert files(tmp_path) == {"a"}


def test_a_folder_that_cannot_be_made(metarun: Metarun, tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("a file")
    said = metarun("train", *TINY)
    assert said.code == 2
    assert "hydra.run.dir=PATH" in said.errors[0]
    assert (tmp_path / "outputs").read_text() == "a file"
    assert files(tmp_path) == {"outputs"}
    assert metarun("train", *TINY, "hydra.run.dir=outputs/x").code == 2


PLUGINS = {
    "broken_syntax": ("def f(:\n", "SyntaxError"),
    "broken_name": ("\nx = no_such_name\n", "NameError: name 'no_such_name' is not defined (broken_name.py, line 2)"),
    "broken_import": ("import no_such_thing\n", "cannot import 'broken_import': it needs 'no_such_thing'"),
    "broken_class": (
        "from metarun.types import register\n@register('algo', 'broken_class')\nclass Broken:\n    pass\n",
        "broken_class.Broken is registered but is no dataclass",
    ),
}


@pytest.mark.parametrize("name", PLUGINS)
def test_a_broken_plugin(metarun: Metarun, tmp_path: Path, name: str) -> None:
    text, complaint = PLUGINS[name]
    (tmp_path / f"{name}.py").write_text(text)
    said = metarun("train", f"plugins=[{name}]", f"algo.name={name if name == 'broken_class' else 'maml'}")
    assert said.code == 2
    assert complaint in said.err
    assert len(said.errors) == 1
    assert not (tmp_path / "outputs").exists()


def test_too_little_memory_is_no_traceback(metarun: Metarun, tmp_path: Path) -> None:
    said = metarun("train", *TINY, "model.widths=[1000000000000]")
    assert said.code == 1
    assert said.errors[0].startswith("not enough memory")
    assert not (tmp_path / "outputs").exists()


def test_a_surprise_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what a person can mend is put in one line."""
    from metarun import run

    def broken(*args: object) -> int:
        raise ValueError("a bug of metarun's")

    monkeypatch.setattr(run, "train", broken)
    with pytest.raises(ValueError, match="a bug of metarun's"):
        typed(tmp_path, "train", *TINY)
