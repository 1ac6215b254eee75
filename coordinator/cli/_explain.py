"""`ltod explain`: what the cache did for each item of a build, and why something was made again.

Scripts depend on the objects of `--json`: keys are added, never taken away or changed in meaning.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from attrs import frozen

from coordinator._records import BuildRecord, ItemRecord, Records
from coordinator.cli._builds import (
    build_object,
    history_options,
    nothing_there,
    opened,
    outcomes,
    put_lines,
    recorded_path,
    when,
)
from coordinator.cli._exit import ExitCode
from coordinator.cli._signals import StopSignals
from coordinator.cli._terminal import printable, put
from workers.changes import changes, option_text
from workers.errors import RequestError
from workers.ingredients import Ingredient, IngredientKind
from workers.work import CacheOutcome, Step

__all__ = ["explain"]

# More items than this with one reason are told together.
_ALIKE = 3
_LISTED = 10
_STEPS = {step.value: place for place, step in enumerate(Step)}


@click.command(short_help="Say why modules were compiled again, or were not.")
@click.argument("build", required=False)
@click.argument("module", required=False)
@click.option("--list", "as_list", is_flag=True, help="List the builds on record, the latest first")
@history_options("The latest build of this program, library or output directory")
@click.pass_obj
def explain(
    signals: StopSignals,
    *,
    build: str | None,
    module: str | None,
    as_list: bool,
    link: Path | None,
    cache_dir: Path | None,
    as_json: bool,
) -> int:
    """Say what the cache did for each item of a build, and why something was compiled again.

    BUILD is a number from --list; the latest build is meant without it. With MODULE everything that changed for that
    one is told, and what it was made of.
    """
    records, directory = opened(cache_dir)
    path = recorded_path(records, link)
    if as_list:
        if build is not None:
            raise RequestError("--list takes no BUILD and no MODULE: leave one of them out")
        builds = records.builds(path)
        signals.defer()
        _put_list(builds, directory, as_json=as_json)
        return ExitCode.OK
    chosen, module = _chosen(records, directory, build, module, path)
    told = _told(records, chosen, module)
    signals.defer()
    if as_json:
        put(json.dumps({"build": _build_object(chosen), "items": [_item_object(one) for one in told]}, allow_nan=False))
    elif module is None:
        put_lines([_headline(chosen), *_overview(chosen)])
    else:
        put_lines([_headline(chosen), *(line for one in told for line in _details(one))])
    return ExitCode.OK


@frozen
class _Told:
    """An item, and for one that was asked for by name also what is known of its making."""

    item: ItemRecord
    changes: tuple[str, ...] | None = None
    """`None` where there is nothing on record to compare with."""
    made_of: tuple[Ingredient, ...] | None = None


def _chosen(
    records: Records, directory: Path, build: str | None, module: str | None, path: Path | None
) -> tuple[BuildRecord, str | None]:
    """The build that is meant, and the module. Raises `RequestError`."""
    number = int(build) if build is not None and build.isascii() and build.isdecimal() and len(build) < 20 else None
    if number is not None and (found := records.build(number)) is not None:
        if path is not None and found.thing.path != path:
            raise RequestError(f"build {number} is of {found.thing}, not of {path}: leave out --link or the number")
        return found, module
    latest = next(iter(records.builds(path, most=1)), None)
    if latest is None:
        raise RequestError(nothing_there(records, directory, path))
    if build is None:
        return latest, module
    if module is None and any(item.module == build for item in _own_items(latest)):
        return latest, build
    if number is None and module is None:
        raise RequestError(_no_module(latest, build))
    numbers = [one.id for one in records.builds(path, most=_LISTED)]
    raise RequestError(
        f"no build {build!r} is on record: the latest are {', '.join(map(str, numbers))} (see 'ltod explain --list')"
    )


def _no_module(build: BuildRecord, name: str) -> str:
    names = sorted({item.module for item in _own_items(build)})
    near = difflib.get_close_matches(name, names, 3) if len(name) < 200 else []
    some = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {some}"
    return f"build {build.id} of {build.thing} has no module {name!r}: {hint}"


def _own_items(build: BuildRecord) -> list[ItemRecord]:
    """The items that the build came to, in the order of telling."""
    return sorted(build.own_items, key=lambda item: (_STEPS.get(item.step, len(_STEPS)), item.step, item.module))


def _told(records: Records, build: BuildRecord, module: str | None) -> list[_Told]:
    """What there is to tell. Raises `RequestError` where there is no such module."""
    items = _own_items(build)
    if module is None:
        return [_Told(item) for item in items]
    items = [item for item in items if item.module == module]
    if not items:
        raise RequestError(_no_module(build, module))
    made_of = records.made_of(key for item in items for key in (item.key, item.compared) if key)
    told = []
    for item in items:
        old, new = made_of.get(item.compared), made_of.get(item.key)
        known = old is not None and new is not None
        told.append(_Told(item, tuple(changes(old or (), new or (), item.module)) if known else None, new))
    return told


def _put_list(builds: Sequence[BuildRecord], directory: Path, *, as_json: bool) -> None:
    if as_json:
        put(json.dumps({"builds": [_build_object(build) for build in builds]}, allow_nan=False))
    elif not builds:
        put(printable(f"no build is on record in {directory}"))
    else:
        width = len(str(builds[0].id))
        put_lines(f"{one.id:>{width}}  {when(one)}  {_state(one)}  {_counts(one)}  {one.thing}" for one in builds)


def _state(build: BuildRecord) -> str:
    return "ok    " if build.ok else "failed"


def _headline(build: BuildRecord) -> str:
    state = "" if build.ok else ", which failed"
    return f"build {build.id} of {build.thing}, {when(build)}, {build.seconds:.1f} s{state}: {_counts(build)}"


def _overview(build: BuildRecord) -> Iterator[str]:
    """What was made with the reasons, and how much was not."""
    items = _own_items(build)
    groups: dict[tuple[CacheOutcome, str, str], list[str]] = {}
    for outcome in (CacheOutcome.MISS, CacheOutcome.OFF):
        for item in items:
            if item.outcome is outcome:
                name = item.module if item.ok else f"{item.module} (failed)"
                groups.setdefault((outcome, item.step, item.reason), []).append(name)
    width = max((len(step) for _, step, _ in groups), default=0)
    for (_, step, reason), modules in groups.items():
        if len(modules) > _ALIKE:
            some = f"{', '.join(modules[:_ALIKE])} and {len(modules) - _ALIKE} more"
            yield f"{step:<{width}}  {some}: {reason}"
        else:
            yield from (f"{step:<{width}}  {module}: {reason}" for module in modules)


def _details(told: _Told) -> Iterator[str]:
    item = told.item
    failed = "" if item.ok else ", failed"
    yield f"{item.module}, {item.step}: {item.outcome.value}{failed}, {item.seconds:.2f} s: {item.reason}"
    if told.changes is not None and item.outcome is not CacheOutcome.OFF:
        yield f"    since build {item.compared_build}:"
        yield from (f"        {change}" for change in told.changes)
    if told.made_of:
        yield "    made of:"
        yield from (f"        {line}" for line in _recipe(told.made_of))


def _recipe(ingredients: Sequence[Ingredient]) -> Iterator[str]:
    """What something was made of, a line for each, the options on one."""
    for one in ingredients:
        if one.kind is IngredientKind.COMPILER:
            yield f"{one.name} {one.value}".rstrip()
    if options := [option_text(one) for one in ingredients if one.kind is IngredientKind.OPTION]:
        yield " ".join(options)
    for one in ingredients:
        match one.kind:
            case IngredientKind.FILE | IngredientKind.MODULE:
                yield f"{one.kind.value} {one.name} {one.value[:16]}".rstrip()
            case IngredientKind.IMPORT:
                yield f"imports {', '.join(one.symbols)} from {one.name} {one.value[:16]}".rstrip()
            case IngredientKind.EXPORT if one.symbols:
                yield f"exports {', '.join(one.symbols)}"
            case IngredientKind.SYMBOL if one.value:
                yield f"{one.name} is {one.value}"
            case _:
                pass


def _counts(build: BuildRecord) -> str:
    counts = outcomes(build)
    hits, misses = counts[CacheOutcome.HIT], counts[CacheOutcome.MISS]
    text = f"{hits} hit{'' if hits == 1 else 's'}, {misses} miss{'' if misses == 1 else 'es'}"
    if shared := counts[CacheOutcome.SHARED]:
        text += f", {shared} shared"
    return f"{text}, {counts[CacheOutcome.OFF]} without the cache" if counts[CacheOutcome.OFF] else text


def _build_object(build: BuildRecord) -> dict[str, object]:
    counts = outcomes(build)
    return build_object(build, counts={outcome.value: counts[outcome] for outcome in CacheOutcome})


def _item_object(told: _Told) -> dict[str, Any]:
    item = told.item
    answer: dict[str, Any] = {
        "module": item.module,
        "stage": item.step,
        "cache": item.outcome.value,
        "reason": item.reason,
        "seconds": item.seconds,
        "ok": item.ok,
        "key": item.key or None,
        "compared_with": item.compared_build or None,
    }
    if told.made_of is not None:
        answer["made_of"] = [
            {"kind": one.kind.value, "name": one.name, "value": one.value, "symbols": list(one.symbols)}
            for one in told.made_of
        ]
    if told.changes is not None:
        answer["changes"] = list(told.changes)
    return answer
