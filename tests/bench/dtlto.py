"""ThinLTO links with and without `ltod-dtlto`: zstd, and a Rust program of regex and serde_json.

    python -m tests.bench.dtlto [--rounds N] [--only zstd|rust|ten]

Contestants link the same inputs by the same clang and lld: lld by itself; lld with its own cache
(--thinlto-cache-dir); a plain distributor, which runs two of the jobs at a time as they are given; and ltod-dtlto.
Scenarios: nothing is there yet (cold); nothing has changed; one function body has changed, in another way each time;
the same inputs in another directory; and a second program that shares most modules. All but the first find what a cold
link of the first program has left, from a copy, so that no round sees another. Contestants take turns.

`ten` links ten programs that share zstd's library, all at once, from nothing.

Prints medians, what they are to lld's cold link in the same round, and whether the goals are met.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from attrs import define, field, frozen

from tests.dtlto_site import CLANG, DtltoSite, dtlto_program
from tests.projects import cache_dir, fetch
from tests.recipes import PROJECTS
from tests.rust_program import cargo_build, rust_problem, write_program

_COLD, _SAME, _EDITED, _ELSEWHERE, _SECOND = "cold", "no change", "one body edited", "elsewhere", "second program"
_LLD, _LLD_CACHE, _PLAIN, _LTOD = "lld", "lld, its cache", "plain distributor", "ltod-dtlto"

_TO_COLD = 1.02
_ELSEWHERE_TO_COLD = 0.15
_TEN_TO_LLD = 0.35
_ALL_HIT_SECONDS = 0.150

Command = list[str | Path]


@frozen
class _Subject:
    """What is linked: `inputs` gives the words of a scenario's link, in a round, and the directory to link in."""

    title: str
    inputs: Callable[[str, int], tuple[Command, Path]]


@frozen
class _Contestant:
    """How to link; `cache` is what it keeps, if anything."""

    name: str
    flags: tuple[str, ...]
    cache: Path | None

    def link(self, words: Sequence[str | Path], directory: Path, output: Path) -> float:
        """Seconds of one link."""
        argv = [CLANG, "-O2", "-flto=thin", "-fuse-ld=lld", *self.flags, *words, "-o", output]
        environ = {**os.environ, **({} if self.cache is None else {"LTOD_CACHE_DIR": str(self.cache)})}
        started = time.perf_counter()
        subprocess.run(argv, cwd=directory, env=environ, check=True)
        return time.perf_counter() - started


def _contestants(root: Path) -> list[_Contestant]:
    site = DtltoSite.at(root)
    jobs = "-Wl,--thinlto-jobs=2"
    return [
        _Contestant(_LLD, (jobs,), None),
        _Contestant(_LLD_CACHE, (jobs, f"-Wl,--thinlto-cache-dir={root}/lld-cache"), root / "lld-cache"),
        _Contestant(_PLAIN, (f"-fthinlto-distributor={site.own / 'plain'}",), None),
        _Contestant(_LTOD, (f"-fthinlto-distributor={dtlto_program()}",), root / "ltod-cache"),
    ]


@define
class _Race:
    subject: _Subject
    contestants: Sequence[_Contestant]
    root: Path
    done: dict[tuple[str, str], list[float]] = field(factory=dict)

    def run(self, rounds: int) -> None:
        for each in self.contestants:  # once for the disk's cache, and for what all rounds but the cold ones find
            self._link(each, _COLD, 0, keep=True)
        for number in range(rounds):
            for scenario in (_COLD, _SAME, _EDITED, _ELSEWHERE, _SECOND):
                for each in self.contestants:
                    if scenario == _COLD or each.cache is not None:
                        self.done.setdefault((scenario, each.name), []).append(self._link(each, scenario, number))

    def _link(self, each: _Contestant, scenario: str, number: int, *, keep: bool = False) -> float:
        words, directory = self.subject.inputs(scenario, number)
        if each.cache is not None:
            kept = each.cache.with_name(f"{each.cache.name}-kept")
            shutil.rmtree(each.cache, ignore_errors=True)
            if scenario != _COLD:
                shutil.copytree(kept, each.cache)
        (directory / "program").unlink(missing_ok=True)
        seconds = each.link(words, directory, directory / "program")
        if keep and each.cache is not None:
            shutil.copytree(each.cache, kept)
        return seconds

    def report(self) -> None:
        cold = self.done[_COLD, _LLD]
        print(f"\n{self.subject.title}, {len(cold)} rounds\n{'':<17} {'':<19} {'median s':>9} {'to lld cold':>12}")
        for (scenario, name), seconds in sorted(self.done.items(), key=lambda item: _ORDER.index(item[0][0])):
            ratio = statistics.median(one / other for one, other in zip(seconds, cold, strict=True))
            print(f"{scenario:<17} {name:<19} {statistics.median(seconds):>9.3f} {ratio:>12.3f}")
        ours = self.done[_COLD, _LTOD]
        self._goal("cold, to lld", [a / b for a, b in zip(ours, cold, strict=True)], _TO_COLD)
        plain = self.done[_COLD, _PLAIN]
        self._goal("cold, to the plain distributor", [a / b for a, b in zip(ours, plain, strict=True)], 1.0)
        elsewhere = [a / b for a, b in zip(self.done[_ELSEWHERE, _LTOD], ours, strict=True)]
        self._goal("elsewhere, to its own cold link", elsewhere, _ELSEWHERE_TO_COLD)
        more = [a - b for a, b in zip(self.done[_SAME, _LTOD], self.done[_SAME, _LLD_CACHE], strict=True)]
        self._goal("no change, seconds more than lld with its cache", more, _ALL_HIT_SECONDS)

    @staticmethod
    def _goal(what: str, values: Sequence[float], limit: float) -> None:
        value = statistics.median(values)
        print(f"{'met' if value <= limit else 'NOT MET':<8} {what}: {value:.3f} (at most {limit})")


_ORDER = (_COLD, _SAME, _EDITED, _ELSEWHERE, _SECOND)

_SECOND_MAIN = """\
#include "zstd.h"
#include <stdio.h>
int main(int argc, char **argv) {{
    char out[1000], back[100];
    size_t size = ZSTD_compress(out, sizeof out, argv[0], 9, {level});
    return ZSTD_isError(size) || ZSTD_decompress(back, sizeof back, out, size) != 9;
}}
"""


@define
class _Zstd:
    """zstd's library and programs of it, compiled by the clang that links."""

    root: Path
    sources: Path = field(init=False)
    objects: list[Path] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.sources = self.root / "sources"
        shutil.copytree(fetch(PROJECTS["zstd"], cache_dir()), self.sources)
        (self.root / "in").mkdir()
        files = sorted(self.sources.glob("zstd/lib/*/*.c"))
        self.objects = [self._compiled(path, f"{path.parent.name}_{path.stem}") for path in files]
        (self.root / "main.c").write_text(PROJECTS["zstd"].drivers["round_trip.c"])
        self.objects.append(self._compiled(self.root / "main.c", "main"))

    def _compiled(self, source: Path, name: str) -> Path:
        output = self.root / "in" / f"{name}.o"
        flags = [flag.format(sources=self.sources) for flag in PROJECTS["zstd"].flags]
        subprocess.run([CLANG, "-O2", "-flto=thin", "-fPIE", *flags, "-c", source, "-o", output], check=True)
        return output

    def program(self, number: int) -> Command:
        """The inputs of another program of the same library."""
        source = self.root / f"second{number}.c"
        source.write_text(_SECOND_MAIN.format(level=number))
        return [*self.objects[:-1], self._compiled(source, f"second{number}")]

    def inputs(self, scenario: str, number: int) -> tuple[Command, Path]:
        names: Command = [path.relative_to(self.root) for path in self.objects]
        if scenario == _EDITED:
            source = next(self.sources.glob("zstd/lib/compress/zstd_fast.c"))
            text = source.read_text()
            old = "kStepIncr = 1 << kSearchStrength;"
            assert old in text
            source.write_text(text.replace(old, f"kStepIncr = (1 << kSearchStrength) + {number + 1};"))
            edited = self._compiled(source, f"edited{number}")
            source.write_text(text)
            place = next(at for at, path in enumerate(self.objects) if path.stem == "compress_zstd_fast")
            names[place] = edited.relative_to(self.root)
        elif scenario == _ELSEWHERE:
            elsewhere = self.root / "elsewhere"
            shutil.rmtree(elsewhere, ignore_errors=True)
            shutil.copytree(self.root / "in", elsewhere / "in")
            return [*names, "-pthread"], elsewhere
        elif scenario == _SECOND:
            names = self.program(number + 1)
        return [*names, "-pthread"], self.root


_RECORDER = """\
import json, os, shutil, sys
place = {place!r}
words = []
for number, word in enumerate(sys.argv[1:]):
    if os.path.isfile(word) and not word.startswith("-"):
        copy = f"in/{{number:03}}-{{os.path.basename(word)}}"
        os.makedirs(place + "/in", exist_ok=True)
        shutil.copyfile(word, place + "/" + copy)
        word = copy
    words.append(word)
json.dump(words, open(place + "/words.json", "w"))
os.execvp("clang-22", ["clang-22", *sys.argv[1:]])
"""


@define
class _Rust:
    """The inputs of a Rust program's links, as rustc gave them to its linker."""

    root: Path
    recorded: dict[str, Path] = field(factory=dict)

    def inputs(self, scenario: str, number: int) -> tuple[Command, Path]:
        if scenario == _EDITED:
            place = self._recorded(f"edited{number}", {"alpha=12.5": f"alpha=1{number}.5"})
        elif scenario == _SECOND:
            place = self._recorded("second", {"pair.find_iter(text)": "pair.find_iter(&text[1..])", "prog": "other"})
        else:
            place = self._recorded("first", {})
        if scenario == _ELSEWHERE:
            elsewhere = self.root / "elsewhere"
            shutil.rmtree(elsewhere, ignore_errors=True)
            shutil.copytree(place, elsewhere)
            place = elsewhere
        return json.loads((place / "words.json").read_text()), place

    def _recorded(self, name: str, changes: Mapping[str, str]) -> Path:
        if name not in self.recorded:
            place = self.recorded[name] = self.root / name
            place.mkdir()
            linker = self.root / "linker"
            linker.write_text(f"#!{sys.executable}\n{_RECORDER.format(place=str(place))}")
            linker.chmod(0o755)
            checkout = self.root / "checkout"
            shutil.rmtree(checkout, ignore_errors=True)
            flags = ["-Clinker-plugin-lto", "-Clink-arg=-fuse-ld=lld", "-Clink-arg=-flto=thin"]
            write_program(checkout, flags, str(linker))
            for path in (checkout / "src/main.rs", checkout / "Cargo.toml"):
                text = path.read_text()
                for old, new in changes.items():
                    text = text.replace(old, new)
                path.write_text(text)
            cargo_build(checkout, self.root / "cargo")
            words: list[str] = json.loads((place / "words.json").read_text())
            # rustc's own lld is another LLVM, optimised with profiles: no compiler that jobs are given to is as quick.
            words = [word for word in words if "gcc-ld" not in word]
            end = words.index("-o")
            (place / "words.json").write_text(json.dumps([*words[:end], *words[end + 2 :]]))
        return self.recorded[name]


def _ten(root: Path, rounds: int) -> None:
    """Ten links at once of ten programs that share a library."""
    zstd = _Zstd(root)
    programs = [zstd.program(number) for number in range(1, 11)]
    contestants = _contestants(root)
    done: dict[str, list[float]] = {}
    for _ in range(rounds):
        for each in contestants:
            if each.cache is not None:
                shutil.rmtree(each.cache, ignore_errors=True)
            environ = {**os.environ, **({} if each.cache is None else {"LTOD_CACHE_DIR": str(each.cache)})}
            started = time.perf_counter()
            links = [
                subprocess.Popen(
                    [CLANG, "-O2", "-flto=thin", "-fuse-ld=lld", *each.flags, *words, "-pthread", "-o", f"ten{number}"],
                    cwd=root,
                    env=environ,
                )
                for number, words in enumerate(programs)
            ]
            assert not sum(link.wait() for link in links)
            done.setdefault(each.name, []).append(time.perf_counter() - started)
    print(
        f"\nten programs that share a library, linked at once, {rounds} rounds\n{'':<19} {'median s':>9} {'to lld':>8}"
    )
    for name, seconds in done.items():
        ratio = statistics.median(one / other for one, other in zip(seconds, done[_LLD], strict=True))
        print(f"{name:<19} {statistics.median(seconds):>9.2f} {ratio:>8.3f}")
    _Race._goal("ten links, to lld", [a / b for a, b in zip(done[_LTOD], done[_LLD], strict=True)], _TEN_TO_LLD)


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("zstd", "rust", "ten"), action="append", help="measure this (repeatable)")
    arguments = parser.parse_args()
    for name in arguments.only or ("zstd", "rust", "ten"):
        problem = rust_problem() if name == "rust" else None
        if problem is not None:
            print(f"\nno Rust program: {problem}")
            continue
        with tempfile.TemporaryDirectory(prefix="ltod-bench-") as directory:
            (root := Path(directory) / "set").mkdir()
            if name == "ten":
                _ten(root, arguments.rounds)
                continue
            make = _Zstd if name == "zstd" else _Rust
            subject = _Subject(name, make(root).inputs)
            race = _Race(subject, _contestants(root), root)
            race.run(arguments.rounds)
            race.report()


if __name__ == "__main__":
    main()
