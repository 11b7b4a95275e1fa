"""Recipes: frozen dataclasses that say how a network is trained, read from JSON, kept with every run."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, get_type_hints

Recipe = TypeVar("Recipe")
RECIPE_FILE: Final = "recipe.json"


class RecipeError(ValueError):
    """A recipe that cannot be followed; the sentence says what to change."""


def recipe_from(kind: type[Recipe], values: Mapping[str, Any]) -> Recipe:
    """The fields given, the others by default; lists become tuples, and mappings recipes where a field is one.

    Raises:
        RecipeError: there is no such field.
    """
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]  # every recipe is a dataclass
    if unknown := sorted(set(values) - known):
        raise RecipeError(f"{kind.__name__} has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")
    hints = get_type_hints(kind)
    return kind(**{name: _as_field(hints[name], value) for name, value in values.items()})


def read_recipe(kind: type[Recipe], text: str) -> Recipe:
    """A recipe from a JSON file, or from the JSON itself.

    Raises:
        RecipeError: that is no JSON object, or names a field that there is not.
    """
    try:
        values = json.loads(text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{text} is neither JSON nor a file of it: {error}") from error
    if not isinstance(values, dict):
        raise RecipeError(f"{text} must hold one JSON object with fields of {kind.__name__}")
    return recipe_from(kind, values)


def keep_recipe(folder: Path, recipe: object) -> None:
    """Write the recipe into the folder of a run, or compare it with the one that the run was begun with.

    Raises:
        RecipeError: the run was begun with another recipe.
    """
    path = folder / RECIPE_FILE
    if changed := differing(path, recipe):
        listed = ", ".join(f"{name} {begun} instead of {ours}" for name, (begun, ours) in changed.items())
        raise RecipeError(f"{folder} was begun with {listed}: go on with {path}, or take another folder")


def differing(path: Path, recipe: object) -> dict[str, tuple[Any, Any]]:
    """The fields in which a recipe differs from the one kept in a file, with both values; without a file it is kept."""
    # Through JSON, since tuples come back from the file as lists.
    ours = json.loads(json.dumps(asdict(recipe)))  # type: ignore[call-overload]  # every recipe is a dataclass
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(ours, indent=2) + "\n", encoding="utf-8")
    kept = json.loads(path.read_text(encoding="utf-8"))
    names = sorted(name for name in ours.keys() | kept.keys() if ours.get(name) != kept.get(name))
    return {name: (kept.get(name), ours.get(name)) for name in names}


def _as_field(hint: Any, value: Any) -> Any:
    if is_dataclass(hint) and isinstance(value, Mapping):
        return recipe_from(hint, value)  # type: ignore[arg-type]  # a class, as the hint of a field is
    return tuple(_as_field(None, item) for item in value) if isinstance(value, list) else value
