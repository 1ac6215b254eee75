"""Where codegen ends and LTO begins: one match on what the modules' results need.

The main loop is done with a build's modules then. What LTO does is the business of `lto`; here its loops get what they
need and the build hears what they report.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import trio
from attrs import field, frozen

from coordinator._events import ModuleQueued, ModuleStarted
from coordinator._ledger import Ledger
from coordinator._loop import MainLoop, Stage
from coordinator._slots import run_with_slots
from lto.fat import FatEnded, FatLto, FatQueued, FatReport, FatStarted, run_fat
from lto.thin import ThinEnded, ThinLto, ThinQueued, ThinReport, ThinStarted, run_thin
from workers.cached import CachedBackend
from workers.fat import FatLink, FatLinked, partition_name
from workers.slots import Slots
from workers.thin import REGULAR_PART, ThinLink, ThinLinked
from workers.work import (
    LINKABLE,
    CodegenOptions,
    Engine,
    Failed,
    Finished,
    LinkFile,
    LinkKind,
    LinkOptions,
    NeedsFatLto,
    NeedsThinLto,
    Step,
    Target,
    count,
)

__all__ = ["Joined", "Joining", "ReadyForLink", "join"]

ReadyForLink = Finished | NeedsThinLto | NeedsFatLto
"""What becomes of a module before the modules meet, if nothing goes wrong."""


@frozen
class Joined:
    """What there is to link: objects and what was given, in link order.

    The others are what a link item has of LTO.
    """

    objects: tuple[LinkFile, ...] = field(default=(), repr=count)
    needs: Mapping[str, tuple[str, ...]] = field(factory=dict, repr=count)
    modules: Mapping[str, Path] = field(factory=dict, repr=count)
    from_lto: frozenset[str] = field(default=frozenset(), repr=count)


@frozen(kw_only=True)
class Joining:
    """A build at the point where its modules meet. `line` is in link order, `lazy` names some of its modules."""

    line: Sequence[ReadyForLink | LinkFile] = field(repr=count)
    lazy: frozenset[str] = field(repr=count)
    lto: ThinLto | FatLto | None
    link: LinkOptions | None
    exports: tuple[str, ...]
    options: CodegenOptions
    target: Target
    directory: Path
    out_dir: Path
    reproducer_dir: Path
    keep_going: bool


async def join(
    joining: Joining, loop: MainLoop, backend: CachedBackend, enter: Callable[[Stage], bool], ledger: Ledger
) -> Joined:
    """Optimise across modules what needs it; gives what there is to link then.

    Nothing is done after a failure: what is optimised as a whole has to be whole. `enter` is told the stage of the
    main loop that gives out the slots, and says whether to go on.
    """
    files = tuple(file for one in joining.line if (file := _file(one, joining)) is not None)
    work: Callable[[Slots], Awaitable[Joined]]
    match next((file for file in files if not isinstance(file, LinkFile)), None):
        case None:
            return Joined(tuple(file for file in files if isinstance(file, LinkFile)))
        case NeedsThinLto():
            work = partial(_thin, joining, files, backend, ledger)
        case NeedsFatLto():
            work = partial(_fat, joining, files, backend, ledger)
    if not ledger.goes_on:
        ledger.skip([file.module for file in files if not isinstance(file, LinkFile)])
        return Joined()
    joined = await run_with_slots(loop, enter, work)
    ledger.cancelled |= joined is None
    return joined or Joined()


_File = LinkFile | NeedsThinLto | NeedsFatLto


async def _thin(
    joining: Joining, files: Sequence[_File], backend: CachedBackend, ledger: Ledger, slots: Slots
) -> Joined:
    link = ThinLink(
        tuple(file for file in files if not isinstance(file, NeedsFatLto) and _has_a_say(file, joining)),
        joining.link,
        joining.exports,
        joining.options,
        joining.target,
        joining.directory,
        joining.out_dir,
        joining.reproducer_dir,
        local=isinstance(joining.lto, ThinLto) and joining.lto.local,
    )
    objects: dict[str, LinkFile] = {}
    unneeded: frozenset[str] = frozenset()
    send, receive = trio.open_memory_channel[ThinReport](0)

    async def run() -> None:
        with send:
            skipped = await run_thin(link, backend, slots, send, predict=ledger.predict, keep_going=joining.keep_going)
        ledger.skip(skipped)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        with receive:
            async for report in receive:
                match report:
                    case ThinQueued(module):
                        ledger.tell(ModuleQueued(module, Step.THIN_BACKEND))
                    case ThinStarted(module, step):
                        ledger.tell(ModuleStarted(module, step))
                    case ThinEnded(ThinLinked() as linked):
                        unneeded = frozenset(linked.unneeded)
                        ledger.add([_as_finished(linked, Step.THIN_LINK)])
                    case ThinEnded(Finished() as done):
                        objects.update((linked.module, linked) for linked in _objects(done))
                        ledger.add([done])
                    case ThinEnded(Failed() as failed):
                        ledger.add([failed])
    placed: list[LinkFile] = []
    for file in files:
        if isinstance(file, LinkFile):
            placed.append(file)
        elif (made := objects.get(file.module)) is not None:
            placed.append(made)
    if REGULAR_PART in objects:
        first = next(index for index, file in enumerate(files) if isinstance(file, NeedsThinLto))
        placed.insert(first, objects[REGULAR_PART])
    taken = (file for file in files if isinstance(file, NeedsThinLto) and file.module not in unneeded)
    modules = {file.module: file.bitcode for file in taken}
    return Joined(tuple(placed), modules=modules, from_lto=frozenset(objects))


async def _fat(
    joining: Joining, files: Sequence[_File], backend: CachedBackend, ledger: Ledger, slots: Slots
) -> Joined:
    link = FatLink(
        tuple(file for file in files if not isinstance(file, NeedsThinLto) and _has_a_say(file, joining)),
        joining.link,
        joining.exports,
        joining.lto.partitions if isinstance(joining.lto, FatLto) else None,
        joining.options,
        joining.target,
        joining.directory,
        joining.out_dir,
        joining.reproducer_dir,
    )
    objects: dict[str, LinkFile] = {}
    order: list[str] = []
    needs: Mapping[str, tuple[str, ...]] = {}
    send, receive = trio.open_memory_channel[FatReport](0)

    async def run() -> None:
        with send:
            skipped = await run_fat(link, backend, slots, send, predict=ledger.predict, keep_going=joining.keep_going)
        ledger.skip(skipped)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        with receive:
            async for report in receive:
                match report:
                    case FatQueued(partition):
                        ledger.tell(ModuleQueued(partition, Step.FAT_CODEGEN))
                    case FatStarted(name, step):
                        ledger.tell(ModuleStarted(name, step))
                    case FatEnded(FatLinked() as linked):
                        order = [partition_name(number) for number in range(linked.partitions)]
                        needs = linked.needs
                        ledger.add([_as_finished(linked, Step.FAT_LINK)])
                    case FatEnded(Finished() as done):
                        objects.update((linked.module, linked) for linked in _objects(done))
                        ledger.add([done])
                    case FatEnded(Failed() as failed):
                        ledger.add([failed])
    first = next((index for index, file in enumerate(files) if isinstance(file, NeedsFatLto)), 0)
    native = [(index, file) for index, file in enumerate(files) if isinstance(file, LinkFile)]
    ordered = (
        *(file for index, file in native if index < first),
        *(objects[name] for name in order if name in objects),
        *(file for index, file in native if index > first),
    )
    return Joined(ordered, needs, from_lto=frozenset(objects))


def _file(one: ReadyForLink | LinkFile, joining: Joining) -> _File | None:
    if not isinstance(one, Finished):
        return one
    return next(iter(_objects(one, lazy=one.module in joining.lazy)), None)


def _has_a_say(file: _File, joining: Joining) -> bool:
    """Whether LTO is to see a file: native ones matter only where it resolves symbols as the last link does."""
    is_final = joining.link is not None and joining.link.kind is not LinkKind.STATIC
    return is_final or bool(joining.exports) or not (isinstance(file, LinkFile) and file.given)


def _objects(done: Finished, *, lazy: bool = False) -> list[LinkFile]:
    return [LinkFile(one.module, one.path, lazy) for one in done.artifacts if one.kind in LINKABLE]


def _as_finished(linked: ThinLinked | FatLinked, step: Step) -> Finished:
    """What the rest of the build needs to know of a step that makes no artifact."""
    passes = linked.passes if isinstance(linked, FatLinked) else ()
    return Finished(
        linked.module,
        (),
        Engine.TOOLCHAIN,
        linked.seconds,
        linked.peak_rss_bytes,
        linked.diagnostics,
        passes,
        step,
        linked.cache,
    )
