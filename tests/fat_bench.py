"""A place to try fat LTO in: modules made by clang in every form, and a backend that merges them."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import trio
from attrs import frozen

from tests.samples import TRIPLE, small_c, zig
from workers.fat import FatLink, FatLinked, FatPartition, partition_name
from workers.llvm.codegen import LlvmBackend
from workers.work import (
    CodegenOptions,
    EmitKind,
    Failed,
    Finished,
    Link,
    Linked,
    LinkFile,
    LinkKind,
    LinkOptions,
    Module,
    NeedsFatLto,
    Optimize,
    PreLink,
    Step,
)

__all__ = ["ADD", "MAIN", "NATIVE", "TWICE", "Bench", "compiled", "functions", "in_process", "ran", "sources"]

MAIN = """
int printf(const char *, ...);
int add(int, int); int twice(int); int native(int);
int square(int x) { return x * x; }
int main(int argc, char **argv) { return add(twice(argc), square(3)) + native(1) == 18 ? 42 : 1; }
"""
ADD = "int add(int a, int b) { return a + b; }\n"
TWICE = "int add(int, int); int twice(int x) { return add(x, x); }\n"
NATIVE = "int square(int); int native(int x) { return square(x + 1) + 3; }\n"
"""Native code that calls into bitcode."""

_FLAGS = {
    "raw": ("-disable-llvm-passes",),
    "thin": ("-flto=thin", "-flto-unit"),
    "unified": ("-flto=thin", "-flto-unit", "-funified-lto"),
    "full": ("-flto=full", "-flto-unit"),
}


def ran(*argv: str | Path) -> subprocess.CompletedProcess[bytes]:
    """A short run of a program."""
    return subprocess.run(argv, capture_output=True, check=False)


def compiled(text: str, output: Path, kind: str = "raw", *more: str) -> Path:
    """C as bitcode of one kind, or as an object."""
    source = output.with_suffix(".c")
    source.write_text(text)
    what = ("-emit-obj",) if kind == "native" else (*_FLAGS[kind], "-emit-llvm-bc")
    pic = ("-mrelocation-model", "pic", "-pic-level", "2")
    flags = ("-triple", TRIPLE, "-target-cpu", "x86-64", "-O2", *pic, *what, *more, str(source), "-o", str(output))
    made = ran(zig(), "clang", "-cc1", *flags)
    assert made.returncode == 0, made.stderr
    return output


@frozen
class Bench:
    """A backend, and a build's directories."""

    backend: LlvmBackend
    root: Path
    workspace: Path

    async def pre_linked(self, path: Path | bytes, name: str, options: CodegenOptions, **module: Any) -> NeedsFatLto:
        one = Module(name, path, **module)
        seen = self.backend.inspect(one, options, PreLink.FAT)
        file = self.workspace / f"{len(list(self.workspace.iterdir()))}.bc"
        item = Optimize(
            one, options, self.root, self.root / "repro", seen.target, seen.size, PreLink.FAT, file, seen.pre_linked
        )
        (result,) = await self.backend.compile([item])
        assert isinstance(result, NeedsFatLto), result
        return result

    async def files(self, sources: Mapping[str, str], options: CodegenOptions, kind: str = "raw") -> list[NeedsFatLto]:
        place = self.root / "in"
        place.mkdir(exist_ok=True)
        return [
            await self.pre_linked(compiled(text, place / f"{name}.bc", kind), name, options)
            for name, text in sources.items()
        ]

    def link(
        self,
        files: Sequence[NeedsFatLto | LinkFile],
        *,
        link: LinkOptions | None = None,
        exports: tuple[str, ...] = (),
        partitions: int | None = None,
        options: CodegenOptions | None = None,
        out: str = "out",
    ) -> FatLink:
        options = options or CodegenOptions()
        target = self.backend.inspect(Module("m", f'target triple = "{TRIPLE}"\n'.encode()), options).target
        return FatLink(
            tuple(files),
            link,
            exports,
            partitions,
            options,
            target,
            self.workspace,
            self.root / out,
            self.root / "repro",
        )

    def program(self, name: str = "prog", *arguments: str) -> LinkOptions:
        return LinkOptions(LinkKind.EXECUTABLE, self.root / name, arguments=arguments)

    async def merge(self, item: FatLink) -> tuple[FatLinked | Failed, list[FatPartition]]:
        parts: list[FatPartition] = []
        with trio.fail_after(120):
            result = await self.backend.fat_link(item, parts.append)
        assert len({part.name for part in parts}) == len(parts)
        return result, sorted(parts, key=lambda part: part.name)

    async def generate(self, parts: Sequence[FatPartition]) -> list[Finished | Failed]:
        with trio.fail_after(120):
            return [await self.backend.fat_codegen(part) for part in parts]

    async def objects(self, item: FatLink) -> list[LinkFile]:
        """All of fat LTO, without a failure."""
        merged, parts = await self.merge(item)
        assert isinstance(merged, FatLinked), merged
        assert merged.partitions == len(parts)
        results = await self.generate(parts)
        objects = []
        for number, result in enumerate(results):
            assert isinstance(result, Finished), result
            assert result.step is Step.FAT_CODEGEN
            assert result.module == partition_name(number)
            objects += [LinkFile(result.module, one.path) for one in result.artifacts if one.kind is EmitKind.OBJECT]
        return objects

    async def run(self, item: FatLink) -> int:
        """The exit status of the program."""
        objects = await self.objects(item)
        natives = [file for file in item.files if isinstance(file, LinkFile)]
        assert item.link is not None
        link = Link(item.link, (*objects, *natives), item.options, item.target, self.root / "repro")
        with trio.fail_after(120):
            linked = await self.backend.link(link)
        assert isinstance(linked, Linked), linked
        return ran(item.link.output).returncode


def functions(*paths: Path) -> dict[str, bytes]:
    """The code of each function in objects compiled with a section for each."""
    found: dict[str, bytes] = {}
    for path in paths:
        data = path.read_bytes()
        (table,) = struct.unpack_from("<Q", data, 0x28)
        _, count, names = struct.unpack_from("<HHH", data, 0x3A)
        headers = [struct.unpack_from("<IIQQQQIIQQ", data, table + 64 * number) for number in range(count)]
        strings = headers[names][4]
        for name, _, flags, _, offset, size, *_ in headers:
            label = data[strings + name : data.index(b"\0", strings + name)].decode()
            if flags & 4 and size:  # SHF_EXECINSTR
                assert label not in found
                found[label] = data[offset : offset + size]
    return found


def sources(count: int = 12) -> dict[str, str]:
    return {f"m{number:02}": small_c(number, count) for number in range(count)}


def in_process(bench: Bench, files: Sequence[NeedsFatLto], *arguments: str) -> list[Path]:
    """The objects that lld itself makes of the same modules, in a relocatable link."""
    place = bench.root / "ref"
    place.mkdir()
    lld = [zig(), "ld.lld", "-r", *(str(file.bitcode) for file in files), *arguments]
    subprocess.run([*lld, "-o", str(place / "out.o"), f"--lto-obj-path={place / 'lto.o'}"], check=True)
    return sorted(place.glob("lto.o*"))
