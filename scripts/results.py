"""Short runs of a few minutes each on a CPU, and the tables of what they reach on 1,000 test tasks.

    omniglot   every method, 5-way, split official: trained on the background characters and their rotations, tested on
               alphabets never seen
    datasets   ProtoNet and MAML, 5-way 1-shot, on each dataset that is at hand, beside the nearest class mean of the
               raw inputs

A row that is done is not run again, one that was stopped goes on from its checkpoint, so the script can be killed and
started at will; `--table` prints what there is as Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
COMMON = (
    "logger=none device=cpu eval.episodes=1000 train.val_episodes=200 train.val_every=250 train.log_every=50 "
    "checkpoint.every=250"
)
OMNIGLOT = "dataset=omniglot model=conv4"


@dataclass(frozen=True)
class Row:
    """One run: what is typed after `metarun train`, beside `COMMON` and what its table has in common.

    `paper` is the recipe that holds a method's number; `beside` the row of a dataset that its others are beside.
    """

    name: str
    words: str
    paper: str | None = None
    beside: str | None = None


SHORT = "train.schedule=cosine"
INNER = "train.meta_batch=16 train.clip=10"
WIDE = "task.way=20 eval.way=5 task.query=5 eval.query=5 train.meta_batch=1 model.statistics=running"
BATCHES = "train.meta_batch=64 model.statistics=running train.iterations=3000"
ONE_SHOT_ROWS = [
    Row("maml", f"algo=maml {INNER} train.iterations=1100", "omniglot_maml_5w1s"),
    Row("fomaml", f"algo=fomaml {INNER} train.iterations=1800", "omniglot_fomaml_5w1s"),
    Row("anil", f"algo=anil {INNER} train.iterations=2000"),
    Row("boil", f"algo=boil {INNER} train.iterations=1100"),
    Row(
        "reptile",
        "algo=reptile algo.eval_steps=20 train.iterations=900 eval.shot=1",
        "omniglot_reptile_transductive_5w1s",
    ),
    Row("metasgd", f"algo=metasgd {INNER} train.iterations=1000"),
    Row("mamlpp", "algo=mamlpp train.meta_batch=4 train.clip=10 train.iterations=800", "omniglot_mamlpp_5w1s"),
    Row("imaml", f"algo=imaml train.meta_batch=4 train.lr=5e-4 train.clip=1 {SHORT} train.iterations=400"),
    Row("cavia", f"algo=cavia {INNER} train.iterations=1300"),
    Row("protomaml", "algo=protomaml train.meta_batch=4 train.clip=10 train.iterations=900"),
    Row("metacurvature", f"algo=metacurvature {INNER} train.iterations=900"),
    Row(
        "metalstm",
        f"algo=metalstm model.filters=16 algo.inner_steps=5 algo.eval_steps=5 {SHORT} train.iterations=1800",
    ),
    Row(
        "protonet",
        f"algo=protonet {WIDE} model.halving=pool train.lr=2e-3 {SHORT} train.iterations=1900",
        "omniglot_protonet_5w1s",
    ),
    Row("protonet cosine", f"algo=protonet algo.distance=cosine {WIDE} train.iterations=2500"),
    Row("matchingnet", f"algo=matchingnet {WIDE} train.iterations=2500", "omniglot_matchingnet_5w1s"),
    Row("matchingnet fce", f"algo=matchingnet algo.fce=true {WIDE} train.iterations=1300"),
    Row("relationnet", f"algo=relationnet {WIDE} train.iterations=1500", "omniglot_relationnet_5w1s"),
    Row("r2d2", f"algo=r2d2 {WIDE} train.iterations=2500"),
    Row("metaoptnet svm", "algo=metaoptnet algo.head=svm train.meta_batch=8 task.query=5 train.iterations=900"),
    Row("metaoptnet ridge", f"algo=metaoptnet algo.head=ridge {WIDE} train.iterations=2500"),
    Row("baseline", f"algo=baseline {BATCHES}"),
    Row("baselinepp", f"algo=baselinepp {BATCHES}"),
]
FIVE = "task.shot=5 task.query=5 train.meta_batch=4 train.clip=10 train.schedule=cosine"
FIVE_SHOT_ROWS = [
    Row("maml 5-shot", f"algo=maml algo.eval_steps=1 {FIVE} train.iterations=900", "omniglot_maml_5w5s"),
    Row("fomaml 5-shot", f"algo=fomaml {FIVE} train.iterations=1500", "omniglot_fomaml_5w5s"),
    Row("anil 5-shot", f"algo=anil {FIVE} train.iterations=1700"),
    Row(
        "reptile 5-shot",
        "algo=reptile algo.eval_steps=20 train.iterations=900 eval.shot=5",
        "omniglot_reptile_transductive_5w5s",
    ),
    Row("protonet 5-shot", f"algo=protonet task.shot=5 {WIDE} {SHORT} train.iterations=1800", "omniglot_protonet_5w5s"),
    Row(
        "matchingnet 5-shot", f"algo=matchingnet task.shot=5 {WIDE} train.iterations=1800", "omniglot_matchingnet_5w5s"
    ),
]
CLASSIFIERS = (
    "nearest_centroid",
    "logistic",
    "svm",
    "random_forest",
    "gradient_boosting",
    "bagging",
    "decision_tree",
)
CLASSICAL_ROWS = [Row(name.replace("_", " "), f"algo=classical algo.classifier={name}") for name in CLASSIFIERS]
OMNIGLOT_ROWS = [*ONE_SHOT_ROWS, *FIVE_SHOT_ROWS, *CLASSICAL_ROWS]

NEAREST = "algo=classical algo.classifier=nearest_centroid"
CIFAR = "model=conv4 augment.flip=true augment.crop=4"
BENCHMARKS = {
    "omniglot, split vinyals": (
        f"{OMNIGLOT} dataset.split=vinyals",
        f"{WIDE} model.halving=pool train.lr=2e-3 train.iterations=900",
        f"{INNER} train.iterations=1100",
    ),
    "omniglot, split maml": (
        f"{OMNIGLOT} dataset.split=maml",
        f"{WIDE} model.halving=pool train.lr=2e-3 train.iterations=900",
        f"{INNER} train.iterations=1100",
    ),
    **{
        name: (
            f"dataset={name} {CIFAR}",
            f"{WIDE} train.iterations=2500",
            f"{INNER} algo.inner_lr=0.1 task.query=5 train.meta_batch=8 train.iterations=900",
        )
        for name in ("cifar_fs", "fc100")
    },
    **{
        name: (
            f"dataset={name} dataset.idf=false eval.query=15 train.val_every=50",
            "algo.distance=cosine algo.scale=10 model.widths=[2048] model.dropout=0.5 task.query=15 train.lr=3e-4 "
            "train.meta_batch=4 train.iterations=300",
            "algo.inner_lr=0.1 algo.eval_steps=1 model.widths=[1024] model.dropout=0.3 task.query=15 train.lr=5e-4 "
            "train.meta_batch=4 train.iterations=400",
        )
        for name in ("clinc150", "banking77")
    },
}
DATASET_ROWS = [
    row
    for name, (common, protonet, maml) in BENCHMARKS.items()
    for row in (
        Row(f"{name}: nearest class mean", f"{common.partition(' augment')[0]} {NEAREST}"),
        Row(f"{name}: protonet", f"{common} algo=protonet {protonet} {SHORT}", beside=name),
        Row(f"{name}: maml", f"{common} algo=maml {maml} {SHORT}", beside=name),
    )
]
TABLES = {"omniglot": (OMNIGLOT, OMNIGLOT_ROWS), "datasets": ("", DATASET_ROWS)}


def place(out: Path, row: Row) -> Path:
    return out / row.name.replace(", ", "_").replace(": ", "_").replace(" ", "_")


def done(row: Row, out: Path) -> bool:
    """Whether the row has been run, with what it says now."""
    folder = place(out, row)
    if not (folder / "eval.json").exists():
        return False
    typed = json.loads((folder / "environment.json").read_text())["sessions"][0]["command"]
    if set(row.words.split()) <= set(typed):
        return True
    sys.exit(f"error: {folder} was run with other settings than '{row.name}' has now; take it away to run it anew")


def make(row: Row, common: str, out: Path, threads: int) -> None:
    """Runs a row to its end, or goes on with it."""
    if done(row, out):
        return
    folder = place(out, row)
    metarun = [str(Path(sys.executable).with_name("metarun")), "train"]
    if (folder / "checkpoints" / "last.pt").exists():
        words = [f"resume={folder}"]
    else:
        typed = f"{common} {COMMON} device.threads={threads} {row.words}".split()
        words = [*typed, f"hydra.run.dir={folder}"]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (out / f"{folder.name}.log").open("ab") as log:
        ended = subprocess.run([*metarun, *words], stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
    print(
        f"{row.name}: {told(folder) if ended.returncode == 0 else f'failed, see {out / folder.name}.log'}", flush=True
    )


def told(folder: Path) -> str:
    result = json.loads((folder / "eval.json").read_text())
    return f"{100 * result['mean']:.2f} ± {100 * result['ci95']:.2f} %"


def paper(row: Row) -> str:
    """The published number that the row's recipe holds."""
    if row.paper is None:
        return ""
    content = yaml.safe_load((ROOT / "conf" / "experiment" / f"{row.paper}.yaml").read_text())["paper"]
    return f"{content['accuracy']}" + (f" ± {content['ci95']}" if content.get("ci95") is not None else "")


def minutes(folder: Path) -> str:
    """How long it trained, validation left out."""
    path, seconds, step = folder / "metrics.jsonl", 0.0, 0
    for line in path.read_text().splitlines() if path.exists() else ():
        row = json.loads(line)
        if row["split"] == "train":
            seconds, step = seconds + (row["step"] - step) / row["rate"], row["step"]
    return f"{seconds / 60:.1f}" if step else ""


def table(rows: list[Row], out: Path) -> str:
    """Markdown, of the rows that are done."""
    made = [row for row in rows if done(row, out)]
    if any(row.beside for row in rows):
        lines = ["| `metarun train ...` | accuracy (short run) | nearest class mean | minutes of training |"]
        cells = [
            (f"`{row.words}`", told(place(out, row)), nearest(out, row), minutes(place(out, row)))
            for row in made
            if row.beside
        ]
    else:
        lines = ["| method | `metarun train ...` | accuracy (short run) | paper (full length) | minutes of training |"]
        cells = [
            (row.name, f"`{row.words}`", told(place(out, row)), paper(row), minutes(place(out, row))) for row in made
        ]
    lines.append("|---" * lines[0].count(" | ") + "|---|")
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in cells)])


def nearest(out: Path, row: Row) -> str:
    folder = place(out, Row(f"{row.beside}: nearest class mean", ""))
    return told(folder) if (folder / "eval.json").exists() else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", choices=TABLES, default="omniglot", help="which table (omniglot)")
    parser.add_argument("--out", type=Path, help="where the runs go (outputs/results-TABLE)")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="these rows; all where it is left out")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side (2)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each (1)")
    parser.add_argument("--table", action="store_true", dest="print_only", help="print what is done, run nothing")
    args = parser.parse_args()
    common, rows = TABLES[args.table]
    out = args.out or ROOT / "outputs" / f"results-{args.table}"
    names = [row.name for row in rows]
    if unknown := [name for name in args.only or [] if name not in names]:
        parser.error(f"no row is called '{unknown[0]}'; there are: {'; '.join(names)}")
    if not args.print_only:
        chosen = [row for row in rows if not args.only or row.name in args.only]
        with ThreadPoolExecutor(args.workers) as pool:
            list(pool.map(lambda row: make(row, common, out, args.threads), chosen))
    print(table(rows, out))


if __name__ == "__main__":
    main()
