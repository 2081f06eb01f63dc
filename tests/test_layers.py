"""The shape of the source tree: imports go downwards, names say what a module holds."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
MODULES = sorted([*REPOSITORY.glob("pixart_core/**/*.py"), *REPOSITORY.glob("pixart_cli/**/*.py")])

# Each area and the areas that it may import (besides itself).
BOTTOM = {"slurm", "errors", "progress", "seeding", "launch", "sizes", "charts", "root"}
LOW = BOTTOM | {"recipe", "artifacts"}
MIDDLE = LOW | {"models", "diffusion"}
WORK = MIDDLE | {"encoders", "data", "training", "conversion", "sampling", "evaluation"}
ALLOWED = {
    "root": set(),
    "errors": set(),
    "progress": set(),
    "seeding": set(),
    "launch": set(),
    "sizes": set(),
    "slurm": set(),
    "charts": set(),
    "recipe": LOW,
    "artifacts": LOW,
    "models": BOTTOM | {"artifacts", "diffusion"},
    "diffusion": BOTTOM | {"artifacts", "models"},
    "encoders": MIDDLE | {"data"},
    "data": MIDDLE | {"encoders"},
    "training": WORK,
    "conversion": WORK,
    "sampling": WORK,
    "evaluation": WORK,
    "cli": WORK | {"cli"},
}
HEAVY = {"torch", "numpy", "transformers", "diffusers", "datasets", "matplotlib", "scipy", "accelerate"}


def area(module: str) -> str | None:
    """`pixart_core.data.images` -> data; None for what is not ours."""
    parts = module.split(".")
    if parts[0] == "pixart_cli":
        return "cli"
    if parts[0] != "pixart_core":
        return None
    return parts[1] if len(parts) > 1 else "root"


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield node.module
            # `from pixart_core import data` imports an area too.
            if node.module == "pixart_core":
                yield from (f"pixart_core.{alias.name}" for alias in node.names if alias.name in ALLOWED)


def name(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_go_downwards(path: Path) -> None:
    here = area(name(path))
    assert here in ALLOWED, f"unknown area {here}: say in ALLOWED what it may import"
    wrong = sorted(m for m in imports(path) if area(m) not in (None, here) and area(m) not in ALLOWED[here])
    assert wrong == []


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert path.stem not in {"utils", "util", "misc", "common", "helpers"}
    source = path.read_text()
    assert not source or ast.get_docstring(ast.parse(source)), "a module needs a docstring"
    assert len(source.splitlines()) <= 400, "split this module"


def test_what_help_needs_imports_nothing_heavy() -> None:
    light = [
        path for path in MODULES if area(name(path)) in {"cli", "recipe", "errors", "progress", "seeding"}
    ]
    for path in light:
        top = {module.split(".")[0] for module in imports(path)}
        assert not top & HEAVY, path
