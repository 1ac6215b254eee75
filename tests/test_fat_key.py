"""Layer: process. Keys of the parts of a program: equal ones mean equal objects, and an edit leaves most as they were."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import trio
from attrs import evolve, frozen

from tests.edited_program import Program
from tests.fat_bench import Bench, compiled, sources
from workers.fat import FatLinked, FatPartition
from workers.ingredients import Ingredient, IngredientKind, Key, NoKey
from workers.llvm.fat_key import partition_key, reduce_partition
from workers.work import CodegenOptions, EmitKind, Finished, LinkFile, LinkKind, LinkOptions, NeedsFatLto

pytestmark = pytest.mark.process

LLD = (Ingredient(IngredientKind.COMPILER, "ld.lld", "22"),)


@frozen
class Part:
    """A part: the digest and the key that it has, and its object."""

    digest: str
    key: str
    object: bytes


class Builder:
    """Builds a program again and again, and compiles only what has changed."""

    def __init__(self, bench: Bench, options: CodegenOptions | None = None, *flags: str) -> None:
        self.bench = bench
        self.options = options or CodegenOptions()
        self._flags = flags
        self._done: dict[str, NeedsFatLto] = {}
        self._round = 0

    async def files(self, texts: Mapping[str, str]) -> list[NeedsFatLto]:
        place = self.bench.root / "in"
        place.mkdir(exist_ok=True)
        found = []
        for name, text in texts.items():
            if text not in self._done:
                path = compiled(text, place / f"{name}.bc", "raw", *self._flags)
                self._done[text] = await self.bench.pre_linked(path, name, self.options)
            found.append(evolve(self._done[text], module=name))
        return found

    async def partitions(
        self, texts: Mapping[str, str], count: int, *, link: LinkOptions | None = None, exports: tuple[str, ...] = ()
    ) -> list[FatPartition]:
        self._round += 1
        files = await self.files(texts)
        item = self.bench.link(
            files, link=link, exports=exports, partitions=count, options=self.options, out=f"out{self._round}"
        )
        merged, parts = await self.bench.merge(item)
        assert isinstance(merged, FatLinked), merged
        return parts

    async def object(self, partition: FatPartition) -> bytes:
        with trio.fail_after(120):
            made = await self.bench.backend.fat_codegen(partition)
        assert isinstance(made, Finished), made
        return made.artifacts[0].path.read_bytes()

    async def key(self, partition: FatPartition, more: Sequence[Ingredient] = LLD) -> Key | NoKey:
        digest = await self.reduced(partition)
        return partition_key(partition, digest, more)

    async def reduced(self, partition: FatPartition) -> str:
        with trio.fail_after(120):
            digest = await reduce_partition(partition, self.bench.backend.toolchain, self.bench.workspace)
        assert digest is not None
        return digest

    async def part(self, partition: FatPartition) -> Part:
        digest = await self.reduced(partition)
        key = partition_key(partition, digest, LLD)
        assert isinstance(key, Key)
        return Part(digest, key.digest, await self.object(partition))

    async def build(self, texts: Mapping[str, str], count: int, **how: object) -> list[Part]:
        return [await self.part(one) for one in await self.partitions(texts, count, **how)]  # type: ignore[arg-type]


async def test_rounds(bench: Bench) -> None:
    rng = random.Random(7)
    program = Program(rng, 10)
    builder = Builder(bench)
    known: dict[str, bytes] = {}
    stat = [0, 0, 0, 0]
    link = bench.program()
    for _ in range(25):
        said = program.edit()
        partitions = await builder.partitions(program.sources(), 6, link=link)
        new = objs = 0
        for one in partitions:
            plain = await builder.object(one)
            part = await builder.part(one)
            assert part.object == plain
            if part.key not in known:
                new += 1
                objs += plain not in known.values()
            assert known.setdefault(part.key, plain) == plain
        print(said, new, objs)
