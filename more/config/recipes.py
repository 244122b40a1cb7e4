"""Where recipes are: `./configs` and those that come with the package; found by path or by name.

In the project folder both are `configs/`. A wheel carries that folder as `more/recipes`, so that
`more train voc12_vit_b` works anywhere; a folder `configs` of the user's own comes first.
"""

from __future__ import annotations

from pathlib import Path

from more.errors import UserError, nearest

_PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED = (_PACKAGE / "recipes").is_dir()
"""Whether this is a package as a wheel installs it, and not the project folder."""
PACKAGED = _PACKAGE / "recipes" if INSTALLED else _PACKAGE.parent / "configs"
LAUNCH = (_PACKAGE if INSTALLED else _PACKAGE.parent) / "launch"
"""The scripts of `launch/` that work with this package."""
OWN = Path("configs")


def recipes() -> dict[str, Path]:
    """Files of all recipes by name: those of `./configs` before the package's of the same name."""
    found: dict[str, Path] = {}
    for folder in (OWN, PACKAGED):
        for file in sorted(folder.glob("*.py")):
            found.setdefault(file.stem, file)
    return dict(sorted(found.items()))


def find_recipe(path: str | Path) -> Path:
    """The file that is meant by a path or a recipe's name.

    Args:
        path: a file; else `NAME`, `NAME.py` or `configs/NAME.py` of a recipe.

    Raises:
        UserError: neither a file nor a known recipe; names the nearest, or all.
    """
    file = Path(path)
    if file.is_file():
        return file
    known, name = recipes(), file.name.removesuffix(".py")
    if file.parent in (Path("."), OWN) and name in known:
        return known[name]
    near = nearest(name, known)
    raise UserError(f"{path}: no such configuration file, nor a recipe of that name",
                    f"{f'did you mean {near}? ' if near else ''}known: {', '.join(known)}; "
                    "`more config --list` describes them. Or give a .py file")


def summary(file: Path) -> str:
    """What a recipe says about itself: the sentence at the start of its first comment."""
    lines = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    text = " ".join(lines)
    sentence, dot, _ = text.partition(". ")
    return sentence + "." if dot else text
