"""Builds the same program again and again after edits, with a cache and without: for tests of what is made again."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from attrs import define, field, frozen

from coordinator import (
    BuildConfig,
    BuildResult,
    Cache,
    CacheOutcome,
    CodegenOptions,
    FatLto,
    LinkKind,
    LinkOptions,
    Module,
    Step,
    ThinLto,
    open_coordinator,
)
from tests.samples import TRIPLE, zig

__all__ = ["Built", "Lab"]


@frozen
class Built:
    """A build: its result, the bytes of its artifacts and of its program."""

    result: BuildResult
    files: Mapping[str, bytes] = field(repr=False)

    def made(self, step: Step) -> set[str]:
        """What had to be made in a step."""
        return {
            one.module for one in self.result.results if one.step is step and one.cache.outcome is CacheOutcome.MISS
        }

    def outcomes(self, step: Step) -> set[CacheOutcome]:
        """What the cache did in a step."""
        return {one.cache.outcome for one in self.result.results if one.step is step}

    def reason(self, module: str, step: Step) -> str:
        """Why the cache did so."""
        (reason,) = (one.cache.reason for one in self.result.results if (one.module, one.step) == (module, step))
        return reason


@define
class Lab:
    """A place with a cache. Sources are C, by module; what a source is compiled to is remembered."""

    place: Path
    lto: ThinLto | FatLto | None
    cache: Path = field(init=False)
    _bitcode: dict[str, Path] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self.cache = self.place / "cache"

    def bitcode(self, sources: Mapping[str, str]) -> dict[str, Path]:
        """Raw bitcode of each module."""
        digests = {name: hashlib.sha256(f"{name} {text}".encode()).hexdigest()[:24] for name, text in sources.items()}
        missing = [(name, digest) for name, digest in digests.items() if digest not in self._bitcode]

        def compiled(name: str, digest: str) -> Path:
            # A module knows its source by a name without a directory, as if it were edited in its place.
            directory = self.place / "bitcode" / digest
            directory.mkdir(parents=True)
            (directory / f"{name}.c").write_text(sources[name])
            flags = ["-triple", TRIPLE, "-O2", "-disable-llvm-passes", "-emit-llvm-bc", f"{name}.c", "-o", "out.bc"]
            subprocess.run([zig(), "clang", "-cc1", *flags], check=True, cwd=directory)
            return directory / "out.bc"

        with ThreadPoolExecutor(2) as pool:
            paths = pool.map(lambda one: compiled(*one), missing)
            self._bitcode |= {digest: path for (_, digest), path in zip(missing, paths, strict=True)}
        return {name: self._bitcode[digest] for name, digest in digests.items()}

    async def build(
        self,
        sources: Mapping[str, str],
        out: str = "out",
        *,
        options: CodegenOptions | None = None,
        arguments: tuple[str, ...] = (),
        toolchain: Path | None = None,
        cached: bool = True,
    ) -> Built:
        """Build all of it into the directory `out`."""
        directory = self.place / out
        program = directory / "program"
        config = BuildConfig(
            out_dir=directory,
            codegen=options or CodegenOptions(),
            lto=self.lto,
            link=LinkOptions(LinkKind.EXECUTABLE, program, arguments=arguments),
        )
        cache = Cache(directory=self.cache) if cached else None
        modules = self.bitcode(sources)
        async with (
            open_coordinator(jobs=2, cache=cache, toolchain=toolchain, short_lived=True) as coordinator,
            coordinator.build(config) as build,
        ):
            for name, path in modules.items():
                await build.submit(Module(name, path))
            result = await build.finish()
        files = {artifact.path.name: artifact.path.read_bytes() for artifact in result.artifacts}
        return Built(result, {**files, "program": program.read_bytes()})

    async def twins(self, sources: Mapping[str, str], out: str = "out", **options: object) -> Built:
        """Build with the cache, and compare with a build that has none."""
        built = await self.build(sources, out, **options)  # type: ignore[arg-type]
        cold = await self.build(sources, "cold", cached=False, **options)  # type: ignore[arg-type]
        assert built.files.keys() == cold.files.keys()
        assert [name for name in cold.files if built.files[name] != cold.files[name]] == []
        return built
