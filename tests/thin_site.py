"""A place to try ThinLTO in: modules made by clang, an engine, and what the toolchain makes of a link in one go."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from attrs import frozen

from tests.samples import TRIPLE, small_c, zig
from workers.llvm.bitcode import read_header
from workers.llvm.index_shard import read_index
from workers.llvm.lld_line import LldLines
from workers.llvm.thin_engine import ThinEngine
from workers.llvm.toolchain import Toolchain
from workers.thin import ThinCompile, ThinLink, ThinLinked
from workers.work import (
    CodegenOptions,
    EmitKind,
    Engine,
    Failed,
    Finished,
    LinkFile,
    LinkKind,
    LinkOptions,
    NeedsThinLto,
    Step,
    Target,
    artifact_path,
)

__all__ = [
    "COUNT",
    "DEBUG",
    "PIC",
    "PIE",
    "PROGRAM",
    "SMALL",
    "Site",
    "always_clang",
    "always_lld",
    "imports_of",
    "needs_cc",
    "pre_linked",
]

needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no cc")

PIC = ("-mrelocation-model", "pic", "-pic-level", "2")
PIE = (*PIC, "-pic-is-pie")
DEBUG = ("-debug-info-kind=constructor", "-dwarf-version=5")

COUNT = 4
SMALL = {f"small/{number}": small_c(number, COUNT) for number in range(COUNT)}
PROGRAM = SMALL | {
    "zmain": """
    struct deep { int depth, width; }; extern _Thread_local int level; extern int shared_table[8];
    int walk0(int); int counted(struct deep *); int renamed(int); int chosen(int);
    int perhaps(int) __attribute__((weak));
    __attribute__((visibility("hidden"))) extern int hidden_sum;
    int main(int argc, char **argv) {
      struct deep d = {argc, 2}; level += argc; hidden_sum += shared_table[argc & 7];
      return walk0(argc) + counted(&d) + renamed(argc) + chosen(argc) + (perhaps ? perhaps(argc) : hidden_sum);
    }""",
    "state": """
    struct deep { int depth, width; }; _Thread_local int level; static int calls; int shared_table[8] = {3, 1, 4};
    int hidden_sum __attribute__((visibility("hidden")));
    static int promoted(int x) { for (int k = 0; k < x; k++) calls += shared_table[k & 7] * k; return calls; }
    int counted(struct deep *d) { return promoted(d->depth) + promoted(d->width) + level; }
    """,
    "another": """
    extern int shared_table[8]; int original(int x) { return x * shared_table[1] + 5; }
    int renamed(int) __attribute__((alias("original")));
    static int one(int x) { return x; } static int two(int x) { return x + 2; }
    static int (*resolve(void))(int) { return shared_table[0] > 1 ? one : two; }
    int chosen(int) __attribute__((ifunc("resolve")));
    __attribute__((weak)) int perhaps(int x) { return x ^ original(x); }
    """,
}


@frozen
class Site:
    """A directory, the engine to be tested, and what the same toolchain makes of a link in one go."""

    root: Path
    toolchain: Toolchain
    lines: LldLines
    engine: ThinEngine

    @property
    def scratch(self) -> Path:
        return self.root / "scratch"

    def item(
        self,
        modules: Sequence[NeedsThinLto | LinkFile],
        link: LinkKind | None = None,
        *,
        exports: tuple[str, ...] = (),
        options: CodegenOptions | None = None,
    ) -> ThinLink:
        directory = self.root / f"build{len(list(self.root.glob('build*')))}"
        directory.mkdir()
        arguments: tuple[str, ...] = (
            ("-nostdlib", "-Wl,--entry=main") if link is LinkKind.EXECUTABLE else ("-nostdlib",)
        )
        if link is LinkKind.STATIC:
            arguments = ()
        return ThinLink(
            tuple(modules),
            LinkOptions(link, directory / "program", (), arguments) if link is not None else None,
            exports,
            options or CodegenOptions(),
            Target(TRIPLE, ""),
            directory / "thin",
            directory / "out",
            directory / "reproducers",
        )

    async def reference(self, item: ThinLink, *extra: str) -> list[bytes]:
        """lld's own objects: the regular part, then those of the modules in its order."""
        files = [file.bitcode if isinstance(file, NeedsThinLto) else file.path for file in item.files]
        line = await self.lines.line(item.link, item.exports, files, item.options, item.target)
        directory = item.directory.with_name("reference")
        directory.mkdir()
        lazy = item.link is not None and item.link.kind is not LinkKind.STATIC
        paths = [(str(path), lazy and file.lazy) for path, file in zip(files, item.files, strict=True)]
        argv = line.argv(paths, str(directory / "program"), [f"--lto-obj-path={directory / 'o'}", *extra])
        await trio.run_process(argv)
        objects = [directory / "o"]
        while (following := directory / f"o{len(objects)}").exists():
            objects.append(following)
        return [path.read_bytes() for path in objects]

    async def linked(self, item: ThinLink) -> ThinLinked:
        with trio.fail_after(120):
            result = await self.engine.thin_link(item)
        assert isinstance(result, ThinLinked), result
        return result

    async def compile(self, batch: Sequence[ThinCompile]) -> list[Finished | Failed]:
        with trio.fail_after(300):
            results = list(await self.engine.thin_compile(batch))
        assert [result.module for result in results] == [one.name for one in batch]
        assert all(result.step is Step.THIN_BACKEND for result in results)
        return results

    async def objects(self, batches: Sequence[Sequence[ThinCompile]]) -> dict[str, bytes]:
        found = {}
        for batch in batches:
            for result in await self.compile(batch):
                assert isinstance(result, Finished), result
                assert result.diagnostics == ()
                assert result.peak_rss_bytes > 0
                (artifact,) = result.artifacts
                assert artifact.path == artifact_path(batch[0].link.item.out_dir, result.module, EmitKind.OBJECT)
                found[result.module] = artifact.path.read_bytes()
                assert artifact.bytes == len(found[result.module])
                artifact.path.unlink()
        return found


def imports_of(compile_: ThinCompile) -> set[str]:
    """The modules that functions are imported from, by name: those that the shard names beside its own."""
    paths = {module.path.decode() for module in read_index(compile_.shard.read_bytes()).modules}
    return {compile_.link.names[path] for path in paths} - {compile_.name}


def pre_linked(directory: Path, sources: dict[str, str], *flags: str, language: str = "c") -> list[NeedsThinLto]:
    """Modules as they come out of the pre-link pipeline, in the order of `sources`."""
    directory.mkdir(exist_ok=True)
    modules = []
    for number, (name, source) in enumerate(sources.items()):
        path = directory / f"{number}.bc"
        argv = [zig(), "clang", "-cc1", "-triple", TRIPLE, "-O2", "-flto=thin", "-flto-unit", "-emit-llvm-bc"]
        argv += ["-vectorize-loops", "-vectorize-slp", *flags, "-x", language, "-", "-o", str(path)]
        subprocess.run(argv, input=source.encode(), check=True)
        size = read_header(path.read_bytes()).code_bytes
        modules.append(NeedsThinLto(name, path, size, False, str(path), Engine.TOOLCHAIN, 0.0, 0))
    return modules


def always_clang(compiles: Sequence[ThinCompile]) -> None:
    compiles[0].link.again_seconds = float("inf")


def always_lld(compiles: Sequence[ThinCompile]) -> None:
    compiles[0].link.by_clang = False
