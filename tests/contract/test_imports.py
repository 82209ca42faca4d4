"""Who may import whom: the rules of the architecture, read from the source, and seen in a process that trains."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import metarun

PACKAGE = Path(metarun.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = {"algorithms", "models", "data", "engine"}
HEAVY = {"torchvision", "optuna", "wandb", "sklearn", "joblib", "loky", "matplotlib", "PIL", "sentence_transformers"}
HEAVY |= {"ray", "submitit"}
ABOVE = {"cli", "__main__", "app", "commands", "run", "evaluation", "profiling", "planning", "helping"}
ABOVE |= {"together", "sweep"}
"""what nothing below may reach up to"""

MAY_IMPORT = {
    "types": {"measures", "counter"},
    "measures": set(),
    "hints": set(),
    "files": set(),
    "processes": set(),
    "settings": {"types"},
    "counter": set(),
    "noise": {"counter"},
    "batchnorm": {"kernels"},
    "kernels": {"files", "kernels"},
    "layers": {"types", "counter", "batchnorm", "kernels"},
    "algorithms": {"types", "layers", "algorithms"},
    "models": {"types", "layers", "noise", "models"},
    "schema": {"types", "hints"},
    "cache": {"types", "files"},
    "data": {"types", "measures", "counter", "files", "cache", "hints", "schema", "processes", "data"},
    "engine": {"types", "measures", "counter", "settings", "hints", "processes", "engine"},
    "loggers": {"types", "measures", "files", "loggers"},
    "checkpoint": {"types", "files", "engine"},
    "device": {"types", "settings", "cache", "kernels"},
    "world": set(),
    "launch": {"types", "world"},
    "company": {"types", "settings", "processes", "world", "engine", "launch"},
    "memory": {"engine"},
}
"""Parts of metarun that each part may import. What is not listed may import anything but `ABOVE`."""


def part(file: Path) -> str:
    """`engine` for metarun/engine/step.py, `run` for metarun/run.py"""
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def named(node: ast.Import | ast.ImportFrom) -> list[str]:
    """The modules that an import statement names; of `from metarun import run`, metarun.run."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert node.level == 0 and node.module is not None, "relative imports hide who imports whom"
    if node.module == "metarun":
        return [f"metarun.{alias.name}" for alias in node.names]
    return [node.module]


def imports(file: Path, at_import_time: bool = False) -> Iterator[str]:
    """Every module that a file imports; or only those that importing the file imports."""

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield from named(node)
        if at_import_time and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            return
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            return
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    return visit(ast.parse(file.read_text(encoding="utf-8")))


def own_parts(file: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(file) if name.startswith("metarun.")} - {"__version__"}


def packages(file: Path, at_import_time: bool = False) -> set[str]:
    return {name.split(".")[0] for name in imports(file, at_import_time)}


def where(broken: Callable[[Path], bool]) -> list[str]:
    """The files that break a rule."""
    return [str(file.relative_to(PACKAGE)) for file in FILES if broken(file)]


def test_all_parts_are_looked_at() -> None:
    assert MAY_IMPORT.keys() | ABOVE <= {part(file) for file in FILES}
    assert own_parts(PACKAGE / "engine" / "step.py") >= {"engine", "types"}
    assert "torch" in packages(PACKAGE / "engine" / "step.py", at_import_time=True)


def test_each_part_imports_only_what_lies_below_it() -> None:
    assert not where(lambda file: not own_parts(file) <= MAY_IMPORT.get(part(file), own_parts(file)))
    assert not where(lambda file: part(file) not in ABOVE and bool(own_parts(file) & ABOVE))


def test_engine_algorithms_models_and_data_do_not_import_one_another() -> None:
    assert not where(lambda file: part(file) in ROOMS and not own_parts(file) & ROOMS <= {part(file)})


def test_hydra_is_known_to_the_command_line_only() -> None:
    hydra, may = {"hydra", "omegaconf", "hydra_plugins"}, {"cli", "app", "commands", "run", "config", "sweep"}
    assert not where(lambda file: part(file) not in may and bool(packages(file) & hydra))


def test_wandb_is_known_to_its_logger_only() -> None:
    """`loggers/wandb.py`, and the process that it may start."""
    users = where(lambda file: "wandb" in packages(file))
    assert users
    assert all(file.startswith("loggers/wandb") for file in users)


def test_heavy_packages_are_imported_where_they_are_used() -> None:
    assert not where(lambda file: bool(packages(file, at_import_time=True) & HEAVY))


def test_the_command_line_starts_without_torch_and_hydra() -> None:

    assert packages(PACKAGE / "cli.py", at_import_time=True) <= set(sys.stdlib_module_names) | {"metarun"}
    script = "from metarun import cli; cli.dispatch(['--help']); cli.dispatch(['list'])"
    loaded = run(script, Path.cwd())
    assert "metarun.cli" in loaded
    assert not loaded & {"torch", "hydra", "omegaconf", "numpy"}


TRAIN = """
from metarun.cli import dispatch
code = dispatch("train dataset=glyphs algo=protonet model=mlp model.widths=[8] logger=none device=cpu device.threads=1 "
                "train.iterations=2 train.meta_batch=2 train.val_episodes=2 eval.episodes=2".split())
assert code == 0, code
"""


def test_training_loads_no_package_it_does_not_use(tmp_path: Path) -> None:
    loaded = run(TRAIN, tmp_path)
    assert {"torch", "hydra", "metarun.engine.loop"} <= loaded
    assert not loaded & HEAVY
    assert list(tmp_path.glob("outputs/train/*/*/eval.json"))


def run(script: str, folder: Path) -> set[str]:
    """The modules loaded when `script` ends, in a process of its own."""
    tell = "import json, sys; print(); print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", f"{script}\n{tell}"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))
