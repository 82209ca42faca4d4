"""The end of a sweep: the leaderboard, what mattered, and where all of it is."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from made_up import ACCURACY, CONDITIONAL, LARGE, MSE, SMALL, sweep

from metarun.sweep.report import LEADERBOARD, importances, leaderboard, show_end, table, write_end, write_leaderboard
from metarun.sweep.trial import COMPLETE, FAILED, Choice, Interval, Trial
from metarun.sweep.words import overrides, short_names, squeezed

# The leaderboard


def test_short_names_mean_one_setting_only() -> None:
    assert short_names(["algo", "algo.inner_lr", "algo.lr", "train.lr", "train.optimizer_args.eps"]) == {
        "algo": "algo",
        "algo.inner_lr": "inner_lr",
        "algo.lr": "algo.lr",
        "train.lr": "train.lr",
        "train.optimizer_args.eps": "eps",
    }
    assert short_names(["seed", "eval.seed"]) == {"seed": "seed", "eval.seed": "eval.seed"}


def test_names_that_are_alike_can_be_told_apart_when_they_are_cut() -> None:
    assert squeezed("inner_steps", 11) == "inner_steps"
    assert squeezed("quite_a_long_name_3", 14) == "quite_a…name_3"
    rows = [{"rank": "1", "trial": "0", "mse": "1", "a_rather_long_name_1": "0.1", "a_rather_long_name_2": "0.2"}]
    assert table(rows)[0].split() == ["rank", "trial", "mse", "a_rather_…g_name_1", "a_rather_…g_name_2"]


def test_the_best_come_first() -> None:
    trials = [
        Trial(0, {"algo": "maml", "algo.inner_lr": 0.123456}, COMPLETE, 0.8),
        Trial(1, {"algo": "protonet"}, COMPLETE, 0.93456),
        Trial(2, {"algo": "protonet"}, FAILED),
        Trial(3, {"algo": "maml", "algo.inner_lr": 0.5}, COMPLETE, 0.9),
    ]
    space = {"algo": Choice(("maml", "protonet")), "algo.inner_lr": Interval(0.01, 1.0)}
    assert leaderboard(trials, space, ACCURACY) == [
        {"rank": "1", "trial": "1", "accuracy": "93.46 %", "algo": "protonet", "inner_lr": "-"},
        {"rank": "2", "trial": "3", "accuracy": "90.00 %", "algo": "maml", "inner_lr": "0.5"},
        {"rank": "3", "trial": "0", "accuracy": "80.00 %", "algo": "maml", "inner_lr": "0.1235"},
    ]
    assert [row["trial"] for row in leaderboard(trials, space, MSE)] == ["0", "3", "1"]
    assert leaderboard(trials, space, MSE)[0]["mse"] == "0.8"
    assert leaderboard(trials[2:3], space, ACCURACY) == table([]) == []


def test_seeds_have_a_spread() -> None:
    trial = Trial(0, {"train.lr": 0.1}, COMPLETE, 0.9, {0: 0.88, 1: 0.92})
    assert leaderboard([trial], {"train.lr": Interval(0, 1)}, ACCURACY)[0]["sd"] == "2.83 %"


def test_the_table_fits_80_columns_and_says_what_it_leaves_out() -> None:
    rows = leaderboard(sweep(LARGE, 60, seeds=2), LARGE, ACCURACY)
    lines = table(rows, first=["rotation"])
    assert len(lines) == 12
    assert max(map(len, lines)) <= 80
    head, hidden = lines[0].split(), lines[-1].removeprefix("  not shown: ").split(", ")
    assert head[:4] == ["rank", "trial", "accuracy", "sd"]
    assert "rotation" in head  # which would not have fitted otherwise
    assert {*head[4:], *hidden} == {*short_names(LARGE).values()}
    assert table(leaderboard(sweep(SMALL, 9), SMALL, ACCURACY))[0].split() == [
        *("rank", "trial", "accuracy"),
        *("inner_lr", "lr", "inner_steps"),
    ]


def test_the_file_has_every_trial_and_every_setting_in_full(tmp_path: Path) -> None:
    trials = sweep(LARGE, 30, seeds=3)
    trials[4].reason = 'two\nlines, with a "comma"'
    write_leaderboard(tmp_path / LEADERBOARD, trials, LARGE, ACCURACY)
    with (tmp_path / LEADERBOARD).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(int(row["trial"]) for row in rows) == list(range(30))
    ranks = [row["rank"] for row in rows]
    complete = sum(trial.state == COMPLETE for trial in trials)
    assert ranks == [str(n) for n in range(1, complete + 1)] + [""] * (30 - complete)
    values = [float(row["value"]) for row in rows[:complete]]
    assert values == sorted(values, reverse=True)
    for row in rows:
        trial = trials[int(row["trial"])]
        assert row["state"] == trial.state
        assert {name: row[name] for name in trial.params} == {
            word.partition("=")[0]: word.partition("=")[2] for word in overrides(trial.params)
        }
        assert all(row[name] == "" for name in LARGE if name not in trial.params)
        assert row["value"] == ("" if trial.value is None else repr(trial.value))
        assert [row[f"value_{n}"] for n in range(3)] == [repr(v) for v in trial.values] or not trial.values
    assert next(row for row in rows if row["trial"] == "4")["reason"] == 'two lines, with a "comma"'


# Importance


def test_what_decides_is_important() -> None:
    found = importances(sweep(SMALL, 60, whole=True), SMALL, ACCURACY)
    assert next(iter(found)) == "algo.inner_lr"
    assert found["algo.inner_lr"] > 2 * found["algo.inner_steps"]
    assert sum(found.values()) == pytest.approx(1)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert importances(sweep(SMALL, 60, whole=True), SMALL, ACCURACY) == found
    worst = [Trial(t.number, t.params, t.state, -(t.value or 0)) for t in sweep(SMALL, 60, whole=True)]
    assert importances(worst, SMALL, MSE) == pytest.approx(found)


def test_few_trials_tell_what_decides_too() -> None:
    """Of 12 trials seven are complete, of which a tenth would be one."""
    first = [next(iter(importances(sweep(SMALL, 12, seed=seed), SMALL, ACCURACY))) for seed in range(20)]
    assert first.count("algo.inner_lr") >= 16


def test_settings_that_only_some_trials_have_are_compared_too() -> None:
    found = importances(sweep(LARGE, 120), LARGE, ACCURACY)
    assert found.keys() == LARGE.keys()
    assert next(iter(found)) == "algo.inner_lr"


def test_values_outside_the_space_that_were_typed_do_no_harm() -> None:
    trials = sweep(SMALL, 30, whole=True)
    trials[0].params = {"algo.inner_lr": 3.0, "train.lr": 1e-6, "algo.inner_steps": 10}
    assert importances(trials, SMALL, ACCURACY).keys() == SMALL.keys()


def test_of_too_little_nothing_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    assert importances([], SMALL, ACCURACY) == {}
    assert importances(sweep(SMALL, 3, whole=True), SMALL, ACCURACY) == {}
    same = sweep(SMALL, 20, whole=True)
    for trial in same:
        trial.value = 0.5
    assert importances(same, SMALL, ACCURACY) == {}
    one: dict[str, Any] = {"train.lr": SMALL["train.lr"]}
    assert importances(sweep(SMALL, 20, whole=True), one, ACCURACY) == {}
    assert importances(sweep(SMALL, 20, whole=True), SMALL, ACCURACY)
    assert capfd.readouterr() == ("", "")  # nor does Optuna say anything


# The end


def test_what_a_file_cannot_say_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    for word in ("~train.optimizer_args.eps", "experiment=best"):
        names = write_end(tmp_path, sweep(SMALL, 3), SMALL, ACCURACY, [word], said.append)
        assert "experiment/best.yaml" not in names
        assert said[-1].startswith(f"no best.yaml: '{word}' ")


@pytest.mark.parametrize("space, count, seeds", [(SMALL, 24, 1), (LARGE, 100, 3), (SMALL, 1, 1)])
def test_the_end_fits_a_terminal(tmp_path: Path, space: dict[str, Any], count: int, seeds: int) -> None:
    place = Path("outputs/sweep/omniglot-maml-5w1s")
    (tmp_path / place).mkdir(parents=True)
    trials, said = sweep(space, count, seeds), list[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        files = write_end(place, trials, space, ACCURACY, ["dataset=omniglot"], said.append, seeds)
        assert said == []
        show_end(place, trials, space, ACCURACY, said.append, files)
    assert len(said) < 30
    assert max(map(len, said)) <= 80
    text = "\n".join(said)
    assert f"{count} trial" in text
    assert "metarun train --config-dir outputs/sweep/omniglot-maml-5w1s experiment=best" in text
    assert ("what decided" in text) == (count > 1)
    assert all((tmp_path / place / name).is_file() for name in files)
    assert {LEADERBOARD, "experiment/best.yaml", "history.png", "parallel.png", "slices.png"} == {*files}
    assert not [path for path in (tmp_path / place).rglob("*") if path.name.endswith(".tmp")]


def test_the_end_of_a_sweep_in_which_nothing_was_completed(tmp_path: Path) -> None:
    trials = [Trial(n, {"train.lr": 0.1 * n}, FAILED, reason="not enough memory") for n in range(3)]
    said: list[str] = []
    space = {"train.lr": Interval(0.0, 1.0)}
    files = write_end(tmp_path, trials, space, ACCURACY, [], said.append)
    show_end(tmp_path, trials, space, ACCURACY, said.append, files)
    assert said == ["", "  3 trials: 3 failed (3 not enough memory)", ""]
    assert files[0] == LEADERBOARD
    with (tmp_path / LEADERBOARD).open() as file:
        assert [row["reason"] for row in csv.DictReader(file)] == ["not enough memory"] * 3


def test_conditional_settings_are_said_to_be(tmp_path: Path) -> None:
    said: list[str] = []
    show_end(tmp_path, sweep(LARGE, 60), LARGE, ACCURACY, said.append)
    assert any("where one has it" in line for line in said)
    assert all(any(name in line for line in said) for name in CONDITIONAL[:1])


def test_nothing_heavy_is_imported_to_begin_with() -> None:
    heavy = {"torch", "optuna", "matplotlib", "hydra", "numpy"}
    script = f"import sys; import metarun.sweep.report; assert not {heavy} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
