"""Layer: process. Keys of parts of programs: equal ones mean equal objects, and an edit leaves most as they were."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import trio
from attrs import evolve, frozen

from tests.edited_program import Program
from tests.fat_bench import Bench, compiled, sources
from tests.thin_site import DEBUG
from workers.fat import FatLinked, FatPartition
from workers.ingredients import Ingredient, IngredientKind, Key, NoKey
from workers.llvm.fat_key import partition_key, reduce_partition
from workers.work import CodegenOptions, EmitKind, Finished, LinkKind, LinkOptions, NeedsFatLto, OptLevel

pytestmark = pytest.mark.process

LLD = (Ingredient(IngredientKind.COMPILER, "ld.lld", "22"),)


LIBRARY = LinkOptions(LinkKind.SHARED, Path("lib.so"))


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
        self, texts: Mapping[str, str], count: int, link: LinkOptions | None = None
    ) -> list[FatPartition]:
        self._round += 1
        files = await self.files(texts)
        item = self.bench.link(files, link=link, partitions=count, options=self.options, out=f"out{self._round}")
        merged, parts = await self.bench.merge(item)
        assert isinstance(merged, FatLinked), merged
        return parts

    async def compiled(self, partition: FatPartition) -> bytes:
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
        return Part(digest, key.digest, await self.compiled(partition))

    async def build(self, texts: Mapping[str, str], count: int, link: LinkOptions | None = None) -> list[Part]:
        return [await self.part(one) for one in await self.partitions(texts, count, link)]


@pytest.mark.parametrize(("seed", "flags"), [(7, ()), (8, DEBUG)])
async def test_equal_keys_mean_equal_objects_in_rounds_of_edits(
    bench: Bench, seed: int, flags: tuple[str, ...]
) -> None:
    program, builder = Program(random.Random(seed), 8), Builder(bench, None, *flags)
    objects: dict[str, bytes] = {}
    for _ in range(12):
        edit = program.edit()
        for partition in await builder.partitions(program.sources(), 5, link=bench.program()):
            unreduced = await builder.compiled(partition)
            part = await builder.part(partition)
            assert part.object == unreduced, edit
            assert objects.setdefault(part.key, part.object) == part.object, edit
    # An edit that changes no object makes hardly a new key.
    assert len(objects) <= len(set(objects.values())) + 3


async def test_a_function_more_leaves_most_parts_as_they_were(bench: Bench) -> None:
    builder = Builder(bench)
    texts = sources(16)
    before = await builder.partitions(texts, 8)
    raw = {one.bitcode.read_bytes() for one in before}
    known = {(await builder.part(one)).key for one in before}
    texts["m03"] += (
        "__attribute__((noinline)) static int more(int x) { return x * 77; }\nint user(int x) { return more(x); }\n"
    )
    after = await builder.partitions(texts, 8)
    assert not any(one.bitcode.read_bytes() in raw for one in after)
    parts = [await builder.part(one) for one in after]
    assert 1 <= sum(part.key not in known for part in parts) <= 2


async def test_what_is_reduced_stays_as_it_is(bench: Bench) -> None:
    builder = Builder(bench)
    partition, *_ = await builder.partitions(sources(6), 3)
    size = partition.bitcode.stat().st_size
    digest = await builder.reduced(partition)
    assert partition.bitcode.stat().st_size < size
    assert digest == hashlib.sha256(partition.bitcode.read_bytes()).hexdigest()
    assert await builder.reduced(partition) == digest


async def test_a_whole_program_is_not_reduced(bench: Bench) -> None:
    builder = Builder(bench)
    (partition,) = await builder.partitions(sources(4), 1)
    before = partition.bitcode.read_bytes()
    assert await builder.reduced(partition) == hashlib.sha256(before).hexdigest()
    assert partition.bitcode.read_bytes() == before


async def test_a_damaged_part_is_left_to_whoever_compiles_it(bench: Bench) -> None:
    builder = Builder(bench)
    partition, *_ = await builder.partitions(sources(6), 3)
    partition.bitcode.write_bytes(partition.bitcode.read_bytes()[:-100])
    before = partition.bitcode.read_bytes()
    assert isinstance(await builder.key(partition), NoKey)
    assert partition.bitcode.read_bytes() == before
    partition.bitcode.unlink()
    assert await reduce_partition(partition, bench.backend.toolchain, bench.workspace) is None


async def test_what_code_is_generated_with_is_in_the_key(bench: Bench) -> None:
    keys = set()
    both = frozenset({EmitKind.OBJECT, EmitKind.ASSEMBLY})
    for options in (
        CodegenOptions(),
        CodegenOptions(opt_level=OptLevel.O3),
        CodegenOptions(target_cpu="x86-64-v3"),
        CodegenOptions(target_features=("+sse4.2",)),
        CodegenOptions(emit=both),
    ):
        partition, *_ = await Builder(bench, options).partitions(sources(6), 3)
        key = await Builder(bench, options).key(partition)
        assert isinstance(key, Key)
        keys.add(key.digest)
        assert partition_key(partition, "0", ()) != key
    assert len(keys) == 5


async def test_options_of_the_link_are_looked_at(bench: Bench) -> None:
    builder = Builder(bench)
    texts = sources(6) | {"main": "int walk0(int); int main(void) { return walk0(3); }"}
    keys = []
    for arguments in ((), ("-Wl,-mllvm,-unroll-threshold=9",), ("-Wl,-mllvm,-stats",), ("-Wl,--build-id=sha1",)):
        partition, *_ = await builder.partitions(texts, 2, link=bench.program("prog", *arguments))
        keys.append(await builder.key(partition))
    plain, number, printing, other = keys
    assert isinstance(plain, Key)
    assert isinstance(number, Key)
    assert plain.digest != number.digest
    assert Ingredient(IngredientKind.OPTION, "-mllvm -unroll-threshold=", "9") in number.ingredients()
    assert printing == NoKey("LLVM's option -stats may read or write more than is known", warn=True)
    assert isinstance(other, Key)
    assert other.digest == plain.digest


async def test_whose_passes_are_printed_has_no_key(bench: Bench) -> None:
    options = CodegenOptions(print_passes=True)
    builder = Builder(bench, options)
    partition, *_ = await builder.partitions(sources(4), 2)
    assert isinstance(await builder.key(partition), NoKey)


HIDING = """
__attribute__((noinline)) static int secret(int x) { return x * x + 3; }
int user(int x) { return secret(x) + secret(x + 1); }
"""


async def test_a_namesake_elsewhere_changes_the_names_of_what_was_local(bench: Bench) -> None:
    """Only in parts that have the name: what it is called in the object depends on the whole program."""
    builder = Builder(bench)
    texts = sources(8) | {"hiding": HIDING}
    before = await builder.build(texts, 6)
    # Not defined by anyone: the part's bitcode stays as it is, and the name belongs to somebody else now.
    texts["asks"] = (
        "extern int secret __attribute__((weak)); int asks(void) { return 5; } void *p(void) { return &secret; }"
    )
    after = await builder.build(texts, 6)
    known = {part.key: part.object for part in before}
    for part in after:
        assert known.get(part.key, part.object) == part.object
    assert any(b"secret.ltod" in part.object for part in before)
    assert not any(b"secret.ltod" in part.object for part in after)
    digests = {part.digest: part for part in before}
    renamed = [part for part in after if part.digest in digests and b"secret" in digests[part.digest].object]
    assert all(part.key != digests[part.digest].key for part in renamed)


async def test_a_global_more_in_a_program_does_not_touch_parts_without_it(bench: Bench) -> None:
    builder = Builder(bench)
    texts = sources(8)
    before = {part.key for part in await builder.build(texts, 6, link=LIBRARY)}
    texts["m01"] += "int one_more_global;\n"
    after = {part.key for part in await builder.build(texts, 6, link=LIBRARY)}
    assert len(after - before) == 1
