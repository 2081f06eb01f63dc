"""Where recipes are: a path, or one that comes with pixart."""

from pathlib import Path

import pixart_core
from pixart_core.errors import UserError
from pixart_core.recipe.mistakes import did_you_mean

# The paper's last stage.
ALIASES = {"stage3": "stage3_1024"}


def bundled_recipes() -> dict[str, Path]:
    """Name and file of every recipe that comes with pixart."""
    package = Path(pixart_core.__file__).parent
    # A wheel carries them inside the package; a checkout keeps them beside it.
    folder = next((f for f in (package / "bundled_recipes", package.parent / "recipes") if f.is_dir()), None)
    found = {} if folder is None else {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    return found | {alias: found[name] for alias, name in ALIASES.items() if name in found}


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe given by path, or by name (with or without `.yaml`) if bundled.

    Raises:
        UserError: neither; lists the bundled ones.
    """
    path = Path(name)
    if path.is_file():
        return path
    bundled = bundled_recipes()
    by_name = path.parent in (Path(), Path("recipes")) and path.suffix in ("", ".yaml", ".yml")
    stem = path.stem if path.suffix in (".yaml", ".yml") else path.name
    if by_name and stem in bundled:
        return bundled[stem]
    listed = did_you_mean(stem, bundled) or f"; bundled recipes: {', '.join(bundled) or 'none'}"
    raise UserError(f"no recipe {str(name)!r}: neither a file nor a bundled recipe{listed}")
