"""Links that were done before, two jobs: ltod with its cache against ld.lld with its own (--thinlto-cache-dir).

    python -m tests.bench.incremental [--rounds N] [--modules 400] [--only SET]

Inputs have been through the pre-link pipeline, as clang leaves them. Scenarios: nothing is there yet (cold); nothing
has changed; one function body has changed in a module that nobody imports from (leaf), and in one that most others
import from (popular; see `tests.bench.edits`; to another one in each round, so that no cache has seen it); the same
inputs have been copied to another directory, and are linked there (elsewhere). All but the first begin with a build of
the unedited inputs that is not measured.

Every contestant has a cache of its own, and they take turns within a scenario and round. `ltod, embedded` is a
coordinator that is open and has built before; the others are whole processes, start-up included, and `ltod` prints its
result (--json), too. lld keeps nothing of fat LTO: what it takes cold, it takes always.

Prints, for each set, medians, what they are to the best lld's in the same scenario and to the contestant's own cold
build (medians of what they are round by round), how many modules (with fat LTO: parts of the program) were compiled,
and whether the goals are met. Nobody may change ltod meanwhile: with another ltod, all is made again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import trio
from attrs import field, frozen

from coordinator import Cache, FatLto, ThinLto
from tests.bench.contestants import (
    EMBEDDED,
    LtoSet,
    build_set,
    lld_builds,
    lld_line,
    ltod_command,
    ltod_environ,
    opened_before,
)
from tests.bench.edits import LEAF, POPULAR, REAL, Subject, real_subject, small_subject
from tests.lld import DEBIAN_LLD, LldCommand

_COLD = "cold"
_NO_CHANGE = "no change"
_ELSEWHERE = "elsewhere"
_SCENARIOS = (_COLD, _NO_CHANGE, LEAF, POPULAR, _ELSEWHERE)
_COMPILING = ("thin-backend", "fat-codegen")
_THERE = ("hit", "shared")
_LTOD = "ltod"

# What the issue asks for: of lld's time with its cache, and of the own time without anything in it.
_TO_WARM_LLD = 1.5
_TO_COLD = {"thin": 0.1, "fat": 0.05}


@frozen
class _Done:
    """One build. `compiled` of `parts` modules, or parts of a program, were compiled; 0 of 0: there is no telling."""

    seconds: float
    compiled: int
    parts: int


_Build = Callable[[Sequence[Path], Path], Coroutine[None, None, _Done]]


@frozen
class _Contestant:
    """`open` gives what builds inputs into a directory, and keeps what comes of it in another one."""

    name: str
    open: Callable[[Path], AbstractAsyncContextManager[_Build]] = field(repr=False)
    scenarios: tuple[str, ...] = _SCENARIOS
    peer: bool = False


def _contestants(one: LtoSet, root: Path) -> list[_Contestant]:
    line = lld_line(one, root)
    found = [
        _Contestant(_LTOD, partial(_ltod, one, cached=True)),
        _Contestant("ltod --no-cache", partial(_ltod, one, cached=False), (_COLD,)),
        _Contestant(EMBEDDED, partial(_embedded, one)),
    ]
    cached = isinstance(one.lto, ThinLto)
    for mode, options in one.modes.items():
        for build, binary in lld_builds().items():
            start = partial(_lld, line, binary, ("--lto-O2", *options), cached=cached)
            found.append(_Contestant(f"{mode} ({build})", start, _SCENARIOS if cached else (_COLD,), peer=True))
    return found


@asynccontextmanager
async def _lld(
    line: LldCommand, binary: Sequence[str], options: Sequence[str], cache: Path, *, cached: bool
) -> AsyncIterator[_Build]:
    more = (f"--thinlto-cache-dir={cache}",) if cached else ()

    async def build(inputs: Sequence[Path], out: Path) -> _Done:
        out.mkdir(parents=True, exist_ok=True)
        command = line.argv(binary, inputs, out / "program", (*options, *more))
        before = set(cache.glob("llvmcache-*"))
        seconds, _ = _timed(command)
        made = len(set(cache.glob("llvmcache-*")) - before)
        return _Done(seconds, made, len(inputs)) if cached else _Done(seconds, 0, 0)

    yield build


@asynccontextmanager
async def _ltod(one: LtoSet, cache: Path, *, cached: bool) -> AsyncIterator[_Build]:
    how = (f"--cache-dir={cache}",) if cached else ("--no-cache",)

    async def build(inputs: Sequence[Path], out: Path) -> _Done:
        seconds, printed = _timed(ltod_command(one, inputs, out, "-q", "--json", *how))
        items = json.loads(printed)["items"]
        return _counted(seconds, [item["cache"] for item in items if item["stage"] in _COMPILING])

    yield build


@asynccontextmanager
async def _embedded(one: LtoSet, cache: Path) -> AsyncIterator[_Build]:
    async with opened_before(one, Cache(directory=cache)) as coordinator:

        async def build(inputs: Sequence[Path], out: Path) -> _Done:
            started = time.perf_counter()
            result = await build_set(coordinator, one, inputs, out)
            seconds = time.perf_counter() - started
            return _counted(
                seconds, [item.cache.outcome.value for item in result.results if item.step.value in _COMPILING]
            )

        yield build


def _timed(command: Sequence[str | Path]) -> tuple[float, bytes]:
    """Seconds that a command takes, and what it prints."""
    started = time.perf_counter()
    done = subprocess.run(command, check=True, env=ltod_environ(), stdout=subprocess.PIPE)
    return time.perf_counter() - started, done.stdout


def _counted(seconds: float, outcomes: Sequence[str]) -> _Done:
    assert outcomes, "nothing took part in LTO"
    return _Done(seconds, sum(outcome not in _THERE for outcome in outcomes), len(outcomes))


@frozen
class _Race:
    """A set, and what its contestants take: a build each round, by scenario and contestant."""

    subject: Subject
    contestants: Sequence[_Contestant]
    root: Path = field(repr=False)
    done: dict[tuple[str, str], list[_Done]] = field(factory=dict, repr=False)

    def run(self, rounds: int) -> None:
        """Run all rounds, and one before that warms up, and is looked at more closely."""
        for number in range(rounds + 1):
            for scenario in _SCENARIOS:
                turn = number % len(self.contestants)
                for each in (*self.contestants[turn:], *self.contestants[:turn]):
                    if scenario in each.scenarios:
                        done = trio.run(self._one, each, scenario, number)
                        if number:
                            self.done.setdefault((scenario, each.name), []).append(done)

    async def _one(self, contestant: _Contestant, scenario: str, number: int) -> _Done:
        place = self.root / contestant.name.replace(" ", "-")
        out, cache = place / "out", place / "cache"
        if scenario == _COLD:
            out, cache = place / "cold-out", place / "cold-cache"
            shutil.rmtree(out, ignore_errors=True)
            shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir(parents=True, exist_ok=True)
        async with contestant.open(cache) as build:
            before = b""
            if scenario != _COLD:
                await build(self.subject.one.inputs, out)
                before = (out / "program").read_bytes()
            with self._changed(scenario, number, place) as inputs:
                out = place / "elsewhere" / "out" if scenario == _ELSEWHERE else out
                os.sync()  # what others left to be written is not this one's to wait for
                done = await build(inputs, out)
        if not number:
            after = (out / "program").read_bytes()
            assert scenario == _COLD or (before != after) == (scenario in self.subject.edits), "not what was asked for"
            self.subject.one.check(out / "program")
        return done

    @contextmanager
    def _changed(self, scenario: str, number: int, place: Path) -> Iterator[Sequence[Path]]:
        """The inputs that a scenario builds from."""
        inputs = self.subject.one.inputs
        if scenario in self.subject.edits:
            with self.subject.edits[scenario].made(number + 1):
                yield inputs
        elif scenario == _ELSEWHERE:
            shutil.rmtree(place / "elsewhere", ignore_errors=True)
            (place / "elsewhere").mkdir()
            yield [Path(shutil.copyfile(path, place / "elsewhere" / path.name)) for path in inputs]
        else:
            yield inputs

    def of(self, scenario: str, name: str) -> list[_Done]:
        """What a contestant did in a scenario; one that has no cache does as if all were cold."""
        return self.done.get((scenario, name)) or self.done[_COLD, name]

    def seconds(self, scenario: str, name: str) -> list[float]:
        """The same, seconds."""
        return [one.seconds for one in self.of(scenario, name)]

    def best_lld(self, scenario: str) -> str:
        """The lld with the lowest median."""
        peers = [each.name for each in self.contestants if each.peer]
        return min(peers, key=lambda name: statistics.median(self.seconds(scenario, name)))


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(one / other for one, other in zip(ours, theirs, strict=True))


def _print_table(race: _Race) -> None:
    one = race.subject.one
    size = sum(path.stat().st_size for path in one.inputs)
    rounds = len(race.of(_COLD, _LTOD))
    print(f"\n{one.title}, {one.name}: {len(one.inputs)} modules, {size} bytes, {rounds} rounds")
    print(f"{'':<14} {'':<30} {'median s':>9} {'min..max':>14} {'to lld':>8} {'to cold':>8} {'compiled':>12}")
    for scenario in _SCENARIOS:
        best = race.seconds(scenario, race.best_lld(scenario))
        for each in race.contestants:
            if scenario not in each.scenarios:
                continue
            seconds = race.seconds(scenario, each.name)
            spread = f"{min(seconds):.2f}..{max(seconds):.2f}"
            cold = _ratio(seconds, race.seconds(_COLD, each.name))
            counts = sorted(done.compiled for done in race.of(scenario, each.name))
            parts = race.of(scenario, each.name)[-1].parts
            compiled = f"{'..'.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} of {parts}" if parts else "-"
            print(
                f"{scenario:<14} {each.name:<30} {statistics.median(seconds):>9.3f} {spread:>14} "
                f"{_ratio(seconds, best):>8.2f} {cold:>8.3f} {compiled:>12}"
            )


def _print_goals(race: _Race) -> None:
    one = race.subject.one
    thin = isinstance(one.lto, ThinLto)
    for name in (_LTOD, EMBEDDED):
        if thin:
            print(_more_than_lld(race, name))
            peer = race.best_lld(_NO_CHANGE)
            warm = _ratio(race.seconds(_NO_CHANGE, name), race.seconds(_NO_CHANGE, peer))
            print(_goal(f"{name}: no change, to {peer} with its cache", warm, _TO_WARM_LLD))
        cold = _ratio(race.seconds(_NO_CHANGE, name), race.seconds(_COLD, name))
        print(_goal(f"{name}: no change, to cold", cold, _TO_COLD[one.name]))
        peer = race.best_lld(_COLD)
        cold = _ratio(race.seconds(_NO_CHANGE, name), race.seconds(_COLD, peer))
        print(_goal(f"{name}: no change, to {peer} cold", cold, _TO_COLD[one.name]))


def _more_than_lld(race: _Race, name: str) -> str:
    """Whether there was a round in which more was compiled than by an lld."""
    told, most = [], 0
    peers = [each.name for each in race.contestants if each.peer]
    for scenario in _SCENARIOS[1:]:
        ours = [done.compiled for done in race.of(scenario, name)]
        counts = ([done.compiled for done in race.of(scenario, peer)] for peer in peers)
        theirs = [min(of_round) for of_round in zip(*counts, strict=True)]
        most = max(most, *(one - other for one, other in zip(ours, theirs, strict=True)))
        told.append(f"{scenario} {max(ours)} to {max(theirs)}")
    return f"{'met' if most <= 0 else 'NOT MET':<8} {name}: modules compiled, to lld's: {', '.join(told)}"


def _goal(what: str, ratio: float, limit: float) -> str:
    return f"{'met' if ratio <= limit else 'NOT MET':<8} {what}: {ratio:.3f} (at most {limit})"


def main() -> None:
    """Measure every set, and print the tables."""
    sets: dict[str, Callable[[Path], Subject]] = {"small-thin": lambda root: small_subject(arguments.modules, root)}
    for name in REAL:
        sets[f"{name}-thin"] = partial(real_subject, name, ThinLto())
        sets[f"{name}-fat"] = partial(real_subject, name, FatLto())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--modules", type=int, default=400)
    parser.add_argument("--only", choices=sorted(sets), action="append", help="measure this set (repeatable)")
    arguments = parser.parse_args()
    if DEBIAN_LLD is None:
        print("ld.lld-22 is not installed: the wheel's lld is the only peer")
    for name in arguments.only or sorted(sets):
        with tempfile.TemporaryDirectory(prefix="ltod-bench-") as directory:
            (root := Path(directory) / "set").mkdir()
            subject = sets[name](root)
            race = _Race(subject, _contestants(subject.one, Path(directory)), Path(directory))
            race.run(arguments.rounds)
            _print_table(race)
            _print_goals(race)


if __name__ == "__main__":
    main()
