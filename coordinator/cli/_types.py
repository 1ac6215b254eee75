"""Types of option values: how they are read, and what the shell completes them to."""

from __future__ import annotations

import enum
import math
from typing import Any, Generic, TypeVar

import click
from click.shell_completion import CompletionItem

from workers.store.defaults import parse_size

__all__ = ["EnumValue", "ListOf", "Seconds", "Size"]


_E = TypeVar("_E", bound=enum.Enum)


class EnumValue(click.ParamType[Any], Generic[_E]):
    """One member of an enumeration, by its value."""

    def __init__(self, members: type[_E], what: str) -> None:
        self.name = what
        self._members: dict[str, _E] = {str(member.value): member for member in members}

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """The values in the help text."""
        return "|".join(self._members)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> _E:
        """Read one value."""
        if isinstance(value, enum.Enum):
            return value  # type: ignore[return-value]  # a default
        if value not in self._members:
            self.fail(f"unknown {self.name} {value!r}: choose from {', '.join(self._members)}", param, ctx)
        return self._members[value]

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The values that begin like `incomplete`."""
        return [CompletionItem(value) for value in self._members if value.startswith(incomplete)]


class ListOf(click.ParamType[Any], Generic[_E]):
    """Members of an enumeration, by their values, with commas between them."""

    def __init__(self, element: EnumValue[_E]) -> None:
        self.name = f"{element.name} list"
        self._element = element

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """The values in the help text."""
        return self._element.get_metavar(param, ctx).replace("|", ",")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> frozenset[_E]:
        """Read a list."""
        if isinstance(value, frozenset):
            return value
        return frozenset(self._element.convert(word.strip(), param, ctx) for word in value.split(","))

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Complete the last word of the list with what is not in it yet."""
        done, comma, last = incomplete.rpartition(",")
        taken = done.split(",")
        items = self._element.shell_complete(ctx, param, last)
        return [CompletionItem(done + comma + item.value) for item in items if item.value not in taken]


class Size(click.ParamType[int]):
    """Bytes: a number, with K, M, G or T for powers of 1024."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read a size."""
        if isinstance(value, int):
            return value
        size = parse_size(value)
        if size is None:
            self.fail(f"{value!r} is no size: write bytes, or a number with K, M, G or T, such as 512M", param, ctx)
        return size


class Seconds(click.ParamType[float]):
    """A positive number of seconds."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read a duration."""
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if not (seconds > 0 and math.isfinite(seconds)):
            self.fail(f"{value!r} is no time: write seconds, such as 60 or 0.5", param, ctx)
        return seconds
