"""Read `configs/*.py` (mmengine syntax, `_base_` inheritance), apply overrides, check, print."""

from __future__ import annotations

import ast
import dataclasses
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from more.config.check import check
from more.config.fields import Limits, limits_of
from more.config.recipes import find_recipe
from more.config.scale import check_unambiguous, scaled
from more.config.schema import PAPER, Config
from more.errors import UserError, nearest

_PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "text",
          tuple: "numbers in parentheses, such as (1.0, 0.5)", dict: "a dict(...)"}


def load_config(path: str | Path | None, overrides: typing.Sequence[str] = (),
                stage: int = 1) -> Config:
    """The checked configuration of a file with `key=value` overrides on top.

    Args:
        path: a Python file in mmengine's config syntax, or the name of a recipe (see
            `more.config.recipes`); None: the defaults alone.
        overrides: `"train.lr=1e-4"` strings; values are Python literals, else plain text.
        stage: 2 puts the file's `stage_two` over its other settings, below the overrides.

    Returns:
        The settings of that stage, scaled where `train.scale_to` asks for it.

    Raises:
        UserError: no such file or recipe, unknown key (names the nearest), wrong type or value.
    """
    file, tree = Path("the defaults"), {}
    if path is not None:
        file = find_recipe(path)
        tree = _read(file)
        tree.setdefault("name", file.stem)
    settings = [_parse_override(text) for text in overrides]
    for key, setter in (("stage", "`more train --masks MASKS`"),
                        ("segment.supervision", "`more train --masks MASKS`"),
                        ("train.scaled_from", "train.scale_to")):
        if key in dict(settings) or _get(tree, key) is not None:
            raise UserError(f"{file}: {key} is not for files or --set", f"{setter} sets it")
    check_unambiguous(settings)
    for key, value in settings:
        if key.startswith("stage_two."):
            _put(tree, key, value)
    later = _merged(tree, tree.get("stage_two") or {}, f"{file}: stage_two")
    for one in (tree, later):
        for key, value in settings:
            if not key.startswith("stage_two."):
                _put(one, key, value)
    # Both, whichever is wanted: a mistake in stage two must not wait until stage one is over.
    first = config_from_dict(tree, source=str(file))
    second = config_from_dict({**later, "stage": 2}, source=f"{file} in stage two")
    return scaled(second if stage == 2 else first)


def config_from_dict(tree: Mapping[str, Any], source: str = "config") -> Config:
    """The configuration of a nested dict (as `to_dict` gives); the same checks as a file."""
    tree = {key: _plain(value) for key, value in tree.items()}
    if tree.get("variant") == "paper":
        for key, value in PAPER.items():
            if _get(tree, key) is None:
                _put(tree, key, value)
    config = _build(Config, tree, "", source)
    check({key: value for key, value, _ in flatten(config)}, source)
    return config


def changed(config: Config, overrides: typing.Sequence[str], *free: str) -> Config:
    """A run's settings with some others, for what is computed after training.

    Args:
        config: the run's settings.
        overrides: `"section.key=value"` strings.
        *free: sections, and keys outside of any, that may change.

    Returns:
        The checked settings; the same object where there are no overrides.

    Raises:
        UserError: another key, or what `load_config` refuses.
    """
    tree = to_dict(config)
    for text in overrides:
        key, value = _parse_override(text)
        if key not in free and key.split(".")[0] not in free:
            names = (f"{name}.*" if isinstance(tree[name], dict) else name for name in free)
            raise UserError(f"--set {text}: only {' and '.join(names)} can change here",
                            "the others are as the run was trained")
        _put(tree, key, value)
    return config_from_dict(tree, source="--set") if overrides else config


def says(overrides: typing.Sequence[str], key: str) -> bool:
    """Whether overrides name a setting, for both stages or for stage two."""
    named = (_parse_override(text)[0].removeprefix("stage_two.") for text in overrides)
    return key in named


def to_dict(config: Config) -> dict[str, Any]:
    """Nested plain dict of a configuration (tuples become lists)."""
    return _plain(dataclasses.asdict(config))


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, str]]:
    """(dotted key, value, meaning) of every setting."""
    for item in dataclasses.fields(config):
        value, key = getattr(config, item.name), f"{prefix}{item.name}"
        if dataclasses.is_dataclass(value):
            yield from flatten(value, f"{key}.")
        else:
            yield key, value, item.metadata["meaning"]


def _read(file: Path) -> dict[str, Any]:
    from mmengine.config import Config as Reader

    try:
        return _plain(Reader.fromfile(str(file)).to_dict())
    except SyntaxError as error:
        raise UserError(f"{file}, line {error.lineno}: {error.msg}",
                        "correct this line; `more config --list` names working examples") from error
    except Exception as error:  # a configuration is a program: anything may go wrong in it
        raise UserError(f"{file}: cannot be read: {error}",
                        "`more config --list` names working examples") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _merged(tree: Mapping[str, Any], over: Any, where: str) -> dict[str, Any]:
    """A copy of nested settings with others put over them, section by section."""
    if not isinstance(over, Mapping):
        raise UserError(f"{where} must be a section, not {over!r}", "write it as dict(...)")
    result = {key: _merged(value, {}, where) if isinstance(value, Mapping) else value
              for key, value in tree.items()}
    for key, value in over.items():
        if isinstance(value, Mapping):
            below = result.get(key) or {}
            if not isinstance(below, Mapping):
                raise UserError(f"{where}.{key} is a section, but {key} = {below!r} is none",
                                f"write {key}=dict(...)")
            result[key] = _merged(below, value, f"{where}.{key}")
        else:
            result[key] = value
    return result


def _parse_override(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {text}: not of the form key=value",
                        "write --set section.key=value")
    try:
        return key.strip(), ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key.strip(), {"true": True, "false": False}.get(value.lower(), value)


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *sections, leaf = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise UserError(f"{key}: {section} is a value, not a section", "see `more config`")
    tree[leaf] = value


def _get(tree: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        if not isinstance(tree, Mapping) or part not in tree:
            return None
        tree = tree[part]
    return tree


def _build(kind: type, tree: Any, prefix: str, source: str) -> Any:
    if not isinstance(tree, Mapping):
        raise UserError(f"{source}: {prefix[:-1]} must be a section, not {tree!r}",
                        f"write {prefix[:-1]}=dict(...)")
    hints = typing.get_type_hints(kind)
    for key in tree:
        if key not in hints:
            near = _nearest_setting(prefix, key, hints)
            raise UserError(f"{source}: unknown setting {prefix}{key}",
                            f"did you mean {near}?" if near else f"known: {', '.join(hints)}")
    limits = {item.name: limits_of(item) for item in dataclasses.fields(kind)}
    values = {key: _build(hint, tree[key], f"{prefix}{key}.", source)
              if dataclasses.is_dataclass(hint)
              else _cast(tree[key], hint, f"{prefix}{key}", source, limits[key])
              for key, hint in hints.items() if key in tree}
    return kind(**values)


def _nearest_setting(prefix: str, key: str, hints: typing.Iterable[str]) -> str:
    """Full names of the settings that an unknown key may have meant."""
    full = [name for name, _, _ in flatten(Config())]
    same_leaf = [name for name in full if name.rsplit(".", 1)[-1] == key]
    return (" or ".join(same_leaf)
            or nearest(f"{prefix}{key}", [f"{prefix}{hint}" for hint in hints])
            or nearest(f"{prefix}{key}", full))


def _cast(value: Any, hint: type, key: str, source: str, limits: Limits) -> Any:
    """A value as the type of its setting, or a refusal; key and source are for its message."""
    where = f"{source}: {key}"
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is tuple and isinstance(value, (list, tuple)):
        if not all(type(item) in (int, float) for item in value):
            raise UserError(f"{where} = {tuple(value)!r} holds something that is no number",
                            f"give {_PLAIN[tuple]}")
        return tuple(value)
    if hint is str and (value is None or limits.empty_is_off and value in ("none", "None")):
        if limits.takes_none:
            return "none"
        raise UserError(f"{where} = {value!r} is not text that it takes",
                        f"write {key}='' where it shall be off, else give a text"
                        if limits.empty_is_off else "give a text, or leave it out")
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{where} = {value!r} is not {_PLAIN[hint]}", f"give {_PLAIN[hint]}")
    return value
