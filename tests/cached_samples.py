"""What the tests of cached results share: backends over the fake one, builds, and a child process that builds.

python -m tests.cached_samples CACHE OUT LTO NAME CONTENT...    build, and print what was made and where it came from
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import trio
from attrs import define, field

from coordinator import (
    BuildConfig,
    BuildFailed,
    BuildResult,
    Cache,
    CodegenOptions,
    EmitKind,
    FatLto,
    LinkKind,
    LinkOptions,
    Module,
    ThinLto,
    open_coordinator,
)
from workers.cached import CachedBackend
from workers.fake import FakeBackend
from workers.fake_keys import FakeKeys, KeyedFakeBackend
from workers.fat import FatLink, FatLinked, FatPartition
from workers.ingredients import Key
from workers.store import LocalStore, open_store
from workers.thin import ThinCompile, ThinLink, ThinLinked
from workers.work import (
    CacheOutcome,
    CopyArtifacts,
    Deferred,
    Failed,
    Finished,
    LinkFile,
    NeedsFatLto,
    NeedsThinLto,
    Optimize,
    PreLink,
    Step,
    Target,
)

ROOMY = 1 << 30
MODULES = {"a": b"content of a warn=careful", "b": b"content of b", "c": b"content of c"}
TARGET = Target("fake-unknown-none", "e")
LTO: Mapping[str, ThinLto | FatLto | None] = {"none": None, "thin": ThinLto(), "fat": FatLto(partitions=2)}


class Persistent(CachedBackend):
    """Looks items up and tries what was deferred again, as the loops do: has results where others have none yet."""

    def at_once(self, item: Optimize) -> NeedsThinLto | NeedsFatLto | None:
        return self._inner.at_once(item)

    async def compile(
        self, batch: Sequence[Optimize | CopyArtifacts]
    ) -> Sequence[Finished | NeedsThinLto | NeedsFatLto | Failed]:
        looked_up = [await self.look_up(item) if isinstance(item, Optimize) else item for item in batch]
        todo = [item for item in looked_up if isinstance(item, Optimize | CopyArtifacts)]
        done = iter([await self._until_done(*pair) for pair in zip(todo, await super().compile(todo), strict=True)])
        return [next(done) if isinstance(item, Optimize | CopyArtifacts) else item for item in looked_up]

    async def _until_done(
        self, item: Optimize | CopyArtifacts, result: Finished | NeedsThinLto | NeedsFatLto | Failed | Deferred
    ) -> Finished | NeedsThinLto | NeedsFatLto | Failed:
        while isinstance(result, Deferred):
            await result.released()
            (result,) = await super().compile([item])
        return result

    async def thin_compile(
        self, batch: Sequence[ThinCompile], *, keep_going: bool = True
    ) -> Sequence[Finished | Failed]:
        results = []
        for item, first in zip(batch, await super().thin_compile(batch, keep_going=keep_going), strict=False):
            result = first
            while isinstance(result, Deferred):
                await result.released()
                (result,) = await super().thin_compile([item], keep_going=keep_going)
            results.append(result)
        return results

    async def fat_link(self, item: FatLink, ready: Callable[[FatPartition], None]) -> FatLinked | Failed:
        while isinstance(result := await super().fat_link(item, ready), Deferred):
            await result.released()
        return result

    async def fat_codegen(self, partition: FatPartition) -> Finished | Failed:
        while isinstance(result := await super().fat_codegen(partition), Deferred):
            await result.released()
        return result


@define
class Desk:
    """One user of a store: a fake compiler with a memory, and a place of its own for what it makes."""

    store: LocalStore
    place: Path
    fake: FakeBackend = field(factory=FakeBackend)
    cached: CachedBackend = field(init=False)
    emit: frozenset[EmitKind] = frozenset({EmitKind.OBJECT})

    def __attrs_post_init__(self) -> None:
        self.place.mkdir(exist_ok=True)
        self.cached = CachedBackend(self.fake, FakeKeys(self.fake), self.store)

    @property
    def out(self) -> Path:
        return self.place / "out"

    @property
    def options(self) -> CodegenOptions:
        return CodegenOptions(emit=self.emit)

    def made(self, step: Step) -> list[str]:
        """What was made since this was asked last."""
        names = [name for one, name in self.fake.made if one is step]
        self.fake.made[:] = [one for one in self.fake.made if one[0] is not step]
        return names

    def item(self, name: str, content: bytes | Path, pre_link: PreLink | None = None, **more: object) -> Optimize:
        bitcode = None if pre_link is None else self.place / f"{name}-{pre_link.value}.bc"
        module = Module(name, content, **more)  # type: ignore[arg-type]
        return Optimize(module, self.options, self.out, self.place / "repro", TARGET, 1, pre_link, bitcode)

    async def compile(self, *items: Optimize) -> Sequence[Finished | NeedsThinLto | NeedsFatLto | Failed | Deferred]:
        return await self.cached.compile([await self.look_up(item) for item in items])

    async def look_up(self, item: Optimize) -> Optimize | CopyArtifacts:
        todo = await self.cached.look_up(item)
        assert isinstance(todo, Optimize | CopyArtifacts)
        return todo

    async def one(self, name: str, content: bytes | Path) -> Finished | Failed | Deferred:
        (result,) = await self.compile(self.item(name, content))
        assert isinstance(result, Finished | Failed | Deferred)
        return result

    async def thin_link(self, modules: Mapping[str, bytes], *native: LinkFile, **more: bool) -> ThinLink:
        """A thin link of modules, in a directory of its own. `more` says by name which are lazy."""
        items = [self.item(name, content, PreLink.THIN, lazy=name in more) for name, content in modules.items()]
        results = [result for item in items for result in await self.compile(item)]
        files = [one for one in results if isinstance(one, NeedsThinLto)]
        assert len(files) == len(modules)
        return ThinLink(
            (*files, *native), None, (), self.options, TARGET, self._directory(), self.out, self.place / "repro"
        )

    async def thin_linked(self, modules: Mapping[str, bytes], **more: bool) -> ThinLinked:
        linked = await self.cached.thin_link(await self.thin_link(modules, **more))
        assert isinstance(linked, ThinLinked), linked
        return linked

    async def fat_link(
        self, modules: Mapping[str, bytes], partitions: int = 2, directory: Path | None = None
    ) -> FatLink:
        items = [self.item(name, content, PreLink.FAT) for name, content in modules.items()]
        results = [result for item in items for result in await self.compile(item)]
        files = [one for one in results if isinstance(one, NeedsFatLto)]
        assert len(files) == len(modules)
        return FatLink(
            tuple(files),
            None,
            (),
            partitions,
            self.options,
            TARGET,
            directory or self._directory(),
            self.out,
            self.place / "repro",
        )

    def _directory(self) -> Path:
        directory = self.place / f"work{len(list(self.place.iterdir()))}"
        directory.mkdir()
        return directory


def checked(results: Sequence[object]) -> list[Finished]:
    found = [result for result in results if isinstance(result, Finished)]
    assert len(found) == len(results), results
    for result in found:
        for artifact in result.artifacts:
            assert artifact.path.stat().st_size == artifact.bytes
    return found


def objects(results: Sequence[object]) -> dict[str, bytes]:
    return {one.module: one.artifacts[0].path.read_bytes() for one in checked(results)}


def use(result: object) -> CacheOutcome:
    assert isinstance(result, Finished | Failed | NeedsThinLto | NeedsFatLto | ThinLinked | FatLinked), result
    return result.cache.outcome


def uses(results: Sequence[object]) -> list[CacheOutcome]:
    return [use(result) for result in results]


def entry_of(store_directory: Path, key: str) -> Path:
    return store_directory / "v1" / "ac" / key[:2] / key


def damage(store: Path) -> None:
    for blob in store.glob("v1/cas/*/*"):
        blob.unlink()  # what a build has of it already is not harmed
        blob.write_bytes(b"damaged")


async def touched(path: Path) -> None:
    await trio.sleep(0.02)
    path.touch()


def note_of(**note: object) -> bytes:
    """A note in the store's keeping, as if it were of a result."""
    return zlib.compress(json.dumps({"engine": "toolchain", "diagnostics": [], **note}).encode() + b"\n[]")


def forget(desk: Desk) -> None:
    """From now on, whatever a key was made of has changed in the meantime."""

    class Suspicious(FakeKeys):
        def unchanged(self, key: Key) -> bool:
            return False

    desk.cached = CachedBackend(desk.fake, Suspicious(desk.fake), desk.store)


@contextmanager
def opened(directory: Path) -> Iterator[LocalStore]:
    with open_store(directory, limit_bytes=ROOMY) as store:
        yield store


async def build(
    cache: Path | None,
    out: Path,
    modules: Mapping[str, bytes],
    *,
    lto: ThinLto | FatLto | None = None,
    backend: FakeBackend | None = None,
    keep_going: bool = False,
    link: bool = False,
    jobs: int = 1,
) -> BuildResult:
    """A build with a coordinator of its own."""
    config = BuildConfig(
        out_dir=out,
        lto=lto,
        keep_going=keep_going,
        link=LinkOptions(LinkKind.EXECUTABLE, out / "program") if link else None,
    )
    async with open_coordinator(
        jobs=jobs,
        backend=backend or KeyedFakeBackend(),
        memory_budget=2**40,
        environ={},
        cache=None if cache is None else Cache(directory=cache),
    ) as coordinator:
        try:
            async with coordinator.build(config) as one:
                for name, content in modules.items():
                    await one.submit(Module(name, content))
                return await one.finish()
        except BuildFailed as failed:
            return failed.result


def outcomes(result: BuildResult, step: Step | None = None) -> dict[str, str]:
    """What the cache did, by name."""
    return {
        one.module if step is not None else f"{one.module} {one.step.value}": one.cache.outcome.value
        for one in result.results
        if step in (None, one.step)
    }


@contextmanager
def child(cache: Path, out: Path, lto: str, modules: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A build in a process of its own, killed when the block is left."""
    words = [word for pair in modules.items() for word in pair]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.cached_samples", str(cache), str(out), lto, *words],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=Path(__file__).parents[1],
    ) as process:
        try:
            yield process
        finally:
            process.kill()


async def said(process: subprocess.Popen[str]) -> dict[str, dict[str, str] | list[list[str]]]:
    """What a child that builds says when it is done."""
    output, _ = await trio.to_thread.run_sync(process.communicate)
    answer = json.loads(output)
    assert isinstance(answer, dict)
    return answer


async def until(path: Path) -> None:
    """Wait for a file of somebody else's."""
    with trio.fail_after(30):
        while not path.exists():  # noqa: ASYNC110
            await trio.sleep(0.01)


def _main(cache: str, out: str, lto: str, *words: str) -> None:
    backend = KeyedFakeBackend()
    modules = {name: content.encode() for name, content in zip(words[::2], words[1::2], strict=True)}

    async def run() -> BuildResult:
        return await build(Path(cache), Path(out), modules, lto=LTO[lto], backend=backend, jobs=2)

    result = trio.run(run)
    made = [[step.value, name] for step, name in backend.made]
    print(json.dumps({"made": made, "outcomes": outcomes(result)}), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
