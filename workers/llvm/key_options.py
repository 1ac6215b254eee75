"""What of a build's options belongs in keys, and how it is told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from workers.ingredients import Ingredient, IngredientKind
from workers.work import CodegenOptions

__all__ = ["given_options", "option_ingredients"]

_NOT_OF_RESULTS = frozenset({"emit", "engine", "memory_limit", "print_passes", "profile_use", "time_limit"})
"""Options that a result does not depend on, or that have a place of their own in keys."""


def given_options(options: CodegenOptions) -> dict[str, Any]:
    """The options that results follow from, as far as they were given."""
    said: dict[str, Any] = {}
    for attribute in options.__attrs_attrs__:
        value = getattr(options, attribute.name)
        if attribute.name in _NOT_OF_RESULTS or value == attribute.default:
            continue
        said[attribute.name] = _plain(value)
    return {"opt_level": options.opt_level.value, **said}


def _plain(value: Any) -> Any:
    if isinstance(value, frozenset):
        return sorted(_plain(one) for one in value)
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return getattr(value, "value", value)


def option_ingredients(said: Mapping[str, Any], kinds: Sequence[str]) -> Iterable[Ingredient]:
    """`given_options`, and the `kinds` of outputs, as a user would give them."""
    for name, value in said.items():
        option = "-O" if name == "opt_level" else f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            yield Ingredient(IngredientKind.OPTION, option if value else f"--no-{option[2:]}")
        else:
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            yield Ingredient(IngredientKind.OPTION, option, text)
    yield Ingredient(IngredientKind.OPTION, "--emit", ",".join(kinds))
